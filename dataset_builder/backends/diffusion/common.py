"""What the diffusers backends share: memory, pictures, seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ....errors import PVChatError
from ...protocols import Person
from ..common import best_device

OFFLOADS = ("none", "model", "group", "sequential")


def check_offload(offload: str, allowed: Sequence[str] = OFFLOADS) -> str:
    if offload not in allowed:
        raise PVChatError(f"offload must be one of {', '.join(allowed)}, got {offload!r}.")
    return offload


def place(pipe: Any, offload: str) -> Any:
    """Puts a pipeline onto the GPU: "none" whole, "model" one network at a time, "group" and "sequential" one layer at
    a time ("group" fetches the next layer meanwhile). With any but "none" the decoder works tile by tile. Without a
    GPU there is nothing to move."""
    device = best_device()
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cpu" or offload == "none":
        return pipe.to(device)
    pipe.vae.enable_tiling()
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)
    return pipe


def seeded(seed: int) -> torch.Generator:
    """On the CPU, so that the noise does not depend on the device."""
    return torch.Generator("cpu").manual_seed(seed)


def best_picture(person: Person) -> Image.Image:
    """The person's best still; in front of white where the matte is known."""
    still = person.still()
    picture = Image.fromarray(still.frames[0])
    if still.alpha is None:
        return picture
    white = Image.new("RGB", picture.size, (255, 255, 255))
    return Image.composite(picture, white, Image.fromarray(still.alpha[0]))


def to_uint8(frames: Any) -> np.ndarray:
    """Frames (T, H, W, 3) in [0, 1], as diffusers gives them with output_type="np", -> uint8."""
    return (np.asarray(frames, np.float32).clip(0, 1) * 255).round().astype(np.uint8)
