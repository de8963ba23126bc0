"""Role QualityFilter of the paper: open eyes, frontal, sharp, wholly visible.

Indices are those of MediaPipe's face mesh. Constants and formulas follow the authors' face_quality_filter.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...protocols import Face, FaceDetector, Person, QualityReport
from .align import WHOLE_FACE, align
from .embedder import points_of

LEFT_EYE = (362, 385, 387, 263, 373, 380)  # corner, two above, corner, two below
RIGHT_EYE = (33, 160, 158, 133, 153, 144)
NOSE_TIP = 1
EYE_CORNERS = (33, 133, 362, 263)
MIN_EYE_RATIO = 0.25
MIN_FRONTAL = 0.3
MIN_VISIBLE = 0.8
SHARP = 500.0  # variance of the Laplacian from which a picture counts as wholly sharp
CROP = 1024  # pixels of the whole-face crop that is judged


class Landmarks(Protocol):
    """Finds the points of the one face in a crop."""

    id: str
    licences: tuple[str, ...]

    def find(self, frame: np.ndarray) -> np.ndarray | None:
        """(H, W, 3) uint8 -> (468 or more, 2) in shares of the frame's size, or None."""


@dataclass(frozen=True)
class FaceQuality:
    """left_eye, right_eye: aspect ratios. frontal, sharp, visible: 0 to 1."""

    left_eye: float
    right_eye: float
    frontal: float
    sharp: float
    visible: float

    def report(self) -> QualityReport:
        """50 frontal + 25 sharp + 25 visible; -1 and the reasons when the picture must not be used."""
        reasons = []
        if min(self.left_eye, self.right_eye) < MIN_EYE_RATIO:
            reasons.append("the eyes are not open")
        if self.frontal <= MIN_FRONTAL:
            reasons.append("the face is turned away")
        if self.visible < MIN_VISIBLE:
            reasons.append("the face is not wholly in the picture")
        score = 50 * self.frontal + 25 * self.sharp + 25 * self.visible
        return QualityReport(-1.0 if reasons else score, tuple(reasons))


def measure(landmarks: np.ndarray, picture: np.ndarray) -> FaceQuality:
    """landmarks (468 or more, 2) in shares of the picture's size; picture (H, W, 3) uint8 RGB."""
    landmarks = np.asarray(landmarks, np.float64)
    corners = landmarks[list(EYE_CORNERS), 0].mean()
    return FaceQuality(
        left_eye=eye_ratio(landmarks[list(LEFT_EYE)]),
        right_eye=eye_ratio(landmarks[list(RIGHT_EYE)]),
        frontal=max(1 - 3 * abs(landmarks[NOSE_TIP, 0] - corners), 0.0),
        sharp=min(laplacian_variance(grey(picture)) / SHARP, 1.0),
        visible=float(((landmarks >= 0) & (landmarks <= 1)).all(1).mean()),
    )


def eye_ratio(eye: np.ndarray) -> float:
    """Eye aspect ratio (Soukupova and Cech, 2016) of six points (6, 2) in the order of LEFT_EYE: height over width; 0
    for an eye without width."""
    heights = np.linalg.norm(eye[1] - eye[5]) + np.linalg.norm(eye[2] - eye[4])
    width = np.linalg.norm(eye[0] - eye[3])
    return float(heights / (2 * width)) if width else 0.0


def grey(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8: 0.299 R + 0.587 G + 0.114 B in OpenCV's fixed point (15 bits)."""
    return ((picture.astype(np.int64) @ np.array([9798, 19235, 3735]) + (1 << 14)) >> 15).astype(np.uint8)


def laplacian_variance(picture: np.ndarray) -> float:
    """Variance of the 3 x 3 Laplacian of a grey picture (H, W), mirrored at its edge."""
    from scipy.ndimage import laplace

    return float(laplace(picture.astype(np.float64), mode="mirror").var())


class EarQuality:
    """The paper's score of the largest face, on its whole-face crop.

    detector: gives faces with five points. landmarks: gives the mesh, such as `FaceLandmarks`.
    """

    def __init__(self, detector: FaceDetector, landmarks: Landmarks):
        self.detector, self.landmarks = detector, landmarks
        self.id = f"ear@1/{detector.id}/{landmarks.id}"
        self.licences = tuple(dict.fromkeys(("Apache-2.0", *detector.licences, *landmarks.licences)))

    def score(self, person: Person) -> list[QualityReport]:
        """One report per frame. Raises PVChatError when the detector gives no points."""
        found = zip(person.frames, self.detector.detect(person.frames), strict=True)
        return [self._report(frame, faces) for frame, faces in found]

    def _report(self, frame: np.ndarray, faces: list[Face]) -> QualityReport:
        if not faces:
            return QualityReport(-1.0, ("no face found",))
        crop = align(frame, points_of(faces[0], "ear", self.detector), WHOLE_FACE, CROP)
        mesh = self.landmarks.find(crop)
        if mesh is None:
            return QualityReport(-1.0, ("no landmarks found",))
        return measure(mesh, crop).report()
