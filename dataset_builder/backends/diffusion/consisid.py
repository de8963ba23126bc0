"""Role SceneVideoGenerator: ConsisID, text to video with the identity of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ...engine import Rejected
from ...protocols import Generated, Person
from ...scenes import prompt_and_truth
from ..common import GENERATE, backend_id, best_device, best_dtype, from_hub, require
from .common import check_offload, place, seeded, to_uint8

REPO = "BestWishYsh/ConsisID-preview"
LICENCE = "Apache-2.0, CogVideoX licence for the transformer"
FACE_LICENCE = "InsightFace antelopev2, non-commercial research only"
FPS = 8.0  # of the model


@dataclass(frozen=True)
class Identity:
    """What ConsisID knows about a face. picture: the aligned face on white. id_cond (1, 1280): ArcFace (512) and
    EVA-CLIP (768) embeddings. id_vit_hidden: five tensors (1, 577, 1024) of EVA-CLIP's layers. keypoints: five points
    (5, 2) in pixels of the given picture, or None."""

    picture: Image.Image
    id_cond: torch.Tensor
    id_vit_hidden: list[torch.Tensor]
    keypoints: np.ndarray | None = None


class IdentityEncoder(Protocol):
    def encode(self, picture: np.ndarray) -> Identity:
        """picture (H, W, 3) uint8 RGB. Raises engine.Rejected when there is no face."""


class ConsisIDScenes:
    """One clip per call with the authors' settings (their infer.py): 720 x 480 pixels, 49 frames, 50 steps, guidance
    6.0, no negative prompt, the face aligned, 8 frames per second.

    Two differences: every clip has a seed of its own (the authors use 42 for all), and the frames are left as the
    model made them: no RIFE (which doubled the frames and so halved the speed), no Real-ESRGAN (training reads 8 small
    frames).

    identity_encoder: any IdentityEncoder; default ConsisIDFaces, whose InsightFace weights are for non-commercial
    research only and which wants CUDA.
    revision: of the weights on the Hub; part of the cache key.
    offload: see `common.place`. GPU memory 44 GB with "none", 25 GB with "model", 7 GB with "sequential" (reserved,
    diffusers' documentation).
    pipeline: a ready ConsisIDPipeline instead of the one from the Hub.

    Everything is loaded at the first call. Raises MissingBackendError when packages or weights are absent, Rejected
    when there is no face in the best still.
    """

    licences = ("Apache-2.0", "CogVideoX", "InsightFace-NC")

    def __init__(
        self,
        *,
        revision: str = "main",
        steps: int = 50,
        guidance: float = 6.0,
        num_frames: int = 49,
        width: int = 720,
        height: int = 480,
        offload: str = "model",
        identity_encoder: IdentityEncoder | None = None,
        pipeline: Any = None,
    ):
        self.revision, self.steps, self.guidance = revision, steps, guidance
        self.num_frames, self.width, self.height = num_frames, width, height
        self.offload = check_offload(offload)
        self._identity_encoder, self._pipeline = identity_encoder, pipeline
        self.id = backend_id("consisid", 1, revision, settings=[steps, guidance, num_frames, width, height])

    def generate(self, person: Person, prompt: str, seed: int) -> Generated:
        """prompt: any text; "" = drawn from the scene bank by the seed. The truth is known for prompts of the bank."""
        prompt, truth = prompt_and_truth(prompt, seed)
        self._load()
        identity = self._identity_encoder.encode(person.still().frames[0])
        made = self._pipeline(
            image=identity.picture,
            prompt=prompt,
            id_cond=identity.id_cond,
            id_vit_hidden=identity.id_vit_hidden,
            kps_cond=identity.keypoints,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            use_dynamic_cfg=False,
            max_sequence_length=self._pipeline.transformer.config.max_text_seq_length,
            generator=seeded(seed),
            output_type="np",
        )
        return Generated(to_uint8(made.frames[0]), FPS, truth)

    def _load(self) -> None:
        if self._identity_encoder is None:
            self._identity_encoder = ConsisIDFaces(self.revision)
        if self._pipeline is None:
            # ConsisIDPipeline draws with OpenCV.
            diffusers = require("cv2", "diffusers", backend="consisid", pip=GENERATE)
            pipe = from_hub(
                lambda: diffusers.ConsisIDPipeline.from_pretrained(REPO, revision=self.revision, dtype=best_dtype()),
                backend="consisid", repo=REPO, licence=LICENCE,
            )  # fmt: skip
            self._pipeline = place(pipe, self.offload)


class ConsisIDFaces:
    """The face models of ConsisID through diffusers' `consisid_utils`: RetinaFace and BiSeNet (facexlib), antelopev2
    (insightface), EVA-CLIP (consisid_eva_clip), with the weights in the folder face_encoder/ of ConsisID-preview.

    Raises MissingBackendError when packages or weights are absent.
    """

    def __init__(self, revision: str = "main"):
        require(
            "cv2", "torchvision", "facexlib", "insightface", "consisid_eva_clip", "diffusers", backend="consisid",
            pip=f"{GENERATE} torchvision facexlib insightface consisid_eva_clip ({FACE_LICENCE})",
        )  # fmt: skip
        from diffusers.pipelines.consisid.consisid_utils import prepare_face_models, process_face_embeddings_infer
        from huggingface_hub import snapshot_download

        folder = from_hub(
            lambda: snapshot_download(REPO, revision=revision, allow_patterns=["face_encoder/*"]),
            backend="consisid", repo=f"{REPO}/face_encoder", licence=FACE_LICENCE,
        )  # fmt: skip
        self._device, self._dtype = best_device(), best_dtype()
        self._models = prepare_face_models(folder, self._device, self._dtype)
        self._process = process_face_embeddings_infer

    def encode(self, picture: np.ndarray) -> Identity:
        align, recognise, clip, analysis, mean, std = self._models
        try:
            id_cond, id_vit_hidden, face, keypoints = self._process(
                align, clip, recognise, mean, std, analysis, self._device, self._dtype, picture, is_align_face=True
            )
        except (RuntimeError, IndexError) as error:
            if isinstance(error, RuntimeError) and "align face" not in str(error):
                raise
            raise Rejected("no face was found in the best still of the person") from error
        return Identity(face, id_cond, id_vit_hidden, keypoints)
