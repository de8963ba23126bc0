"""What the stages share: the build they belong to, and the records between the generators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import PVChatError
from ..engine import Artefact, Engine, derive_seed
from ..people import Footage
from ..recipe import POSITIVE_ORIGINS, Recipe, RecipeRow
from ..records import SubjectSpec

NOT_NEEDED = "no clip of the recipe needs it"
STILL_FRAMES = 4  # frames that are looked at where motion does not matter


@dataclass
class Build:
    """One build. subjects: the people to learn, from one reference video (`reference_sha256`). hashes: the sha256 of
    files that are known already."""

    subjects: list[SubjectSpec]
    recipe: Recipe
    backends: Any  # catalogue.Backends
    engine: Engine
    seed: int
    reference_sha256: str
    hashes: dict[Path, str] = field(default_factory=dict)
    gallery_people: dict[str, int] = field(default_factory=dict)  # origin -> how many different people
    refine_failures: Counter = field(default_factory=Counter)  # why replies of a refining model were not taken

    @property
    def uses_faces(self) -> bool:
        """Whether people are found by their faces; else by a matte."""
        return self.backends.detector is not None

    def spec(self, subject: str) -> SubjectSpec:
        return next(spec for spec in self.subjects if spec.name == subject)

    def noun(self, footage: Footage) -> str:
        """The word for a person: the user's for a subject, "person" for everybody else."""
        return "person" if footage.subject is None else self.spec(footage.subject).noun


@dataclass(frozen=True)
class Shot:
    """A clip to make. subject: whom it is about; footage: who is seen (the subject, or somebody else).

    style: one of recipe.STYLES, "oracle" (by a perfect generator) or "found" (as it was filmed). driver: the motion of
    an animation. still: number of the portrait. attempt: how many seeds were tried before.
    """

    subject: str
    origin: str
    index: int
    footage: Footage
    style: str
    driver: str = "yes"
    still: int = 0
    attempt: int = 0

    @property
    def label(self) -> str:
        return f"{self.origin} {self.index}"

    @property
    def present(self) -> bool:
        return self.footage.subject == self.subject

    @property
    def parent(self) -> str:
        return self.footage.source.file_sha256

    def seed(self, build: Build) -> int:
        own = () if len(build.subjects) == 1 or not self.present else (self.subject,)
        return derive_seed(
            build.seed, build.reference_sha256, self.parent, self.origin, self.index, self.attempt, *own
        )

    def again(self) -> Shot:
        return replace(self, attempt=self.attempt + 1)


@dataclass(frozen=True)
class Made:
    """A shot with its clip (mp4). backend: the id of what made it, or "none"."""

    shot: Shot
    clip: Artefact
    backend: str


def positive_shots(build: Build, references: list[Footage]) -> list[Shot]:
    """The clips of the subjects that the recipe asks for, but the original."""
    return [
        positive_shot(build, row, index, footage)
        for footage in references
        for row in build.recipe.rows
        if row.origin in POSITIVE_ORIGINS and row.origin != "original"
        for index in range(row.count)
    ]


def positive_shot(build: Build, row: RecipeRow, index: int, footage: Footage) -> Shot:
    share = -(-row.count // (row.people or row.count))  # clips per still, rounded up
    return Shot(
        subject=footage.subject,
        origin=row.origin,
        index=index,
        footage=footage,
        style=build.recipe.style(row, index),
        driver=driver_of(row, index),
        still=index // share,
    )


def driver_of(row: RecipeRow, index: int) -> str:
    drivers = row.drivers or ("yes",)
    return drivers[index % len(drivers)]


def require_all(build: Build, wanted: list[Footage], found: list[Footage]) -> None:
    """Raises PVChatError when a stage lost the footage of a subject."""
    left = {footage.subject for footage in found}
    for footage in wanted:
        if footage.subject is None or footage.subject in left:
            continue
        reason = next(r.reason for _, r in reversed(build.engine.rejects) if r.item == footage.label)
        path = footage.source.path
        raise PVChatError(f"{path} cannot be the reference: {reason}. Use a clip with one person near the centre.")
