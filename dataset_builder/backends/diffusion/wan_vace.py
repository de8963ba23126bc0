"""Role SceneVideoGenerator: Wan VACE with the still as reference picture, the permissive modern choice (2503.07598)."""

from __future__ import annotations

from typing import Any

from ...protocols import Generated, Person
from ...scenes import prompt_and_truth
from .common import (
    backend_id,
    best_dtype,
    best_picture,
    check_offload,
    from_hub,
    place,
    require,
    seeded,
    to_uint8,
)

FPS = 16.0  # of the generator
NEGATIVE_PROMPT = (
    "overexposed, static picture, blurred, subtitles, text, painting, grey, low quality, deformed face, deformed hands, "
    "several people"
)


class WanVACEScenes:
    """One clip per call from the best still: 81 frames of 832 x 480, 50 steps, guidance 5.0 (defaults of the pipeline).

    repo: the 1.3B or the 14B checkpoint, "Wan-AI/Wan2.1-VACE-14B-diffusers". revision: of the weights on the Hub; part
    of the cache key. flow_shift: 3.0 for 480 lines, 5.0 for 720 (diffusers documentation).
    offload: see `common.place`. About 12 to 16 GB for 1.3B (estimate).
    pipeline: a ready object instead of the one from the Hub.

    Everything is loaded at the first call. Raises MissingBackendError when packages or weights are absent.
    """

    licences = ("Apache-2.0",)

    def __init__(
        self,
        repo: str = "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        *,
        revision: str = "main",
        width: int = 832,
        height: int = 480,
        num_frames: int = 81,
        steps: int = 50,
        guidance: float = 5.0,
        flow_shift: float = 3.0,
        max_sequence_length: int = 512,
        offload: str = "none",
        pipeline: Any = None,
    ):
        self.repo, self.revision, self.flow_shift = repo, revision, flow_shift
        self.offload = check_offload(offload)
        self.call = {
            "width": width,
            "height": height,
            "num_frames": num_frames,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "max_sequence_length": max_sequence_length,
        }
        self._pipeline = pipeline
        self.id = backend_id("wan-vace", 1, revision, repo=repo, flow_shift=flow_shift, **self.call)

    def generate(self, person: Person, prompt: str, seed: int) -> Generated:
        """prompt: any, or "" for one drawn from the scene bank by the seed; the truth is known for those of the bank."""
        prompt, truth = prompt_and_truth(prompt, seed)
        self._load()
        made = self._pipeline(
            prompt=prompt,
            negative_prompt=NEGATIVE_PROMPT,
            reference_images=[[best_picture(person)]],
            generator=seeded(seed),
            output_type="np",
            **self.call,
        )
        return Generated(to_uint8(made.frames[0]), FPS, truth)

    def _load(self) -> None:
        if self._pipeline is not None:
            return
        require("ftfy", backend="wan-vace")  # the pipeline fails on the first prompt without it
        diffusers = require("diffusers", backend="wan-vace")
        pipe = from_hub(
            lambda: diffusers.WanVACEPipeline.from_pretrained(
                self.repo, revision=self.revision, dtype={"vae": "float32", "default": best_dtype()}
            ),
            backend="wan-vace", repo=self.repo, licence="Apache-2.0",
        )  # fmt: skip
        pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(
            pipe.scheduler.config, flow_shift=self.flow_shift
        )
        self._pipeline = place(pipe, self.offload)
