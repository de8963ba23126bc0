"""What the embedders of faces share: find the face in a few frames, cut it out, average the vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....errors import PVChatError
from ...engine import Rejected
from ...protocols import Face, FaceDetector, Person
from .align import align

FRAMES = 4  # frames that are looked at, evenly spaced


class AlignedEmbedder:
    """`embed` for networks that read crops of `size` pixels, aligned to `template` (5, 2) unless `crop` is replaced.

    A subclass has `name` and `vectors(crops)`: (N, size, size, 3) uint8 RGB -> (N, D). In every frame the detector's
    best face counts, so a Person should show one person.
    """

    name: str
    licences: tuple[str, ...]
    size: int
    template: np.ndarray

    def __init__(self, detector: FaceDetector):
        self.detector = detector
        self.licences = tuple(dict.fromkeys((*self.licences, *detector.licences)))

    @property
    def id(self) -> str:
        """The network with its weights, and the detector whose faces it sees."""
        return f"{self.name}/{self.detector.id}"

    def embed(self, person: Person) -> np.ndarray:
        """-> (D,) float32 of length 1. Raises engine.Rejected when no face is found, PVChatError when the detector
        gives no points and the network needs them."""
        index = np.unique(np.linspace(0, len(person.frames) - 1, FRAMES).round().astype(int))
        frames = person.frames[index]
        found = [(frame, faces[0]) for frame, faces in zip(frames, self.detector.detect(frames), strict=True) if faces]
        if not found:
            raise Rejected("no face found")
        mean = self.embed_faces(*zip(*found, strict=True)).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def embed_faces(self, frames: Sequence[np.ndarray], faces: Sequence[Face]) -> np.ndarray:
        """One face of every frame (H, W, 3) -> (N, D) float32, rows of length 1."""
        crops = np.stack([self.crop(frame, face) for frame, face in zip(frames, faces, strict=True)])
        vectors = np.asarray(self.vectors(crops), np.float64)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def crop(self, frame: np.ndarray, face: Face) -> np.ndarray:
        """-> (size, size, 3) uint8, aligned."""
        return align(frame, points_of(face, self.name, self.detector), self.template, self.size)

    def vectors(self, crops: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def points_of(face: Face, name: str, detector: FaceDetector) -> np.ndarray:
    """The five points (5, 2) of the face. Raises PVChatError when the detector gives none."""
    if face.points is None:
        raise PVChatError(
            f"{name} aligns faces by five points, which the detector {detector.id} does not give; use mtcnn or yunet."
        )
    return face.points
