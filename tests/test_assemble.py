"""Building a dataset end to end with a small recipe: shape, resuming, refusals, and what others can read."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from pvchat.dataset_builder import (
    RECIPES,
    ConsentRecord,
    Questions,
    RecipeRow,
    SubjectSpec,
    TestClip,
    assemble_dataset,
    build_dataset,
    cartoon,
    load_local,
    oracle_recipe,
)
from pvchat.dataset_builder.assemble import find_problems
from pvchat.errors import PVChatError
from tests.test_engine import bad_videos, moving, write_video

SMALL = RECIPES["tiny"]


class Writer:
    """Stands in for the base model: always the same sentences."""

    id = "fixed@1"

    def write(self, video, questions):
        assert video.is_file() and all("the person" in q and "<" not in q for q in questions)
        return ["The person wears a hat." for _ in questions]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A reference clip, a gallery of six others, four test clips."""
    root = tmp_path_factory.mktemp("world")
    (root / "gallery").mkdir()
    rng = np.random.default_rng(1)
    people = [member.identity for member in cartoon.cast(7, seed=4)]

    def render(path, identity):
        cartoon.render_video(path, identity, cartoon.Scene.random(rng), seconds=1, fps=6, size=96)

    render(root / "ref.mp4", people[0])
    for index, identity in enumerate(people[1:]):
        render(root / "gallery" / f"{index}.mp4", identity)
    for index in range(2):
        render(root / f"with{index}.mp4", people[0])
        render(root / f"without{index}.mp4", people[1 + index])
    return root


def build(world, out, **changes):
    tests = [TestClip(world / f"with{i}.mp4", True, answers={"action": "{name} is dancing."}) for i in range(2)]
    tests += [(world / f"without{i}.mp4", False) for i in range(2)]
    options = {"gallery": world / "gallery", "writer": Writer(), "test_clips": tests, "recipe": SMALL} | changes
    spec = options.pop("spec", SubjectSpec("Nz", world / "ref.mp4", ConsentRecord.for_fiction()))
    return build_dataset(spec, options.pop("recipe"), out, **options)


@pytest.fixture(scope="module")
def dataset(world, tmp_path_factory):
    return build(world, tmp_path_factory.mktemp("built") / "dataset")


def test_a_build_has_the_recipe_s_clips_and_questions(dataset):
    train = dataset.split("train")
    origins = {row.origin: sum(v.origin == row.origin for v in train) for row in SMALL.rows}
    assert origins == {row.origin: row.count for row in SMALL.rows}
    assert sum(len(v.qa) for v in train) == SMALL.num_questions
    parts = ["README.md", "clips", "contact_sheets", "dataset.json", "qa", "videos"]
    assert sorted(p.name for p in dataset.root.iterdir()) == parts
    assert dataset.subject == "<Nz>" and dataset.manifest["counts"]["train"]["qa"] == SMALL.num_questions


def test_answers_carry_the_name_and_their_source(dataset):
    written = [q for v in dataset.split("train") for q in v.qa if q.source == "vlm"]
    assert len(written) == 15 and all(q.answer == "<Nz> wears a hat." and q.refined_by == "rules" for q in written)
    assert all("<Nz>" in q.question for v in dataset.videos for q in v.qa)


def test_the_test_split_knows_only_what_is_true(dataset):
    for video in dataset.split("test"):
        assert not video.synthetic and video.origin == "user"
        described = {q.category: q for q in video.qa if q.category != "existence"}
        if video.subject_present:
            assert described.keys() == {"action"} and described["action"].answer == "<Nz> is dancing."
        else:
            assert all(q.answer.startswith("I do not see <Nz>") for q in described.values()) and len(described) == 3


def test_names_of_clips_say_nothing_about_what_is_in_them(dataset):
    for video in dataset.videos:
        assert len(video.video_id) == 12 and set(video.video_id) <= set("0123456789abcdef")
        assert video.path.name == f"{video.video_id}.mp4"


def test_look_alikes_and_random_people_are_different_people(dataset):
    hard = {p for v in dataset.videos if v.origin == "hard_negative" for p in v.parent_ids}
    others = {p for v in dataset.videos if v.origin == "random_negative" for p in v.parent_ids}
    assert hard and others and not hard & others and len(hard) == 3


def test_negatives_are_processed_like_positives(dataset):
    made = {v.backend for v in dataset.split("train") if v.subject_present and v.synthetic}
    negatives = [v for v in dataset.split("train") if not v.subject_present]
    assert {v.backend for v in negatives if v.synthetic} == made == {"composite@5", "warp2d@5"}
    assert sum(not v.synthetic for v in negatives) == 1


def test_positives_resemble_the_reference_more_than_negatives_do(dataset):
    scores = [(v.subject_present, v.id_score) for v in dataset.split("train")]
    assert np.mean([s for p, s in scores if p]) > np.mean([s for p, s in scores if not p])


def test_the_same_inputs_give_the_same_hash_and_another_seed_another(world, dataset, tmp_path):
    assert build(world, tmp_path / "again").hash == dataset.hash
    assert build(world, tmp_path / "other", seed=1).hash != dataset.hash


def test_a_finished_build_is_returned_as_it_is(world, dataset):
    stamp = (dataset.root / "dataset.json").stat().st_mtime_ns
    assert build(world, dataset.root).hash == dataset.hash
    assert (dataset.root / "dataset.json").stat().st_mtime_ns == stamp


def test_a_shared_work_folder_saves_the_second_build(world, dataset, tmp_path):
    first = build(world, tmp_path / "a", work=tmp_path / "work")
    second = build(world, tmp_path / "b", work=tmp_path / "work")
    assert first.hash == second.hash == dataset.hash
    made = [row for row in second.manifest["stages"] if row["stage"] not in ("negatives", "questions", "assemble")]
    assert all(row["resumed"] == row["in"] for row in made)


class Stop(BaseException):
    """Not an Exception: nothing may swallow it, as with a real interruption."""


def test_interrupted_at_random_steps_a_rerun_resumes_and_ends_with_the_same_hash(world, dataset, tmp_path):
    rng = random.Random(3)
    out = tmp_path / "out"
    resumed = 0
    for _ in range(5):
        left = rng.randint(10, 60)

        def progress(stage, done, total):
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop

        try:
            build(world, out, progress=progress)
        except Stop:
            assert not (out / "dataset.json").exists()
    final = build(world, out)
    resumed = sum(row["resumed"] for row in final.manifest["stages"])
    assert final.hash == dataset.hash and resumed > 10 and not (out / ".build").exists()


@pytest.mark.slow
def test_killed_at_random_points_a_rerun_ends_with_the_same_hash(world, dataset, tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.test_assemble import build
        print(build(Path(sys.argv[1]), Path(sys.argv[2])).hash)
        """
    )
    rng = random.Random(7)
    command = [sys.executable, "-c", script, str(world), str(tmp_path / "out")]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started = time.time()
        while not (tmp_path / "out" / ".build").exists() and process.poll() is None and time.time() - started < 60:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.2, 2.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == dataset.hash


def test_a_kill_while_the_folder_is_written_leaves_no_dataset_and_a_rerun_finishes(
    world, dataset, tmp_path, monkeypatch
):
    real, calls = os.replace, []

    def replace(source, target):
        if "assembled" in str(source):
            calls.append(target)
            if len(calls) == 2:
                raise Stop
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Stop):
        build(world, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(PVChatError, match="not a dataset folder"):
        load_local(tmp_path / "out")
    assert build(world, tmp_path / "out").hash == dataset.hash


def test_other_inputs_do_not_overwrite_a_finished_dataset(world, dataset):
    with pytest.raises(PVChatError, match="made from other inputs"):
        build(world, dataset.root, seed=5)
    assert load_local(dataset.root).hash == dataset.hash


def test_without_a_writer_descriptive_questions_fall_away_visibly(world, tmp_path):
    recipe = SMALL.without("scene", "animated", "portrait", "hard_negative", "random_negative")
    made = build(world, tmp_path / "out", writer=None, recipe=recipe, gallery=None, test_clips=None)
    assert made.manifest["counts"]["train"]["categories"] == {"existence": 3}
    dropped = next(row for row in made.manifest["stages"] if row["stage"] == "questions")["dropped"]
    assert dropped == {f"nobody to answer about {c}": 1 for c in ("action", "appearance", "location")}
    assert not (made.root / "videos" / "test.parquet").exists() and made.split("test") == []


def test_an_oracle_makes_the_positives_and_its_truth_becomes_answers(world, tmp_path):
    calls = []
    identity = cartoon.cast(7, seed=4)[0].identity

    def source(origin, index, seed):
        calls.append((origin, index))
        scene = cartoon.Scene.random(np.random.default_rng(seed))
        frames = cartoon.render_clip(identity, scene, 4, 96)
        return frames, 6.0, {"action": "{name} is " + scene.action + "."}

    light = oracle_recipe(source, "renderer@1")
    rows = (RecipeRow("scene", 2, Questions(1, 0, 2, 0)), RecipeRow("random_negative", 2, Questions(1), raw=2))
    made = build(world, tmp_path / "out", recipe=dataclasses.replace(light, rows=rows), test_clips=None, writer=None)
    positives = [v for v in made.videos if v.subject_present]
    assert calls[:1] == [("scene", 0)] and {v.backend for v in positives} == {"renderer@1"}
    answers = [q for v in positives for q in v.qa if q.category == "action"]
    assert len(answers) == 4 and all(q.source == "truth" and q.answer.startswith("<Nz> is ") for q in answers)


# -- bad input -------------------------------------------------------------------------------------------------------


def refused(out, message, call):
    """The call fails in one line and writes nothing."""
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(PVChatError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert (sorted(out.rglob("*")) if out.exists() else None) == before


def test_unusable_references_and_test_clips_write_nothing(world, tmp_path):
    out = tmp_path / "out"
    for _, path, message in bad_videos(tmp_path):
        spec = SubjectSpec("Nz", path, ConsentRecord.for_fiction())
        refused(out, message, lambda spec=spec: build(world, out, spec=spec))
        refused(out, message, lambda path=path: build(world, out, test_clips=[(path, True)]))


def test_missing_consent_gallery_or_backends_write_nothing(world, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused(out, "consent", lambda: build(world, out, spec=SubjectSpec("Nz", world / "ref.mp4")))
    refused(out, "--gallery", lambda: build(world, out, gallery=None))
    refused(out, "not a folder", lambda: build(world, out, gallery=tmp_path / "nowhere"))
    refused(out, "at least 2", lambda: build(world, out, gallery=tmp_path / "empty"))
    refused(out, "consisid.*pip install", lambda: build(world, out, recipe=RECIPES["paper"]))


def test_an_output_that_holds_something_else_is_left_alone(world, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    refused(tmp_path, "thesis.txt", lambda: build(world, tmp_path))
    refused(tmp_path, "is a file", lambda: build(world, tmp_path / "thesis.txt"))
    (tmp_path / "clips").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "clips").mkdir()
    refused(tmp_path, "something else", lambda: build(world, tmp_path / "sub"))


def test_sources_on_both_sides_of_the_split_are_refused(world, tmp_path):
    out = tmp_path / "out"
    refused(out, "training source", lambda: build(world, out, test_clips=[(world / "ref.mp4", True)]))
    refused(out, "training source", lambda: build(world, out, test_clips=[(world / "gallery" / "0.mp4", False)]))
    shutil.copytree(world / "gallery", tmp_path / "gallery")
    shutil.copy(world / "ref.mp4", tmp_path / "gallery" / "me.mp4")
    refused(out, "me.mp4", lambda: build(world, out, gallery=tmp_path / "gallery"))


def test_a_dataset_of_another_version_or_a_damaged_one_is_one_line(dataset, tmp_path):
    shutil.copytree(dataset.root, tmp_path / "copy")
    copy = tmp_path / "copy"
    next((copy / "clips").glob("*.mp4")).unlink()
    with pytest.raises(PVChatError, match="lacks 1 clip"):
        load_local(copy)
    manifest = json.loads((copy / "dataset.json").read_text(encoding="utf-8"))
    (copy / "dataset.json").write_text(json.dumps(manifest | {"format_version": 99}), encoding="utf-8")
    with pytest.raises(PVChatError, match="version 99"):
        load_local(copy)
    (copy / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(PVChatError, match="damaged"):
        load_local(copy)
    with pytest.raises(PVChatError, match="not a dataset folder"):
        load_local(tmp_path)


def test_a_reference_without_a_person_says_so(world, tmp_path):
    write_video(tmp_path / "flat.mp4", np.full((4, 64, 64, 3), 90, np.uint8), 6.0)
    spec = SubjectSpec("Nz", tmp_path / "flat.mp4", ConsentRecord.for_fiction())
    with pytest.raises(PVChatError, match="cannot be the reference"):
        build(world, tmp_path / "out", spec=spec)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_unusable_gallery_files_are_dropped_and_listed(world, tmp_path):
    shutil.copytree(world / "gallery", tmp_path / "gallery")
    (tmp_path / "gallery" / "broken.mp4").write_bytes(b"no video")
    recipe = SMALL.without("scene", "animated", "portrait", "hard_negative")
    made = build(world, tmp_path / "out", recipe=recipe, gallery=tmp_path / "gallery")
    assert any(d["item"] == "broken.mp4" and "cannot be opened" in d["reason"] for d in made.manifest["dropped"])


# -- validation ------------------------------------------------------------------------------------------------------


def test_all_planted_faults_are_found_at_once(dataset, tmp_path):
    rows = list(dataset.videos)

    def change(index, **changes):
        rows[index] = dataclasses.replace(rows[index], **changes)

    def change_qa(index, **changes):
        first, *rest = rows[index].qa
        change(index, qa=(dataclasses.replace(first, **changes), *rest))

    change_qa(0, answer="No, <Nz> is not here.")
    change_qa(1, question="Is <sks> here?")
    change_qa(2, answer=" ")
    change_qa(3, split="test")
    change(4, path=tmp_path / "gone.mp4")
    change(5, video_id=rows[6].video_id)
    change(-1, parent_ids=rows[0].parent_ids)
    found = "\n".join(find_problems("<Nz>", rows))
    for part in (
        "subject is present",
        "placeholder",
        "empty answer",
        "disagrees",
        "gone.mp4",
        "2 times",
        "both splits",
    ):
        assert part in found
    with pytest.raises(PVChatError, match="problem"):
        assemble_dataset("<Nz>", rows, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_changed_clip_is_noticed(dataset, tmp_path):
    write_video(tmp_path / "other.mp4", moving(), 6.0)
    rows = [dataclasses.replace(dataset.videos[0], path=tmp_path / "other.mp4")]
    assert any("not the one" in problem for problem in find_problems("<Nz>", rows))


# -- what others read ------------------------------------------------------------------------------------------------


def test_load_dataset_reads_both_configs_without_this_package(dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    qa = datasets.load_dataset(str(dataset.root), cache_dir=str(tmp_path))
    assert qa["train"].num_rows == SMALL.num_questions and qa["train"][0]["subject"] == "<Nz>"
    videos = datasets.load_dataset(str(dataset.root), "videos", cache_dir=str(tmp_path))
    assert isinstance(videos["train"].features["video"], datasets.Video)
    row = videos["test"].cast_column("video", datasets.Video(decode=False))[0]
    assert row["video"]["bytes"] == (dataset.root / "clips" / f"{row['video_id']}.mp4").read_bytes()
    assert row["qa"][0]["question"] and {q for v in qa for q in qa[v]["video_id"]} >= {row["video_id"]}


@pytest.mark.parametrize("config", ["qa", "videos"])
def test_the_builder_gives_the_same_rows(dataset, tmp_path, config):
    datasets = pytest.importorskip("datasets")
    from pvchat.dataset_builder import PVChatDataset

    builder = PVChatDataset(config_name=config, data_dir=str(dataset.root), cache_dir=str(tmp_path / "builder"))
    builder.download_and_prepare()
    made = builder.as_dataset()
    plain = datasets.load_dataset(str(dataset.root), config, cache_dir=str(tmp_path / "plain"))
    assert made["train"].features == plain["train"].features
    if config == "videos":
        made, plain = (d.cast_column("video", datasets.Video(decode=False)) for d in (made, plain))
    assert made["test"][:] == plain["test"][:] and made["train"].num_rows == plain["train"].num_rows


def test_what_is_loaded_is_what_was_built(dataset):
    again = load_local(dataset.root)
    assert again.videos == dataset.videos and again.manifest == dataset.manifest
    assert find_problems("<Nz>", again.videos) == []
