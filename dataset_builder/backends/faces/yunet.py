"""Role FaceDetector: YuNet (Wu et al., 2023) through OpenCV's FaceDetectorYN."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...protocols import Face
from .weights import hub_file, local_file, require

REPO, FILE = "opencv/face_detection_yunet", "face_detection_yunet_2023mar.onnx"
REVISION = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
MAX_SIDE = 640  # pixels; larger frames are reduced, for the network knows faces of 10 to 300 pixels


class YuNet:
    """Boxes and five points, largest face first.

    weights: the ONNX file; None reads it from the Hub (233 kB). min_score: below it nothing is a face.
    """

    licences = ("MIT",)

    def __init__(self, weights: str | Path | None = None, min_score: float = 0.8):
        cv2 = require("cv2", "yunet")
        if weights is None:
            path = hub_file(REPO, FILE, REVISION, backend="yunet", licence="MIT")
        else:
            path = local_file(weights, "yunet")
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (MAX_SIDE, MAX_SIDE), min_score, 0.3, 5000)
        except cv2.error as error:
            raise PVChatError(f"{path} cannot be read as an ONNX network; pass the weights of yunet.") from error
        self.id = f"yunet@1+2023mar/{min_score}"

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """frames (T, H, W, 3) uint8 -> for every frame its faces, largest first."""
        from PIL import Image

        height, width = frames.shape[1:3]
        scale = min(1.0, MAX_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        self._net.setInputSize(size)
        found = []
        for frame in frames:
            small = np.asarray(Image.fromarray(frame).resize(size)) if scale < 1 else frame
            rows = self._net.detect(np.ascontiguousarray(small[..., ::-1]))[1]  # (N, 15) or None; OpenCV wants BGR
            faces = [] if rows is None else [_face(row, np.array([width, height]) / size) for row in rows]
            found.append(sorted(faces, key=lambda face: -np.prod(np.subtract(face.box[2:], face.box[:2]))))
        return found


def _face(row: np.ndarray, scale: np.ndarray) -> Face:
    """A row is x, y, width, height, the points (the person's right eye first: the left one in the picture), score."""
    corner, size = row[:2] * scale, row[2:4] * scale
    box = tuple(float(side) for side in (*corner, *(corner + size)))
    return Face(box, float(row[14]), (row[4:14].reshape(5, 2) * scale).astype(np.float32))
