"""Role FaceEmbedder under a permissive licence: SFace (Zhong et al., 2021) through OpenCV's FaceRecognizerSF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...protocols import FaceDetector
from ..common import FACES, require, weights_file
from .align import ARCFACE
from .embedder import AlignedEmbedder

REPO, FILE = "opencv/face_recognition_sface", "face_recognition_sface_2021dec.onnx"
REVISION = "3d7082438a6e4551e840c9b2bb60b71e8da4b524"


class SFace(AlignedEmbedder):
    """SFace on crops of 112 pixels -> 128 numbers.

    weights: the ONNX file; None reads it from the Hub.

    same: 0.363, the cosine from which OpenCV's tutorial on FaceRecognizerSF calls two faces one person (99.80 % of
    LFW's pairs are told right by it). eps: 1 - same, so that clustering links what `same` calls one person.
    different: 0.30. OpenCV publishes one number and no band; below it we leave room for pose and light, and stop above
    the 0.28 that 0.1 % of the pairs of two people pass with the kindred ArcFace (see auraface.py).
    """

    licences = ("Apache-2.0",)
    same, different, eps = 0.363, 0.30, 0.637
    size, template = 112, ARCFACE

    def __init__(self, detector: FaceDetector, weights: str | Path | None = None):
        super().__init__(detector)
        cv2 = require("cv2", backend="sface", pip=FACES)
        path, version = weights_file(weights, REPO, FILE, REVISION, backend="sface", licence="Apache-2.0")
        self.name = f"sface@1+{version}"
        try:
            self._net = cv2.FaceRecognizerSF.create(str(path), "")
        except cv2.error as error:
            raise PVChatError(f"{path} cannot be read as SFace; pass {FILE} of {REPO}.") from error

    def vectors(self, crops: np.ndarray) -> np.ndarray:
        """(N, 112, 112, 3) uint8 RGB -> (N, D) float32."""
        bgr = np.ascontiguousarray(crops[..., ::-1])
        return np.stack([self._net.feature(crop).ravel().copy() for crop in bgr])
