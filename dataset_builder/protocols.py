"""One small Protocol per role of the pipeline. A backend is any object that fits; `backends/light` has one for each
role that the light recipe needs.

Every backend has `id`, a short name with a version that is part of the cache key ("composite@1"), and `licences`, the
tags stamped on its clips.

Shapes: T frames, H x W pixels, N faces, D embedding size. Frames are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .records import QA, SubjectSpec


@dataclass(frozen=True)
class Person:
    """Footage of one person: frames (T, H, W, 3), frames per second, alpha (T, H, W) uint8 or None, and the index of
    the best still. A portrait is a Person with one frame."""

    frames: np.ndarray
    fps: float
    alpha: np.ndarray | None = None
    best: int = 0

    def still(self) -> Person:
        """The best frame alone."""
        alpha = None if self.alpha is None else self.alpha[self.best : self.best + 1]
        return Person(self.frames[self.best : self.best + 1], self.fps, alpha)


@dataclass(frozen=True)
class Face:
    """A face in a frame: box (x0, y0, x1, y1) in pixels, score in [0, 1], five points (5, 2) in pixels or None."""

    box: tuple[float, float, float, float]
    score: float
    points: np.ndarray | None = None


@dataclass(frozen=True)
class QualityReport:
    """score: higher is better. reasons: why the still must not be used; empty when it may."""

    score: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attributes:
    """What a person is called when the text needs a word for them; None = not known, and never guessed silently."""

    gender: str | None = None
    age: str | None = None
    source: str = "none"


@dataclass(frozen=True)
class Generated:
    """A generator's clip. truth: what the generator knows, category -> answer with "{name}"; None when nothing."""

    frames: np.ndarray
    fps: float
    truth: dict[str, Any] | None = None


@dataclass(frozen=True)
class Match:
    """A gallery person: the file they come from, its sha256, and the similarity to the query (None = not asked)."""

    path: Path
    sha256: str
    similarity: float | None = None


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces."""

    id: str
    licences: tuple[str, ...]

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """frames (T, H, W, 3) -> for every frame its faces, best first."""


@runtime_checkable
class FaceEmbedder(Protocol):
    """Tells people apart. `same` and `different` are this embedder's own thresholds on the cosine of two embeddings:
    at or above `same` it is one person; below `different` it is not."""

    id: str
    licences: tuple[str, ...]
    same: float
    different: float

    def embed(self, person: Person) -> np.ndarray:
        """-> (D,) float32 of length 1. Raises engine.Rejected when no face is found."""


@runtime_checkable
class QualityFilter(Protocol):
    """Ranks stills."""

    id: str
    licences: tuple[str, ...]

    def score(self, person: Person) -> list[QualityReport]:
        """One report per frame."""


@runtime_checkable
class AttributeClassifier(Protocol):
    """May abstain: Attributes() is a fine answer."""

    id: str
    licences: tuple[str, ...]

    def classify(self, person: Person) -> Attributes: ...


@runtime_checkable
class SceneVideoGenerator(Protocol):
    """Shows the person in a new place, in other clothes, in motion."""

    id: str
    licences: tuple[str, ...]

    def generate(self, person: Person, prompt: str, seed: int) -> Generated: ...


@runtime_checkable
class PortraitGenerator(Protocol):
    """Makes a new still of the person."""

    id: str
    licences: tuple[str, ...]

    def generate(self, person: Person, prompt: str, seed: int) -> Person: ...


@runtime_checkable
class PortraitAnimator(Protocol):
    """Moves a still. driver: one of recipe.DRIVERS."""

    id: str
    licences: tuple[str, ...]

    def animate(self, still: Person, driver: str, seed: int) -> Generated: ...


@runtime_checkable
class FaceGallery(Protocol):
    """People who look like the subject but are not."""

    id: str
    licences: tuple[str, ...]

    def search(self, embedding: np.ndarray, k: int) -> list[Match]:
        """Up to k people below the embedder's `same` threshold, most alike first."""


@runtime_checkable
class NegativeRetriever(Protocol):
    """People picked at random."""

    id: str
    licences: tuple[str, ...]

    def sample(self, n: int, seed: int, exclude: Sequence[str] = ()) -> list[Match]:
        """Up to n different people whose sha256 is not in `exclude`."""


@runtime_checkable
class QAWriter(Protocol):
    """Answers questions about what a clip shows; usually the base model, which knows nobody's name."""

    id: str

    def write(self, video: Path, questions: Sequence[str]) -> list[str]:
        """One answer per question, in order. The questions speak of "the person"."""


@runtime_checkable
class QARefiner(Protocol):
    """Puts the subject's name into answers."""

    id: str

    def refine(self, qa: QA, subject: SubjectSpec) -> QA:
        """The answer with the name for the subject and bystanders left alone; `refined_by` says who did it, and is
        "none" when the answer could not be refined."""
