"""Role FaceEmbedder under a permissive licence: SFace (Zhong et al., 2021) through OpenCV's FaceRecognizerSF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...protocols import FaceDetector
from ..common import FACES, file_version, hub_file, local_file, require
from .align import ARCFACE
from .embedder import AlignedEmbedder

REPO, FILE = "opencv/face_recognition_sface", "face_recognition_sface_2021dec.onnx"


class SFace(AlignedEmbedder):
    """SFace on crops of 112 pixels -> 128 numbers.

    weights: the ONNX file; None reads it from the Hub.

    same: 0.363, the cosine from which OpenCV's tutorial on FaceRecognizerSF calls two faces one person. eps: 1 - same,
    so that clustering links what `same` calls one person. different: 0.2, an allowance below `same` for pose and
    light within one video; it is not a published number.
    """

    licences = ("Apache-2.0",)
    same, different, eps = 0.363, 0.2, 0.637
    size, template = 112, ARCFACE

    def __init__(self, detector: FaceDetector, weights: str | Path | None = None):
        super().__init__(detector)
        cv2 = require("cv2", backend="sface", pip=FACES)
        path = local_file(weights, "sface") if weights else hub_file(REPO, FILE, backend="sface", licence="Apache-2.0")
        self.name = f"sface@1+{file_version(path)}"
        try:
            self._net = cv2.FaceRecognizerSF.create(str(path), "")
        except cv2.error as error:
            raise PVChatError(f"{path} cannot be read as SFace; pass {FILE} of {REPO}.") from error

    def vectors(self, crops: np.ndarray) -> np.ndarray:
        """(N, 112, 112, 3) uint8 RGB -> (N, D) float32."""
        bgr = np.ascontiguousarray(crops[..., ::-1])
        return np.stack([self._net.feature(crop).ravel().copy() for crop in bgr])
