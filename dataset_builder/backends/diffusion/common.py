"""What the diffusers backends share: packages and weights with clear errors, memory, pictures, seeds."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from ....errors import MissingBackendError, PVChatError
from ...engine import hash_text
from ...protocols import Person

OFFLOADS = ("none", "model", "group", "sequential")  # fastest and largest first


def require(*names: str, backend: str, extra: str = "generate") -> Any:
    """Imports the packages and returns the last one. Raises MissingBackendError with the pip line."""
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise MissingBackendError(
                f'The backend {backend} needs the package {name} ({error}): pip install "pvchat[{extra}]".'
            ) from error
    return module


def from_hub(load: Callable[[], Any], *, backend: str, repo: str, licence: str) -> Any:
    """`load()`, which reads the weights `repo` from the Hub or its cache. Raises MissingBackendError when they cannot
    be had."""
    try:
        return load()
    except OSError as error:
        reason = str(error).strip().splitlines()
        raise MissingBackendError(
            f"The backend {backend} needs the weights {repo} (licence: {licence}) from the Hub, which cannot be loaded "
            f"({reason[0] if reason else type(error).__name__}); connect to the Hub and accept the licence, once."
        ) from error


def backend_id(name: str, version: int, revision: str, **settings: Any) -> str:
    """ "name@version+revision.hash": the hash covers the settings, so that a clip made with others is not taken for
    this one."""
    return f"{name}@{version}+{revision}.{hash_text(settings)[:8]}"


def check_offload(offload: str) -> str:
    if offload not in OFFLOADS:
        raise PVChatError(f"offload must be one of {', '.join(OFFLOADS)}, got {offload!r}.")
    return offload


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype() -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def place(pipe: Any, offload: str) -> Any:
    """Puts a pipeline onto the GPU, whole ("none") or by parts: "model" moves one network at a time, "group" and
    "sequential" one layer at a time ("group" loads the next layer meanwhile). On a CPU there is nothing to move."""
    device = best_device()
    pipe.set_progress_bar_config(disable=True)
    if offload != "none" and hasattr(pipe.vae, "enable_tiling"):
        pipe.vae.enable_tiling()
    if device.type == "cpu" or offload == "none":
        return pipe.to(device)
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
