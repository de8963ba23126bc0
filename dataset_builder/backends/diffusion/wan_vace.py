"""Role SceneVideoGenerator: Wan 2.1 VACE, text to video with a reference picture. Code and weights are Apache-2.0."""

from __future__ import annotations

from typing import Any

import torch

from ...protocols import Generated, Person
from ...scenes import prompt_and_truth
from ..common import GENERATE, backend_id, best_dtype, from_hub, require
from .common import best_picture, check_offload, place, seeded, to_uint8

LICENCE = "Apache-2.0"
FPS = 16.0  # of the model
FLOW_SHIFT = 3.0  # of the scheduler at 480 lines (diffusers' documentation; 5.0 at 720)
NEGATIVE_PROMPT = "still picture, overexposed, blurred, low quality, deformed face, extra fingers, text, watermark"


class WanVACEScenes:
    """One clip per call; the person's best still is the reference picture, in front of white where a matte is known.

    repo: VACE 1.3B (480 lines, about 12 to 16 GB of GPU memory, an estimate) or "Wan-AI/Wan2.1-VACE-14B-diffusers".
    revision: of the weights on the Hub; part of the cache key.
    num_frames: 4 n + 1, at 16 frames per second. steps, guidance: the pipeline's defaults.
    offload: see `common.place`. pipeline: a ready WanVACEPipeline instead of the one from the Hub.

    Everything is loaded at the first call. Raises MissingBackendError when packages or weights are absent.
    """

    licences = ("Apache-2.0",)

    def __init__(
        self,
        repo: str = "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        *,
        revision: str = "main",
        steps: int = 50,
        guidance: float = 5.0,
        num_frames: int = 81,
        width: int = 832,
        height: int = 480,
        offload: str = "model",
        pipeline: Any = None,
    ):
        self.repo, self.revision, self.steps, self.guidance = repo, revision, steps, guidance
        self.num_frames, self.width, self.height = num_frames, width, height
        self.offload = check_offload(offload)
        self._pipeline = pipeline
        self.id = backend_id("wan-vace", 1, revision, settings=[repo, steps, guidance, num_frames, width, height])

    def generate(self, person: Person, prompt: str, seed: int) -> Generated:
        """prompt: any text; "" = drawn from the scene bank by the seed. The truth is known for prompts of the bank."""
        prompt, truth = prompt_and_truth(prompt, seed)
        self._load()
        made = self._pipeline(
            prompt=prompt,
            negative_prompt=NEGATIVE_PROMPT,
            reference_images=[[best_picture(person)]],
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=seeded(seed),
            output_type="np",
        )
        return Generated(to_uint8(made.frames[0]), FPS, truth)

    def _load(self) -> None:
        if self._pipeline is not None:
            return
        diffusers = require("ftfy", "diffusers", backend="wan-vace", pip=GENERATE)

        def load() -> Any:
            vae = diffusers.AutoencoderKLWan.from_pretrained(
                self.repo, subfolder="vae", revision=self.revision, dtype=torch.float32
            )
            return diffusers.WanVACEPipeline.from_pretrained(
                self.repo, vae=vae, revision=self.revision, dtype=best_dtype()
            )

        pipe = from_hub(load, backend="wan-vace", repo=self.repo, licence=LICENCE)
        pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=FLOW_SHIFT)
        self._pipeline = place(pipe, self.offload)
