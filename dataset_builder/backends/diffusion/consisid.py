"""Role SceneVideoGenerator: ConsisID, the paper's generator of scene clips (Yuan et al., 2411.17440)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ....errors import MissingBackendError
from ...engine import Rejected
from ...protocols import Generated, Person
from ...scenes import prompt_and_truth
from .common import (
    backend_id,
    best_device,
    best_dtype,
    best_picture,
    check_offload,
    from_hub,
    place,
    require,
    seeded,
    to_uint8,
)

REPO = "BestWishYsh/ConsisID-preview"
FPS = 8.0  # of the generator


class IdentityEncoder(Protocol):
    """What ConsisID reads from the reference still."""

    def encode(self, picture: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """picture (H, W, 3) uint8 RGB -> id_cond (1, 1280), the face embedding with the class token of EVA-CLIP, and
        id_vit_hidden, five of EVA-CLIP's hidden states (1, 577, 1024). Raises Rejected when there is no face."""


class ConsisIDScenes:
    """One clip per call from the best still: 49 frames of 720 x 480, 50 steps, guidance 6.0, as in the authors' script.

    Differences from that script: every clip has its own seed, where the script takes 42 for all; there is no upscaling
    (Real-ESRGAN) and no frame interpolation (RIFE), whose doubled frames at 8 per second gave clips at half speed; and
    the pipeline is loaded once.

    revision: of the weights on the Hub; part of the cache key. offload: see `common.place`; 44 GB without, 5 to 7 GB
    with "sequential" (diffusers documentation).
    pipeline, identity: ready objects instead of those from the Hub.

    Everything is loaded at the first call. Raises MissingBackendError when packages or weights are absent, Rejected
    when the still shows no face.
    """

    licences = ("Apache-2.0", "CogVideoX", "InsightFace-NC")

    def __init__(
        self,
        *,
        revision: str = "main",
        width: int = 720,
        height: int = 480,
        num_frames: int = 49,
        steps: int = 50,
        guidance: float = 6.0,
        max_sequence_length: int = 226,
        offload: str = "model",
        pipeline: Any = None,
        identity: IdentityEncoder | None = None,
    ):
        self.revision, self.offload = revision, check_offload(offload)
        self.call = {
            "width": width,
            "height": height,
            "num_frames": num_frames,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "max_sequence_length": max_sequence_length,
        }
        self._pipeline, self._identity = pipeline, identity
        self.id = backend_id("consisid", 1, revision, **self.call)

    def generate(self, person: Person, prompt: str, seed: int) -> Generated:
        """prompt: any, or "" for one drawn from the scene bank by the seed; the truth is known for those of the bank."""
        prompt, truth = prompt_and_truth(prompt, seed)
        self._load()
        picture = best_picture(person)
        id_cond, id_vit_hidden = self._identity.encode(np.asarray(picture))
        made = self._pipeline(
            image=picture,
            prompt=prompt,
            id_cond=id_cond,
            id_vit_hidden=id_vit_hidden,
            use_dynamic_cfg=False,
            generator=seeded(seed),
            output_type="np",
            **self.call,
        )
        return Generated(to_uint8(made.frames[0]), FPS, truth)

    def _load(self) -> None:
        if self._pipeline is not None and self._identity is not None:
            return
        diffusers = require("diffusers", backend="consisid")
        if self._identity is None:
            self._identity = HubIdentityEncoder(self.revision)
        if self._pipeline is None:
            pipe = from_hub(
                lambda: diffusers.ConsisIDPipeline.from_pretrained(REPO, revision=self.revision, dtype=best_dtype()),
                backend="consisid", repo=REPO, licence="Apache-2.0 and CogVideoX",
            )  # fmt: skip
            self._pipeline = place(pipe, self.offload)


class HubIdentityEncoder:
    """ConsisID's own face models (RetinaFace, BiSeNet, ArcFace of antelopev2, EVA-CLIP) through diffusers' helper.

    antelopev2 is for non-commercial research only. The helper needs a CUDA build of onnxruntime to be fast, and the
    packages insightface, facexlib, consisid_eva_clip, opencv and torchvision.
    """

    def __init__(self, revision: str = "main"):
        require("insightface", "facexlib", "consisid_eva_clip", "cv2", "torchvision", backend="consisid")
        self._utils = require("diffusers.pipelines.consisid.consisid_utils", backend="consisid")
        hub = require("huggingface_hub", backend="consisid")
        folder = from_hub(
            lambda: hub.snapshot_download(REPO, revision=revision, allow_patterns=["face_encoder/*"]),
            backend="consisid", repo=REPO, licence="face models: non-commercial research only",
        )  # fmt: skip
        self.device, self.dtype = best_device(), best_dtype()
        try:
            self._models = self._utils.prepare_face_models(str(Path(folder)), device=self.device, dtype=self.dtype)
        except OSError as error:
            raise MissingBackendError(f"The face models of {REPO} in {folder} cannot be loaded: {error}.") from error

    def encode(self, picture: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
        align, arcface, eva_clip, analysis, mean, std = self._models
        try:
            id_cond, id_vit_hidden, _, _ = self._utils.process_face_embeddings_infer(
                align, eva_clip, arcface, mean, std, analysis, self.device, self.dtype, picture, is_align_face=True
            )
        except RuntimeError as error:  # the helper's answer to a picture without a face
            if "face" in str(error):
                raise Rejected("no face was found in the still of the person") from error
            raise
        return id_cond, id_vit_hidden
