"""Role FaceDetector: MTCNN (Zhang et al., 2016), three nets from coarse to fine.

The nets have the modules of facenet-pytorch's PNet, RNet and ONet (2.6.0) under the same names, so its state dicts
load; boxes and points equal its `MTCNN.detect(..., landmarks=True)`. That includes its habits: the nets see the
picture transposed (their weights come from Matlab), and boxes count pixels from 1 when a net refines them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ....errors import MissingBackendError
from ...protocols import Face
from ..common import best_device, file_version, load_state, load_strictly, local_file

SCALE_STEP = 0.709  # about 1 / sqrt(2): every level of the pyramid has half the area of the one before
THRESHOLDS = (0.6, 0.7, 0.7)  # of the face probability, per net
CELL, STRIDE = 12, 2  # pixels that one output of P-Net sees, and the step between two of them


class PNet(nn.Module):
    """Proposes: pictures (B, 3, H, W), H and W from 12 -> boxes (B, 4, h, w) and probabilities (B, 2, h, w)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)


class RNet(nn.Module):
    """Refines: crops (N, 3, 24, 24) -> box corrections (N, 4) and probabilities (N, 2)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)  # (N, 576)
        x = self.prelu4(self.dense4(x))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


class ONet(nn.Module):
    """Decides: crops (N, 3, 48, 48) -> box corrections (N, 4), points (N, 10) as five x then five y in shares of the
    box, probabilities (N, 2)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)  # (N, 1152)
        x = self.prelu5(self.dense5(x))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """0..255 -> about -1..1, as the three nets want it."""
    return (pixels - 127.5) / 128


class MTCNN:
    """Boxes and five points, largest face first.

    weights: a folder with pnet.pt, rnet.pt and onet.pt; None takes those of an installed facenet-pytorch, which is
    not imported. min_face: pixels of the smallest face that is looked for.
    """

    licences = ("MIT",)

    def __init__(self, weights: str | Path | None = None, min_face: int = 20):
        folder = _installed_weights() if weights is None else Path(weights)
        self.min_face = min_face
        self._device = best_device()
        self._pnet, self._rnet, self._onet = PNet(), RNet(), ONet()
        paths = [local_file(folder / f"{name}.pt", "mtcnn") for name in ("pnet", "rnet", "onet")]
        self.id = f"mtcnn@1-{min_face}px+{file_version(*paths)}"
        for net, path in zip((self._pnet, self._rnet, self._onet), paths, strict=True):
            load_strictly(net, load_state(path, "mtcnn"), path, "mtcnn")
            net.eval().to(self._device)

    @torch.no_grad()
    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """frames (T, H, W, 3) uint8 -> for every frame its faces, largest first."""
        return [self._detect(frame) for frame in frames]

    def _detect(self, frame: np.ndarray) -> list[Face]:
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float().to(self._device)
        boxes = self._propose(image)
        boxes = self._refine(image, boxes)
        boxes, scores, points = self._decide(image, boxes)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return [
            Face(tuple(float(side) for side in boxes[i]), float(scores[i]), points[i])
            for i in np.argsort(-areas, kind="stable")
        ]

    def _propose(self, image: torch.Tensor) -> np.ndarray:
        """P-Net on a pyramid of the picture -> square boxes (N, 4)."""
        height, width = image.shape[2:]
        found = [np.zeros((0, 9), np.float32)]  # box, score, correction
        scale = CELL / self.min_face
        while min(height, width) * scale >= CELL:
            small = F.interpolate(image, (int(height * scale + 1), int(width * scale + 1)), mode="area")
            corrections, probabilities = (out[0].cpu().numpy() for out in self._pnet(normalise(small)))
            y, x = np.nonzero(probabilities[1] >= THRESHOLDS[0])
            corner = np.stack([x, y], 1).astype(np.float32) * STRIDE + 1
            box = np.floor(np.concatenate([corner, corner + CELL - 1], 1) / np.float32(scale))
            rows = np.concatenate([box, probabilities[1, y, x][:, None], corrections[:, y, x].T], 1)
            found.append(rows[_keep(rows[:, :4], rows[:, 4], 0.5)])
            scale *= SCALE_STEP
        rows = np.concatenate(found)
        rows = rows[_keep(rows[:, :4], rows[:, 4], 0.7)]
        size = np.tile(rows[:, 2:4] - rows[:, :2], 2)
        return _square(rows[:, :4] + rows[:, 5:] * size)

    def _refine(self, image: torch.Tensor, boxes: np.ndarray) -> np.ndarray:
        """R-Net -> fewer and better square boxes."""
        boxes, crops = _crops(image, boxes, 24)
        if not len(boxes):
            return boxes
        corrections, probabilities = (out.cpu().numpy() for out in self._rnet(crops))
        sure = probabilities[:, 1] > THRESHOLDS[1]
        boxes, scores, corrections = boxes[sure], probabilities[sure, 1], corrections[sure]
        kept = _keep(boxes, scores, 0.7)
        return _square(_corrected(boxes[kept], corrections[kept]))

    def _decide(self, image: torch.Tensor, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """O-Net -> boxes (N, 4), scores (N,), points (N, 5, 2)."""
        boxes, crops = _crops(image, boxes, 48)
        if not len(boxes):
            return boxes, np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
        corrections, points, probabilities = (out.cpu().numpy() for out in self._onet(crops))
        sure = probabilities[:, 1] > THRESHOLDS[2]
        boxes, scores, corrections, points = boxes[sure], probabilities[sure, 1], corrections[sure], points[sure]
        size = boxes[:, None, 2:] - boxes[:, None, :2] + 1  # (N, 1, 2)
        points = points.reshape(-1, 2, 5).swapaxes(1, 2) * size + boxes[:, None, :2] - 1
        boxes = _corrected(boxes, corrections)
        kept = _keep(boxes, scores, 0.7, nested=True)
        return boxes[kept], scores[kept], points[kept]


def _installed_weights() -> Path:
    found = importlib.util.find_spec("facenet_pytorch")
    if found is None or not found.submodule_search_locations:
        raise MissingBackendError(
            "The backend mtcnn needs the weights that the package facenet-pytorch carries (licence: MIT): "
            "pip install --no-deps facenet-pytorch==2.6.0 (without --no-deps it replaces torch and numpy)."
        )
    return Path(next(iter(found.submodule_search_locations))) / "data"


def _crops(image: torch.Tensor, boxes: np.ndarray, size: int) -> tuple[np.ndarray, torch.Tensor]:
    """The boxes that touch the picture, and what is in them as input (N, 3, size, size) of the next net."""
    height, width = image.shape[2:]
    x0, y0, x1, y1 = np.trunc(boxes).astype(int).T
    x0, y0, x1, y1 = np.maximum(x0, 1) - 1, np.maximum(y0, 1) - 1, np.minimum(x1, width), np.minimum(y1, height)
    inside = (x1 > x0) & (y1 > y0)
    crops = [
        F.interpolate(image[:, :, y0[i] : y1[i], x0[i] : x1[i]], (size, size), mode="area")
        for i in np.flatnonzero(inside)
    ]
    return boxes[inside], normalise(torch.cat(crops)) if crops else image.new_zeros(0, 3, size, size)


def _corrected(boxes: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    """Moves every side by its correction, in shares of the box's size."""
    return boxes + corrections * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _square(boxes: np.ndarray) -> np.ndarray:
    """Squares around the same centres that contain the boxes."""
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.max(1, keepdims=True) if len(boxes) else np.zeros((0, 1), np.float32)
    corner = boxes[:, :2] + size / 2 - side / 2
    return np.concatenate([corner, corner + side], 1)


def _keep(boxes: np.ndarray, scores: np.ndarray, threshold: float, nested: bool = False) -> np.ndarray:
    """Non-maximum suppression: the indices of the boxes (N, 4) that no better box overlaps by more than `threshold`.

    nested: the overlap is measured against the smaller box instead of the union, and boxes count pixels.
    """
    lengths = boxes[:, 2:] - boxes[:, :2] + nested
    areas = lengths.prod(1)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low + nested).clip(0).prod(1)
        whole = np.minimum(areas[best], areas[rest]) if nested else areas[best] + areas[rest] - shared
        order = rest[shared <= threshold * whole]
    return np.array(kept, int)
