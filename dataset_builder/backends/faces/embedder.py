"""What the embedders with learnt weights share: find the face in a few frames, straighten it, average the vectors."""

from __future__ import annotations

import numpy as np

from ....errors import PVChatError
from ...engine import Rejected
from ...protocols import Face, FaceDetector, Person
from .align import align

FRAMES = 4  # frames that are looked at, evenly spaced


class AlignedEmbedder:
    """`embed` for networks that read crops of `size` pixels aligned to `template` (5, 2).

    A subclass has `vectors(crops)`: (N, size, size, 3) uint8 RGB -> (N, D). In every frame the detector's best face
    counts, so a Person should show one person.
    """

    name: str
    size: int
    template: np.ndarray

    def __init__(self, detector: FaceDetector):
        self.detector = detector

    @property
    def id(self) -> str:
        """The network with its weights, and the detector whose faces it sees."""
        return f"{self.name}/{self.detector.id}"

    def embed(self, person: Person) -> np.ndarray:
        """-> (D,) float32 of length 1. Raises engine.Rejected when no face is found, PVChatError when the detector
        gives no points."""
        index = np.unique(np.linspace(0, len(person.frames) - 1, FRAMES).round().astype(int))
        frames = person.frames[index]
        found = zip(frames, self.detector.detect(frames), strict=True)
        crops = [self.crop(frame, faces[0]) for frame, faces in found if faces]
        if not crops:
            raise Rejected("no face found")
        vectors = np.asarray(self.vectors(np.stack(crops)), np.float64)
        mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def crop(self, frame: np.ndarray, face: Face) -> np.ndarray:
        """-> (size, size, 3) uint8, aligned."""
        if face.points is None:
            raise PVChatError(
                f"{self.name} aligns faces by five points, which the detector {self.detector.id} does not give; "
                f"use mtcnn or yunet."
            )
        return align(frame, face.points, self.template, self.size)

    def vectors(self, crops: np.ndarray) -> np.ndarray:
        raise NotImplementedError
