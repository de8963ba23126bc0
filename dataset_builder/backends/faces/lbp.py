"""Role FaceDetector without downloads: the LBP cascade for frontal faces that scikit-image carries."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ....errors import MissingBackendError
from ...protocols import Face

MAX_SIDE = 320  # pixels; larger frames are reduced before the search
MIN_FACE = 24  # pixels of the reduced frame; the window of the cascade
SAME_FACE = 0.3  # intersection over union from which boxes of two frames are one face


class LBPFaces:
    """Boxes of upright frontal faces, largest first; no points.

    The cascade sometimes sees a face where there is none, but seldom twice at the same place. So the frames of one
    call vote: of several boxes in a frame, those stay that at least half as many frames agree with as with the best.
    The score is the share of frames that agree.
    """

    id = "lbp@1"
    licences = ("BSD-3-Clause",)

    @cached_property
    def _cascade(self):
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade
        except ImportError as error:
            raise MissingBackendError(
                'The backend lbp needs the package scikit-image: pip install "pvchat[train]".'
            ) from error
        return Cascade(lbp_frontal_face_cascade_filename())

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """frames (T, H, W, 3) uint8 -> for every frame its faces, largest first."""
        found = [self._boxes(frame) for frame in frames]
        result = []
        for boxes in found:
            votes = np.array([[overlaps(boxes, others).max(1, initial=0) >= SAME_FACE] for others in found])
            votes = votes.reshape(len(found), len(boxes)).sum(0)  # (N,), at least 1: a frame agrees with itself
            kept = [i for i in range(len(boxes)) if 2 * votes[i] >= votes.max()]
            kept.sort(key=lambda i: (-np.prod(boxes[i, 2:] - boxes[i, :2]), *boxes[i]))
            result.append([Face(tuple(map(float, boxes[i])), float(votes[i] / len(found))) for i in kept])
        return result

    def _boxes(self, frame: np.ndarray) -> np.ndarray:
        """(N, 4) float: x0, y0, x1, y1 in pixels of the frame."""
        from PIL import Image

        height, width = frame.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        small = Image.fromarray(frame).resize((max(1, round(width * scale)), max(1, round(height * scale))))
        if min(small.size) < MIN_FACE:
            return np.zeros((0, 4))
        rows = self._cascade.detect_multi_scale(
            np.asarray(small), scale_factor=1.1, step_ratio=1, min_size=(MIN_FACE,) * 2, max_size=(min(small.size),) * 2
        )
        boxes = [(row["c"], row["r"], row["c"] + row["width"], row["r"] + row["height"]) for row in rows]
        return np.array(boxes, float).reshape(-1, 4) / scale


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4) -> (N, M)."""
    first, second = np.asarray(first, float).reshape(-1, 1, 4), np.asarray(second, float).reshape(1, -1, 4)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    both = sum((boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1) for boxes in (first, second))
    return shared / np.maximum(both - shared, 1e-9)
