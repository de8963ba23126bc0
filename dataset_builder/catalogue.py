"""Which backends there are, by role and name: how each is made, its licences, what it needs, what it costs.

Times and memory are those of docs/backends.md; `None` where nobody has measured. Backends are made when they are first
used; `check_backends` says what is missing or not allowed before a build writes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..errors import MissingBackendError, PVChatError
from .recipe import Recipe
from .refine import RuleRefiner

POLICIES = ("research", "permissive")
# Not OpenRAIL++-M, which forbids some uses.
PERMISSIVE = {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "user"}
ELSEWHERE = "somebody else's computer"
ROLES = (
    "detector", "embedder", "quality", "attributes", "scene", "portrait", "animate", "gallery", "strangers", "writer",
    "refiner",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A backend. make: (backends made so far, options) -> the object, or None where a stage makes it.

    needs: roles that must be made before. packages: import names. pip: what to install. weights: ids on the Hub.
    seconds: per item, on `where`; memory_gb: of the GPU, None on a CPU. source: where these two come from.
    """

    licences: tuple[str, ...]
    make: Callable[[Any, dict[str, Any]], Any] | None = None
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    pip: str = ""
    weights: str = "none"
    seconds: float | None = None
    where: str = "CPU"
    memory_gb: float | None = None
    source: str = "not measured"

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


def _class(module: str, name: str, *roles: str, **fixed: Any) -> Callable[[Any, dict[str, Any]], Any]:
    """Makes the class `name` of backends/`module` from the backends of these roles and the recipe's options."""

    def make(backends: Any, options: dict[str, Any]) -> Any:
        cls = getattr(import_module(f".backends.{module}", __package__), name)
        return cls(*(getattr(backends, role) for role in roles), **fixed | options)

    return make


def _pretrained(module: str, name: str) -> Callable[[Any, dict[str, Any]], Any]:
    def make(backends: Any, options: dict[str, Any]) -> Any:
        return getattr(import_module(f".backends.{module}", __package__), name).from_pretrained(**options)

    return make


def _ear(backends: Any, options: dict[str, Any]) -> Any:
    from .backends.faces.landmarks import SOURCE, FaceLandmarks
    from .backends.faces.quality import EarQuality

    if not options.get("landmarks"):
        raise MissingBackendError(
            f"The backend ear needs MediaPipe's face_landmarker.task (licence: Apache-2.0): get it from {SOURCE} and "
            f"name it in a recipe file: {{base: paper, options: {{quality: {{landmarks: PATH}}}}}}."
        )
    return EarQuality(backends.detector, FaceLandmarks(options["landmarks"]))


def _attributes(style: str) -> Callable[[Any, dict[str, Any]], Any]:
    def make(backends: Any, options: dict[str, Any]) -> Any:
        from .backends.vlm.attributes import VLMAttributes

        if backends.writer is None:
            raise PVChatError(
                "Gender and age are asked of the recipe's writer, and it has none; name one under backends."
            )
        return VLMAttributes(backends.writer, style)

    return make


def _refiner(model: str) -> Callable[[Any, dict[str, Any]], Any]:
    def make(backends: Any, options: dict[str, Any]) -> Any:
        from .backends.vlm.refine import LLMRefiner, LocalLLM, OpenAIEndpoint

        if model == "openai" and not {"url", "model"} <= set(options):
            raise PVChatError(
                "The refiner openai needs an address and a model, in a recipe file: {base: paper, backends: {refiner: "
                "openai}, options: {refiner: {url: https://api.openai.com/v1, model: gpt-4o}}}."
            )
        return LLMRefiner((OpenAIEndpoint if model == "openai" else LocalLLM.from_pretrained)(**options))

    return make


def _wan_animate(backends: Any, options: dict[str, Any]) -> Any:
    from .backends.diffusion.wan_animate import WanAnimator

    if not options.get("drivers"):
        raise PVChatError(
            "The backend wan-animate-2 needs a driving clip for every motion: pass --drivers FOLDER with yes.mp4, "
            "no.mp4, query.mp4, smile.mp4 and angry.mp4 of a person who does that in front of the camera."
        )
    return WanAnimator(**options)


FACES = 'pip install "pvchat[faces]"'
GENERATE = 'pip install "pvchat[generate]"'
TRAIN = 'pip install "pvchat[train]"'
LIGHT = {"packages": ("skimage", "scipy"), "pip": TRAIN, "source": "measured on one core, clips of 256 pixels"}

CATALOGUE: dict[str, dict[str, Entry]] = {
    "detector": {
        "matte": Entry(("Apache-2.0",), lambda backends, options: None, seconds=0.1, **LIGHT),
        "lbp": Entry(("BSD-3-Clause",), _class("faces.lbp", "LbpDetector"), seconds=2.4, **LIGHT),
        "mtcnn": Entry(
            ("MIT",), _class("faces.mtcnn", "MTCNN"), packages=("facenet_pytorch",),
            pip="pip install --no-deps facenet-pytorch==2.6.0", seconds=2.4, source="measured on one core",
        ),
        "yunet": Entry(
            ("Apache-2.0", "MIT"), _class("faces.yunet", "YuNet"), packages=("cv2",), pip=FACES,
            weights="opencv/face_detection_yunet",
        ),
    },
    "embedder": {
        "head-hog": Entry(("Apache-2.0",), _class("light", "HeadEmbedder"), seconds=0.2, **LIGHT),
        "face-hog": Entry(("Apache-2.0",), _class("faces.hog", "FaceHog", "detector"), ("detector",), **LIGHT),
        "facenet": Entry(
            ("MIT", "VGGFace2-research"), _class("faces.facenet", "FaceNet", "detector"), ("detector",),
            weights="py-feat/facenet", seconds=0.1, source="measured on one core",
        ),
        "sface": Entry(
            ("Apache-2.0",), _class("faces.sface", "SFace", "detector"), ("detector",), ("cv2",), FACES,
            "opencv/face_recognition_sface",
        ),
        "auraface": Entry(
            ("Apache-2.0",), _class("faces.auraface", "AuraFace", "detector"), ("detector",), ("onnxruntime",), FACES,
            "fal/AuraFace-v1",
        ),
    },
    "quality": {
        "classical": Entry(("Apache-2.0",), _class("light", "ClassicalQuality"), seconds=0.015, **LIGHT),
        "ear": Entry(
            ("Apache-2.0",), _ear, ("detector",), ("mediapipe",), FACES,
            "face_landmarker.task of MediaPipe, by path (recipe file: options: {quality: {landmarks: PATH}})",
        ),
    },
    "attributes": {
        "vlm": Entry((), _attributes("words"), ("writer",)),
        "vlm-json": Entry((), _attributes("json"), ("writer",)),
    },
    "scene": {
        "composite": Entry(("Apache-2.0",), _class("light", "CompositeScenes"), seconds=0.2, **LIGHT),
        "consisid": Entry(
            ("Apache-2.0", "CogVideoX", "InsightFace-NC"), _class("diffusion.consisid", "ConsisIDScenes"),
            packages=("diffusers", "cv2", "torchvision", "facexlib", "insightface", "consisid_eva_clip"),
            pip=f"{GENERATE} torchvision facexlib insightface consisid_eva_clip",
            weights="BestWishYsh/ConsisID-preview",
            seconds=210, where="A100", memory_gb=25, source="time: an estimate; memory: diffusers' documentation",
        ),
        "wan-vace": Entry(
            ("Apache-2.0",), _class("diffusion.wan_vace", "WanVACEScenes"), packages=("diffusers", "ftfy"),
            pip=GENERATE, weights="Wan-AI/Wan2.1-VACE-1.3B-diffusers", where="GPU", memory_gb=16,
            source="memory: an estimate",
        ),
    },
    "portrait": {
        "photometric": Entry(("Apache-2.0",), _class("light", "PhotometricPortraits"), seconds=0.06, **LIGHT),
        "photomaker-v1": Entry(
            ("Apache-2.0", "OpenRAIL++-M"), _class("photomaker.portraits", "PhotoMakerPortraits", version="v1"),
            packages=("diffusers", "peft"), pip=GENERATE, weights="TencentARC/PhotoMaker, SG161222/RealVisXL_V4.0",
            seconds=14, where="V100", memory_gb=11, source="PhotoMaker's documentation",
        ),
        "photomaker-v2": Entry(
            ("Apache-2.0", "OpenRAIL++-M", "InsightFace-NC"),
            _class("photomaker.portraits", "PhotoMakerPortraits", version="v2"),
            packages=("diffusers", "peft", "insightface"), pip=f"{GENERATE} insightface",
            weights="TencentARC/PhotoMaker-V2, SG161222/RealVisXL_V4.0",
            seconds=14, where="V100", memory_gb=11, source="PhotoMaker's documentation, of V1",
        ),
        "qwen-edit": Entry(
            ("Apache-2.0",), _class("diffusion.edit", "QwenEditPortraits"), packages=("diffusers",), pip=GENERATE,
            weights="Qwen/Qwen-Image-Edit-2511", where="GPU", memory_gb=40, source="memory: an estimate",
        ),
        "flux2-klein": Entry(
            ("Apache-2.0",), _class("diffusion.edit", "KleinPortraits"), packages=("diffusers",), pip=GENERATE,
            weights="black-forest-labs/FLUX.2-klein-4B", where="GPU", memory_gb=13, source="memory: the model card",
        ),
    },
    "animate": {
        "warp2d": Entry(("Apache-2.0",), _class("light", "WarpAnimator"), seconds=0.13, **LIGHT),
        "liveportrait": Entry(
            ("MIT",), _class("liveportrait.animator", "LivePortraitAnimator", "detector"), ("detector",),
            weights="KwaiVGI/LivePortrait", seconds=0.75, where="RTX 4090", memory_gb=2,
            source="time: its documentation (15 ms a frame); memory: an estimate",
        ),
        "wan-animate-2": Entry(
            ("Apache-2.0",), _wan_animate, packages=("diffusers", "ftfy"), pip=GENERATE,
            weights="Wan-AI/Wan2.2-Animate-2-14B-Distilled-Diffusers", where="GPU", memory_gb=80,
            source="memory: diffusers' documentation, without offload",
        ),
    },
    "gallery": {
        "folder": Entry(("user",), **LIGHT),
        "clip-topk": Entry(
            ("MIT", "user"), _pretrained("galleries.clip", "ClipEncoder"), weights="openai/clip-vit-base-patch32"
        ),
        "face-topk": Entry(("user",)),
    },
    "strangers": {"folder": Entry(("user",), **LIGHT), "random-clips": Entry(("user",))},
    "writer": {
        "internvideo2": Entry(
            ("MIT", "Apache-2.0"), _pretrained("vlm.internvideo2", "InternVideo2Writer"),
            weights="OpenGVLab/InternVideo2_chat_8B_HD, mistralai/Mistral-7B-Instruct-v0.3", where="GPU", memory_gb=18,
            source="memory: an estimate",
        ),
        "chat": Entry(
            ("Apache-2.0",), _pretrained("vlm.writer", "ChatWriter"), weights="Qwen/Qwen3-VL-8B-Instruct", where="GPU",
            memory_gb=18, source="memory: an estimate",
        ),
    },
    "refiner": {
        "rules": Entry(("Apache-2.0",), lambda backends, options: RuleRefiner(), seconds=0.001, source="measured"),
        "local": Entry(("Apache-2.0",), _refiner("local"), weights="Qwen/Qwen3-4B-Instruct-2507", where="GPU"),
        "openai": Entry((), _refiner("openai"), where=ELSEWHERE),
    },
}  # fmt: skip

DEFAULTS = {"strangers": "folder", "refiner": "rules"}


def chosen(recipe: Recipe) -> dict[str, str]:
    """role -> name of the backend that plays it; roles that nobody plays are left out. The negatives of an oracle's
    recipe are found, not generated."""
    names = DEFAULTS | recipe.backends
    if recipe.source is not None:
        names = {role: name for role, name in names.items() if role not in ("scene", "portrait", "animate")}
    if not recipe.needs_others:
        names = {role: name for role, name in names.items() if role not in ("gallery", "strangers")}
    return {role: names[role] for role in ROLES if role in names}


def entry(role: str, name: str) -> Entry:
    """Raises MissingBackendError for a name that this version does not know, PVChatError for an unknown role."""
    if role not in CATALOGUE:
        raise PVChatError(f"There is no role {role!r} for a backend; roles: {', '.join(ROLES)}.")
    if name not in CATALOGUE[role]:
        raise MissingBackendError(f"There is no {role} backend {name!r}; choose one of: {', '.join(CATALOGUE[role])}.")
    return CATALOGUE[role][name]


def check_backends(recipe: Recipe, policy: str = "research") -> None:
    """Raises as `check_licences` does, and MissingBackendError, in one line, for all backends whose packages are not
    installed."""
    check_licences(recipe, policy)
    entries = {name: entry(role, name) for role, name in chosen(recipe).items()}
    absent = [
        f"{name} needs {', '.join(e.missing)}: {e.pip} (licence: {', '.join(e.licences)}; weights: {e.weights})"
        for name, e in entries.items()
        if e.missing
    ]
    if absent:
        raise MissingBackendError(
            f"Recipe {recipe.name!r} needs what is not installed: {'; '.join(absent)}. Or use --recipe light."
        )


def check_licences(recipe: Recipe, policy: str) -> None:
    """Raises PVChatError for a role that nobody knows, and for licences that the policy does not allow, naming them;
    MissingBackendError for a backend that this version does not have."""
    if policy not in POLICIES:
        raise PVChatError(f"The licence policy must be one of {', '.join(POLICIES)}, got {policy!r}.")
    unknown = sorted(set(recipe.backends) - set(ROLES))
    if unknown:
        raise PVChatError(f"Recipe {recipe.name!r} has no role {unknown[0]!r}; roles: {', '.join(ROLES)}.")
    entries = {(role, name): entry(role, name) for role, name in chosen(recipe).items()}
    if policy == "permissive":
        bound = [
            f"{name} ({', '.join(sorted(set(e.licences) - PERMISSIVE))})"
            for (_, name), e in entries.items()
            if set(e.licences) - PERMISSIVE
        ]
        if bound:
            raise PVChatError(
                f"The licence policy is permissive, and recipe {recipe.name!r} uses {'; '.join(bound)}; "
                f"use --recipe modern or light, or --licence-policy research."
            )


class Backends:
    """The backends of a recipe as attributes, one per role, made when they are first used.

    writer: one that is at hand, in place of the recipe's, or a function that makes it. Roles that nobody plays are
    None.
    """

    def __init__(self, recipe: Recipe, writer: Any = None):
        self._names, self._options = chosen(recipe), recipe.options
        self._made: dict[str, Any] = {}
        self._writer = writer
        self.oracle = recipe.source

    def __getattr__(self, role: str) -> Any:
        if role not in ROLES:
            raise AttributeError(role)
        if role == "writer" and role not in self._made and self._writer is not None:
            self._made[role] = self._writer() if callable(self._writer) else self._writer
        if role not in self._made:
            name = self._names.get(role)
            make = None if name is None else entry(role, name).make
            options = dict(self._options.get(role) or {})
            try:
                self._made[role] = None if make is None else make(self, options)
            except TypeError as error:
                if not options:
                    raise
                raise PVChatError(f"The options {options} of the backend {name} cannot be used: {error}.") from error
        return self._made[role]

    def make_all(self) -> None:
        """So that what they lack shows before anything is written. Large weights are loaded at the first call."""
        for role in ROLES:
            getattr(self, role)

    def ids(self) -> dict[str, str]:
        """role -> id of the backends made so far."""
        return {role: self._made[role].id for role in ROLES if self._made.get(role) is not None}

    def licences_of(self, style: str) -> tuple[str, ...]:
        """The tags of the generators that a clip of this style (see Recipe.style) goes through; "user" for clips that
        nobody generated."""
        roles = {"scene": ("scene",), "animated": ("animate",), "portrait": ("animate", "portrait")}.get(style, ())
        tags = [tag for role in roles for tag in getattr(self, role).licences]
        return tuple(dict.fromkeys(tags)) or ("user",)
