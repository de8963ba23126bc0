"""Role FaceEmbedder: AuraFace, an ArcFace network (ResNet-100) trained for commercial use, through ONNX Runtime.

Only `glintr100.onnx` of the repository is AuraFace. The other files in it are InsightFace's detectors and landmark
networks, whose weights are for research only; they are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...protocols import FaceDetector
from ..common import FACES, require, weights_file
from .align import ARCFACE
from .embedder import AlignedEmbedder

REPO, FILE = "fal/AuraFace-v1", "glintr100.onnx"
REVISION = "af6d057c9b0ec4071d4c49c80e3539258798b609"


class AuraFace(AlignedEmbedder):
    """AuraFace on crops of 112 pixels -> 512 numbers.

    detector: finds the faces. weights: the ONNX file; None reads it from the Hub (261 MB).

    same: 0.40, LibreYOLO's default for this file. different: 0.28, where 0.1 % of the pairs of two people of LFW
    pass an ArcFace network (Deb et al., AdvFaces, 2019). eps: 0.60, the distance that `same` allows.
    """

    licences = ("Apache-2.0",)
    same, different, eps = 0.40, 0.28, 0.60
    size, template = 112, ARCFACE

    def __init__(self, detector: FaceDetector, weights: str | Path | None = None):
        super().__init__(detector)
        runtime = require("onnxruntime", backend="auraface", pip=FACES)
        path, version = weights_file(weights, REPO, FILE, REVISION, backend="auraface", licence="Apache-2.0")
        self.name = f"auraface@1+{version}"
        try:
            self._net = runtime.InferenceSession(str(path), providers=runtime.get_available_providers())
        except Exception as error:  # its errors share no base class
            raise PVChatError(f"{path} cannot be read as an ONNX network; pass the weights of auraface.") from error

    def vectors(self, crops: np.ndarray) -> np.ndarray:
        """(N, 112, 112, 3) uint8 -> (N, 512) float32."""
        pixels = np.ascontiguousarray((crops.astype(np.float32) - 127.5).transpose(0, 3, 1, 2) / 127.5)
        return self._net.run(None, {self._net.get_inputs()[0].name: pixels})[0]
