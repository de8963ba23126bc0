"""Role FaceEmbedder of the paper: FaceNet (Schroff et al., CVPR 2015), as InceptionResnetV1 trained on VGGFace2.

The network has the modules of facenet-pytorch's `InceptionResnetV1` (2.6.0) under the same names, so the public state
dicts load. It is the Inception-ResNet-v1 of Szegedy et al. (2016), figures 9 to 14, with the widths of
davidsandberg/facenet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ....errors import PVChatError
from ...protocols import Face, FaceDetector
from ..common import best_device, load_state, load_strictly, weights_file
from .align import WHOLE_FACE, crop_box
from .embedder import AlignedEmbedder

REPO, FILE = "py-feat/facenet", "facenet_20180402_114759_vggface2.pth"
REVISION = "c42f4c2771b043bb5c461093664d016ff4298224"
LICENCE = "MIT; trained on VGGFace2, research only"
BATCH = 32  # crops per forward pass
BOX_MARGIN = 14  # pixels of 160, as in facenet-pytorch's examples/lfw_evaluate.ipynb


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Branches side by side: their outputs joined along the channels."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self._names = [f"branch{i}" for i in range(len(branches))]
        for name, branch in zip(self._names, branches, strict=True):
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([getattr(self, name)(x) for name in self._names], 1)


class Residual(Branches):
    """x + scale * (1 x 1 convolution of the branches), then ReLU unless it is the last block."""

    def __init__(self, channels: int, width: int, scale: float, *branches: nn.Module, last: bool = False):
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(width, channels, 1)
        self.scale, self.last = scale, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale * self.conv2d(super().forward(x))
        return x if self.last else F.relu(x)


def _block35() -> Residual:
    return Residual(
        256,
        96,
        0.17,
        ConvBlock(256, 32, 1),
        nn.Sequential(ConvBlock(256, 32, 1), ConvBlock(32, 32, 3, padding=1)),
        nn.Sequential(ConvBlock(256, 32, 1), ConvBlock(32, 32, 3, padding=1), ConvBlock(32, 32, 3, padding=1)),
    )


def _block17() -> Residual:
    return Residual(
        896,
        256,
        0.10,
        ConvBlock(896, 128, 1),
        nn.Sequential(
            ConvBlock(896, 128, 1),
            ConvBlock(128, 128, (1, 7), padding=(0, 3)),
            ConvBlock(128, 128, (7, 1), padding=(3, 0)),
        ),
    )


def _block8(scale: float = 0.20, last: bool = False) -> Residual:
    return Residual(
        1792,
        384,
        scale,
        ConvBlock(1792, 192, 1),
        nn.Sequential(
            ConvBlock(1792, 192, 1),
            ConvBlock(192, 192, (1, 3), padding=(0, 1)),
            ConvBlock(192, 192, (3, 1), padding=(1, 0)),
        ),
        last=last,
    )


class InceptionResnetV1(nn.Module):
    """Face pictures (B, 3, H, W), H and W from 75 pixels, made for 160 -> unit vectors (B, 512).

    num_classes: also builds the classifier `logits`, to be applied to `features`; None leaves it away.
    """

    def __init__(self, num_classes: int | None = None):
        super().__init__()
        self.conv2d_1a = ConvBlock(3, 32, 3, stride=2)
        self.conv2d_2a = ConvBlock(32, 32, 3)
        self.conv2d_2b = ConvBlock(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = ConvBlock(64, 80, 1)
        self.conv2d_4a = ConvBlock(80, 192, 3)
        self.conv2d_4b = ConvBlock(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = Branches(
            ConvBlock(256, 384, 3, stride=2),
            nn.Sequential(ConvBlock(256, 192, 1), ConvBlock(192, 192, 3, padding=1), ConvBlock(192, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = Branches(
            nn.Sequential(ConvBlock(896, 256, 1), ConvBlock(256, 384, 3, stride=2)),
            nn.Sequential(ConvBlock(896, 256, 1), ConvBlock(256, 256, 3, stride=2)),
            nn.Sequential(ConvBlock(896, 256, 1), ConvBlock(256, 256, 3, padding=1), ConvBlock(256, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(scale=1.0, last=True)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=0.001)
        if num_classes is not None:
            self.logits = nn.Linear(512, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 512), not normalised."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))  # (B, 256, 17, 17) at 160
        x = self.mixed_6a(self.repeat_1(x))  # (B, 896, 8, 8)
        x = self.mixed_7a(self.repeat_2(x))  # (B, 1792, 3, 3)
        x = self.avgpool_1a(self.block8(self.repeat_3(x)))  # (B, 1792, 1, 1)
        return self.last_bn(self.last_linear(x.flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.features(x), dim=1)


def to_input(crops: np.ndarray, divisor: float = 127.5) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 = (pixels - 127.5) / divisor.

    127.5 is what the paper's authors feed (ToTensor, Normalize(0.5, 0.5)); the weights were trained with 128.
    """
    return (torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float() - 127.5) / divisor


class FaceNet(AlignedEmbedder):
    """FaceNet on crops of 160 pixels.

    detector: finds the faces. crop: "whole_face", the paper's crop, or "box", the detector's box with a margin as in
    facenet-pytorch, which needs no points. weights: a file with the public state dict; None reads it from the Hub.

    same: 0.70, the value that deepface uses for these weights (Facenet512, cosine distance 0.30); the five different
    people of facenet-pytorch's examples/infer.ipynb reach 0.695. eps: 0.6, the paper's clustering distance (cosine),
    which links more than `same` does. different: 0.4, what lies beyond that distance.
    """

    licences = ("MIT", "VGGFace2-research")
    same, different, eps = 0.70, 0.40, 0.60
    size, template = 160, WHOLE_FACE

    def __init__(self, detector: FaceDetector, weights: str | Path | None = None, crop: str = "whole_face"):
        super().__init__(detector)
        if crop not in ("whole_face", "box"):
            raise PVChatError(f"crop must be whole_face or box, got {crop!r}.")
        self._box = crop == "box"
        path, version = weights_file(weights, REPO, FILE, REVISION, backend="facenet", licence=LICENCE)
        self.name = f"facenet@1-{crop}+{version}"
        state = load_state(path, "facenet")
        with torch.device("meta"):
            self._net = InceptionResnetV1()
        load_strictly(self._net, {k: v for k, v in state.items() if not k.startswith("logits.")}, path, "facenet")
        self._device = best_device()
        self._net.eval().to(self._device)

    def crop(self, frame: np.ndarray, face: Face) -> np.ndarray:
        return crop_box(frame, face.box, self.size, BOX_MARGIN) if self._box else super().crop(frame, face)

    @torch.no_grad()
    def vectors(self, crops: np.ndarray) -> np.ndarray:
        """(N, 160, 160, 3) uint8 -> (N, 512) float32."""
        batches = to_input(crops).split(BATCH)
        return torch.cat([self._net(batch.to(self._device)).cpu() for batch in batches]).numpy()
