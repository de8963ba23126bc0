"""Role PortraitAnimator: Wan-Animate-2, a still moved as a driving clip moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ....errors import PVChatError
from ...engine import hash_file
from ...protocols import Generated, Person
from ...scenes import driver_truth
from ...video_io import read_video
from ..common import GENERATE, backend_id, best_device, best_dtype, from_hub, require
from .common import best_picture, check_offload, seeded, to_uint8

LICENCE = "Apache-2.0"
FPS = 24.0  # of the model
NETWORKS = ("transformer", "vae", "text_encoder", "image_encoder")
PROMPT = "A person in front of the camera, face and shoulders in view, calm background."


class WanAnimator:
    """drivers: one driving clip per motion, such as {"yes": "yes.mp4", "smile": "smile.mp4"}: a person who makes that
    motion in front of the camera. The output has the clip's length, at 24 frames per second.

    repo: the distilled weights (10 steps), or "Wan-AI/Wan2.2-Animate-2-14B-Diffusers" (40 steps, with guidance).
    revision: of the weights on the Hub; part of the cache key, as are the driving clips.
    steps: None = the repository's own number. width, height: the *area* of the output in pixels; the still gives its
    shape. segment: frames that are denoised together, 4 n + 1.
    offload: "group" moves the transformer's blocks to the GPU in turn; "none" needs more than 80 GB (diffusers'
    documentation). On a GPU the transformer's blocks are compiled, which needs a C++ compiler.
    pipeline: a ready WanAnimate2ModularPipeline with its components instead of the one from the Hub.

    Raises PVChatError for a driving clip that is missing. Everything else is loaded at the first call; raises
    MissingBackendError when packages or weights are absent.
    """

    licences = ("Apache-2.0",)

    def __init__(
        self,
        drivers: Mapping[str, str | Path],
        repo: str = "Wan-AI/Wan2.2-Animate-2-14B-Distilled-Diffusers",
        *,
        revision: str = "main",
        steps: int | None = None,
        width: int = 640,
        height: int = 800,
        segment: int = 81,
        offload: str = "group",
        pipeline: Any = None,
    ):
        self.drivers = {name: Path(path) for name, path in drivers.items()}
        for name, path in self.drivers.items():
            if not path.is_file():
                raise PVChatError(f"The driving clip {name!r} is not at {path}; pass a video file for each motion.")
        self.repo, self.revision, self.steps = repo, revision, steps
        self.width, self.height, self.segment = width, height, segment
        self.offload = check_offload(offload, ("none", "group"))
        self._pipeline = pipeline
        clips = {name: hash_file(path) for name, path in self.drivers.items()}
        settings = [repo, steps, width, height, segment, clips]
        self.id = backend_id("wan-animate-2", 1, revision, settings=settings)

    def animate(self, still: Person, driver: str, seed: int) -> Generated:
        """-> (T, H, W, 3) with even H and W. The truth says what the driver does."""
        if driver not in self.drivers:
            raise PVChatError(
                f"There is no driving clip for the motion {driver!r}; there is one for: "
                f"{', '.join(self.drivers) or 'none'}. Pass drivers={{{driver!r}: 'clip.mp4', ...}}."
            )
        self._load()
        frames, fps = read_video(self.drivers[driver])
        steps = {} if self.steps is None else {"num_inference_steps": self.steps}
        made = self._pipeline(
            image=best_picture(still),
            driving_video=[Image.fromarray(frame) for frame in frames],
            driving_video_fps=fps,
            prompt=PROMPT,
            width=self.width,
            height=self.height,
            segment_frame_length=self.segment,
            generator=seeded(seed),
            output_type="np",
            output="videos",
            **steps,
        )
        moved = to_uint8(made[0])
        height, width = (side // 2 * 2 for side in moved.shape[1:3])
        return Generated(moved[:, :height, :width], FPS, driver_truth(driver))

    def _load(self) -> None:
        if self._pipeline is not None:
            return
        diffusers = require("diffusers", backend="wan-animate-2", pip=GENERATE)

        def load() -> Any:
            pipe = diffusers.ModularPipeline.from_pretrained(self.repo, revision=self.revision)
            pipe.load_components(dtype=best_dtype())
            absent = [name for name in NETWORKS if getattr(pipe, name, None) is None]
            if absent:  # diffusers only warns
                raise OSError(f"{', '.join(absent)} could not be loaded")
            return pipe

        pipe = from_hub(load, backend="wan-animate-2", repo=self.repo, licence=LICENCE)
        device = best_device()
        if device.type == "cuda":
            for name in NETWORKS[1:]:
                getattr(pipe, name).to(device)
            if self.offload == "group":
                pipe.transformer.enable_group_offload(
                    onload_device=device, offload_type="block_level", num_blocks_per_group=1, use_stream=True
                )
            else:
                pipe.transformer.to(device)
            pipe.transformer.compile_repeated_blocks(fullgraph=False)
        self._pipeline = pipe
