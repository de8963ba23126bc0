"""Cards of adapters and bases: metadata that the Hub's own reader accepts, numbers of the run, and code that runs."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load

from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import PVChatError
from pvchat.hub import refuse_private
from pvchat.model_card import adapter_card, base_card, write_adapter_card
from pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.session import VideoChat
from tests.small_datasets import RECORD
from tests.small_runs import SECONDS, put, write_run, write_tiny_run
from tests.tiny import tiny_clip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def base(pair):
    return pair[0]


@pytest.fixture(scope="module")
def run(pair):
    return pair[1]


def blocks(card):
    """The Python in a card."""
    return re.findall(r"```python\n(.*?)```", str(card), re.S)


def section(card, title):
    return str(card).split(f"## {title}\n")[1].split("\n## ")[0]


def reloaded(card, folder):
    """The card as the Hub's own reader sees it."""
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    assert metadata_load(folder / "README.md") == card.data.to_dict()
    return ModelCard.load(folder / "README.md").data


# -- adapters --------------------------------------------------------------------------------------------------------


def test_the_metadata_survive_the_hub_s_own_reader(run, tmp_path):
    card = adapter_card(run / "adapter", repo="ada/nz", base="ada/tiny", datasets=["ada/nz-videos"])
    data = reloaded(card, tmp_path)
    assert data.base_model == "ada/tiny" and data.to_dict()["base_model_relation"] == "adapter"
    assert data.to_dict()["library_name"] == "peft" and data.pipeline_tag == "video-text-to-text"
    assert data.license == "apache-2.0" and data.datasets == ["ada/nz-videos"] and data.model_name == "ada/nz"
    scores = json.loads((run / "report" / "scores.json").read_text())
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found["balanced accuracy"] == scores["existence"]["balanced_accuracy"] == 0.95
    assert found["false accepts of look-alikes"] == 1.0
    assert {r.dataset_type for r in data.eval_results} == {"ada/nz-videos"}
    assert {r.dataset_split for r in data.eval_results} == {"test"}


def test_the_scores_stand_beside_their_controls_and_intervals(run):
    scores = section(adapter_card(run / "adapter"), "Scores")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in scores.splitlines() if line[:1] == "|"]
    table = {row[0]: row[1] for row in rows}
    assert re.fullmatch(r"0\.95 \[0\.\d\d, 1\.00\]", table["**`<Nz>`**"])
    assert table["no adapter"].startswith("0.50") and table["constant yes"].startswith("0.50")
    assert "wrong adapter" not in table  # was not run
    for block in re.findall(r"(?:^\|.*\n)+", scores, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_seconds_and_hardware_are_those_of_the_passport_and_energy_is_not_invented(run):
    trained = section(adapter_card(run / "adapter"), "How it was trained")
    hardware = json.loads((run / "run.json").read_text())["hardware"]
    assert all(f"| {part} | {seconds} |" in trained for part, seconds in SECONDS.items())
    assert hardware["cpu"] in trained and f"{hardware['cores']} cores" in trained
    assert "Energy was not measured." in trained and "kWh" not in trained


def test_a_card_that_is_missing_files_says_so(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    card = adapter_card(tmp_path / "adapter")
    assert "Not measured" in section(card, "Scores") and "not at hand" in section(card, "Training data and consent")
    assert card.data.license == "other" and card.data.eval_results is None and card.data.base_model is None
    assert "Nothing was measured" in section(card, "Known limits")
    assert "Hardware" not in str(card) and "nobody's consent is needed" not in str(card)


def test_scores_and_data_of_somebody_else_are_not_this_adapter_s(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    scores = json.loads((run / "report" / "scores.json").read_text())
    scores["details"]["subject"] = "<Bo>"
    put(tmp_path / "run" / "report" / "scores.json", scores)
    manifest = json.loads((run / "dataset" / "dataset.json").read_text())
    put(tmp_path / "run" / "dataset" / "dataset.json", manifest | {"dataset_hash": "0" * 64})
    card = adapter_card(tmp_path / "run" / "adapter")
    assert "Not measured" in section(card, "Scores") and "not at hand" in section(card, "Training data and consent")


def test_scores_of_another_version_still_make_a_card(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    scores = json.loads((run / "report" / "scores.json").read_text())
    for name in ("paired", "es", "dc", "bertscore"):
        scores.pop(name, None)
    put(tmp_path / "run" / "report" / "scores.json", scores)
    assert "0.95" in section(adapter_card(tmp_path / "run" / "adapter"), "Scores")


def test_a_real_person_s_card_names_the_record_s_dates_only(tmp_path):
    run = write_run(tmp_path / "Nz", consent=RECORD)
    card = adapter_card(run / "adapter", consents=[RECORD])
    consent = section(card, "Training data and consent")
    assert "given on 2026-01-31" in consent and "is real and agreed" in consent
    assert RECORD.given_by not in str(card) and RECORD.scope not in str(card)
    assert card.data.license == "other" and card.data.license_name == "consent-of-the-person-learned"
    assert "is real and agreed" not in str(adapter_card(run / "adapter"))


def test_a_card_names_nothing_of_this_machine(run, tmp_path):
    (tmp_path / "README.md").write_text(str(adapter_card(run / "adapter")), encoding="utf-8")
    refuse_private(tmp_path)
    assert str(run.parent) not in str(adapter_card(run / "adapter"))


def test_the_code_of_an_adapter_s_card_answers_as_the_package_does(run, base, tmp_path, monkeypatch, capsys):
    """Both ways to use it, run as they are printed, beside a folder of the base and a clip."""
    shutil.copytree(base, tmp_path / base.name)
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", tiny_clip(True, 1), 8.0)
    path = write_adapter_card(tmp_path / "adapter")
    plain, with_package = blocks(path.read_text(encoding="utf-8"))
    names = {}
    with torch.no_grad():
        exec(plain, names)
    exec(with_package, {})
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    chat = VideoChat.from_pretrained(base, run / "adapter")
    assert said == [chat.ask("clip.mp4", "Is <Nz> in this video?")] * 2 and said[0]
    with names["model"].disable_adapter(), torch.no_grad():
        alone = names["model"](**names["inputs"]).logits
        assert torch.equal(alone, PVChatForConditionalGeneration.from_pretrained(base)(**names["inputs"]).logits)


# -- bases -----------------------------------------------------------------------------------------------------------


def test_a_base_s_card_counts_its_weights_and_needs_a_licence(base, tmp_path):
    with pytest.raises(PVChatError, match="pass --licence"):
        base_card(base)
    card = base_card(base, repo="ada/tiny", licence="mit")
    model = PVChatForConditionalGeneration.from_pretrained(base)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters (F32)" in str(card)
    assert "3 views of each clip" in str(card) and "No scores come with these weights" in str(card)
    data = reloaded(card, tmp_path)
    assert data.license == "mit" and data.to_dict()["library_name"] == "transformers" and data.eval_results is None


def test_a_base_s_own_readme_gives_licence_and_text_and_its_scores_become_results(base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    metadata = "license: apache-2.0\ntags: [cartoon]\nbase_model: [a/vision, b/text]\n"
    own = f"---\n{metadata}---\n\n# Old title\n\nMade by hand.\n"
    (folder / "README.md").write_text(own, encoding="utf-8")
    put(folder / "pretraining.json", {"scores": {"place": 0.9}, "test": "20 clips", "seconds": 1234})
    data = reloaded(base_card(folder, repo="ada/tiny"), tmp_path)
    assert data.license == "apache-2.0" and {"pvchat", "cartoon"} <= set(data.tags)
    assert data.base_model == ["a/vision", "b/text"] and data.eval_results[0].metric_value == 0.9
    text = str(base_card(folder, repo="ada/tiny"))
    assert "Made by hand." in text and "Old title" not in text and "1,234 seconds" in text
    assert base_card(folder, licence="mit").data.license == "mit"


def test_the_code_of_a_base_s_card_runs(base, tmp_path, monkeypatch, capsys):
    shutil.copytree(base, tmp_path / base.name)
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", tiny_clip(True, 1), 8.0)
    names = {}
    for block in blocks(base_card(base, licence="mit")):
        exec(block, names)
    assert names["model"].model.qformer.config.routing == "remoh"
    assert capsys.readouterr().out.strip() == VideoChat.from_pretrained(base).ask(
        "clip.mp4", "What is the person doing?"
    )


def test_an_evaluation_writes_the_card_into_the_adapter(run, tmp_path, monkeypatch):
    from pvchat import evaluation
    from pvchat.runs import evaluate_adapter

    shutil.copytree(run, tmp_path / "run")
    scores = json.loads((run / "report" / "scores.json").read_text())
    monkeypatch.setattr(VideoChat, "from_pretrained", lambda *_: None)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: scores)
    monkeypatch.setattr(evaluation, "write_report", lambda out, *_: out / "index.html")
    monkeypatch.setattr("pvchat.evaluation.head_activation.write_head_activation", lambda *_, **__: None)
    evaluate_adapter(tmp_path / "run" / "adapter")
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card == str(adapter_card(run / "adapter"))
