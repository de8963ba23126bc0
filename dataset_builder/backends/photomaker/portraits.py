"""Role PortraitGenerator: new stills by PhotoMaker, V1 or V2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....errors import PVChatError
from ...engine import Rejected
from ...protocols import Person
from ...scenes import draw_scene, find_scene
from ..common import GENERATE, backend_id, best_dtype, from_hub, hub_file, require
from ..diffusion.common import check_offload, place, seeded, to_uint8
from .encoder import PhotoMakerIDEncoder, PhotoMakerIDEncoderV2
from .pipeline import denoise, encode_prompt
from .prompt import TRIGGER_WORD, prepare_pictures

WEIGHTS = {
    "v1": ("TencentARC/PhotoMaker", "photomaker-v1.bin"),
    "v2": ("TencentARC/PhotoMaker-V2", "photomaker-v2.bin"),
}
NEGATIVE_PROMPT = "worst quality, low quality, illustration, painting, cartoon, asymmetric face, closed eyes, text"
CLASS_WORDS = ("person", "woman", "man")

ArcFace = Callable[[np.ndarray], np.ndarray | None]  # picture (H, W, 3) uint8 RGB -> (512,) float32, None = no face


class PhotoMakerPortraits:
    """One still per call from up to `max_pictures` frames of the person (the best one first).

    version: "v2" (the authors' environment pins its code) also reads an ArcFace embedding per picture, by
    InsightFace's buffalo_l, whose weights are for non-commercial research only; "v1" needs no face model.
    base: any SDXL checkpoint; the default is the one of the official V2 example.
    steps, guidance, start_merge_step, size (pixels): the official example's; the text alone guides the steps 0 to
    `start_merge_step`, the identity joins after that.
    revision: of the PhotoMaker weights on the Hub; part of the cache key.
    offload: see `diffusion.common.place`. At least 11 GB of GPU memory with "none" (the project's README).
    pipeline, id_encoder, arcface: ready objects instead of those from the Hub; the pipeline and the encoder go
    together, and the pipeline carries PhotoMaker's LoRA already.

    Everything is loaded at the first call. Raises PVChatError for an unknown version and for a prompt that names
    nobody, MissingBackendError when packages or weights are absent, and Rejected when V2 finds no face.
    """

    def __init__(
        self,
        version: str = "v2",
        *,
        base: str = "SG161222/RealVisXL_V4.0",
        revision: str = "main",
        steps: int = 50,
        guidance: float = 5.0,
        start_merge_step: int = 10,
        size: int = 1024,
        max_pictures: int = 4,
        offload: str = "none",
        pipeline: Any = None,
        id_encoder: torch.nn.Module | None = None,
        arcface: ArcFace | None = None,
    ):
        if version not in WEIGHTS:
            raise PVChatError(f"PhotoMaker version must be one of {', '.join(WEIGHTS)}, got {version!r}.")
        self.version, self.base, self.revision = version, base, revision
        self.steps, self.guidance, self.start_merge_step = steps, guidance, start_merge_step
        self.size, self.max_pictures, self.offload = size, max_pictures, check_offload(offload)
        self._pipeline, self._id_encoder, self._arcface = pipeline, id_encoder, arcface
        settings = [base, steps, guidance, start_merge_step, size, max_pictures]
        self.id = backend_id(f"photomaker-{version}", 1, revision, settings=settings)
        self.licences = ("Apache-2.0", "OpenRAIL++-M") + (("InsightFace-NC",) if version == "v2" else ())

    def generate(self, person: Person, prompt: str, seed: int) -> Person:
        """prompt: from the scene bank, or with the trigger word "img" after the word for the person, or with one of
        CLASS_WORDS; "" = drawn from the bank by the seed. -> one frame (1, size, size, 3) without a matte."""
        prompt = add_trigger(prompt or draw_scene(seed).prompt)
        self._load()
        pictures = [person.frames[index] for index in spread(len(person.frames), person.best, self.max_pictures)]
        id_embeds = None
        if self.version == "v2":
            faces = [(picture, self._arcface(picture)) for picture in pictures]
            faces = [(picture, face) for picture, face in faces if face is not None]
            if not faces:
                raise Rejected("no face was found in the pictures of the person")
            pictures = [picture for picture, _ in faces]
            id_embeds = torch.tensor(np.stack([face for _, face in faces]))
        pixels = prepare_pictures(pictures)
        embeddings = encode_prompt(self._pipeline, self._id_encoder, prompt, NEGATIVE_PROMPT, pixels, id_embeds)
        made = denoise(
            self._pipeline,
            embeddings,
            start_merge_step=self.start_merge_step,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            height=self.size,
            width=self.size,
            generator=seeded(seed),
            output_type="np",
        )
        return Person(to_uint8(made.images), person.fps)

    def _load(self) -> None:
        repo, file = WEIGHTS[self.version]
        if self._pipeline is None:
            diffusers = require("peft", "diffusers", backend="photomaker", pip=GENERATE)
            path = hub_file(repo, file, self.revision, backend="photomaker", licence="Apache-2.0")
            pipe = from_hub(
                lambda: diffusers.StableDiffusionXLPipeline.from_pretrained(self.base, dtype=best_dtype()),
                backend="photomaker", repo=self.base, licence="OpenRAIL++-M",
            )  # fmt: skip
            pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
            self._id_encoder = load_adapter(pipe, path, self.version)
            self._pipeline = place(pipe, self.offload)
            self._id_encoder.to(pipe._execution_device, pipe.unet.dtype)
        if self.version == "v2" and self._arcface is None:
            self._arcface = load_arcface()


def load_adapter(pipe: Any, path: str | Path, version: str) -> torch.nn.Module:
    """Merges the LoRA of an official file into the pipeline's U-Net and returns the identity encoder (float32).

    path: photomaker-v1.bin or -v2.bin ({"id_encoder": tensors, "lora_weights": tensors}, read with weights_only), or a
    .safetensors file with these two as prefixes. Raises PVChatError when the file holds something else.
    """
    weights = read_weights(path)
    with torch.device("meta"):
        encoder = PhotoMakerIDEncoder() if version == "v1" else PhotoMakerIDEncoderV2()
    missing, unexpected = encoder.load_state_dict(weights["id_encoder"], strict=False, assign=True)
    if missing or unexpected:
        raise PVChatError(
            f"{path} is not a PhotoMaker {version} file: {len(missing)} tensors of the identity encoder are missing, "
            f"{len(unexpected)} are unknown (first: {[*missing, *unexpected][0]}); use {WEIGHTS[version][1]}."
        )
    encoder.vision_model.embeddings.position_ids = torch.arange(encoder.vision_model.embeddings.num_positions)[None]
    pipe.load_lora_weights(weights["lora_weights"], adapter_name="photomaker")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return encoder.float().eval()


def read_weights(path: str | Path) -> dict[str, dict[str, torch.Tensor]]:
    """-> {"id_encoder": tensors by name, "lora_weights": tensors by name}"""
    parts = ("id_encoder", "lora_weights")
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        flat = load_file(path)
        weights = {
            part: {n.removeprefix(f"{part}."): t for n, t in flat.items() if n.startswith(f"{part}.")}
            for part in parts
        }
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(weights.get(part) for part in parts):
        raise PVChatError(f"{path} is not a PhotoMaker file: it must hold {' and '.join(parts)}.")
    return weights


def load_arcface() -> ArcFace:
    """InsightFace's buffalo_l: the embedding of the largest face, not normalised. The package fetches its weights."""
    insightface = require("insightface.app", backend="photomaker-v2", pip=f"{GENERATE} insightface")
    analysis = from_hub(
        lambda: insightface.FaceAnalysis(name="buffalo_l", allowed_modules=["detection", "recognition"]),
        backend="photomaker-v2", repo="buffalo_l", licence="InsightFace, non-commercial research only",
    )  # fmt: skip
    analysis.prepare(ctx_id=0, det_size=(640, 640))

    def embed(picture: np.ndarray) -> np.ndarray | None:
        faces = analysis.get(np.ascontiguousarray(picture[..., ::-1]))  # BGR
        if not faces:
            return None
        return max(faces, key=lambda f: (f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1])).embedding

    return embed


def add_trigger(prompt: str) -> str:
    """Puts the trigger word after the word for the person. Raises PVChatError when there is none."""
    if re.search(rf"\b{TRIGGER_WORD}\b", prompt):
        return prompt
    scene = find_scene(prompt)
    words = (scene.noun,) if scene is not None else CLASS_WORDS
    found = re.search(rf"\b(?:{'|'.join(words)})\b", prompt)
    if found is None:
        raise PVChatError(
            f"The prompt {prompt!r} names nobody: put the trigger word {TRIGGER_WORD!r} after the word for the "
            f"person, for example 'a woman {TRIGGER_WORD} in a garden'."
        )
    return f"{prompt[: found.end()]} {TRIGGER_WORD}{prompt[found.end() :]}"


def spread(length: int, best: int, count: int) -> list[int]:
    """Up to `count` different frame indices over the clip, the best one first."""
    others = np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))
    return [best, *(int(index) for index in others if index != best)][:count]
