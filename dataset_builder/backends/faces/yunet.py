"""Role FaceDetector: YuNet (Wu et al., 2023) through OpenCV's FaceDetectorYN."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...protocols import Face
from ..common import FACES, require, weights_file

REPO, FILE = "opencv/face_detection_yunet", "face_detection_yunet_2023mar.onnx"
REVISION = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
SIDE = 640  # pixels: the published file is fixed to squares of this size, and OpenCV 5 does not reshape it


class YuNet:
    """Boxes and five points, best score first. Frames are fitted into a square of 640 pixels, padded with black.

    weights: the ONNX file; None reads it from the Hub. min_score: 0.9 is the default of FaceDetectorYN, the overlap
    0.3 of its non-maximum suppression too.
    """

    licences = ("Apache-2.0", "MIT")

    def __init__(self, weights: str | Path | None = None, min_score: float = 0.9):
        cv2 = require("cv2", backend="yunet", pip=FACES)
        path, version = weights_file(weights, REPO, FILE, REVISION, backend="yunet", licence="MIT")
        self.id = f"yunet@1-{min_score}+{version}"
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (SIDE, SIDE), min_score, 0.3, 5000)
        except cv2.error as error:
            raise PVChatError(f"{path} cannot be read as YuNet; pass {FILE} of {REPO}.") from error

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """frames (T, H, W, 3) uint8 -> for every frame its faces, best first."""
        return [self._detect(frame) for frame in frames]

    def _detect(self, frame: np.ndarray) -> list[Face]:
        from PIL import Image

        height, width = frame.shape[:2]
        scale = SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        square = np.zeros((SIDE, SIDE, 3), np.uint8)
        square[: size[1], : size[0]] = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
        _, rows = self._net.detect(np.ascontiguousarray(square[..., ::-1]))  # BGR
        back = np.array([width / size[0], height / size[1]])
        faces = []
        for row in np.zeros((0, 15)) if rows is None else rows.astype(np.float64):
            (x0, y0), (x1, y1) = (row[:2] * back).tolist(), ((row[:2] + row[2:4]) * back).tolist()
            faces.append(Face((x0, y0, x1, y1), float(row[14]), row[4:14].reshape(5, 2) * back))
        return sorted(faces, key=lambda face: (-face.score, face.box))
