"""The stages of a build: what they redo, where they stop, what they drop and why, what they cost; several people in
one video; which backends may be used under which licence."""

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
    cartoon,
    check_backends,
    check_licences,
    costs,
    load_local,
    load_subject,
    read_video,
    write_video,
)
from pvchat.dataset_builder import catalogue as catalogue_module
from pvchat.dataset_builder.catalogue import CATALOGUE, PERMISSIVE, Backends, Entry, chosen, entry
from pvchat.dataset_builder.engine import Engine, Rejected, Stage, Task, hash_file, run_item
from pvchat.dataset_builder.people import Footage, Source
from pvchat.dataset_builder.protocols import Attributes, Face, Person, QualityReport
from pvchat.dataset_builder.stages import STAGES, Build, attributes, verify
from pvchat.dataset_builder.stages.common import Made, Shot
from pvchat.errors import MissingBackendError, PVChatError
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


# -- several people in one video --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(world):  # noqa: F811
    """Two drawn people side by side, each 96 x 96 pixels; a clip of the second one alone."""
    first, second = [member.identity for member in cartoon.cast(9, seed=4)][0::8]
    rng = np.random.default_rng(5)
    scenes = [cartoon.Scene.random(rng) for _ in range(3)]
    left, right, alone = (
        cartoon.render_clip(person, scene, 6, 96)
        for person, scene in zip((first, second, second), scenes, strict=True)
    )
    write_video(world / "pair.mp4", np.concatenate([left, right], axis=2), 6.0)
    write_video(world / "second.mp4", alone, 6.0)
    return world / "pair.mp4"


def two(pair, boxes=((0, 0, 96, 96), (96, 0, 192, 96))):
    boxes = boxes or (None, None)
    return [SubjectSpec(name, pair, FICTION, box=box) for name, box in zip(("Nz", "Ada"), boxes, strict=True)]


@pytest.fixture(scope="module")
def both(world, work, pair, tmp_path_factory):  # noqa: F811
    tests = [(pair.parent / "second.mp4", ("<Ada>",)), (world / "without0.mp4", ())]
    out = tmp_path_factory.mktemp("two") / "dataset"
    return build(world, out, spec=two(pair), work=work, test_clips=tests)


def test_every_clip_of_two_people_is_asked_about_each_of_them(both):
    by_clip = {}
    for video in both.split("train"):
        by_clip.setdefault(video.sha256, {})[video.subject] = video
        says = {q.answer.split(",")[0] for q in video.qa if q.category == "existence"}
        assert says == {"Yes" if video.subject in video.subjects else "No"}
        assert all(video.subject in q.question for q in video.qa)
    kinds = {frozenset(seen) for rows in by_clip.values() for seen in {rows[name].subjects for name in rows}}
    assert kinds == {frozenset({"<Nz>", "<Ada>"}), frozenset({"<Nz>"}), frozenset({"<Ada>"}), frozenset()}
    scenes = [rows for rows in by_clip.values() if any(v.origin == "scene" for v in rows.values())]
    assert scenes and all(set(rows) == {"<Nz>", "<Ada>"} for rows in scenes)
    assert all(rows["<Nz>"].subject_present != rows["<Ada>"].subject_present for rows in scenes)


def test_each_of_two_people_is_a_dataset_to_train_on(both):
    assert both.subject is None and both.manifest["subjects"] == ["<Nz>", "<Ada>"]
    for name in both.manifest["subjects"]:
        own = load_subject(both.root, name)
        originals = [v for v in own.videos if v.origin == "original"]
        assert len(originals) == 1 and originals[0].subjects == ("<Nz>", "<Ada>") and originals[0].subject_present
        assert sum(v.subject_present for v in own.split("train")) >= 5
        assert {v.subject_present for v in own.split("test")} == ({True, False} if name == "<Ada>" else {False})
        assert not any(other in q.question + q.answer for v in own.videos for q in v.qa
                       for other in both.manifest["subjects"] if other != name)  # fmt: skip


def test_the_scenes_of_each_show_the_right_person(both):
    """The left half of the reference is the first one's: their clips are more like it than the other's are."""
    rows = [v for v in both.split("train") if v.origin in ("scene", "animated", "portrait") and v.subject == "<Nz>"]
    own = [v.id_score for v in rows if v.subject_present]
    others = [v.id_score for v in rows if not v.subject_present]
    assert len(own) >= 4 and len(others) >= 4 and np.mean(own) > np.mean(others) + 0.1


def test_several_people_are_refused_without_boxes_twice_the_name_or_out_of_the_picture(world, pair, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    refused(out, "subject-box", lambda: build(world, out, spec=two(pair, None)))
    twice = [two(pair)[0], dataclasses.replace(two(pair)[1], name="<Nz>")]
    refused(out, "same name", lambda: build(world, out, spec=twice))
    refused(out, "192 x 96", lambda: build(world, out, spec=two(pair, ((0, 0, 96, 96), (96, 0, 300, 96)))))
    apart = [two(pair)[0], dataclasses.replace(two(pair)[1], reference=world / "ref.mp4")]
    refused(out, "one reference video", lambda: build(world, out, spec=apart))
    refused(out, "Say who", lambda: build(world, out, spec=two(pair), test_clips=[(world / "with0.mp4", True)]))
    with pytest.raises(PVChatError, match="x0,y0,x1,y1"):
        SubjectSpec("Nz", "a.mp4", FICTION, box=(5, 5, 5, 9))


class HalvesDetector:
    """Stands in for a face detector: a face in the middle of every half of a wide frame, or of the whole frame."""

    id, licences = "halves@1", ("Apache-2.0",)

    def detect(self, frames):
        height, width = frames.shape[1:3]
        count = max(1, round(width / height))
        side, middle = 0.35 * height, height * 0.42
        centres = [(index + 0.5) * width / count for index in range(count)]
        boxes = [(x - side / 2, middle - side / 2, x + side / 2, middle + side / 2) for x in centres]
        return [[Face(box, 1.0, None) for box in boxes] for _ in frames]


class FaceColours(ColourEmbedder):
    """Tells people apart by the colours of the face's box."""

    id, same, different, eps = "face-colours@1", 0.9999, 0.5, 0.001

    def __init__(self, detector):
        self.detector = detector

    def embed(self, person):
        faces = [found[0] for found in self.detector.detect(person.frames)]
        mean = self.embed_faces(person.frames, faces).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def embed_faces(self, frames, faces):
        rows = []
        for frame, face in zip(frames, faces, strict=True):
            x0, y0, x1, y1 = (round(side) for side in face.box)
            colours = frame[y0:y1, x0:x1].reshape(-1, 3).astype(np.float32).mean(0)
            rows.append(colours / np.linalg.norm(colours))
        return np.stack(rows)


class AnyStill:
    id, licences = "any@1", ("Apache-2.0",)

    def score(self, person):
        assert person.alpha is None and person.frames.shape[1] == person.frames.shape[2]
        return [QualityReport(float(index)) for index in range(len(person.frames))]


@pytest.fixture
def face_recipe(monkeypatch):
    """The light generators behind a detector and an embedder of faces."""
    monkeypatch.setitem(CATALOGUE["detector"], "halves", Entry(("Apache-2.0",), lambda b, o: HalvesDetector()))
    monkeypatch.setitem(CATALOGUE["embedder"], "colours", Entry(("Apache-2.0",), lambda b, o: FaceColours(b.detector)))
    monkeypatch.setitem(CATALOGUE["quality"], "any", Entry(("Apache-2.0",), lambda b, o: AnyStill()))
    light = RECIPES["tiny"].without("animated", "portrait", "hard_negative")
    backends = light.backends | {"detector": "halves", "embedder": "colours", "quality": "any"}
    return dataclasses.replace(light, name="faces", backends=backends, verified_frames=4)


def test_by_their_faces_two_people_are_told_apart_without_boxes(world, work, pair, face_recipe, tmp_path):  # noqa: F811
    made = build(world, tmp_path / "out", spec=two(pair, None), recipe=face_recipe, work=work, test_clips=None)
    rows = table(made)
    assert rows["faces"]["in"] >= 2 and rows["identities"]["out"] >= 2
    scenes = [v for v in made.split("train") if v.origin == "scene" and v.subject_present]
    assert {v.subject for v in scenes} == {"<Nz>", "<Ada>"} and all(v.width == v.height for v in scenes)


def test_a_box_chooses_the_person_by_the_face_in_it(world, work, pair, face_recipe, tmp_path):  # noqa: F811
    boxes = ((96, 0, 192, 96), (0, 0, 96, 96))
    names = {}
    for key, spec in (("plain", two(pair, boxes[::-1])), ("swapped", two(pair, boxes))):
        made = build(world, tmp_path / key, spec=spec, recipe=face_recipe, work=work, test_clips=None, only="select")
        listed = json.loads(made.index.read_text(encoding="utf-8"))["identities"]
        names[key] = {one["item"]: hash_file(one["artefact"]) for one in listed if one["artefact"].endswith(".mp4")}
    assert names["plain"]["<Nz>"] == names["swapped"]["<Ada>"] != names["plain"]["<Ada>"]
    with pytest.raises(PVChatError, match="touches no face"):
        build(world, tmp_path / "far", spec=[two(pair, ((0, 90, 5, 96), None))[0]], recipe=face_recipe, work=work)


# -- who the negatives are --------------------------------------------------------------------------------------------


def test_the_subject_in_the_gallery_is_never_a_negative(world, work, tmp_path):  # noqa: F811
    shutil.copytree(world / "gallery", tmp_path / "gallery")
    frames, fps = read_video(world / "ref.mp4")
    write_video(tmp_path / "gallery" / "planted.mp4", np.clip(frames.astype(int) + 3, 0, 255).astype(np.uint8), fps)
    recipe = RECIPES["tiny"].without("animated", "portrait")
    made = build(world, tmp_path / "out", recipe=recipe, gallery=tmp_path / "gallery", work=work)
    planted = hash_file(tmp_path / "gallery" / "planted.mp4")
    assert not any(planted in video.parent_ids for video in made.videos)
    assert table(made)["negatives"]["dropped"] == {"looks like a subject": 1}


class Pictures:
    """Stands in for CLIP: pictures are as alike as their colours."""

    id = "colours"

    def encode(self, pictures):
        vectors = np.stack([picture.mean((0, 1)) for picture in pictures]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("gallery", ["face-topk", "clip-topk"])
def test_others_can_come_from_two_places(world, work, face_recipe, tmp_path, monkeypatch, gallery):  # noqa: F811
    from pvchat.dataset_builder.backends.galleries.clip import ClipEncoder

    monkeypatch.setattr(ClipEncoder, "from_pretrained", lambda *name: Pictures())
    for name, files in (("alike", "01"), ("strangers", "345")):
        (tmp_path / name).mkdir()
        for number in files:
            shutil.copy(world / "gallery" / f"{number}.mp4", tmp_path / name)
    rows = (
        RecipeRow("original", 1, Questions(2)),
        RecipeRow("hard_negative", 4, Questions(2), drivers=("yes", "no"), people=2, styles=("animated",)),
        RecipeRow("random_negative", 3, Questions(2), raw=3),
    )
    backends = face_recipe.backends | {"gallery": gallery, "strangers": "random-clips"}
    recipe = dataclasses.replace(face_recipe, rows=rows, backends=backends)
    monkeypatch.setattr(FaceColours, "different", -1.0)  # the band of face-topk: everybody but the subject
    made = build(world, tmp_path / "out", recipe=recipe, gallery=tmp_path / "alike", test_clips=None, work=work,
                 strangers=tmp_path / "strangers")  # fmt: skip
    parents = {
        o: {p for v in made.videos if v.origin == o for p in v.parent_ids}
        for o in ("hard_negative", "random_negative")
    }
    assert parents["hard_negative"] == {hash_file(path) for path in (tmp_path / "alike").iterdir()}
    assert parents["random_negative"] == {hash_file(path) for path in (tmp_path / "strangers").iterdir()}
    hard = [v for v in made.videos if v.origin == "hard_negative"]
    assert len(hard) == 4 and {v.backend for v in hard} == {"warp2d@2"}


# -- recipes, licences, missing packages, cost ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_backends_that_exist_and_can_be_told_the_cost_of(name):
    recipe = RECIPES[name]
    assert {role: entry(role, backend) for role, backend in chosen(recipe).items()}
    needed = {(cost.stage, cost.backend): cost for cost in costs(recipe)}
    assert needed["scenes", recipe.backends["scene"]].items >= 2
    assert all(cost.source for cost in needed.values())


def test_the_cost_counts_what_the_stages_will_do(dataset):
    rows = table(dataset)
    for cost in costs(RECIPES["tiny"]):
        if cost.stage in ("scenes", "portraits", "animate", "verify"):
            assert cost.items == rows[cost.stage]["in"] - sum(rows[cost.stage]["dropped"].values()), cost


def test_where_nobody_has_measured_the_cost_is_unknown():
    modern = {cost.backend: cost for cost in costs(RECIPES["modern"])}
    assert modern["wan-vace"].seconds is None and modern["wan-vace"].memory_gb == 16
    assert all(cost.seconds is not None for cost in costs(RECIPES["light"]))


def test_the_permissive_policy_refuses_what_is_not_for_any_use_and_names_it():
    with pytest.raises(
        PVChatError, match=r"facenet \(VGGFace2-research\); consisid \(CogVideoX, InsightFace-NC\)"
    ) as caught:
        check_licences(RECIPES["paper"], "permissive")
    assert "photomaker-v2" in str(caught.value) and "\n" not in str(caught.value)
    for name in ("modern", "light", "tiny"):
        check_licences(RECIPES[name], "permissive")
    for name in RECIPES:
        check_licences(RECIPES[name], "research")
    with pytest.raises(PVChatError, match="research, permissive"):
        check_licences(RECIPES["light"], "lax")


def test_what_is_not_installed_is_named_with_its_pip_line(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(catalogue_module, "find_spec", lambda name: None if name in ("diffusers", "cv2") else True)
    out = tmp_path / "out"
    message = (
        r'yunet needs cv2: pip install "pvchat\[faces\]" \(licence: .*wan-vace needs diffusers.*pvchat\[generate\]'
    )
    refused(out, message, lambda: build(world, out, recipe=RECIPES["modern"]))
    with pytest.raises(MissingBackendError, match="choose one of: .*composite"):
        check_backends(dataclasses.replace(RECIPES["light"], backends={"scene": "dream"}))
    with pytest.raises(PVChatError, match="no role"):
        check_backends(dataclasses.replace(RECIPES["light"], backends={"sound": "dream"}))


CLASSES = {
    "faces.lbp": {"lbp": "LbpDetector"},
    "faces.mtcnn": {"mtcnn": "MTCNN"},
    "faces.yunet": {"yunet": "YuNet"},
    "faces.facenet": {"facenet": "FaceNet"},
    "faces.sface": {"sface": "SFace"},
    "faces.auraface": {"auraface": "AuraFace"},
    "faces.hog": {"face-hog": "FaceHog"},
    "diffusion.consisid": {"consisid": "ConsisIDScenes"},
    "diffusion.wan_vace": {"wan-vace": "WanVACEScenes"},
    "diffusion.edit": {"qwen-edit": "QwenEditPortraits", "flux2-klein": "KleinPortraits"},
    "diffusion.wan_animate": {"wan-animate-2": "WanAnimator"},
    "liveportrait.animator": {"liveportrait": "LivePortraitAnimator"},
    "vlm.internvideo2": {"internvideo2": "InternVideo2Writer"},
}


@pytest.mark.parametrize("module", CLASSES)
def test_the_catalogue_says_the_licences_that_the_backends_say(module):
    entries = {name: found for names in CATALOGUE.values() for name, found in names.items()}
    backends = import_module(f"pvchat.dataset_builder.backends.{module}")
    for name, cls in CLASSES[module].items():
        assert set(getattr(backends, cls).licences) == set(entries[name].licences), name


def test_what_the_quality_filter_of_the_paper_needs_is_said_with_the_way_to_give_it():
    backends = Backends(RECIPES["paper"])
    backends._made["detector"] = HalvesDetector()
    with pytest.raises(MissingBackendError, match=r"face_landmarker.task .*https://.*landmarks: PATH"):
        _ = backends.quality


def test_generators_of_the_modern_and_the_paper_recipe_are_made_without_their_weights(tmp_path):
    """So that what they lack shows early, and nothing is loaded before it is needed."""
    for motion in ("yes", "no", "query", "smile", "angry"):
        write_video(tmp_path / f"{motion}.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8.0)
    modern = Backends(RECIPES["modern"].with_drivers(tmp_path))
    paper = Backends(RECIPES["paper"])
    paper._made["detector"] = HalvesDetector()
    made = [getattr(b, role) for b in (modern, paper) for role in ("scene", "portrait", "animate")]
    assert [one.id.split("@")[0] for one in made] == [
        "wan-vace", "flux2-klein", "wan-animate-2", "consisid", "photomaker-v2", "liveportrait",
    ]  # fmt: skip
    assert paper.licences_of("portrait") == ("MIT", "Apache-2.0", "OpenRAIL++-M", "InsightFace-NC")
    assert set(modern.licences_of("portrait")) <= PERMISSIVE and modern.licences_of("found") == ("user",)


def test_driving_clips_are_for_the_animators_that_take_them(tmp_path):
    with pytest.raises(PVChatError, match="--drivers FOLDER"):
        _ = Backends(RECIPES["modern"]).animate
    with pytest.raises(PVChatError, match="takes no driving clips"):
        RECIPES["light"].with_drivers(tmp_path)
    with pytest.raises(PVChatError, match="yes.mp4"):
        RECIPES["modern"].with_drivers(tmp_path)


def test_options_of_a_recipe_reach_the_backend_and_unknown_ones_are_refused():
    recipe = Recipe.from_json({"base": "modern", "name": "mine", "options": {"scene": {"steps": 7}}})
    assert Backends(recipe).scene.steps == 7
    recipe = Recipe.from_json({"base": "light", "name": "mine", "options": {"scene": {"colour": "red"}}})
    with pytest.raises(PVChatError, match="colour"):
        _ = Backends(recipe).scene


def test_a_finished_writer_takes_the_place_of_the_recipe_s():
    writer = Writer()
    assert Backends(RECIPES["paper"], writer).writer is writer
    assert Backends(RECIPES["light"]).writer is None


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


def test_a_dry_run_says_what_it_costs_and_writes_nothing(world, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    plan = command(capsys, world / "ref.mp4", "--name", "Nz", "--recipe", "modern", "--dry-run")
    assert (plan["clips"], plan["questions"]) == (81, 1455) and "wan-vace" in plan["not_measured"]
    assert plan["memory_gb"] == 80 and list(tmp_path.iterdir()) == []
    assert main(["build", str(world / "ref.mp4"), "--name", "Nz", "--recipe", "paper", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "consisid" in text and "unknown" in text and "A100" in text


def test_the_command_refuses_by_policy_and_by_missing_backends_before_it_writes(world, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(catalogue_module, "find_spec", lambda name: None)
    words = ["build", str(world / "ref.mp4"), "--name", "Nz", "--i-have-consent", "--out", str(tmp_path / "a" / "out")]
    words += ["--gallery", str(world / "gallery")]
    assert main([*words, "--recipe", "paper", "--licence-policy", "permissive"]) == 1
    assert "InsightFace-NC" in capsys.readouterr().err
    assert main([*words, "--recipe", "paper"]) == 1
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_boxes_and_other_people_on_the_command_line(world, pair, capsys, tmp_path):  # noqa: F811
    words = [pair, "--name", "Nz", "--gallery", world / "gallery", "--i-have-consent", "--recipe", "tiny"]
    words += ["--out", tmp_path / "out", "--only", "faces", "--subject-box", "0,0,96,96"]
    said = command(capsys, *words, "--also", "<Ada>@96,0,192,96")
    items = json.loads(Path(said["index"]).read_text(encoding="utf-8"))["faces"]
    assert {one["item"] for one in items} == {"<Nz>", "<Ada>"}
    for wrong, message in (("<Ada>@1,2", "x0,y0,x1,y1"), ("<Ada>@here", "in pixels"), ("12", "name")):
        assert main(["build", *map(str, words), "--also", wrong]) == 1
        assert message in capsys.readouterr().err


def test_a_recipe_file_is_a_recipe(world, capsys, tmp_path):  # noqa: F811
    (tmp_path / "mine.yaml").write_text(
        "{base: light, rows: [{origin: original, count: 1, questions: {existence: 4}}]}"
    )
    plan = command(capsys, world / "ref.mp4", "--name", "Nz", "--recipe", tmp_path / "mine.yaml", "--dry-run")
    assert (plan["recipe"], plan["clips"], plan["questions"]) == ("mine", 1, 4)


def test_a_build_without_rows_to_generate_skips_what_it_does_not_need(world, tmp_path):  # noqa: F811
    recipe = Recipe("one", (RecipeRow("original", 1, Questions(2)),), RECIPES["light"].backends)
    made = build_dataset(SubjectSpec("Nz", world / "ref.mp4", FICTION), recipe, tmp_path / "out")
    rows = table(made)
    assert [name for name in STAGES if rows[name]["skipped"]] == [
        "attributes", "scenes", "portraits", "animate", "negatives", "verify", "refine",
    ]  # fmt: skip
    assert not (tmp_path / "out" / "contact_sheets").exists()
