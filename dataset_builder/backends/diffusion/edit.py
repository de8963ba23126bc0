"""Role PortraitGenerator: a picture of the person, edited as the prompt says. Code and weights are Apache-2.0."""

from __future__ import annotations

from typing import Any

from ...protocols import Person
from ...scenes import prompt_and_truth
from .common import backend_id, best_dtype, best_picture, check_offload, from_hub, place, require, seeded, to_uint8

LICENCE = "Apache-2.0"
INSTRUCTION = "Make a new photograph of the same person, with exactly the same face and hair. {prompt}"


class QwenEditPortraits:
    """Qwen-Image-Edit-2511: keeps faces best, and is large (20 B parameters; about 60 GB whole, less with offload:
    estimates).

    steps, guidance: 40 and 4.0 of true classifier-free guidance (model card). size: pixels of the square portrait.
    revision: of the weights on the Hub; part of the cache key.
    offload: see `common.place`. pipeline: a ready QwenImageEditPlusPipeline instead of the one from the Hub.

    Everything is loaded at the first call. Raises MissingBackendError when packages or weights are absent.
    """

    licences = ("Apache-2.0",)

    def __init__(
        self,
        repo: str = "Qwen/Qwen-Image-Edit-2511",
        *,
        revision: str = "main",
        steps: int = 40,
        guidance: float = 4.0,
        size: int = 1024,
        offload: str = "model",
        pipeline: Any = None,
    ):
        self.repo, self.revision, self.steps, self.guidance, self.size = repo, revision, steps, guidance, size
        self.offload = check_offload(offload)
        self._pipeline = pipeline
        self.id = backend_id("qwen-edit", 1, revision, settings=[repo, steps, guidance, size])

    def generate(self, person: Person, prompt: str, seed: int) -> Person:
        """prompt: any text; "" = drawn from the scene bank by the seed. -> one frame (1, size, size, 3), no matte."""
        prompt, _ = prompt_and_truth(prompt, seed)
        if self._pipeline is None:
            self._pipeline = _load("QwenImageEditPlusPipeline", "qwen-edit", self.repo, self.revision, self.offload)
        made = self._pipeline(
            image=[best_picture(person)],
            prompt=INSTRUCTION.format(prompt=prompt),
            negative_prompt=" ",
            true_cfg_scale=self.guidance,
            num_inference_steps=self.steps,
            height=self.size,
            width=self.size,
            generator=seeded(seed),
            output_type="np",
        )
        return Person(to_uint8(made.images), person.fps)


class KleinPortraits:
    """FLUX.2 klein 4B: four steps, 13 GB of GPU memory (model card). The 9B model is not for commercial use.

    The other arguments and errors are those of QwenEditPortraits; the model is distilled and has no guidance.
    """

    licences = ("Apache-2.0",)

    def __init__(
        self,
        repo: str = "black-forest-labs/FLUX.2-klein-4B",
        *,
        revision: str = "main",
        steps: int = 4,
        size: int = 1024,
        offload: str = "model",
        pipeline: Any = None,
    ):
        self.repo, self.revision, self.steps, self.size = repo, revision, steps, size
        self.offload = check_offload(offload)
        self._pipeline = pipeline
        self.id = backend_id("flux2-klein", 1, revision, settings=[repo, steps, size])

    def generate(self, person: Person, prompt: str, seed: int) -> Person:
        """prompt: any text; "" = drawn from the scene bank by the seed. -> one frame (1, size, size, 3), no matte."""
        prompt, _ = prompt_and_truth(prompt, seed)
        if self._pipeline is None:
            self._pipeline = _load("Flux2KleinPipeline", "flux2-klein", self.repo, self.revision, self.offload)
        made = self._pipeline(
            image=[best_picture(person)],
            prompt=INSTRUCTION.format(prompt=prompt),
            guidance_scale=1.0,
            num_inference_steps=self.steps,
            height=self.size,
            width=self.size,
            generator=seeded(seed),
            output_type="np",
        )
        return Person(to_uint8(made.images), person.fps)


def _load(name: str, backend: str, repo: str, revision: str, offload: str) -> Any:
    diffusers = require("diffusers", backend=backend)
    pipe = from_hub(
        lambda: getattr(diffusers, name).from_pretrained(repo, revision=revision, dtype=best_dtype()),
        backend=backend, repo=repo, licence=LICENCE,
    )  # fmt: skip
    return place(pipe, offload)
