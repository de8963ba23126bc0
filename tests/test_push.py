"""Adapters and bases on a Hub that runs on this machine: what is sent, what is refused, and the way back."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from pvchat.cli import main
from pvchat.dataset_builder import ConsentRecord
from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import PVChatError
from pvchat.hub import refuse_private, subject_folder
from pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.push import push_adapter, push_model
from pvchat.session import EMBEDDED_BASE, VideoChat
from tests.loopback_hub import LoopbackHub, Repo
from tests.small_datasets import RECORD
from tests.small_runs import write_run, write_tiny_run
from tests.test_remote_code import CODE
from tests.tiny import SUBJECT, tiny_clip

ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "subject.json"}
QUESTION = "Is <Nz> in this video?"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("pair"), seed=1)


@pytest.fixture(scope="module")
def base(pair):
    return pair[0]


@pytest.fixture(scope="module")
def run(pair):
    return pair[1]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "Nz", consent=RECORD)


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def files_of(result):
    return {file["path"]: file["bytes"] for file in result["files"]}


def refusal(function, *words, **options):
    with pytest.raises(PVChatError) as caught:
        function(*words, "ada/nz", dry_run=True, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def process(code, env, cwd=None):
    """Runs code in a process of its own; returns what it prints."""
    env = {**env, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


# -- what would be sent ----------------------------------------------------------------------------------------------


def test_a_dry_run_lists_the_files_of_a_plain_peft_repository(run, capsys):
    result = push_adapter(run / "adapter", "ada/nz", dry_run=True)
    assert set(files_of(result)) == ADAPTER and result["url"] is None and result["private"]
    weights = (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert files_of(result)["adapter_model.safetensors"] == weights
    assert result["bytes"] == sum(files_of(result).values()) and result["consents"] == []
    assert main(["push", str(run), "--repo", "ada/nz", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "adapter_model.safetensors" in shown and "private" in shown and "Nothing was sent to ada/nz." in shown
    assert main(["push", str(run), "--repo", "ada/nz", "--dry-run", "--json"]) == 0
    assert set(files_of(json.loads(capsys.readouterr().out))) == ADAPTER


def test_a_dry_run_of_a_base_brings_the_code_and_no_working_files(base, tmp_path, capsys):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    (folder / "notes.txt").write_text("/home/ada/secret")
    (folder / "optimizer.pt").write_bytes(b"x")
    files = set(files_of(push_model(folder, "ada/tiny", licence="mit", dry_run=True)))
    assert files >= CODE | {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
    assert not {"notes.txt", "optimizer.pt"} & files
    assert main(["push-model", "--repo", "ada/pvchat-cartoon", "--dry-run", "--json"]) == 0
    embedded = files_of(json.loads(capsys.readouterr().out))
    assert set(embedded) >= CODE | {"training.json", "pretraining.json"}
    assert embedded["model.safetensors"] == (EMBEDDED_BASE / "model.safetensors").stat().st_size


def test_what_is_no_adapter_or_no_model_or_no_name_is_one_line(run, tmp_path):
    assert "not a subject's adapter" in refusal(push_adapter, tmp_path)
    assert "is not a model" in refusal(push_model, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "not a PVChat model" in refusal(push_model, tmp_path, licence="mit")
    for wrong in ({"base": "tiny-base"}, {"datasets": ["../x"]}):
        assert "must be USER/NAME" in refusal(push_adapter, run / "adapter", **wrong)
    damaged = tmp_path / "adapter"
    shutil.copytree(run / "adapter", damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"\xff" * 16)
    assert "not a safetensors file" in refusal(push_adapter, damaged)
    (damaged / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refusal(push_adapter, damaged)


def test_a_reason_without_words_is_named_by_its_kind(base, monkeypatch):
    def fail(*words):
        raise OSError

    monkeypatch.setattr("pvchat.modeling_pvchat.PVChatConfig.from_pretrained", fail)
    assert "not a PVChat model (OSError)" in refusal(push_model, base, licence="mit")


def test_a_base_without_a_known_licence_is_refused(base):
    assert "--licence" in refusal(push_model, base)


# -- nothing local, nothing secret, nobody unasked -------------------------------------------------------------------


@pytest.mark.parametrize("planted", ["/home/ada/films/nz.mp4", "hf_" + "a1B2" * 8])
@pytest.mark.parametrize("name", ["subject.json", "adapter_config.json"])
def test_a_path_or_a_secret_in_an_adapter_stops_the_upload(run, tmp_path, name, planted):
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | {"note": planted}))
    said = refusal(push_adapter, folder, i_have_consent=True)
    assert said.startswith(f"{name} holds") and "a1B2" * 8 not in said


def test_a_path_in_the_header_of_the_weights_stops_the_upload(run, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file(weights, tmp_path / "adapter_model.safetensors", {"trained_on": "/home/ada/films/nz.mp4"})
    with pytest.raises(PVChatError, match="adapter_model.safetensors holds the path /home/ada"):
        refuse_private(tmp_path)


def test_a_real_person_s_adapter_needs_the_record_of_its_run(real, tmp_path):
    assert len(push_adapter(real / "adapter", "ada/nz", dry_run=True)["consents"]) == 1
    shutil.copytree(real, tmp_path / "run")
    (tmp_path / "run" / "subject.json").unlink()
    adapter = tmp_path / "run" / "adapter"
    assert "no consent record of <Nz>" in refusal(push_adapter, adapter)
    assert "no consent record of <Nz>" in refusal(
        push_adapter, adapter, consents=[ConsentRecord("Bo", "2026-01-31", "publish")]
    )
    assert push_adapter(adapter, "ada/nz", consents=[RECORD], dry_run=True)["consents"]


def test_an_adapter_whose_origin_is_unknown_needs_a_record_that_covers_publishing(run, real, tmp_path):
    for source in (run, real):
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
        shutil.copytree(source / "adapter", tmp_path / "adapter")
        assert "pass --consent FILE, or --i-have-consent" in refusal(push_adapter, tmp_path / "adapter")
    narrow = ConsentRecord("N. Z.", "2026-01-31", "train a model for me")
    assert "does not say 'publish'" in refusal(push_adapter, tmp_path / "adapter", consents=[narrow])
    assert push_adapter(tmp_path / "adapter", "ada/nz", i_have_consent=True, dry_run=True)["consents"]


def test_neither_record_nor_video_is_in_what_is_sent(real):
    result = push_adapter(real / "adapter", "ada/nz", dry_run=True)
    assert set(files_of(result)) == ADAPTER
    with pytest.raises(SystemExit):
        main(["push", "--help"])


def test_a_place_that_is_neither_folder_nor_repository_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert subject_folder(tmp_path) == tmp_path and subject_folder(tmp_path / "no") == tmp_path / "no"
    with pytest.raises(PVChatError, match="ada/nobody is no folder, and cannot be fetched") as caught:
        subject_folder("ada/nobody")
    assert "\n" not in str(caught.value)


# -- there and back --------------------------------------------------------------------------------------------------

# A process without the package: runs the code of both cards as it stands there, and streams the data.
STRANGER = """
    import json, re, sys
    sys.modules["pvchat"] = None
    import torch
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    torch.set_num_threads(1)
    names = {}
    for repo in ("ada/tiny", "ada/nz"):
        card = open(hf_hub_download(repo, "README.md"), encoding="utf-8").read()
        for block in re.findall(r"```python\\n(.*?)```", card, re.S):
            if "from pvchat" not in block:
                exec(block, names)
    model, inputs = names["model"], names["inputs"]
    with torch.no_grad():
        out = {"inputs": dict(inputs), "adapter": model(**inputs).logits}
        with model.disable_adapter():
            out["base"] = model(**inputs).logits
    out["rows"] = [row["qa_id"] for row in load_dataset("ada/videos", "qa", split="train", streaming=True)]
    torch.save(out, "out.pt")
"""

FRIEND = """
    import json
    from pvchat import VideoChat
    chats = [VideoChat.from_pretrained(base, "ada/nz") for base in (None, "ada/tiny")]
    print(json.dumps([chat.ask("clip.mp4", "Is <Nz> in this video?") for chat in chats]))
"""


@pytest.mark.slow
def test_all_that_was_pushed_comes_back_and_answers_the_same(hub, base, run, tmp_path):
    for words in (
        ("push-model", base, "--repo", "ada/tiny", "--licence", "mit", "--public"),
        ("push", run, "--repo", "ada/nz", "--base", "ada/tiny", "--dataset", "ada/videos"),
        ("push-dataset", run / "dataset", "--repo", "ada/videos"),
    ):
        code, result, said = hub.pvchat(*words)
        assert code == 0 and result["url"].startswith(hub.url) and not result["dry_run"], said
    assert not hub.models["ada/tiny"].private and hub.models["ada/nz"].private and hub.repos["ada/videos"].private
    assert set(hub.models["ada/nz"].files) == ADAPTER
    config = json.loads(hub.models["ada/nz"].files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "ada/tiny"
    for repo in (*hub.models.values(), *hub.repos.values()):
        assert not any(str(tmp_path.parent).encode() in content for content in repo.files.values())

    work = tmp_path / "work"
    work.mkdir()
    write_video(work / "clip.mp4", tiny_clip(True, 1), 8.0)
    stranger = process(STRANGER, hub.environment(tmp_path / "stranger"), work)
    friend = json.loads(process(FRIEND, hub.environment(tmp_path / "friend"), work))
    chat = VideoChat.from_pretrained(base, run / "adapter")
    answer = chat.ask(work / "clip.mp4", QUESTION)
    assert answer and stranger.endswith(f"\n{answer}") and friend == [answer, answer]
    out = torch.load(work / "out.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        assert torch.equal(out["adapter"], chat.model(**out["inputs"]).logits)
        alone = PVChatForConditionalGeneration.from_pretrained(base)(**out["inputs"]).logits
        assert torch.equal(out["base"], alone) and not torch.equal(out["base"], out["adapter"])
    torch.set_num_threads(threads)
    assert len(out["rows"]) == 8 and SUBJECT == chat.subject


@pytest.mark.slow
@pytest.mark.timeout(900)  # processes that import everything anew
def test_the_round_trip_finds_no_difference(capsys):
    """Auto classes and pipeline at a commit, `push_to_hub` of remote code, datasets, PEFT, `pvchat chat USER/NAME`."""
    from tests import hub_round_trip

    assert hub_round_trip.main(["--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert hub_round_trip.differences(result) == [0.0] * 6
    assert result["dataset"] == {"qa train": 12, "videos train": 3} and all(result["pushed"].values())


@pytest.fixture
def pushed(hub, run):
    """An adapter that is on the Hub, and a base."""
    assert hub.pvchat("push", run, "--repo", "ada/nz")[0] == 0
    hub.models["ada/base"] = Repo(private=True, files={"config.json": b"{}"})
    return "ada/nz"


def test_chat_takes_an_adapter_of_the_hub(hub, pushed, base, run, tmp_path):
    write_video(tmp_path / "clip.mp4", tiny_clip(True, 1), 8.0)
    words = (tmp_path / "clip.mp4", QUESTION, "--base", base)
    code, result, said = hub.pvchat("chat", pushed, *words)
    assert code == 0 and result["answer"] == hub.pvchat("chat", run, *words)[1]["answer"] and said == ""


def test_serve_takes_adapters_of_the_hub_and_the_base_they_name(hub, base, run, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    served = []
    monkeypatch.setattr("pvchat.serve.app.create_app", lambda engine, *rest: served.append(engine))
    monkeypatch.setattr("uvicorn.run", lambda *rest, **options: None)
    hub.pvchat("push-model", base, "--repo", "ada/tiny", "--licence", "mit")
    hub.pvchat("push", run, "--repo", "ada/nz", "--base", "ada/tiny")
    for options, name in (([], "ada/tiny"), (["--base", base], "tiny-base")):
        code, _, said = hub.pvchat("serve", "ada/nz", "--allow-dir", tmp_path, *options)
        assert code == 0 and served[-1].models == ["Nz", name], said


def test_evaluate_takes_adapters_of_the_hub_and_writes_nothing_beside_them(hub, pushed, run, tmp_path, monkeypatch):
    asked = {}

    def evaluated(adapter, **options):
        asked.update(options, files={path.name for path in adapter.iterdir()})
        return {"run": str(adapter.parent), "scores": {}, "report": str(options["out"] / "index.html")}

    monkeypatch.setattr("pvchat.runs.evaluate_adapter", evaluated)
    code, result, _ = hub.pvchat("evaluate", pushed, "--data", tmp_path / "data", "--wrong", pushed, "--wrong", run)
    assert code == 0 and result["run"] == str(tmp_path / "report-nz") and asked["out"] == tmp_path / "report-nz"
    assert asked["files"] == ADAPTER - {"README.md"} and asked["wrong_adapters"] == [run / "adapter"]
    code, _, said = hub.pvchat("evaluate", pushed)
    assert code == 1 and said.count("\n") == 1 and "say with --data" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("chat", "ada/nobody", "clip.mp4"), "ada/nobody is no folder, and cannot be fetched"),
        (("chat", "ada/base", "clip.mp4"), "ada/base on the Hub is not a subject's adapter: it has no subject.json"),
        (("serve", "ada/base", "--allow-dir", "."), "ada/base on the Hub is not a subject's adapter"),
        (("evaluate", "ada/nobody", "--data", "."), "ada/nobody is no folder"),
        (("push", "ada/nz", "--repo", "bo/nz"), "ada/nz is neither a run nor an adapter"),  # it is there already
    ],
)
def test_what_is_no_adapter_of_the_hub_is_one_line(hub, pushed, words, message):
    code, _, said = hub.pvchat(*words)
    assert code == 1 and said.count("\n") == 1 and message in said


def test_an_adapter_that_was_fetched_once_is_there_without_a_network(hub, pushed, base, tmp_path):
    write_video(tmp_path / "clip.mp4", tiny_clip(True, 1), 8.0)
    words = ("chat", pushed, tmp_path / "clip.mp4", QUESTION, "--base", base)
    answers = [hub.pvchat(*words, offline=offline)[1] for offline in (False, True)]
    assert answers[0] and answers[0] == answers[1]


def test_an_interrupted_push_goes_on_where_it_stopped(hub, run):
    words = ("push", run, "--repo", "ada/nz")
    hub.stop_after = 0
    code, result, said = hub.pvchat(*words)
    assert code == 1 and result is None and said.count("\n") == 1 and "goes on where it stopped" in said
    assert hub.models["ada/nz"].files == {}
    hub.stop_after, hub.log = None, []
    assert hub.pvchat(*words)[0] == hub.pvchat(*words)[0] == 0
    assert hub.uploads() == 1 and set(hub.models["ada/nz"].files) == ADAPTER


def test_repositories_that_are_public_or_hold_something_else_are_left_alone(hub, base, run):
    assert hub.pvchat("push", run, "--repo", "ada/nz")[0] == 0
    hub.models["ada/open"] = Repo(private=False)
    hub.models["ada/thesis"] = Repo(private=True, files={"thesis.tex": b"years of work"})
    for words, message in (
        (["push-model", base, "--repo", "ada/nz", "--licence", "mit"], "holds something else"),
        (["push", run, "--repo", "ada/open"], "is public: pass --public"),
        (["push", run, "--repo", "ada/thesis"], "thesis.tex"),
    ):
        code, _, said = hub.pvchat(*words)
        assert code == 1 and said.count("\n") == 1 and message in said
    assert set(hub.models["ada/nz"].files) == ADAPTER
    assert list(hub.models["ada/thesis"].files) == ["thesis.tex"] and hub.models["ada/open"].files == {}


def test_nothing_is_sent_about_a_person_who_has_not_agreed(hub, real, tmp_path):
    shutil.copytree(real / "adapter", tmp_path / "adapter")
    code, _, said = hub.pvchat("push", tmp_path / "adapter", "--repo", "ada/real")
    assert code == 1 and "--i-have-consent" in said and hub.log == [] and hub.models == {}
