"""Nobody who could be the subject becomes a negative, whichever gallery a recipe uses."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pvchat.dataset_builder import RECIPES, Questions, RecipeRow, read_video, write_video
from pvchat.dataset_builder.engine import hash_file
from pvchat.dataset_builder.stages.negatives import _Cast
from tests.test_assemble import build, world  # noqa: F401  (fixture)
from tests.test_build_people import FaceColours, Pictures, face_recipe  # noqa: F401  (fixture)

HARD = RecipeRow("hard_negative", 4, Questions(2), drivers=("yes", "no"), styles=("animated",))
RANDOM = RecipeRow("random_negative", 3, Questions(2), raw=3)
ORIGINAL = RecipeRow("original", 1, Questions(2))


def plant(reference, folder, kinds):
    """Copies of the reference as people keep them: encoded again, brighter, smaller, mirrored, a part of it."""
    frames, fps = read_video(reference)
    height, width = frames.shape[1:3]
    small = [np.asarray(Image.fromarray(f).resize((width * 3 // 4, height * 3 // 4))) for f in frames]
    copies = {
        "again": frames,
        "brighter": np.clip(frames.astype(int) + 3, 0, 255).astype(np.uint8),
        "smaller": np.stack(small),
        "mirrored": np.ascontiguousarray(frames[:, :, ::-1]),
        "part": frames[: len(frames) // 2],
    }
    for kind in kinds:
        write_video(folder / f"planted-{kind}.mp4", copies[kind], fps)
    return {hash_file(path) for path in folder.glob("planted-*.mp4")}


@pytest.fixture
def gallery(world, tmp_path):  # noqa: F811
    return shutil.copytree(world / "gallery", tmp_path / "gallery")


def parents(dataset, *origins):
    return {parent for video in dataset.videos if video.origin in origins for parent in video.parent_ids}


def test_copies_of_the_subject_in_a_light_gallery_are_no_negatives(world, gallery, tmp_path):  # noqa: F811
    planted = plant(world / "ref.mp4", gallery, ("again", "brighter", "smaller", "mirrored", "part"))
    recipe = dataclasses.replace(RECIPES["tiny"], rows=(ORIGINAL, HARD, RANDOM))
    made = build(world, tmp_path / "out", recipe=recipe, gallery=gallery, test_clips=None)
    assert len(planted) == 5 and not planted & parents(made, "hard_negative", "random_negative")
    assert len(parents(made, "hard_negative", "random_negative")) >= 4
    (row,) = [row for row in made.manifest["stages"] if row["stage"] == "negatives"]
    assert row["dropped"] == {"looks like a subject": 5}


@pytest.mark.parametrize("kind", ["face-topk", "clip-topk"])
def test_copies_of_the_subject_are_no_negatives_of_the_other_galleries(
    world, gallery, face_recipe, tmp_path, monkeypatch, kind  # noqa: F811
):  # fmt: skip
    from pvchat.dataset_builder.backends.galleries.clip import ClipEncoder

    monkeypatch.setattr(ClipEncoder, "from_pretrained", lambda *name: Pictures())
    monkeypatch.setattr(FaceColours, "different", -1.0)  # the band of face-topk: everybody but the subject
    planted = plant(world / "ref.mp4", gallery, ("again", "mirrored", "part"))
    backends = face_recipe.backends | {"gallery": kind, "strangers": "random-clips"}
    hard = dataclasses.replace(HARD, people=3)
    recipe = dataclasses.replace(face_recipe, rows=(ORIGINAL, hard, RANDOM), backends=backends)
    made = build(world, tmp_path / "out", recipe=recipe, gallery=gallery, test_clips=None)
    assert not planted & parents(made, "hard_negative", "random_negative")
    assert len(parents(made, "hard_negative")) >= 2 and parents(made, "random_negative")


def test_a_picture_that_only_matches_another_picture_of_the_subject_is_the_subject():
    def at(degrees):
        angle = np.deg2rad(degrees)
        return SimpleNamespace(vector=lambda: np.array([np.cos(angle), np.sin(angle)]))

    build = SimpleNamespace(backends=SimpleNamespace(embedder=SimpleNamespace(same=np.cos(np.deg2rad(30)))))
    cast = _Cast(build, [at(0)])
    cast.seen = {"copy": at(25), "relit": at(50), "friend": at(80), "empty": None}
    assert cast.of_subjects() == {"copy", "relit"}
    cast.seen.pop("copy")
    assert cast.of_subjects() == set()
