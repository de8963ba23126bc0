"""The stages of a build: what they redo, where they stop, what they drop and why."""

import dataclasses
import json
import pickle
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvchat.cli import main
from pvchat.dataset_builder import (
    RECIPES,
    ConsentRecord,
    Questions,
    Recipe,
    RecipeRow,
    Stopped,
    SubjectSpec,
    build_dataset,
    costs,
    load_local,
    read_video,
    write_video,
)
from pvchat.dataset_builder.backends import light
from pvchat.dataset_builder.catalogue import Backends
from pvchat.dataset_builder.engine import Engine, Rejected, Stage, Task, hash_file, run_item
from pvchat.dataset_builder.people import Footage, Source
from pvchat.dataset_builder.protocols import Attributes, Person
from pvchat.dataset_builder.refine import RuleRefiner
from pvchat.dataset_builder.stages import STAGES, Build, attributes, verify
from pvchat.dataset_builder.stages.common import Made, Shot
from pvchat.errors import PVChatError
from pvchat.subjects import remove_subject
from tests.test_assemble import Writer, build, refused, world  # noqa: F401  (fixture)

FICTION = ConsentRecord.for_fiction()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Artefacts that the builds of this file share."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def dataset(world, work, tmp_path_factory):  # noqa: F811
    return build(world, tmp_path_factory.mktemp("built") / "dataset", work=work)


def table(dataset) -> dict[str, dict]:
    return {row["stage"]: row for row in dataset.manifest["stages"]}


def redone(dataset) -> set[str]:
    """The stages that made something, and did not find all of it finished."""
    composite = ("negatives", "questions", "assemble")  # their rows count what is not an artefact
    return {name for name, row in table(dataset).items() if name not in composite and row["resumed"] < row["in"]}


# -- what is redone, and where a build stops --------------------------------------------------------------------------


def test_the_table_has_every_stage_in_order_with_what_it_took_and_gave(dataset):
    rows = table(dataset)
    assert tuple(rows) == STAGES
    assert rows["attributes"]["skipped"] == "as given by the user"
    assert rows["questions"]["in"] == len(dataset.videos) == rows["assemble"]["out"]
    assert rows["questions"]["out"] == sum(len(video.qa) for video in dataset.videos)
    assert rows["verify"]["in"] - sum(rows["verify"]["dropped"].values()) == rows["verify"]["out"] == 13
    assert all(row["seconds"] >= 0 for row in rows.values())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, set()),
        ({"test_questions": Questions(1)}, set()),
        ({"verified_frames": 3}, {"verify"}),
        ({"max_frames": 5}, set(STAGES) - {"attributes", "negatives", "questions", "assemble"}),
    ],
    ids=["nothing", "questions", "verified frames", "length"],
)
def test_a_change_redoes_only_what_depends_on_it(world, work, dataset, tmp_path, change, expected):  # noqa: F811
    made = build(world, tmp_path / "out", work=work, recipe=dataclasses.replace(RECIPES["tiny"], **change))
    assert redone(made) == expected
    assert (made.hash == dataset.hash) == (not change)


def test_another_seed_reads_nobody_in_again_and_makes_new_clips(world, work, dataset, tmp_path):  # noqa: F811
    made = build(world, tmp_path / "out", work=work, seed=1)
    assert not {"ingest", "identities"} & redone(made)
    assert {"scenes", "portraits", "animate", "verify"} <= redone(made)


def test_one_more_clip_is_one_more_clip(world, work, dataset, tmp_path):  # noqa: F811
    small = RECIPES["tiny"].without("hard_negative", "random_negative", "animated", "portrait")
    before = build(world, tmp_path / "a", work=work, recipe=small, gallery=None)
    rows = tuple(dataclasses.replace(r, count=3) if r.origin == "scene" else r for r in small.rows)
    after = build(world, tmp_path / "b", work=work, recipe=dataclasses.replace(small, rows=rows), gallery=None)
    assert (
        table(after)["scenes"]["resumed"] == table(before)["scenes"]["in"] == 2 and table(after)["scenes"]["in"] == 3
    )
    assert table(after)["portraits"]["skipped"] and table(after)["negatives"]["skipped"] == "the recipe has none"


@pytest.mark.parametrize("stage", ["ingest", "identities", "scenes", "verify", "questions"])
def test_a_build_stops_after_a_stage_says_where_to_look_and_goes_on_later(world, work, dataset, tmp_path, stage):  # noqa: F811
    stopped = build(world, tmp_path / "out", only=stage, work=work)
    assert isinstance(stopped, Stopped) and stopped.stage == stage
    assert [row["stage"] for row in stopped.table][-1] == stage
    listed = json.loads(stopped.index.read_text(encoding="utf-8"))
    assert all(Path(one["artefact"]).is_file() for items in listed.values() for one in items if "artefact" in one)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert (tmp_path / "out" / "contact_sheets").exists() == (stage in ("verify", "questions"))
    assert build(world, tmp_path / "out", work=work).hash == dataset.hash


def test_the_last_stage_is_the_whole_build_and_an_unknown_one_is_refused(world, work, dataset, tmp_path):  # noqa: F811
    assert build(world, tmp_path / "out", only="assemble", work=work).hash == dataset.hash
    refused(tmp_path / "new", "stages: ingest, faces", lambda: build(world, tmp_path / "new", only="paint"))


def test_every_task_can_be_sent_elsewhere_and_gives_the_same_dataset(world, dataset, tmp_path, monkeypatch):  # noqa: F811
    """As an engine for many machines does: tasks by value, backends of the worker's own."""
    elsewhere = Backends(RECIPES["tiny"], Writer())

    def outcomes(self, tasks):
        for task in tasks:
            sent = pickle.loads(pickle.dumps(task))
            assert sent.key == task.key
            yield task, run_item(self.root, sent, elsewhere)

    monkeypatch.setattr(Engine, "outcomes", outcomes)
    assert build(world, tmp_path / "out").hash == dataset.hash


def test_a_limit_takes_a_few_clips_of_every_origin(world, work, tmp_path):  # noqa: F811
    made = build(world, tmp_path / "out", work=work, recipe=RECIPES["tiny"].limited(1))
    counts = made.manifest["counts"]["train"]["origins"]
    assert counts == {row.origin: 1 for row in RECIPES["tiny"].rows}


def test_the_test_split_is_balanced_where_the_recipe_says_so(world, work, tmp_path):  # noqa: F811
    recipe = dataclasses.replace(RECIPES["tiny"], balanced_test=True)
    tests = [(world / "with0.mp4", True), *((world / f"without{i}.mp4", False) for i in range(2))]
    made = build(world, tmp_path / "out", work=work, recipe=recipe, test_clips=tests)
    assert sorted(v.subject_present for v in made.split("test")) == [False, True]
    assert table(made)["questions"]["dropped"]["surplus: the test split is balanced"] == 1


def test_the_cost_counts_what_the_stages_will_do(dataset):
    rows = table(dataset)
    for cost in costs(RECIPES["tiny"]):
        if cost.stage in ("scenes", "portraits", "animate", "verify"):
            assert cost.items == rows[cost.stage]["in"] - sum(rows[cost.stage]["dropped"].values()), cost


# -- going on, and beginning anew ------------------------------------------------------------------------------------


def test_an_unfinished_build_goes_on_with_other_options_and_is_refused_for_other_people(world, dataset, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    build(world, out, only="verify", recipe=RECIPES["tiny"].limited(1))
    before = sorted(out.rglob("*"))
    for spec in (
        SubjectSpec("Ada", world / "ref.mp4", FICTION),
        SubjectSpec("Nz", world / "gallery" / "5.mp4", FICTION),
    ):
        others = world / "gallery" if spec.name == "<Ada>" else None
        recipe = RECIPES["tiny"] if others else RECIPES["tiny"].without("hard_negative", "random_negative")
        with pytest.raises(PVChatError, match=r"unfinished build of <Nz> from ref.mp4; pass a new folder") as caught:
            build(world, out, spec=spec, gallery=others, recipe=recipe)
        assert "\n" not in str(caught.value) and sorted(out.rglob("*")) == before
    made = build(world, out, resume=True)
    assert made.hash == dataset.hash and table(made)["scenes"]["resumed"] >= 1
    assert build(world, out, resume=True).hash == dataset.hash


def test_where_nothing_was_begun_there_is_nothing_to_resume(world, tmp_path):  # noqa: F811
    refused(tmp_path / "out", "nothing to resume", lambda: build(world, tmp_path / "out", resume=True))


def test_what_is_hashed_before_the_build_is_not_hashed_again(world, work, dataset, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    stage = import_module("pvchat.dataset_builder.stages.ingest")
    monkeypatch.setattr(stage, "hash_file", lambda path: seen.append(path))
    assert build(world, tmp_path / "out", work=work).hash == dataset.hash and not seen


# -- items that fail --------------------------------------------------------------------------------------------------


def test_a_clip_that_fails_is_made_with_another_seed_and_the_failure_is_told(world, dataset, tmp_path, monkeypatch):  # noqa: F811
    real = light.WarpAnimator.animate
    unlucky = next(v.seed for v in dataset.videos if v.origin == "animated")

    def animate(self, still, driver, seed):
        if seed == unlucky:
            raise ZeroDivisionError("planted\nsecond line")
        return real(self, still, driver, seed)

    monkeypatch.setattr(light.WarpAnimator, "animate", animate)
    made = build(world, tmp_path / "out")
    assert table(made)["animate"]["dropped"] == {"failed: ZeroDivisionError: planted": 1}
    assert len(made.split("train")) == len(dataset.split("train")) and made.hash != dataset.hash
    assert {"stage": "animate", "item": "animated 0", "reason": "failed: ZeroDivisionError: planted"} in (
        made.manifest["dropped"]
    )


class FailingWriter(Writer):
    """Fails on every other clip."""

    calls = 0

    def write(self, video, questions):
        self.calls += 1
        if self.calls % 2:
            raise RuntimeError("planted")
        return super().write(video, questions)


def test_questions_that_nobody_could_answer_or_refine_cost_no_clip(world, dataset, tmp_path, monkeypatch):  # noqa: F811
    made = build(world, tmp_path / "a", writer=FailingWriter())
    failures = table(made)["questions"]["dropped"]["failed: RuntimeError: planted"]
    described = [q for v in made.split("train") for q in v.qa if q.source == "vlm"]
    assert failures == 3 and len(described) == 15 - 3 * 3 and len(made.videos) == len(dataset.videos)

    real, calls = RuleRefiner.refine, []

    def refine(self, qa, spec):
        calls.append(qa)
        return 1 / 0 if len(calls) == 1 else real(self, qa, spec)

    monkeypatch.setattr(RuleRefiner, "refine", refine)
    made = build(world, tmp_path / "b")
    plain = [q for v in made.split("train") for q in v.qa if q.source == "vlm" and q.refined_by == "none"]
    assert len(plain) == 3 and {q.answer for q in plain} == {"The person wears a hat."}
    assert table(made)["refine"]["dropped"] == {"failed: ZeroDivisionError: division by zero": 1}


def test_a_stage_that_never_works_ends_the_build_and_says_what_happened(world, tmp_path, monkeypatch):  # noqa: F811
    def animate(self, still, driver, seed):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(light.WarpAnimator, "animate", animate)
    with pytest.raises(RuntimeError, match="All items of the stage animate failed(.|\n)*ZeroDivisionError: planted"):
        build(world, tmp_path / "out")
    monkeypatch.undo()
    assert table(build(world, tmp_path / "out"))["scenes"]["resumed"] == 2


# -- what a generated clip says of itself -----------------------------------------------------------------------------


def test_generated_clips_say_so_in_their_metadata_and_all_others_do_not(dataset):
    import av

    for video in dataset.videos:
        with av.open(str(video.path)) as container:
            comment = container.metadata.get("comment")
        assert comment == (f"synthetic=true; generator={video.backend}" if video.synthetic else None)
    assert {v.synthetic for v in dataset.videos} == {True, False}


# -- contact sheets ---------------------------------------------------------------------------------------------------


def test_a_contact_sheet_per_origin_shows_every_clip_and_is_not_part_of_the_dataset(dataset):
    sheets = {path.stem: Image.open(path).size for path in (dataset.root / "contact_sheets").iterdir()}
    assert set(sheets) == {row.origin for row in RECIPES["tiny"].rows} - {"original"}
    heights = {origin: height for origin, (_, height) in sheets.items()}
    assert heights["random_negative"] - heights["scene"] == 2 * (heights["hard_negative"] - heights["scene"]) > 150
    before = load_local(dataset.root).hash
    (dataset.root / "contact_sheets" / "scene.png").unlink()
    assert load_local(dataset.root).hash == before


def test_forgetting_a_person_takes_the_contact_sheets_along(world, work, tmp_path):  # noqa: F811
    recipe = RECIPES["tiny"].without("animated", "portrait", "hard_negative")
    runs = tmp_path / "runs"
    own = build(world, runs / "nz" / "dataset", recipe=recipe, work=work)
    spec = SubjectSpec("Ada", world / "without0.mp4", FICTION)
    (tmp_path / "gallery").mkdir()
    for source in (world / "ref.mp4", world / "gallery" / "3.mp4", world / "gallery" / "4.mp4"):
        shutil.copy(source, tmp_path / "gallery")
    other = build(world, runs / "ada" / "dataset", spec=spec, recipe=recipe, gallery=tmp_path / "gallery",
                  test_clips=None)  # fmt: skip
    assert hash_file(world / "ref.mp4") in {parent for video in other.videos for parent in video.parent_ids}
    assert (own.root / "contact_sheets").is_dir() and (other.root / "contact_sheets").is_dir()
    assert remove_subject(runs, "Nz")["rewritten"]
    assert not (own.root / "contact_sheets").exists() and not (other.root / "contact_sheets").exists()


# -- verify -----------------------------------------------------------------------------------------------------------


class ColourEmbedder:
    """Two clips are alike as their colours are."""

    id, licences, same, different = "colour@1", ("Apache-2.0",), 0.9, 0.5

    def embed(self, person):
        vector = person.frames.mean((0, 1, 2)).astype(np.float32)
        if vector.max() < 30:
            raise Rejected("no face found")
        return vector / np.linalg.norm(vector)


RED, ORANGE, BLUE, BLACK = (250, 0, 0), (250, 130, 0), (0, 0, 250), (0, 0, 0)


@pytest.fixture
def painter(tmp_path):
    """A build whose clips are plain colours: `paint(name, colour)` -> artefact; and the footage of a red subject."""

    class Stubs:
        embedder = ColourEmbedder()

        def licences_of(self, style):
            return ("Apache-2.0",)

    def make(target, backends, colour):
        write_video(target, np.full((4, 32, 32, 3), colour, np.uint8), 8.0)
        return {"fps": 8.0, "num_frames": 4, "height": 32, "width": 32}

    def embed(target, backends, path):
        np.save(target, ColourEmbedder().embed(Person(*read_video(path))))
        return {}

    engine = Engine(tmp_path / "store", Stubs())
    spec = SubjectSpec("Nz", "ref.mp4", FICTION)
    made = Build([spec], RECIPES["tiny"], engine.backends, engine, 0, "ref")

    def paint(name, colour):
        return engine.run(Task(Stage("paint", 1, "b", ".mp4"), name, make, {"colour": colour}, {"name": name}))

    clip = paint("reference", RED)
    vector = engine.run(Task(Stage("embed", 1, "b", ".npy"), "reference", embed, {"path": clip.path}))
    subject = Footage(Source(Path("ref.mp4"), "ref", clip), clip, 4, subject="<Nz>", embedding=vector)
    other = Footage(Source(Path("other.mp4"), "other", clip), clip, 4)
    return made, paint, subject, other


def test_a_clip_that_fails_is_made_again_with_other_seeds_and_then_dropped_with_the_reason(painter):
    made, paint, subject, other = painter
    good, late, never, alike, fine = (
        Shot("<Nz>", "scene", 0, subject, "scene"),
        Shot("<Nz>", "scene", 1, subject, "scene"),
        Shot("<Nz>", "scene", 2, subject, "scene"),
        Shot("<Nz>", "random_negative", 0, other, "found"),
        Shot("<Nz>", "random_negative", 1, other, "found"),
    )
    shots = [good, late, never, alike, fine]
    first = [paint("good", RED), paint("late", BLUE), paint("never", BLACK), paint("alike", RED), paint("fine", BLUE)]
    asked = []

    def remake(build, waiting):
        asked.append([(shot.label, shot.attempt) for shot in waiting])
        colours = {1: ORANGE if waiting[0].attempt == 2 else BLUE, 2: BLACK}
        return [Made(s, paint(f"{s.label} {s.attempt}", colours[s.index]), "painter") for s in waiting]

    start = [Made(shot, clip, "painter") for shot, clip in zip(shots, first, strict=True)]
    clips, verdicts = verify(made, [subject], shots, start, remake)
    assert asked == [[("scene 1", 1), ("scene 2", 1)], [("scene 1", 2), ("scene 2", 2)]]
    assert [(c.origin, c.subject_present) for c in clips] == [
        ("scene", True),
        ("scene", True),
        ("random_negative", False),
    ]
    assert clips[0].id_score == pytest.approx(1, abs=0.01) and 0.5 < clips[1].id_score < 0.95
    assert len({clip.seed for clip in clips}) == 3
    reasons = [v.reason for v in verdicts if v.reason]
    assert len(verdicts) == 9 and sum("no face" in r for r in reasons) == 3
    assert sum(r.startswith("does not look like the subject") for r in reasons) == 2
    assert sum(r.startswith("looks like the subject") for r in reasons) == 1
    count = made.engine.table()[-1]
    assert (count["in"], count["out"]) == (9, 3) and sum(count["dropped"].values()) == 6


def test_other_thresholds_judge_again_without_scoring_again(painter):
    made, paint, subject, _ = painter
    shot = Shot("<Nz>", "scene", 0, subject, "scene")
    one = [Made(shot, paint("orange", ORANGE), "painter")]
    assert len(verify(made, [subject], [shot], one, lambda build, waiting: [])[0]) == 1
    made.backends.embedder.different = 0.95
    clips, verdicts = verify(made, [subject], [shot], one, lambda build, waiting: [])
    assert not clips and verdicts[0].id_score < 0.95
    assert made.engine.counts["verify"].resumed == 1


# -- attributes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "found", "noun"),
    [("person", Attributes("female", "young"), "woman"), ("person", Attributes(), "person"),
     ("dancer", Attributes("male"), "dancer")],
)  # fmt: skip
def test_the_user_s_word_comes_before_the_model_s_and_the_model_may_abstain(painter, given, found, noun):
    made, _, subject, _ = painter
    made.subjects[0] = dataclasses.replace(made.subjects[0], noun=given)
    made.backends.attributes = type("Stub", (), {"id": "stub@1", "classify": lambda self, person: found})()
    attributes(made, [subject])
    assert made.subjects[0].noun == noun


def test_a_minor_is_refused(painter):
    made, _, subject, _ = painter
    child = Attributes("male", "child")
    made.backends.attributes = type("Stub", (), {"id": "stub@1", "classify": lambda self, person: child})()
    with pytest.raises(PVChatError, match="minor"):
        attributes(made, [subject])


# -- the command ------------------------------------------------------------------------------------------------------


def command(capsys, *words) -> dict:
    assert main(["build", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_stops_after_a_stage(world, capsys, tmp_path):  # noqa: F811
    words = [world / "ref.mp4", "--name", "Nz", "--gallery", world / "gallery", "--i-have-consent", "--recipe", "tiny"]
    said = command(capsys, *words, "--out", tmp_path / "out", "--limit", 1, "--only", "faces")
    assert said["stage"] == "faces" and Path(said["index"]).is_file() and len(said["stages"]) == 2
    assert main(["build", *map(str, words), "--out", str(tmp_path / "out"), "--only", "ingest", "--quiet"]) == 0
    assert "Stopped after ingest" in capsys.readouterr().out


def test_a_build_without_rows_to_generate_skips_what_it_does_not_need(world, tmp_path):  # noqa: F811
    recipe = Recipe("one", (RecipeRow("original", 1, Questions(2)),), RECIPES["light"].backends)
    made = build_dataset(SubjectSpec("Nz", world / "ref.mp4", FICTION), recipe, tmp_path / "out")
    rows = table(made)
    assert [name for name in STAGES if rows[name]["skipped"]] == [
        "attributes", "scenes", "portraits", "animate", "negatives", "verify", "refine",
    ]  # fmt: skip
    assert not (tmp_path / "out" / "contact_sheets").exists()
