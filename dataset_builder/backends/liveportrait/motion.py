"""Head pose, expression and key points: what the motion extractor says, and how a driving motion moves a source.

Guo et al., 2407.03168, equation 2: x = s (x_c R + delta) + t, with canonical key points x_c, rotation R, expression
delta, scale s and translation t. T frames, K key points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Motion:
    """pitch, yaw, roll (T, 1) in degrees; t (T, 3); exp (T, K, 3); scale (T, 1); all float32."""

    pitch: Tensor
    yaw: Tensor
    roll: Tensor
    t: Tensor
    exp: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> Motion:
        return Motion(*(getattr(self, field.name).to(device) for field in fields(self)))

    @staticmethod
    def join(parts: Sequence[Motion]) -> Motion:
        """One motion of all frames, in order."""
        return Motion(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Motion)))

    @property
    def rotation(self) -> Tensor:
        """(T, 3, 3), to be multiplied from the right: x_c R."""
        return rotation_matrix(self.pitch, self.yaw, self.roll)


def refine(raw: Mapping[str, Tensor]) -> tuple[Motion, Tensor]:
    """The outputs of the motion extractor -> motion and canonical key points (T, K, 3), float32."""
    raw = {name: value.float() for name, value in raw.items()}
    pitch, yaw, roll = (degrees(raw[name]) for name in ("pitch", "yaw", "roll"))
    exp, kp = (raw[name].unflatten(1, (-1, 3)) for name in ("exp", "kp"))
    return Motion(pitch, yaw, roll, raw["t"], exp, raw["scale"]), kp


def degrees(scores: Tensor) -> Tensor:
    """Scores (T, 66) of bins of 3 degrees, the first at -97.5 -> the expected angle (T, 1)."""
    index = torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device)
    return (scores.softmax(1) * index).sum(1, keepdim=True) * 3 - 97.5


def rotation_matrix(pitch: Tensor, yaw: Tensor, roll: Tensor) -> Tensor:
    """Angles (T, 1) in degrees -> (Rz Ry Rx) transposed, (T, 3, 3): rows are turned by x R. src/utils/camera.py."""
    angles = [torch.deg2rad(angle[:, 0]) for angle in (pitch, yaw, roll)]
    (cx, cy, cz), (sx, sy, sz) = ([f(angle) for angle in angles] for f in (torch.cos, torch.sin))
    rows = [
        [cz * cy, sz * cy, -sy],
        [cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx],
        [cz * sy * cx + sz * sx, sz * sy * cx - cz * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def transform(kp: Tensor, rotation: Tensor, exp: Tensor, scale: Tensor, t: Tensor) -> Tensor:
    """Canonical key points (T, K, 3), moved -> (T, K, 3). The translation's z is not used, as in the original."""
    shift = torch.cat([t[:, :2], torch.zeros_like(t[:, 2:])], 1)
    return scale[:, None] * (kp @ rotation + exp) + shift[:, None]


def keypoints(kp: Tensor, motion: Motion) -> Tensor:
    """Key points (T, K, 3) of each frame by itself."""
    return transform(kp, motion.rotation, motion.exp, motion.scale, motion.t)


def relative_keypoints(kp: Tensor, source: Motion, driving: Motion) -> Tensor:
    """The source's key points (1, K, 3), moved as the driving frames move against their first one -> (T, K, 3).

    The first result is the source at rest. Hence the original's option "expression-friendly", which scales the motion
    by the ratio of the source's size to the first result's, changes nothing and has no counterpart here.
    """
    turn = driving.rotation @ driving.rotation[:1].mT @ source.rotation
    exp = source.exp + driving.exp - driving.exp[:1]
    scale = source.scale * driving.scale / driving.scale[:1]
    return transform(kp, turn, exp, scale, source.t + driving.t - driving.t[:1])


def apply_stitching(kp_driving: Tensor, correction: Tensor) -> Tensor:
    """kp_driving (T, K, 3), correction (T, 3 K + 2): one offset per key point, then a shift of x and y for all."""
    offsets, shift = correction[:, :-2].reshape(kp_driving.shape), correction[:, -2:]
    return kp_driving + offsets + torch.nn.functional.pad(shift, (0, 1))[:, None]
