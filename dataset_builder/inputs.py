"""What a build is given, checked before the first file is written: people, files, output folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .assemble import BUILD_FOLDER, FORMAT_VERSION, check_output
from .backends.light.gallery import list_gallery
from .catalogue import Backends, chosen
from .consent import require_consent
from .engine import hash_file, hash_text
from .people import open_picture
from .questions import load_bank
from .recipe import Recipe
from .records import SubjectSpec
from .stages import STAGES
from .video_io import VideoInfo, probe_video

BUILDER_VERSION = 3
Gallery = str | Path | Callable[[], Path] | None  # a place, or a function that makes one when all else is checked


@dataclass(frozen=True)
class TestClip:
    """A clip of the test split: never augmented, never trained on. answers: category -> answer, where known.

    subject_present: whether the subject is seen; of several subjects, the names of those who are.
    """

    __test__ = False  # not a test class

    path: Path
    subject_present: bool | tuple[str, ...]
    origin: str = "user"
    answers: dict[str, Any] | None = None


@dataclass(frozen=True)
class Inputs:
    """What a build reads, checked. The subjects are all in `reference`. hashes: the sha256 of every file, those of a
    light gallery too; other galleries may be of any size. others: the files of a light gallery."""

    reference: Path
    info: VideoInfo
    gallery: Path | None
    strangers: Path | None
    others: list[Path]
    tests: list[TestClip]
    hashes: dict[Path, str]

    @property
    def sha256(self) -> str:
        """Of the reference."""
        return self.hashes[self.reference]


def check_request(
    specs: Sequence[SubjectSpec], recipe: Recipe, out: Path, only: str | None = None, resume: bool = False
) -> VideoInfo:
    """Checks what needs neither a backend nor another file than the reference. See `build_dataset`."""
    info = probe_video(specs[0].reference)
    for spec in specs:
        require_consent(spec)
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise PVChatError(f"Two of the people to learn have the same name ({', '.join(names)}); give each their own.")
    if len({spec.reference for spec in specs}) != 1:
        raise PVChatError(
            "People who are learned together must be in one reference video; build one dataset for each."
        )
    if only is not None and only not in STAGES:
        raise PVChatError(f"There is no stage {only!r}; stages: {', '.join(STAGES)}.")
    check_output(out)
    if resume and not any((out / name).exists() for name in (BUILD_FOLDER, "dataset.json")):
        raise PVChatError(f"There is nothing to resume in {out}; leave out --resume to begin there.")
    for spec in specs:
        if spec.box is not None and (spec.box[2] > info.width or spec.box[3] > info.height):
            raise PVChatError(
                f"The box of {spec.name} ({','.join(f'{side:g}' for side in spec.box)}) reaches out of the video of "
                f"{info.width} x {info.height} pixels."
            )
        if spec.photo is not None:
            if not spec.photo.is_file():
                raise PVChatError(f"There is no photo {spec.photo}; pass a picture in which {spec.name} is seen.")
            open_picture(spec.photo, spec.photo)
    for row in recipe.rows:
        load_bank().check(row.questions)
    load_bank().check(recipe.test_questions)
    return info


def read_inputs(
    specs: Sequence[SubjectSpec],
    recipe: Recipe,
    info: VideoInfo,
    backends: Backends,
    gallery: Gallery,
    strangers: str | Path | None,
    tests: Sequence[TestClip],
) -> Inputs:
    """Finds and hashes the files. No file may be on both sides of the split, and the reference is no negative.

    info: of the reference.
    """
    if backends.detector is None and len(specs) > 1 and not all(spec.box for spec in specs):
        raise PVChatError(
            f"Recipe {recipe.name!r} finds nobody by the face: say where each of the {len(specs)} people is, by a box "
            f"(--subject-box x0,y0,x1,y1 and --also NAME@x0,y0,x1,y1, in pixels of the first frame)."
        )
    pointed = [spec.name for spec in specs if spec.photo is not None]
    if backends.detector is None and pointed:
        raise PVChatError(
            f"Recipe {recipe.name!r} finds nobody by the face, so a photo cannot say who {pointed[0]} is: point at "
            f"them by a box (--subject-box x0,y0,x1,y1), or use a recipe that finds faces (paper, modern, your own)."
        )
    for test in tests:
        probe_video(test.path)
        seen_in(test, specs)
    reference = specs[0].reference
    place = gallery() if callable(gallery) else gallery
    place, strangers = (None if folder is None else Path(folder) for folder in (place, strangers))
    others = _gallery_files(recipe, place, strangers)
    photos = [spec.photo for spec in specs if spec.photo is not None]
    hashes = {path: hash_file(path) for path in [reference, *photos, *others, *(test.path for test in tests)]}
    for path in others:
        if hashes[path] == hashes[reference]:
            raise PVChatError(f"The gallery holds the reference video itself ({path.name}); take it out.")
    train = {hashes[path] for path in (reference, *others)}
    for test in tests:
        if hashes[test.path] in train:
            raise PVChatError(f"The test clip {test.path.name} is also a training source; use another clip.")
    return Inputs(reference, info, place, strangers, others, list(tests), hashes)


def _gallery_files(recipe: Recipe, gallery: Path | None, strangers: Path | None) -> list[Path]:
    """The files of a light gallery; others may be tables or of any size, and say themselves what is wrong."""
    if not recipe.needs_others:
        return []
    if gallery is None:
        raise PVChatError(
            f"Recipe {recipe.name!r} needs other people as negatives: pass --gallery FOLDER with pictures or videos, "
            f"one person per file."
        )
    if chosen(recipe)["gallery"] != "folder":
        for place in (gallery, strangers):
            if place is not None and not place.exists():
                raise PVChatError(f"{place} does not exist; pass a folder or a table of pictures or videos of others.")
        return []
    if not gallery.is_dir():
        raise PVChatError(f"The gallery {gallery} is not a folder; pass a folder with pictures or videos of others.")
    files = list_gallery(gallery)
    if len(files) < 2:
        raise PVChatError(f"The gallery {gallery} has {len(files)} picture(s) or video(s); at least 2 are needed.")
    return files


def check_leftovers(out: Path, specs: Sequence[SubjectSpec], inputs: Inputs) -> None:
    """Raises PVChatError when `out` holds an unfinished build of other people; one of the same people is taken up,
    whatever else has changed."""
    scratch = out / BUILD_FOLDER
    records = [scratch / "subject.json", *scratch.glob(f"subject-*/{BUILD_FOLDER}/subject.json")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in records if path.is_file()]
    people = {(record["name"], record["reference_sha256"]) for record in found}
    if people and people != {(spec.name, inputs.sha256) for spec in specs}:
        names = ", ".join(sorted(record["name"] for record in found))
        raise PVChatError(
            f"The output folder {out} holds an unfinished build of {names} from {found[0]['reference']}; pass a new "
            f"folder, or delete this one."
        )


def build_key(specs: Sequence[SubjectSpec], recipe: Recipe, inputs: Inputs, writer: str | None, seed: int) -> str:
    """Of everything that decides the dataset. writer: the id of the one that is at hand."""
    hashes = inputs.hashes
    gallery = sorted({hashes[path] for path in inputs.others})
    places = [] if gallery else [str(place) for place in (inputs.gallery, inputs.strangers)]
    return hash_text(
        {
            "builder": [BUILDER_VERSION, FORMAT_VERSION],
            "subjects": [
                [spec.name, spec.noun, list(spec.pronouns), spec.box, *([hashes[spec.photo]] if spec.photo else [])]
                for spec in specs
            ],
            "reference": inputs.sha256,
            "recipe": recipe.to_json(),
            "gallery": gallery or places,
            "writer": writer,
            "tests": [[hashes[t.path], t.subject_present, t.origin, t.answers] for t in inputs.tests],
            "seed": seed,
        }
    )


def seen_in(test: TestClip, specs: Sequence[SubjectSpec]) -> tuple[str, ...]:
    """The names of those who are seen in a test clip."""
    names = tuple(spec.name for spec in specs)
    if isinstance(test.subject_present, bool):
        if len(names) > 1 and test.subject_present:
            raise PVChatError(f"Say who is seen in the test clip {test.path.name}: some of {', '.join(names)}.")
        return names if test.subject_present else ()
    unknown = sorted(set(test.subject_present) - set(names))
    if unknown:
        raise PVChatError(f"The test clip {test.path.name} shows {unknown[0]}, who is not learned here.")
    return tuple(test.subject_present)
