"""Role FaceDetector without downloads: the cascade of local binary patterns that ships with scikit-image.

Frontal faces only, no points.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ...protocols import Face
from .boxes import Box, area, iou

SIDE = 320  # pixels of the longer side that the cascade sees; finer pictures give more false faces
MIN_FACE = 24  # pixels of that picture: the size of the cascade's window
FINDS = 6  # windows that must find a face; by 4, scikit-image's default, the astronaut's suit has one, too
NEIGHBOURS = 2  # frames before and after that vote
SAME_PLACE = 0.3  # overlap (IoU) that counts as a vote, and that makes two boxes of a frame one face
MAJORITY = 0.5  # share of the neighbours that must agree


class LbpDetector:
    """The cascade errs in single frames, so frames vote: a box stays when at least half of the frames around it show
    one at the same place. In a frame where none stays, the largest box does. Best first: voted for, then largest.

    Frames that are far apart in time cannot support each other; what is left then is the largest box.
    """

    id = "lbp@2"
    licences = ("BSD-3-Clause",)

    def __init__(self):
        self._cascade = frontal_face_cascade()

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """frames (T, H, W, 3) uint8 -> for every frame its faces. score: share of the neighbouring frames that agree;
        1 for a single frame."""
        return vote([self._boxes(frame) for frame in frames])

    def _boxes(self, frame: np.ndarray) -> list[Box]:
        from PIL import Image

        height, width = frame.shape[:2]
        scale = min(1.0, SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if min(size) < MIN_FACE:
            return []
        small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
        found = self._cascade.detect_multi_scale(
            small,
            scale_factor=1.2,
            step_ratio=1,
            min_size=(MIN_FACE, MIN_FACE),
            max_size=(min(size), min(size)),
            min_neighbor_number=FINDS,
        )
        x, y = width / size[0], height / size[1]
        corners = [(f["c"] * x, f["r"] * y, (f["c"] + f["width"]) * x, (f["r"] + f["height"]) * y) for f in found]
        return one_box_per_face([tuple(map(float, box)) for box in corners])


@cache
def frontal_face_cascade():
    """The cascade that ships with scikit-image."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def one_box_per_face(boxes: list[Box]) -> list[Box]:
    """The largest of the boxes that lie on one face, largest first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: (-area(box), box)):
        if all(iou(box, other) < SAME_PLACE for other in kept):
            kept.append(box)
    return kept


def vote(boxes: list[list[Box]]) -> list[list[Face]]:
    """Boxes per frame -> faces per frame, as LbpDetector says."""
    result = []
    for t, own in enumerate(boxes):
        around = [*boxes[max(0, t - NEIGHBOURS) : t], *boxes[t + 1 : t + 1 + NEIGHBOURS]]
        faces = []
        for box in own:
            votes = [any(iou(box, other) >= SAME_PLACE for other in frame) for frame in around]
            faces.append(Face(box, float(np.mean(votes)) if votes else 1.0))
        faces.sort(key=lambda face: (face.score < MAJORITY, -area(face.box), face.box))
        result.append([f for f in faces if f.score >= MAJORITY] or faces[:1])
    return result
