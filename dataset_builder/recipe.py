"""A recipe is data: which clips to make, how many, how many questions each gets, and which backend plays which role.

    paper           the paper's shape and systems: one reference video becomes 81 clips and 1,455 questions (81 x 15
                    about existence, and 15 descriptive ones for the original, the ten scenes and the five animations
                    of the best still: 81 * 15 + 16 * 15)
    paper-balanced  the same clips; negatives are also asked what the subject wears, does, and where, and the answer
                    says that they are not there; the test split has as many clips with the subject as without
    modern          the paper's shape by backends whose licences permit any use
    light           the paper's shape on a CPU, without downloads
    tiny            14 clips by the light backends, for tests

A recipe of one's own is a YAML or JSON file with the fields of `Recipe`; `base` names the recipe that it changes:

    {base: modern, name: mine, backends: {portrait: qwen-edit}, options: {scene: {offload: sequential}}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .records import CATEGORIES, ORIGINS

DRIVERS = ("yes", "no", "query", "smile", "angry")
POSITIVE_ORIGINS = ("original", "scene", "portrait", "animated")
NEGATIVE_ORIGINS = ("hard_negative", "random_negative")
STYLES = ("scene", "animated", "portrait")  # how a generated clip shows somebody
DRIVING_OPTIONS = {"wan-animate-2": "drivers", "liveportrait": "driving_videos"}  # animator -> its option
RECIPE_FILES = (".yaml", ".yml", ".json")


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

    @property
    def descriptive(self) -> int:
        return self.total - self.existence


DESCRIBED = Questions(existence=15, appearance=5, action=5, location=5)


@dataclass(frozen=True)
class RecipeRow:
    """`count` clips of one origin.

    drivers: motions taken in turn. people: how many different stills (portrait) or gallery people (hard negatives)
    share the clips; None = one per clip. raw: how many clips of a negative row are shown as found in the gallery;
    the rest goes through the processing that makes the positives. styles: of a negative row's processed clips, taken
    in turn; () = those of the positives in the positives' proportions.
    """

    origin: str
    count: int
    questions: Questions = Questions()
    drivers: tuple[str, ...] = ()
    people: int | None = None
    raw: int = 0
    styles: tuple[str, ...] = ()

    def __post_init__(self):
        if self.origin not in ORIGINS or self.origin == "user":
            raise PVChatError(f"Recipe origin {self.origin!r} is unknown; allowed: {', '.join(ORIGINS[:-1])}.")
        if self.count < 1 or not 0 <= self.raw <= self.count:
            raise PVChatError(f"Recipe row {self.origin}: count must be at least 1 and raw 0 to count, got {self}.")
        unknown = sorted(set(self.drivers) - set(DRIVERS))
        if unknown:
            raise PVChatError(f"Unknown driver(s) {', '.join(unknown)}; allowed: {', '.join(DRIVERS)}.")
        if set(self.styles) - set(STYLES):
            raise PVChatError(f"Recipe row {self.origin}: styles must be of {', '.join(STYLES)}, got {self.styles}.")

    def limited(self, count: int) -> RecipeRow:
        """At most `count` clips; the share of unprocessed ones stays."""
        kept = min(self.count, count)
        people = None if self.people is None else min(self.people, kept)
        return dataclasses.replace(self, count=kept, people=people, raw=round(self.raw * kept / self.count))


@dataclass(frozen=True)
class Recipe:
    """Rows plus the backend of each role (names of catalogue.CATALOGUE) and its options (role -> keyword arguments).

    max_side (pixels), max_frames: how large and long a video is kept when it is read in. verified_frames: frames of a
    clip that are compared with the reference. balanced_test: whether surplus clips of the larger class are left out of
    the test split. `source` is set by `oracle` recipes only (see `oracle_recipe`).
    """

    name: str
    rows: tuple[RecipeRow, ...]
    backends: dict[str, str] = field(default_factory=dict)
    test_questions: Questions = Questions(existence=5, appearance=1, action=1, location=1)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_side: int = 256
    max_frames: int = 16
    verified_frames: int = 2
    balanced_test: bool = False
    source: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self):
        origins = [row.origin for row in self.rows]
        if len(set(origins)) != len(origins):
            raise PVChatError(f"Recipe {self.name!r} names an origin twice: {', '.join(origins)}.")
        if min(self.max_side, self.max_frames, self.verified_frames) < 2:
            raise PVChatError(f"Recipe {self.name!r}: max_side, max_frames and verified_frames must be at least 2.")

    @property
    def num_clips(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def num_questions(self) -> int:
        return sum(row.count * row.questions.total for row in self.rows)

    @property
    def needs_others(self) -> bool:
        """Whether it shows people who are not the subject."""
        return any(row.origin in NEGATIVE_ORIGINS for row in self.rows)

    def row(self, origin: str) -> RecipeRow | None:
        return next((row for row in self.rows if row.origin == origin), None)

    def style(self, row: RecipeRow, index: int) -> str:
        """How clip `index` of a row is made: one of STYLES, "oracle" (by a perfect generator), or "found" (as filmed).

        Unprocessed negatives come last. A recipe with a perfect source shows all negatives as they are, like its
        positives.
        """
        if row.origin == "original":
            return "found"
        if row.origin in POSITIVE_ORIGINS:
            return row.origin if self.source is None else "oracle"
        if self.source is not None or index >= row.count - row.raw:
            return "found"
        styles = row.styles or self._positive_styles()
        return styles[index % len(styles)] if styles else "found"

    def _positive_styles(self) -> list[str]:
        """The styles of the generated positives, each as often as it occurs there, evenly mixed."""
        rows = [r for r in self.rows if r.origin in STYLES]
        slots = [((i + 0.5) / row.count, n, row.origin) for n, row in enumerate(rows) for i in range(row.count)]
        return [origin for _, _, origin in sorted(slots)]

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

    def limited(self, count: int | None) -> Recipe:
        """At most `count` clips per origin, to try a recipe out; None = all. Raises PVChatError for less than 1."""
        if count is None:
            return self
        if count < 1:
            raise PVChatError(f"The limit must be at least 1 clip per origin, got {count}.")
        rows = tuple(row.limited(count) for row in self.rows)
        return dataclasses.replace(self, name=f"{self.name}-limit-{count}", rows=rows)

    def with_drivers(self, folder: str | Path) -> Recipe:
        """The recipe with a driving clip per motion, `folder`/yes.mp4 and so on, for the animators that take them.

        Raises PVChatError when the animator takes none, or a clip is missing.
        """
        animator = self.backends.get("animate")
        if animator not in DRIVING_OPTIONS:
            raise PVChatError(
                f"The animator {animator} of recipe {self.name!r} takes no driving clips; leave out --drivers."
            )
        clips = {motion: str(Path(folder) / f"{motion}.mp4") for motion in DRIVERS}
        missing = [path for path in clips.values() if not Path(path).is_file()]
        if missing:
            raise PVChatError(f"There is no driving clip {missing[0]}; put one for each motion there.")
        options = self.options.get("animate", {}) | {DRIVING_OPTIONS[animator]: clips}
        return dataclasses.replace(self, options=self.options | {"animate": options})

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(dataclasses.replace(self, source=None))
        del data["source"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        """The inverse of `to_json`; `base` may name a recipe whose fields are taken where `data` has none, and whose
        backends and options stay where `data` does not name the role. Raises PVChatError for anything else."""
        data = dict(data)
        base = data.pop("base", None)
        if base is not None:
            start = get_recipe(str(base)).to_json()
            merged = {key: start[key] | (data.get(key) or {}) for key in ("backends", "options")}
            data = start | data | merged
        try:
            data["rows"] = tuple(_row(row) for row in data.get("rows") or ())
            if "test_questions" in data:
                data["test_questions"] = Questions(**data["test_questions"])
            recipe = cls(**data)
        except (TypeError, AttributeError) as error:
            raise PVChatError(f"A recipe cannot be read from {sorted(data)}: {error}.") from error
        if not recipe.rows:
            raise PVChatError(f"Recipe {recipe.name!r} has no rows; name a base, or list rows with origin and count.")
        return recipe


def _row(data: dict[str, Any]) -> RecipeRow:
    lists = {key: tuple(data[key]) for key in ("drivers", "styles") if key in data}
    questions = {"questions": Questions(**data["questions"])} if "questions" in data else {}
    return RecipeRow(**data | lists | questions)


_POSITIVES = (
    RecipeRow("original", 1, DESCRIBED),
    RecipeRow("scene", 10, DESCRIBED),
    RecipeRow("animated", 5, DESCRIBED, drivers=DRIVERS),
    RecipeRow("portrait", 10, drivers=DRIVERS, people=2),
)

# ConsisID, PhotoMaker, LivePortrait, FaceNet, CLIP and InternVideo2 as in the paper. Not as in the paper: answers are
# refined by rules, because GPT-4o would be told about the person (backends: {refiner: openai} does that), and gender
# and age are what the user says.
_PAPER = Recipe(
    "paper",
    rows=(
        *_POSITIVES,
        RecipeRow("hard_negative", 25, drivers=DRIVERS, people=5, styles=("animated",)),
        RecipeRow("random_negative", 30, raw=30),
    ),
    backends={
        "detector": "mtcnn",
        "embedder": "facenet",
        "quality": "ear",
        "scene": "consisid",
        "portrait": "photomaker-v2",
        "animate": "liveportrait",
        "gallery": "clip-topk",
        "strangers": "random-clips",
        "writer": "internvideo2",
        "refiner": "rules",
    },
    test_questions=Questions(existence=15, appearance=5, action=5, location=5),
    max_side=768,
    max_frames=240,
    verified_frames=4,
)

REFUSALS = Questions(existence=15, appearance=1, action=1, location=1)
_BALANCED = dataclasses.replace(
    _PAPER,
    name="paper-balanced",
    rows=tuple(dataclasses.replace(r, questions=REFUSALS) if r.origin in NEGATIVE_ORIGINS else r for r in _PAPER.rows),
    balanced_test=True,
)

_MODERN = dataclasses.replace(
    _PAPER,
    name="modern",
    backends={
        "detector": "yunet",
        "embedder": "sface",
        "quality": "ear",
        "scene": "wan-vace",
        "portrait": "flux2-klein",
        "animate": "wan-animate-2",
        "gallery": "face-topk",
        "strangers": "random-clips",
        "writer": "chat",
        "refiner": "rules",
    },
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
        "refiner": "rules",
    },
)

_TINY = dataclasses.replace(
    _LIGHT,
    name="tiny",
    rows=(
        RecipeRow("original", 1, Questions(3, 1, 1, 1)),
        RecipeRow("scene", 2, Questions(3, 1, 1, 1)),
        RecipeRow("animated", 2, Questions(3, 1, 1, 1), drivers=("yes", "no")),
        RecipeRow("portrait", 2, Questions(3), drivers=("smile", "query"), people=1),
        RecipeRow("hard_negative", 3, Questions(3), drivers=("yes",)),
        RecipeRow("random_negative", 4, Questions(3), drivers=("no",), raw=1),
    ),
    test_questions=Questions(2, 1, 1, 1),
)

RECIPES: dict[str, Recipe] = {r.name: r for r in (_PAPER, _BALANCED, _MODERN, _LIGHT, _TINY)}


def get_recipe(name: str | Path) -> Recipe:
    """A recipe by its name or from a YAML or JSON file. Raises PVChatError for anything else."""
    if str(name) in RECIPES:
        return RECIPES[str(name)]
    path = Path(name)
    if path.suffix.lower() not in RECIPE_FILES:
        raise PVChatError(f"There is no recipe {str(name)!r}; choose one of: {', '.join(RECIPES)}, or a YAML file.")
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix.lower() == ".json" else _yaml(text)
    except (OSError, ValueError) as error:
        raise PVChatError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise PVChatError(f"The recipe {path} must be a mapping with name, rows and backends, or with a base.")
    return Recipe.from_json({"name": path.stem} | data)


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


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
