"""Role PortraitGenerator: a picture of the person, edited as the prompt says. Code and weights are Apache-2.0."""

from __future__ import annotations

from typing import Any

from ...engine import Rejected
from ...protocols import Person
from ...scenes import prompt_and_truth
from ..common import GENERATE, backend_id, best_dtype, from_hub, require
from .common import best_picture, check_offload, place, seeded, to_uint8

LICENCE = "Apache-2.0"
INSTRUCTION = "Make a new photograph of the same person, with exactly the same face and hair. {prompt}"


class _EditedPortraits:
    """A pipeline that edits one picture. name: of the backend; pipeline_class: its name in diffusers; least_side:
    pixels of the smallest picture that it takes."""

    licences = (LICENCE,)
    name: str
    pipeline_class: str
    least_side = 1

    def __init__(self, repo: str, revision: str, steps: int, size: int, offload: str, pipeline: Any, settings: list):
        self.repo, self.revision, self.steps, self.size = repo, revision, steps, size
        self.offload = check_offload(offload)
        self._pipeline = pipeline
        self.id = backend_id(self.name, 1, revision, settings=settings)

    def guide(self) -> dict[str, Any]:
        """How far the pipeline follows the text, as arguments of its call."""
        raise NotImplementedError

    def generate(self, person: Person, prompt: str, seed: int) -> Person:
        """prompt: any text; "" = drawn from the scene bank by the seed. -> one frame (1, size, size, 3), no matte.
        Raises engine.Rejected when the person's best still is too small."""
        prompt, _ = prompt_and_truth(prompt, seed)
        self._load()
        picture = best_picture(person)
        if min(picture.size) < self.least_side:
            raise Rejected(
                f"the best still has {picture.width} x {picture.height} pixels, and {self.name} needs at least "
                f"{self.least_side} on each side"
            )
        made = self._pipeline(
            image=[picture],
            prompt=INSTRUCTION.format(prompt=prompt),
            num_inference_steps=self.steps,
            height=self.size,
            width=self.size,
            generator=seeded(seed),
            output_type="np",
            **self.guide(),
        )
        return Person(to_uint8(made.images), person.fps)

    def _load(self) -> None:
        if self._pipeline is not None:
            return
        pipeline_class = getattr(require("diffusers", backend=self.name, pip=GENERATE), self.pipeline_class)
        pipe = from_hub(
            lambda: pipeline_class.from_pretrained(self.repo, revision=self.revision, dtype=best_dtype()),
            backend=self.name, repo=self.repo, licence=LICENCE,
        )  # fmt: skip
        self._pipeline = place(pipe, self.offload)


class QwenEditPortraits(_EditedPortraits):
    """Qwen-Image-Edit-2511: keeps faces best, and is large (20 B parameters; about 60 GB whole, less with offload:
    estimates).

    steps, guidance: 40 and 4.0 of true classifier-free guidance (model card). size: pixels of the square portrait.
    revision: of the weights on the Hub; part of the cache key.
    offload: see `common.place`. pipeline: a ready QwenImageEditPlusPipeline instead of the one from the Hub.

    Everything is loaded at the first call. Raises MissingBackendError when packages or weights are absent.
    """

    name, pipeline_class = "qwen-edit", "QwenImageEditPlusPipeline"

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
        super().__init__(repo, revision, steps, size, offload, pipeline, [repo, steps, guidance, size])
        self.guidance = guidance

    def guide(self) -> dict[str, Any]:
        return {"negative_prompt": " ", "true_cfg_scale": self.guidance}


class KleinPortraits(_EditedPortraits):
    """FLUX.2 klein 4B: four steps, 13 GB of GPU memory (model card). The 9B model is not for commercial use.

    The other arguments and errors are those of QwenEditPortraits; the model is distilled and has no guidance.
    """

    name, pipeline_class = "flux2-klein", "Flux2KleinPipeline"
    least_side = 64  # Flux2ImageProcessor.check_image_input

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
        super().__init__(repo, revision, steps, size, offload, pipeline, [repo, steps, size])

    def guide(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}
