"""Several people in one reference video, and who the negatives are."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvchat.cli import main
from pvchat.dataset_builder import (
    RECIPES,
    Questions,
    RecipeRow,
    SubjectSpec,
    cartoon,
    load_subject,
    read_video,
    write_video,
)
from pvchat.dataset_builder.catalogue import CATALOGUE, Entry
from pvchat.dataset_builder.engine import hash_file
from pvchat.dataset_builder.protocols import Face, QualityReport
from pvchat.errors import PVChatError
from pvchat.subjects import remove_subject
from tests.test_assemble import build, refused, world  # noqa: F401  (fixture)
from tests.test_build import FICTION, ColourEmbedder, command, table, work  # noqa: F401  (fixture)

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


@pytest.fixture(scope="module")
def photos(pair):
    """A picture of each of the two, taken from the first frame of their video."""
    frame = read_video(pair)[0][0]
    paths = pair.parent / "first.png", pair.parent / "second.png"
    for path, half in zip(paths, np.split(frame, 2, axis=1), strict=True):
        Image.fromarray(half).save(path)
    return paths


def test_a_photo_chooses_the_person_it_shows(world, work, pair, photos, face_recipe, tmp_path):  # noqa: F811
    def cut(number, **place):
        spec = dataclasses.replace(two(pair, None)[0], **place)
        out = tmp_path / str(number)
        made = build(world, out, spec=spec, recipe=face_recipe, work=work, test_clips=None, only="select")
        record = json.loads((out / ".build" / "subject.json").read_text(encoding="utf-8"))
        listed = json.loads(made.index.read_text(encoding="utf-8"))["identities"]
        (clip,) = [hash_file(one["artefact"]) for one in listed if one["artefact"].endswith(".mp4")]
        return clip, record["photo"]

    left, right = (cut(number, photo=photo) for number, photo in enumerate(photos))
    assert left == (cut(2, box=(0, 0, 96, 96))[0], "first.png") and right == (
        cut(3, box=(96, 0, 192, 96))[0], "second.png",
    )  # fmt: skip
    assert left != right


def test_another_photo_is_another_dataset_and_the_same_one_under_another_name_is_not(
    world, work, pair, photos, face_recipe, tmp_path  # noqa: F811
):  # fmt: skip
    def make(photo, out):
        spec = dataclasses.replace(two(pair, None)[0], photo=photo)
        return build(world, tmp_path / out, spec=spec, recipe=face_recipe, work=work, test_clips=None)

    first = make(photos[0], "out")
    shutil.copy(photos[0], tmp_path / "copy.png")
    assert make(tmp_path / "copy.png", "out").hash == first.hash
    with pytest.raises(PVChatError, match="made from other inputs"):
        make(photos[1], "out")
    assert make(photos[1], "other").hash != first.hash


def test_what_was_made_of_a_photo_is_forgotten_with_the_person(world, pair, photos, face_recipe, tmp_path):  # noqa: F811
    """Also in a folder of artefacts that outlives the build, where only hashes say whose they are."""
    runs, store = tmp_path / "runs", tmp_path / "runs" / "store"
    spec = dataclasses.replace(two(pair, None)[0], photo=photos[0])
    build(world, runs / "nz", spec=spec, recipe=face_recipe, work=store, test_clips=None, only="identities")
    sidecars = [json.loads(path.read_text(encoding="utf-8")) for path in store.rglob("*.done.json")]
    assert sum(record["backend"].startswith("photo/") for record in sidecars) == 1
    result = remove_subject(runs, "Nz")
    assert result["scan"]["left"] == [] and not list(runs.rglob("*.npy"))


def test_a_photo_that_cannot_be_used_is_refused_before_anything_is_written(
    world, pair, photos, face_recipe, tmp_path  # noqa: F811
):  # fmt: skip
    def refused_with(message, photo=photos[0], recipe=face_recipe):
        spec = dataclasses.replace(two(pair, None)[0], photo=photo)
        refused(tmp_path / "out", message, lambda: build(world, tmp_path / "out", spec=spec, recipe=recipe))

    (tmp_path / "text.png").write_text("not a picture")
    refused_with("There is no photo .*gone.png", tmp_path / "gone.png")
    refused_with("text.png cannot be read; use a png or jpeg file", tmp_path / "text.png")
    refused_with(r"'tiny' finds nobody by the face.*--subject-box.*paper, modern", recipe=RECIPES["tiny"])
    with pytest.raises(PVChatError, match="by a box or by a photo, not by both"):
        dataclasses.replace(two(pair)[0], photo=photos[0])


def test_a_photo_on_the_command_line(world, pair, photos, face_recipe, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(RECIPES, "faces", face_recipe)
    words = [pair, "--name", "Nz", "--gallery", world / "gallery", "--i-have-consent", "--out", tmp_path / "out"]
    said = command(capsys, *words, "--recipe", "faces", "--subject-photo", photos[1], "--only", "identities")
    listed = json.loads(Path(said["index"]).read_text(encoding="utf-8"))["identities"]
    assert [one["item"] for one in listed].count("second.png") == 1
    for name in ("build", "personalize"):
        wanted = [name, *map(str, words[:-1]), str(tmp_path / name), "--recipe", "tiny", "--subject-photo"]
        assert main([*wanted, str(photos[1])]) == 1
        assert "--subject-box" in capsys.readouterr().err and not (tmp_path / name).exists()
        assert main([*wanted, str(photos[1]), "--subject-box", "0,0,96,96"]) == 1
        assert "not allowed with" in capsys.readouterr().err


def test_boxes_and_other_people_on_the_command_line(world, pair, capsys, tmp_path):  # noqa: F811
    words = [pair, "--name", "Nz", "--gallery", world / "gallery", "--i-have-consent", "--recipe", "tiny"]
    words += ["--out", tmp_path / "out", "--only", "faces", "--subject-box", "0,0,96,96"]
    said = command(capsys, *words, "--also", "<Ada>@96,0,192,96")
    items = json.loads(Path(said["index"]).read_text(encoding="utf-8"))["faces"]
    assert {one["item"] for one in items} == {"<Nz>", "<Ada>"}
    for wrong, message in (("<Ada>@1,2", "x0,y0,x1,y1"), ("<Ada>@here", "in pixels"), ("12", "name")):
        assert main(["build", *map(str, words), "--also", wrong]) == 1
        assert message in capsys.readouterr().err


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
    assert len(hard) == 4 and {v.backend for v in hard} == {"warp2d@5"}
