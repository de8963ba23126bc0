"""Five motions as curves of head pose and expression, drawn by us.

    yes     nods about twice
    no      shakes the head about twice
    query   tilts the head, looks aside, lifts the brows
    smile   the mouth first; cheeks and lids follow, and let go later, as in a smile that is meant
    angry   draws the brows together, presses the lips, comes nearer, looks from side to side

Every curve starts and ends at rest. Which key point shows what is read off the original (src/gradio_pipeline.py,
KwaiVGI/LivePortrait 1986663): 1, 2 brows; 13, 16 lower lids; 14, 17, 20 lips; 3, 7 cheeks. How far and when they move
is our choice, made without the official weights at hand. The picture's x points right, y down.
"""

from __future__ import annotations

import numpy as np
import torch

from ..._random import generator
from .motion import Motion

NUM_KEYPOINTS = 21
FPS = 25.0

# (key point, axis): offset of the full expression, before scaling.
MOUTH_UP = {(14, 1): -0.016, (20, 1): -0.013, (17, 1): 0.004}
EYES_SMILE = {(3, 1): -0.006, (7, 1): -0.006, (13, 1): -0.004, (16, 1): -0.004}
BROWS_UP = {(1, 1): 0.013, (2, 1): -0.013}
BROWS_TOGETHER = {(1, 0): 0.016, (2, 0): -0.016, (1, 1): -0.007, (2, 1): 0.007}
LIPS_PRESSED = {(14, 1): 0.009, (17, 1): -0.004, (20, 1): 0.004}
EXPRESSIONS = {
    "mouth_up": MOUTH_UP,
    "eyes_smile": EYES_SMILE,
    "brows_up": BROWS_UP,
    "brows_together": BROWS_TOGETHER,
    "lips_pressed": LIPS_PRESSED,
}


def driver_motion(driver: str, num_frames: int, seed: int) -> Motion:
    """A motion of `num_frames` >= 2 frames, relative to rest: angles in degrees, scale around 1. The seed varies speed
    and direction. Raises KeyError for an unknown driver."""
    rng = generator("liveportrait", driver, seed)
    cycles, side, later = rng.uniform(1.6, 2.4), rng.choice([-1.0, 1.0]), rng.uniform(0.08, 0.14)
    time = np.linspace(0, 1, num_frames)
    hold = _hold(time, 0.0, 1.0)
    swing = side * hold * np.sin(2 * np.pi * cycles * time)
    curves = {
        "yes": {"pitch": 9 * swing},
        "no": {"yaw": 14 * swing},
        "query": {"roll": 11 * side * hold, "yaw": 5 * side * hold + 2 * swing, "brows_up": hold},
        "smile": {
            "mouth_up": _hold(time, 0.0, 1 - later),
            "eyes_smile": _hold(time, later, 1.0),
            "roll": 2.5 * side * hold,
        },
        "angry": {"brows_together": hold, "lips_pressed": hold, "yaw": 4 * swing, "scale": 0.04 * hold},
    }[driver]

    def column(name: str) -> np.ndarray:
        return curves.get(name, np.zeros(num_frames))[:, None]

    exp = np.zeros((num_frames, NUM_KEYPOINTS, 3))
    for name, offsets in EXPRESSIONS.items():
        for (point, axis), offset in offsets.items():
            exp[:, point, axis] += offset * column(name)[:, 0]
    values = [column("pitch"), column("yaw"), column("roll"), np.zeros((num_frames, 3)), exp, 1 + column("scale")]
    return Motion(*(torch.tensor(value, dtype=torch.float32) for value in values))


def _hold(time: np.ndarray, start: float, stop: float) -> np.ndarray:
    """0 outside of start and stop, 1 in between; rises and falls smoothly within a quarter of the whole."""
    inside = np.minimum(time - start, stop - time)
    return np.sin(np.pi / 2 * np.clip(4 * inside, 0, 1)) ** 2
