"""The square around a face, cut out, and a rendered square put back.

Points are x, y in pixels, a pixel's number being its centre, y pointing down. Angles are in radians, clockwise in the
picture. Matrices (3, 3) map points of one picture to another. Follows src/utils/crop.py of KwaiVGI/LivePortrait
1986663.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import PVChatError

SIDE = 512  # pixels of a crop and of a rendered picture
RAMP = 16  # pixels over which the edge of a rendered picture fades

# Number of points -> the points whose mean is the left eye, the right eye and the mouth.
EYES_AND_MOUTH = {
    5: ((0,), (1,), (3, 4)),
    68: ((36, 39), (42, 45), (48, 54)),
    101: ((39, 42, 45, 48), (51, 54, 57, 60), (75, 81)),
    106: ((33, 35, 40, 39), (87, 89, 94, 93), (52, 61)),
    203: ((0, 6, 12, 18), (24, 30, 36, 42), (48, 66)),
}

# The original's crop for landmarks that cover the face: 2.3 times their extent, moved up by 0.125 of the side. Five
# points extend over 1.07 distances between the eyes where a face outline extends over about 2.35, and its centre lies
# 0.15 such distances lower; these numbers give about the same square.
LANDMARK_SCALE, LANDMARK_SHIFT = 2.3, -0.125
FIVE_POINT_SCALE, FIVE_POINT_SHIFT = 5.1, -0.1


@dataclass(frozen=True)
class Square:
    """A square in a picture: centre (2,) and side in pixels, and angle."""

    center: np.ndarray
    size: float
    angle: float

    def to_crop(self, side: int = SIDE) -> np.ndarray:
        """(3, 3), picture -> crop of `side` pixels."""
        s = side / self.size
        cos, sin = s * np.cos(self.angle), s * np.sin(self.angle)
        linear = np.array([[cos, sin], [-sin, cos]])
        return np.vstack([np.column_stack([linear, side / 2 - linear @ self.center]), [0, 0, 1]])


def eyes_and_mouth(points: np.ndarray) -> np.ndarray:
    """points (5 | 68 | 101 | 106 | 203, 2) -> the middle of the eyes and of the mouth (2, 2).

    Raises PVChatError for another number of points.
    """
    if len(points) not in EYES_AND_MOUTH:
        raise PVChatError(
            f"A face cannot be cut out from {len(points)} points; allowed: {', '.join(map(str, EYES_AND_MOUTH))}."
        )
    left, right, mouth = (points[list(rows)].mean(0) for rows in EYES_AND_MOUTH[len(points)])
    return np.stack([(left + right) / 2, mouth])


def face_square(points: np.ndarray, scale: float, shift: float) -> Square:
    """The upright (as seen by the face) square around points (N, 2), `scale` times as large as the points need, moved
    by `shift` of its side from the eyes to the mouth. Raises PVChatError as `eyes_and_mouth` does."""
    points = np.asarray(points, np.float64)
    eyes, mouth = eyes_and_mouth(points)
    down = mouth - eyes
    length = np.linalg.norm(down)
    down = down / length if length > 1e-3 else np.array([0.0, 1.0])
    across = np.array([down[1], -down[0]])
    axes = np.stack([across, down])
    along = (points - points.mean(0)) @ axes.T
    low, high = along.min(0), along.max(0)
    size = float((high - low).max()) * scale
    if size < 1:
        raise PVChatError("A face cannot be cut out: its points coincide; use another detector.")
    center = points.mean(0) + ((low + high) / 2) @ axes + shift * size * down
    return Square(center, size, float(np.arctan2(across[1], across[0])))


def mean_square(squares: list[Square]) -> Square:
    """One upright square for a whole clip: the mean position and size."""
    center = np.mean([square.center for square in squares], 0)
    return Square(center, float(np.mean([square.size for square in squares])), 0.0)


def warp(pictures: Tensor, matrix: np.ndarray, size: tuple[int, int]) -> Tensor:
    """pictures (T, C, H, W) float, matrix (3, 3) picture -> result, size (h, w) -> (T, C, h, w). Bilinear; what lies
    outside the picture is 0."""
    height, width = pictures.shape[-2:]
    device = pictures.device
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device=device) for n in size), indexing="ij")
    back = torch.from_numpy(np.linalg.inv(matrix)[:2]).to(device)
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ back.T
    grid = places * 2 / torch.tensor([width - 1, height - 1], device=device) - 1
    grid = grid.to(pictures.dtype).expand(len(pictures), -1, -1, -1)
    return F.grid_sample(pictures, grid, align_corners=True)


def to_tensor(frames: np.ndarray, device: torch.device) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, H, W) float32 from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).movedim(-1, 1).float()


def network_input(frames: np.ndarray, square: Square, device: torch.device) -> Tensor:
    """The square cut out of frames (T, H, W, 3) uint8 -> (T, 3, 256, 256) float32 in [0, 1]: cut at 512 pixels, then
    halved, as in the original, both rounded to whole grey levels."""
    cut = warp(to_tensor(frames, device), square.to_crop(), (SIDE, SIDE)).round()
    return ((F.avg_pool2d(cut, 2) + 0.5).floor()) / 255


@cache
def paste_mask() -> np.ndarray:
    """(512, 512) uint8: how much of a rendered picture shows, 255 inside, fading over 16 pixels to 0 at the edge, with
    round corners."""
    place = np.arange(SIDE)
    outside = np.maximum(0, np.maximum(RAMP - place, place - (SIDE - RAMP)))
    distance = np.hypot(outside[:, None], outside)
    return (255 * np.clip(1 - distance / RAMP, 0, 1)).astype(np.uint8)


def warped_mask(to_frame: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """`paste_mask` in a picture of size (H, W) -> (1, 1, H, W) float32 in [0, 1]. to_frame (3, 3): crop -> picture."""
    mask = torch.from_numpy(paste_mask()).to(device)[None, None].float()
    return warp(mask, to_frame, size) / 255


def paste_back(frame: np.ndarray, rendered: Tensor, to_frame: np.ndarray, mask: Tensor) -> np.ndarray:
    """frame (H, W, 3) uint8, rendered (T, 3, 512, 512) float from 0 to 255, to_frame (3, 3): crop -> frame, mask
    (1, 1, H, W) -> (T, H, W, 3) uint8. Where the mask is 0 the frame stays as it is."""
    behind = to_tensor(frame[None], rendered.device)
    pasted = [
        mask * warp(picture[None].float(), to_frame, frame.shape[:2]) + (1 - mask) * behind for picture in rendered
    ]
    return torch.cat(pasted).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
