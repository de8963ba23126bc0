"""The people and the scenes of the cartoon world, as plain values without any pixels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

IDENTITY_FEATURES: dict[str, tuple[str, ...]] = {
    "face_shape": ("round", "oval", "square", "long"),
    "skin": ("pale", "golden", "tan", "brown", "dark"),
    "hair_style": ("bald", "short", "spiky", "bob", "long", "bun", "curly", "mohawk"),
    "hair_color": ("black", "brown", "blonde", "red", "grey", "blue"),
    "eye_color": ("brown", "blue", "green", "amber"),
    "brows": ("thin", "thick", "arched", "joined"),
    "nose": ("small", "round", "long"),
    "ears": ("small", "large", "pointed"),
    "glasses": ("none", "round", "square", "tinted"),
    "beard": ("none", "moustache", "goatee", "full"),
}
GARMENTS = ("t-shirt", "hoodie", "striped shirt", "jacket", "dress")
GARMENT_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
PLACES = ("park", "beach", "kitchen", "office", "street", "library", "mountains", "night city")
ACTIONS = (
    "waving",
    "nodding",
    "shaking their head",
    "jumping",
    "dancing",
    "clapping",
    "reading a book",
    "drinking from a cup",
    "talking on the phone",
    "playing with a ball",
)
NAMES = (
    "Nz", "Ada", "Bo", "Cleo", "Dot", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jo",
    "Kit", "Lou", "Mia", "Ned", "Ora", "Pia", "Quin", "Rex", "Sol", "Tia", "Uma",
    "Vic", "Wes", "Xan", "Yara", "Zed", "Amir", "Bea", "Chen", "Dia", "Emil",
)  # fmt: skip
HELD_OUT_ONE_IN = 8
MIN_CAST_DISTANCE = 4
MAX_TRIES_PER_PERSON = 10_000


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of `options`, unchanged (numpy's own `choice` would turn it into an array scalar)."""
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True)
class Identity:
    """What makes a cartoon person that person; each field holds one word of `IDENTITY_FEATURES`."""

    face_shape: str
    skin: str
    hair_style: str
    hair_color: str
    eye_color: str
    brows: str
    nose: str
    ears: str
    glasses: str
    beard: str

    def __post_init__(self) -> None:
        for feature, values in IDENTITY_FEATURES.items():
            if getattr(self, feature) not in values:
                raise ValueError(f"{feature} must be one of {', '.join(values)}, not {getattr(self, feature)!r}")

    @classmethod
    def random(cls, rng: np.random.Generator) -> Identity:
        """Every feature drawn independently and uniformly."""
        return cls(**{feature: choose(rng, values) for feature, values in IDENTITY_FEATURES.items()})

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Identity:
        return cls(**values)

    def to_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)

    def look_alike(self, rng: np.random.Generator, changes: int) -> Identity:
        """Another person with exactly `changes` features that differ from this one's."""
        changed = rng.choice(len(IDENTITY_FEATURES), size=changes, replace=False)
        features = [list(IDENTITY_FEATURES)[index] for index in changed]
        return dataclasses.replace(self, **{feature: self.other_value(feature, rng) for feature in features})

    def other_value(self, feature: str, rng: np.random.Generator) -> str:
        """A value of `feature` that this person does not have."""
        return choose(rng, [value for value in IDENTITY_FEATURES[feature] if value != getattr(self, feature)])

    def distance(self, other: Identity) -> int:
        """The number of features that differ."""
        return sum(getattr(self, feature) != getattr(other, feature) for feature in IDENTITY_FEATURES)

    @property
    def is_held_out(self) -> bool:
        """True for one identity in eight: pretraining never shows it. Stable across machines and versions."""
        digest = hashlib.sha256("|".join(self.to_dict().values()).encode()).digest()
        return digest[0] % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Camera:
    """Framing in units of the frame side: `pan_x`, `pan_y` are travelled over the whole clip."""

    zoom: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    pan_x: float = 0.0
    pan_y: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Camera:
        return cls(
            zoom=round(float(rng.uniform(0.88, 1.12)), 2),
            dx=float(rng.uniform(-0.05, 0.05)),
            dy=float(rng.uniform(-0.03, 0.03)),
            pan_x=float(rng.uniform(-0.06, 0.06)),
            pan_y=float(rng.uniform(-0.02, 0.02)),
        )


@dataclass(frozen=True)
class Light:
    """`brightness` multiplies the picture; `warmth` adds red and takes blue, as a share."""

    brightness: float = 1.0
    warmth: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Light:
        return cls(brightness=float(rng.uniform(0.86, 1.1)), warmth=float(rng.uniform(-0.06, 0.06)))


@dataclass(frozen=True)
class Scene:
    """Everything in a clip but the person: clothes, place, action, camera and light.

    `phase` in [0, 1) shifts the periodic action; `seed` picks the variant of the place and the colours of props.
    """

    garment: str
    garment_color: str
    place: str
    action: str
    camera: Camera = Camera()
    light: Light = Light()
    phase: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field, values in SCENE_FEATURES.items():
            if getattr(self, field) not in values:
                raise ValueError(f"{field} must be one of {', '.join(values)}, not {getattr(self, field)!r}")

    @classmethod
    def random(cls, rng: np.random.Generator, **fixed: Any) -> Scene:
        """A random scene; the fields named in `fixed` keep the value given."""
        drawn: dict[str, Any] = {field: choose(rng, values) for field, values in SCENE_FEATURES.items()}
        drawn["camera"] = Camera.random(rng)
        drawn["light"] = Light.random(rng)
        drawn["phase"] = float(rng.random())
        drawn["seed"] = int(rng.integers(2**31))
        return cls(**{**drawn, **fixed})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        return cls(**{**values, "camera": Camera(**values["camera"]), "light": Light(**values["light"])})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


SCENE_FEATURES: dict[str, tuple[str, ...]] = {
    "garment": GARMENTS,
    "garment_color": GARMENT_COLORS,
    "place": PLACES,
    "action": ACTIONS,
}


class CastMember(NamedTuple):
    name: str
    identity: Identity


def cast(n: int, seed: int = 0, held_out: bool = True) -> list[CastMember]:
    """`n` named people of the held-out (or the pretraining) split, any two at least four features apart."""
    rng = np.random.default_rng([seed, int(held_out)])
    identities: list[Identity] = []
    for _ in range(n * MAX_TRIES_PER_PERSON):
        if len(identities) == n:
            break
        candidate = Identity.random(rng)
        if candidate.is_held_out == held_out and _is_far(candidate, identities):
            identities.append(candidate)
    if len(identities) < n:
        raise ValueError(f"no cast of {n} people who differ in {MIN_CAST_DISTANCE} features was found")
    return [CastMember(_name(index), identity) for index, identity in enumerate(identities)]


def _is_far(candidate: Identity, others: Sequence[Identity]) -> bool:
    return all(candidate.distance(other) >= MIN_CAST_DISTANCE for other in others)


def _name(index: int) -> str:
    turn, position = divmod(index, len(NAMES))
    return NAMES[position] if turn == 0 else f"{NAMES[position]}{turn + 1}"


def family(identity: Identity, n: int, rng: np.random.Generator, changes: Sequence[int] = (1, 2)) -> list[Identity]:
    """`n` distinct look-alikes of `identity`, each with a number of changed features drawn from `changes`."""
    members: dict[Identity, None] = {}
    for _ in range(n * MAX_TRIES_PER_PERSON):
        if len(members) == n:
            break
        members.setdefault(identity.look_alike(rng, choose(rng, changes)))
    if len(members) < n:
        raise ValueError(f"there are no {n} distinct look-alikes with {tuple(changes)} changed features")
    return list(members)
