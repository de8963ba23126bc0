"""Learning everybody of a list: what is refused, what fails alone, what is shared, and that adapters are the same."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
import yaml
from filelock import FileLock

from pvchat.cli import main
from pvchat.dataset_builder import load_local
from pvchat.dataset_builder.cartoon import Scene, cast, render_video
from pvchat.errors import PVChatError
from pvchat.modeling_pvchat.modeling_pvchat import PVChatModel
from pvchat.runs import personalize
from pvchat.subject_list import read_subject_list
from pvchat.workers import check_engine, run_all
from tests.tiny import tiny_base

# Negatives are shown as they are, so that clips of others are the same for everybody.
QUESTIONS = {"existence": 2, "appearance": 1}
RECIPE = {
    "base": "tiny",
    "name": "small",
    "rows": [
        {"origin": "original", "count": 1, "questions": QUESTIONS},
        {"origin": "scene", "count": 2, "questions": QUESTIONS},
        {"origin": "hard_negative", "count": 2, "raw": 2, "questions": QUESTIONS},
        {"origin": "random_negative", "count": 3, "raw": 3, "questions": QUESTIONS},
    ],
}
SETTINGS = {"adapter": {"rank": 2}, "1": {"num_train_epochs": 1}, "2": {"num_train_epochs": 1}}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two people and a broken video, a gallery of six others, a small base, and lists of these."""
    root = tmp_path_factory.mktemp("many")
    (root / "gallery").mkdir()
    rng = np.random.default_rng(1)
    people = [member.identity for member in cast(8, seed=4)]
    paths = [root / "nz.mp4", root / "ada.mp4", *(root / "gallery" / f"{number}.mp4" for number in range(6))]
    for path, identity in zip(paths, people, strict=True):
        render_video(path, identity, Scene.random(rng), seconds=1, fps=6, size=96)
    (root / "broken.mp4").write_bytes(b"no video")
    names = {"<Nz>": "nz.mp4", "<Bad>": "broken.mp4", "Ada": "ada.mp4"}
    people = [{"name": name, "reference": file, "gallery": "gallery"} for name, file in names.items()]
    (root / "subjects.yaml").write_text(yaml.safe_dump(people))
    (root / "two.yaml").write_text(yaml.safe_dump([people[0], people[2]]))
    (root / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    tiny_base(root / "base")
    return root


def call(world, *words, out="runs", people="subjects.yaml"):
    """Exit code, JSON and what was said of `pvchat personalize-many`."""
    options = ["--recipe", world / "recipe.yaml", "--base", world / "base", "--config", world / "settings.yaml"]
    output, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(said):
        words = [
            "personalize-many",
            world / people,
            *options,
            "--threads",
            "1",
            "--out",
            world / out,
            "--json",
            *words,
        ]
        code = main([str(word) for word in words])
    return code, json.loads(output.getvalue().splitlines()[-1]), said.getvalue()


@pytest.fixture(scope="module")
def made(world):
    """The result of learning all three, and how many clips the encoder saw for training."""
    encode, seen = PVChatModel.encode_video, []

    def counted(self, pixels, num_layers=None):
        seen.append(0 if num_layers == 0 else len(pixels))
        return encode(self, pixels, num_layers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PVChatModel, "encode_video", counted)
        code, result, said = call(world)
    return {"code": code, "result": result, "said": said, "encoded": sum(seen)}


@pytest.mark.slow
def test_a_person_who_cannot_be_learned_costs_no_other_one(world, made):
    rows = made["result"]["subjects"]
    assert [(row["name"], row["state"]) for row in rows] == [
        ("<Nz>", "learned"), ("<Bad>", "failed"), ("<Ada>", "learned"),
    ]  # fmt: skip
    assert made["code"] == 1 and made["result"]["failed"] == 1
    assert "broken.mp4" in rows[1]["error"] and "\n" not in rows[1]["error"]
    assert made["said"].splitlines()[-1] == "pvchat: 1 of 3 subjects failed, the others are finished: <Bad>."
    for row in (rows[0], rows[2]):
        folder = world / "runs" / row["name"].strip("<>")
        record = json.loads((folder / "run.json").read_text())
        assert record["state"] == "finished" and record["hashes"]["adapter"] == row["adapter_sha256"]
    assert rows[0]["adapter_sha256"] != rows[2]["adapter_sha256"]
    assert not (world / "runs" / "Bad").exists()


@pytest.mark.slow
def test_what_depends_on_the_gallery_only_is_made_once(world, made):
    """Two stages with each clip of both datasets: shared ones are encoded once, and gallery files read in once."""
    datasets = [load_local(world / "runs" / name / "dataset") for name in ("Nz", "Ada")]
    clips = [{video.sha256 for video in dataset.split("train")} for dataset in datasets]
    assert clips[0] & clips[1], "no clip is shared, so that this shows nothing"
    assert made["encoded"] == 2 * len(clips[0] | clips[1])
    for dataset in datasets:
        stages = {row["stage"]: row for row in dataset.manifest["stages"]}
        assert stages["ingest"]["in"] - stages["ingest"]["resumed"] == 1  # the reference
    assert (world / "runs" / ".shared" / "work").is_dir(), "an unfinished list goes on from there"
    assert not (world / "runs" / ".shared" / "features").exists()


@pytest.mark.slow
def test_the_same_command_again_does_nothing(world, made):
    def files():
        paths = [path for name in ("Nz", "Ada") for path in (world / "runs" / name).rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = files()
    code, result, _ = call(world)
    assert code == 1 and [row["state"] for row in result["subjects"]] == ["kept", "failed", "kept"]
    hashes = [row["adapter_sha256"] for row in made["result"]["subjects"]]
    assert [row["adapter_sha256"] for row in result["subjects"]] == hashes
    assert files() == before


@pytest.mark.slow
def test_an_adapter_is_that_of_the_person_learned_alone(world, made):
    run = personalize(
        world / "ada.mp4", "Ada", gallery=world / "gallery", out=world / "alone", recipe=world / "recipe.yaml",
        base=world / "base", settings=SETTINGS,
    )  # fmt: skip
    record = json.loads((run.folder / "run.json").read_text())
    assert record["hashes"] == json.loads((world / "runs" / "Ada" / "run.json").read_text())["hashes"]
    assert record["hashes"]["adapter"] == made["result"]["subjects"][2]["adapter_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_learns_the_same_and_leaves_nothing_shared(world, made, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves its workers
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        code, result, said = call(world, "--engine", "ray", "--workers", "2", out="ray", people="two.yaml")
    finally:
        ray.shutdown()
    assert code == 0, said
    expected = made["result"]["subjects"]
    for found, row in zip(result["subjects"], (expected[0], expected[2]), strict=True):
        assert (found["state"], found["adapter_sha256"]) == ("learned", row["adapter_sha256"])
    assert sorted(path.name for path in (world / "ray").iterdir() if path.is_dir()) == ["Ada", "Nz"]


def test_a_defect_of_ours_is_shown_and_costs_no_other_one(world, monkeypatch):
    def broken(reference, *args, **kwargs):
        raise PVChatError("of the user") if reference.name == "nz.mp4" else RuntimeError("planted")

    monkeypatch.setattr("pvchat.runs.personalize", broken)
    code, result, said = call(world, out="defect")
    assert code == 1 and result["failed"] == 3
    assert [row["error"] for row in result["subjects"]] == ["of the user", *["RuntimeError: planted"] * 2]
    assert said.count("Traceback") == 2 and "<Ada>: a defect of pvchat" in said


def test_a_dry_run_says_who_cannot_be_learned_and_writes_nothing(world):
    code, result, said = call(world, "--dry-run", out="dry")
    rows = {row["name"]: row for row in result["subjects"]}
    assert code == 1 and said == "pvchat: 1 of 3 subjects cannot be learned: <Bad>.\n"
    assert "broken.mp4" in rows["<Bad>"]["problem"]
    assert (rows["<Nz>"]["state"], rows["<Nz>"]["problem"], rows["<Nz>"]["gallery"]) == ("new", None, 6)
    assert not (world / "dry").exists()
    assert call(world, "--dry-run", out="dry", people="two.yaml")[0] == 0


def test_two_at_work_in_one_folder_are_refused(world, capsys):
    (world / "busy").mkdir()
    with FileLock(world / "busy" / ".shared.lock"):
        words = ["personalize-many", world / "two.yaml", "--out", world / "busy"]
        assert main([str(word) for word in words]) == 1
    assert "Another personalize-many" in capsys.readouterr().err


GOOD = "name: Nz, reference: nz.mp4"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "it holds nothing"),
        ("a: [", "cannot be read as YAML"),
        (f"{{{GOOD}}}", "must be a list of people, each with name and reference; it holds a dict"),
        ("- nz.mp4", r"people.yaml, subject 1 must be a mapping with name and reference, got 'nz.mp4'"),
        ("- {reference: nz.mp4}", "subject 1: name is missing; required: name, reference"),
        (f"- {{{GOOD}}}\n- {{name: Ada}}", r"subject 2 \(Ada\): reference is missing"),
        (
            f"- {{{GOOD}, galery: x}}",
            r"\(Nz\): there is no field 'galery'; allowed: name, reference, gallery, consent",
        ),
        ("- {name: 7, reference: nz.mp4}", "subject 1: name must be text, got 7"),
        ("- {name: <42>, reference: nz.mp4}", r"subject 1 \(<42>\): The name '<42>' cannot be used"),
        ("- {name: Nz, reference: [nz.mp4]}", r"reference must be the path of a video, got \['nz.mp4'\]"),
        ("- {name: Nz, reference: gone.mp4}", "reference must be a video that exists, got 'gone.mp4'"),
        (f"- {{{GOOD}, gallery: ada.mp4}}", "gallery must be a folder, but 'ada.mp4' is a file"),
        (f"- {{{GOOD}, box: [1, 2, x, 4]}}", r"box must be four numbers .* got \[1, 2, 'x', 4\]"),
        (f"- {{{GOOD}, noun: 3}}", "noun must be text, got 3"),
        (f"- {{{GOOD}}}\n- {{name: <nz>, reference: ada.mp4}}", "subject 2: <nz> is also the name of subject 1"),
    ],
)
def test_a_wrong_list_is_refused_with_the_person_and_the_field(world, text, message):
    path = world / "people.yaml"
    path.write_text(text)
    with pytest.raises(PVChatError, match=message) as error:
        read_subject_list(path)
    assert "\n" not in str(error.value)


def test_paths_of_a_list_are_meant_from_its_folder(world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    nz, ada = read_subject_list(world / "two.yaml")
    assert (nz.name, ada.name, ada.folder) == ("<Nz>", "<Ada>", "Ada")
    assert nz.reference == (world / "nz.mp4").resolve() and nz.gallery == (world / "gallery").resolve()


def test_items_run_in_their_own_processes_and_a_crash_costs_one():
    items = ["__import__('os').getpid()", "__import__('os')._exit(3)", "2 + 2", "__import__('os').getpid()"]
    found = dict(run_all(eval, items, "local", 2))
    assert found[1] is None and found[2] == 4
    assert os.getpid() not in (found[0], found[3])
    assert dict(run_all(eval, items[:1], "local", 1)) == {0: os.getpid()}


def test_an_unknown_engine_and_no_worker_are_refused(monkeypatch):
    with pytest.raises(PVChatError, match="choose one of: local, ray"):
        check_engine("slurm", 1)
    with pytest.raises(PVChatError, match="at least 1, got 0"):
        check_engine("local", 0)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setitem(__import__("sys").modules, "ray.data", None)
    with pytest.raises(PVChatError, match=r'pip install "pvchat\[ray\]"'):
        check_engine("ray", 1)
