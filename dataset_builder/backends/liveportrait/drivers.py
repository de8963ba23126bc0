"""Five motions as curves of head pose and expression, of our own making.

Every curve starts and ends at rest. Which key point shows what is read off the expression sliders of the original
(src/gradio_pipeline.py, KwaiVGI/LivePortrait 1986663): 1, 2 brows; 13, 16 lower lids; 14, 17, 20 lips; 3, 7 cheeks.
The picture's x points right, y down.
"""

from __future__ import annotations

import numpy as np
import torch

from ..._random import generator
from .motion import Motion

NUM_KEYPOINTS = 21
FPS = 25.0

# (key point, axis): offset of the full expression, before scaling.
SMILE = {
    (14, 1): -0.020,
    (20, 1): -0.010,
    (17, 1): 0.007,
    (17, 2): 0.003,
    (13, 1): -0.003,
    (16, 1): -0.003,
    (3, 1): -0.004,
    (7, 1): -0.004,
}
BROWS_UP = {(1, 1): 0.015, (2, 1): -0.015}
BROWS_TOGETHER = {(1, 0): 0.018, (2, 0): -0.018, (1, 1): -0.006, (2, 1): 0.006}
TIGHT_LIPS = {(14, 1): 0.010, (3, 1): -0.005, (7, 1): -0.005}


def driver_motion(driver: str, num_frames: int, seed: int) -> Motion:
    """A motion of `num_frames` >= 2 frames, relative to rest: angles in degrees, scale around 1. The seed varies speed
    and direction. Raises KeyError for an unknown driver."""
    rng = generator("liveportrait", driver, seed)
    cycles, side = rng.uniform(1.6, 2.4), rng.choice([-1.0, 1.0])
    time = np.linspace(0, 1, num_frames)
    hold = np.sin(np.pi / 2 * np.clip(4 * np.minimum(time, 1 - time), 0, 1)) ** 2  # rises in a quarter, then stays
    swing = side * hold * np.sin(2 * np.pi * cycles * time)
    curves = {
        "yes": {"pitch": 9 * swing},
        "no": {"yaw": 14 * swing},
        "query": {"roll": 11 * side * hold, "yaw": 5 * side * hold + 2 * swing, "brows_up": hold},
        "smile": {"smile": hold * (1.1 + 0.1 * np.sin(2 * np.pi * cycles * time)), "roll": 3 * side * hold},
        "angry": {"together": hold, "tight": hold, "yaw": 4 * swing, "scale": 0.04 * hold},
    }[driver]

    def column(name: str) -> np.ndarray:
        return curves.get(name, np.zeros(num_frames))[:, None]

    exp = np.zeros((num_frames, NUM_KEYPOINTS, 3))
    for name, offsets in (
        ("smile", SMILE),
        ("brows_up", BROWS_UP),
        ("together", BROWS_TOGETHER),
        ("tight", TIGHT_LIPS),
    ):
        for (point, axis), offset in offsets.items():
            exp[:, point, axis] += offset * column(name)[:, 0]
    values = [column("pitch"), column("yaw"), column("roll"), np.zeros((num_frames, 3)), exp, 1 + column("scale")]
    return Motion(*(torch.tensor(value, dtype=torch.float32) for value in values))
