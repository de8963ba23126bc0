"""Two steps of the authors' preprocessing that their runs never reach, for the golden vectors only.

The training script always asks for a 2:1 frame, so the search for a shape that fits the video and the variant that
pads instead of squeezing are dead code there. The product leaves them out; the vectors cover them, and so do these.
Source: github.com/DavidYan2001/PVChat @ 5d383bb.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F


def closest_aspect_ratio(
    width: int, height: int, candidates: Sequence[Sequence[int]], tile_size: int = 224
) -> tuple[int, int]:
    """Columns and rows whose quotient is nearest to that of the video.

    Between equals the first wins, unless the video has more than half the pixels of a later one.
    """
    best, best_distance = (1, 1), math.inf
    for columns, rows in candidates:
        distance = abs(width / height - columns / rows)
        large = width * height > 0.5 * tile_size**2 * columns * rows
        if distance < best_distance or (distance == best_distance and large):
            best, best_distance = (columns, rows), distance
    return best


def hd_padding(frames: torch.Tensor, tile_size: int = 224, max_tiles: int = 1) -> torch.Tensor:
    """Shape-keeping resize of landscape frames, then white bars above and below up to a multiple of a tile.

    Args:
        frames: (T, 3, H, W) float32 in 0..255 with W >= H.
        max_tiles: as many columns as fit, with their rows, into this number of tiles.

    Returns:
        (T, 3, rows * tile_size, columns * tile_size), not clamped, not normalised.
    """
    height, width = frames.shape[-2:]
    ratio = width / height
    columns = 1
    while (columns + 1) * math.ceil((columns + 1) / ratio) <= max_tiles:
        columns += 1
    new_width = columns * tile_size
    new_height = int(new_width / ratio)
    frames = F.interpolate(frames, size=(new_height, new_width), mode="bicubic", align_corners=False)
    missing = math.ceil(new_height / tile_size) * tile_size - new_height
    return F.pad(frames, (0, 0, missing // 2, missing - missing // 2), value=255.0)
