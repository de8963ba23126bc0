"""Stages by themselves: what they refuse and what they drop."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pvchat.dataset_builder import RECIPES, SubjectSpec, read_video, write_video
from pvchat.dataset_builder.engine import Artefact, Engine, Rejected
from pvchat.dataset_builder.people import Footage
from pvchat.dataset_builder.protocols import Attributes
from pvchat.dataset_builder.records import QA
from pvchat.dataset_builder.stages import Build, attributes, faces, identities, ingest
from pvchat.dataset_builder.stages.faces import _crop
from pvchat.dataset_builder.stages.questions import _close, _Open
from pvchat.errors import PVChatError
from tests.test_build_people import FaceColours, HalvesDetector


@pytest.mark.parametrize(
    "found", [Attributes("girl", None), Attributes(None, "child"), Attributes("male", "Teenager")]
)
def test_the_stage_refuses_a_minor_whichever_field_says_so(found):
    """Any classifier may be plugged in; not all of them refuse by themselves."""
    record = Artefact("key", "a.json", "sha", {"gender": found.gender, "age": found.age})
    backends = SimpleNamespace(attributes=SimpleNamespace(id="own@1"))
    engine = SimpleNamespace(map=lambda tasks: [record])
    build = Build([SubjectSpec("<Nz>", "a.mp4")], RECIPES["tiny"], backends, engine, 0, "ref")
    footage = SimpleNamespace(label="<Nz>", subject="<Nz>", files=None, hashes=("sha",))
    with pytest.raises(PVChatError, match="adults only"):
        attributes(build, [footage])


def test_answers_with_a_placeholder_are_dropped_with_the_reason_and_the_others_stay():
    """A small base may say its own training's placeholder; the whole build must not fail at its end because of it."""
    known = QA("Is <Nz> here?", "Yes, <Nz> is.", "existence", "template")
    row = [known, *(_Open("action", f"What does {{name}} do, {i}?") for i in range(5))]
    written = ["The person waves.", "The person <sks> waves.", " ", "<Nz> waves.", "{name} waves."]
    dropped = Counter()
    engine = SimpleNamespace(drop=lambda stage, item, reason: dropped.update([reason]))
    clip = SimpleNamespace(video_id="v", subject="<Nz>")
    closed = _close(SimpleNamespace(engine=engine), clip, row, written, "train")
    assert [qa.answer for qa in closed] == [known.answer, "The person waves."]
    assert closed[1].question == "What does <Nz> do, 0?"
    assert dropped == {"a placeholder in the answer": 3, "empty answer": 1}


# -- several people side by side --------------------------------------------------------------------------------------

COLOURS = {"<Nz>": (220, 40, 40), "<Ada>": (40, 200, 60), "<Bo>": (50, 60, 230)}
SIDE = 96


class Eyes(FaceColours):
    """Sees no face in what is dark."""

    def embed(self, person):
        if person.frames.max() < 40:
            raise Rejected("no face found")
        return super().embed(person)


@pytest.fixture
def trio(tmp_path):
    """A build, and the footage of a video with three people, red, green and blue, from left to right."""
    panels = [np.full((8, SIDE, SIDE, 3), colour, np.uint8) for colour in COLOURS.values()]
    write_video(tmp_path / "trio.mp4", np.concatenate(panels, 2), 8.0)
    detector = HalvesDetector()
    backends = SimpleNamespace(detector=detector, embedder=Eyes(detector))
    specs = [SubjectSpec(name, tmp_path / "trio.mp4") for name in COLOURS]
    recipe = dataclasses.replace(RECIPES["tiny"], max_side=768)
    build = Build(specs, recipe, backends, Engine(tmp_path / "store", backends), 0, "ref")
    (source,) = ingest(build, [tmp_path / "trio.mp4"])
    return build, Footage(source, source.clip, 4)


def shown(footage):
    """Which of the three colours the cut-out clip shows."""
    colour = read_video(footage.clip.path)[0].mean((0, 1, 2))
    return min(COLOURS, key=lambda name: np.abs(colour - COLOURS[name]).sum())


def found(build, *people):
    return identities(build, faces(build, people, 4))


def test_three_people_are_told_apart_by_their_faces_and_chosen_by_boxes(trio):
    build, footage = trio
    boxes = {"<Nz>": (0, 0, 1 / 3, 1), "<Ada>": (1 / 3, 0, 2 / 3, 1), "<Bo>": (2 / 3, 0, 1, 1)}
    people = [dataclasses.replace(footage, subject=name, box=box) for name, box in boxes.items()]
    assert [(f.subject, shown(f)) for f in found(build, *people)] == [(name, name) for name in COLOURS]
    swapped = [dataclasses.replace(p, box=boxes[name]) for p, name in zip(people, list(boxes)[::-1], strict=True)]
    assert [shown(f) for f in found(build, *swapped)] == list(COLOURS)[::-1]


def test_one_person_of_three_is_chosen_by_a_box_even_if_the_faces_of_two_others_are_larger(trio):
    build, footage = trio
    alone = dataclasses.replace(footage, subject="<Bo>", box=(2 / 3, 0, 1, 1))
    assert shown(*found(build, alone)) == "<Bo>"


@pytest.mark.parametrize("name", COLOURS)
def test_a_photo_chooses_the_person_it_shows(trio, tmp_path, name):
    build, footage = trio
    Image.new("RGB", (64, 64), tuple(c // 2 for c in COLOURS[name])).save(tmp_path / "photo.png")
    pointed = dataclasses.replace(footage, subject=name, photo=tmp_path / "photo.png")
    assert shown(*found(build, pointed)) == name


def test_a_photo_that_says_nothing_is_one_clear_line(trio, tmp_path):
    build, footage = trio
    Image.new("RGB", (64, 64), (5, 5, 5)).save(tmp_path / "dark.png")
    pointed = dataclasses.replace(footage, subject="<Nz>", photo=tmp_path / "dark.png")
    with pytest.raises(PVChatError, match=r"photo .*dark.png cannot be used \(no face found\)"):
        found(build, pointed)


def test_a_person_of_a_wide_video_is_cut_out_of_the_file_itself_not_of_the_small_copy(trio):
    """Where a recipe keeps 256 pixels, each of three people side by side would have 85."""
    build, footage = trio
    build.recipe = dataclasses.replace(build.recipe, max_side=96)
    build.backends.detector = None
    boxed = dataclasses.replace(footage, subject="<Ada>", box=(1 / 3, 0, 2 / 3, 1))
    (cut,) = _crop(build, [boxed])
    frames, _ = read_video(cut.clip.path)
    assert frames.shape[1:3] == (SIDE, SIDE) and shown(cut) == "<Ada>"
