"""Role FaceEmbedder: SFace (Zhong et al., 2021) through OpenCV's FaceRecognizerSF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...protocols import FaceDetector
from .align import ARCFACE
from .embedder import AlignedEmbedder
from .weights import hub_file, local_file, require

REPO, FILE = "opencv/face_recognition_sface", "face_recognition_sface_2021dec.onnx"
REVISION = "3d7082438a6e4551e840c9b2bb60b71e8da4b524"


class SFace(AlignedEmbedder):
    """SFace on crops of 112 pixels -> 128 numbers.

    detector: finds the faces. weights: the ONNX file; None reads it from the Hub (39 MB).

    same: 0.363, from OpenCV's own `sface.py`. different: 0.30, and eps: 0.55 (cosine 0.45), from a published run of
    this file over all pairs of LFW: 1 % of the pairs of two people lie above 0.302, 1 % of those of one person below
    0.385, and 0.003 % of two people above 0.45.
    """

    licences = ("Apache-2.0",)
    name = "sface@1+2021dec"
    same, different, eps = 0.363, 0.30, 0.55
    size, template = 112, ARCFACE

    def __init__(self, detector: FaceDetector, weights: str | Path | None = None):
        super().__init__(detector)
        cv2 = require("cv2", "sface")
        if weights is None:
            path = hub_file(REPO, FILE, REVISION, backend="sface", licence="Apache-2.0")
        else:
            path = local_file(weights, "sface")
        try:
            self._net = cv2.FaceRecognizerSF.create(str(path), "")
        except cv2.error as error:
            raise PVChatError(f"{path} cannot be read as an ONNX network; pass the weights of sface.") from error

    def vectors(self, crops: np.ndarray) -> np.ndarray:
        """(N, 112, 112, 3) uint8 -> (N, 128) float32."""
        return np.concatenate([self._net.feature(np.ascontiguousarray(crop[..., ::-1])) for crop in crops])
