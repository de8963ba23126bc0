"""Role PortraitAnimator: five motions of a still by bending the picture around the head.

A driver is a curve of head poses; the picture above the neck follows the pose, the shoulders stay.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..._random import generator
from ...protocols import Generated, Person
from .compose import compose, place_kind
from .cutout import Cutout, cut_out, recolour

NUM_FRAMES = 16
CELL = 32  # pixels between the points of the warping grid


class WarpAnimator:
    """Recolours the clothes of a still, moves the head as `driver` says, and puts the person into a drawn place."""

    id = "warp2d@5"
    licences = ("Apache-2.0",)

    def animate(self, still: Person, driver: str, seed: int) -> Generated:
        cutout = recolour(cut_out(still).still(), seed)
        moving = warp(cutout, driver_curve(driver, NUM_FRAMES, seed))
        return Generated(compose(moving, "", seed), max(8.0, still.fps), {"place": place_kind("", seed)})


def driver_curve(driver: str, length: int, seed: int) -> np.ndarray:
    """Head poses (length, 4): shift x, shift y (shares of the head's height), tilt (radians), stretch of the head's
    lower half."""
    rng = generator("driver", driver, seed)
    cycles, phase = float(rng.uniform(1.2, 2.4)), float(rng.uniform(0, 2 * np.pi))
    strength = float(rng.uniform(0.7, 1.2))
    wave = np.sin(2 * np.pi * cycles * np.arange(length) / length + phase)
    slow = np.sin(2 * np.pi * 0.5 * np.arange(length) / length + phase)
    zero = np.zeros(length)
    curves = {
        "yes": (0.01 * slow, 0.07 * wave, zero, 0.06 * wave),
        "no": (0.07 * wave, zero, 0.02 * wave, zero),
        "query": (0.02 * slow, 0.01 * slow, 0.16 * slow, zero),
        "smile": (0.01 * wave, 0.02 * slow, 0.05 * slow, 0.07 * np.abs(wave)),
        "angry": (0.03 * wave, 0.04 + 0.03 * np.abs(wave), 0.03 * slow, -0.05 * np.abs(wave)),
    }
    return np.stack(curves[driver], -1) * strength


def warp(cutout: Cutout, curve: np.ndarray) -> Cutout:
    """cutout with one frame, curve (T, 4) -> cutout with T frames."""
    from PIL import Image

    H, W = cutout.alpha.shape[1:]
    top, neck, centre = float(cutout.top[0]), float(cutout.neck[0]), float(cutout.centre[0])
    head = max(8.0, neck - top)
    gx = np.unique(np.append(np.arange(0, W, CELL), W))
    gy = np.unique(np.append(np.arange(0, H, CELL), H))
    y, x = np.meshgrid(gy.astype(float), gx.astype(float), indexing="ij")
    follow = 1 / (1 + np.exp((y - neck + 0.05 * head) / (0.08 * head)))
    lower = np.exp(-(((y - (neck - 0.25 * head)) / (0.22 * head)) ** 2))
    picture = Image.fromarray(cutout.rgb[0])
    picture.putalpha(Image.fromarray(cutout.alpha[0]))
    frames = []
    for shift_x, shift_y, tilt, stretch in curve:
        # Where each output grid point looks in the input: the inverse of the pose.
        dx, dy = x - centre - shift_x * head, y - neck - shift_y * head
        cos, sin = np.cos(-tilt), np.sin(-tilt)
        source_x = centre + (cos * dx - sin * dy) / (1 + stretch * lower)
        source_y = neck + sin * dx + cos * dy
        source_x, source_y = x + follow * (source_x - x), y + follow * (source_y - y)
        mesh = [
            (
                (int(gx[j]), int(gy[i]), int(gx[j + 1]), int(gy[i + 1])),
                tuple(
                    float(v)
                    for a, b in ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1))
                    for v in (source_x[a, b], source_y[a, b])
                ),
            )
            for i in range(len(gy) - 1)
            for j in range(len(gx) - 1)
        ]
        moved = picture.transform((W, H), Image.Transform.MESH, mesh, resample=Image.Resampling.BILINEAR)
        frames.append(np.asarray(moved))
    pixels, T = np.stack(frames), len(curve)
    spread = {f: np.repeat(getattr(cutout, f), T) for f in ("top", "neck", "centre", "width")}
    return replace(cutout, rgb=pixels[..., :3].copy(), alpha=pixels[..., 3].copy(), best=0, **spread)
