"""A recipe is data: which clips to make, how many, and how many questions each gets.

`paper`: one reference video becomes 81 clips and 1,455 questions (81 x 15 existence, and 15 descriptive ones for the
original, the ten scenes and the five animations of the best still: 81 * 15 + 16 * 15).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import PVChatError
from .records import CATEGORIES, ORIGINS

DRIVERS = ("yes", "no", "query", "smile", "angry")
POSITIVE_ORIGINS = ("original", "scene", "portrait", "animated")
NEGATIVE_ORIGINS = ("hard_negative", "random_negative")


@dataclass(frozen=True)
class Questions:
    """How many questions of each category a clip gets."""

    existence: int = 15
    appearance: int = 0
    action: int = 0
    location: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, c) for c in CATEGORIES)


DESCRIBED = Questions(existence=15, appearance=5, action=5, location=5)


@dataclass(frozen=True)
class RecipeRow:
    """`count` clips of one origin.

    drivers: motions taken in turn. people: how many different stills (portrait) or gallery people (hard negatives)
    share the clips; None = one per clip. raw: how many clips of a negative row are shown as found in the gallery;
    the rest goes through the processing that makes the positives.
    """

    origin: str
    count: int
    questions: Questions = Questions()
    drivers: tuple[str, ...] = ()
    people: int | None = None
    raw: int = 0

    def __post_init__(self):
        if self.origin not in ORIGINS or self.origin == "user":
            raise PVChatError(f"Recipe origin {self.origin!r} is unknown; allowed: {', '.join(ORIGINS[:-1])}.")
        if self.count < 1 or not 0 <= self.raw <= self.count:
            raise PVChatError(f"Recipe row {self.origin}: count must be at least 1 and raw 0 to count, got {self}.")
        unknown = sorted(set(self.drivers) - set(DRIVERS))
        if unknown:
            raise PVChatError(f"Unknown driver(s) {', '.join(unknown)}; allowed: {', '.join(DRIVERS)}.")


@dataclass(frozen=True)
class Recipe:
    """Rows plus the backend of each role. `source` is set by `oracle` recipes only (see `oracle_recipe`)."""

    name: str
    rows: tuple[RecipeRow, ...]
    backends: dict[str, str] = field(default_factory=dict)
    test_questions: Questions = Questions(existence=5, appearance=1, action=1, location=1)
    source: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self):
        origins = [row.origin for row in self.rows]
        if len(set(origins)) != len(origins):
            raise PVChatError(f"Recipe {self.name!r} names an origin twice: {', '.join(origins)}.")

    @property
    def num_clips(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def num_questions(self) -> int:
        return sum(row.count * row.questions.total for row in self.rows)

    def row(self, origin: str) -> RecipeRow | None:
        return next((row for row in self.rows if row.origin == origin), None)

    def without(self, *origins: str) -> Recipe:
        """The ablation: the same recipe without the rows of these origins.

        Raises PVChatError for an origin that the recipe does not have.
        """
        have = {row.origin for row in self.rows}
        missing = sorted(set(origins) - have)
        if missing:
            raise PVChatError(
                f"Recipe {self.name!r} has no row {', '.join(missing)}; it has {', '.join(sorted(have))}."
            )
        rows = tuple(row for row in self.rows if row.origin not in origins)
        return dataclasses.replace(self, name=f"{self.name}-without-{'-'.join(sorted(origins))}", rows=rows)

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(dataclasses.replace(self, source=None))
        del data["source"]
        return data


_POSITIVES = (
    RecipeRow("original", 1, DESCRIBED),
    RecipeRow("scene", 10, DESCRIBED),
    RecipeRow("animated", 5, DESCRIBED, drivers=DRIVERS),
    RecipeRow("portrait", 10, drivers=DRIVERS, people=2),
)

_PAPER = Recipe(
    "paper",
    rows=(
        *_POSITIVES,
        RecipeRow("hard_negative", 25, drivers=DRIVERS, people=5),
        RecipeRow("random_negative", 30, raw=30),
    ),
    backends={
        "detector": "mtcnn",
        "embedder": "facenet",
        "quality": "ear",
        "scene": "consisid",
        "portrait": "photomaker",
        "animate": "liveportrait",
        "gallery": "clip-topk",
    },
    test_questions=Questions(existence=15, appearance=5, action=5, location=5),
)

# The light recipe has the same shape. Its negatives go through the processing of the positives (all but two, the
# share of unprocessed clips among the positives), so that nothing but the person tells one from the other.
_LIGHT = Recipe(
    "light",
    rows=(
        *_POSITIVES,
        RecipeRow("hard_negative", 25, drivers=DRIVERS),
        RecipeRow("random_negative", 30, drivers=DRIVERS, raw=2),
    ),
    backends={
        "detector": "matte",
        "embedder": "head-hog",
        "quality": "classical",
        "scene": "composite",
        "portrait": "photometric",
        "animate": "warp2d",
        "gallery": "folder",
    },
)

RECIPES: dict[str, Recipe] = {"paper": _PAPER, "light": _LIGHT}


def get_recipe(name: str) -> Recipe:
    """Raises PVChatError for an unknown name."""
    if name not in RECIPES:
        raise PVChatError(f"There is no recipe {name!r}; choose one of: {', '.join(RECIPES)}.")
    return RECIPES[name]


def oracle_recipe(source: Callable[..., Any], backend: str) -> Recipe:
    """The light shape with a perfect generator of the subject in place of the light backends. For ablations only.

    source: `source(origin, index, seed) -> (frames (T, H, W, 3) uint8, fps, truth)` where truth is a dictionary
    category -> answer that names the subject "{name}", or None. Called for every positive but the original.
    backend: a name that changes when the source changes; part of the cache key.
    Negatives are gallery clips as found, as the positives carry no processing either.
    """
    rows = tuple(dataclasses.replace(r, raw=r.count) if r.origin in NEGATIVE_ORIGINS else r for r in _LIGHT.rows)
    backends = _LIGHT.backends | {"scene": backend, "portrait": backend, "animate": backend}
    return dataclasses.replace(_LIGHT, name="oracle", rows=rows, backends=backends, source=source)
