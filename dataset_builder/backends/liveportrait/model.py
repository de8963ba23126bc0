"""All networks of LivePortrait together, and their official weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import PVChatError
from ..common import hub_file, load_state
from .motion import Motion, apply_stitching, keypoints, refine, relative_keypoints
from .networks import AppearanceFeatureExtractor, MotionExtractor, SPADEDecoder, StitchingNetwork, WarpingNetwork

REPO, LICENCE = "KwaiVGI/LivePortrait", "MIT"
FOLDER = "liveportrait"  # in the repository
FILES = {
    "appearance_feature_extractor": "base_models/appearance_feature_extractor.pth",
    "motion_extractor": "base_models/motion_extractor.pth",
    "warping_module": "base_models/warping_module.pth",
    "spade_generator": "base_models/spade_generator.pth",
    "stitching": "retargeting_models/stitching_retargeting_module.pth",
}
STITCHING_KEY = "retarget_shoulder"  # beside the nets for eyes and lips, which are not used here


class LivePortrait(nn.Module):
    """The five networks; `sizes` gives the arguments of any of them by the names of FILES, the official sizes being
    the default. Pictures (B, 3, 256, 256) float in [0, 1]; T driving frames, K = 21 key points."""

    def __init__(self, **sizes: dict[str, Any]):
        super().__init__()
        self.appearance_feature_extractor = AppearanceFeatureExtractor(**sizes.get("appearance_feature_extractor", {}))
        self.motion_extractor = MotionExtractor(**sizes.get("motion_extractor", {}))
        self.warping_module = WarpingNetwork(**sizes.get("warping_module", {}))
        self.spade_generator = SPADEDecoder(**sizes.get("spade_generator", {}))
        self.stitching = StitchingNetwork(**sizes.get("stitching", {}))

    def place(self, device: torch.device, dtype: torch.dtype) -> LivePortrait:
        """Ready for inference. Motion extractor and stitching stay in float32: expressions are some thousandths."""
        for net in (self.appearance_feature_extractor, self.warping_module, self.spade_generator):
            net.to(device, dtype)
        for net in (self.motion_extractor, self.stitching):
            net.to(device, torch.float32)
        return self.eval()

    def features(self, image: Tensor) -> Tensor:
        """-> (B, 32, 16, 64, 64) in the dtype of the networks."""
        return self.appearance_feature_extractor(image.to(self.dtype))

    def motion(self, image: Tensor) -> tuple[Motion, Tensor]:
        """-> motion of B frames, canonical key points (B, K, 3)."""
        return refine(self.motion_extractor(image.float()))

    def driving_keypoints(
        self, kp: Tensor, source: Motion, driving: Motion, strength: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """kp (1, K, 3): the source's canonical key points -> key points of the source (1, K, 3) and of the driving
        frames (T, K, 3), relative to their first frame, stitched. strength: 1 moves as far as the driving frames."""
        x_s = keypoints(kp, source)
        x_d = self.stitch(x_s, relative_keypoints(kp, source, driving))
        return x_s, x_s + strength * (x_d - x_s)

    def stitch(self, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """kp_source (1 or T, K, 3), kp_driving (T, K, 3) -> (T, K, 3), corrected so that the shoulders stay."""
        both = torch.cat([kp_source.expand_as(kp_driving), kp_driving], 1)
        return apply_stitching(kp_driving, self.stitching(both.flatten(1)))

    def render(self, features: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """features (1, 32, 16, 64, 64), key points (1, K, 3) and (T, K, 3) -> pictures (T, 3, 512, 512) in (0, 1)."""
        count = len(kp_driving)
        warped = self.warping_module(
            features.expand(count, -1, -1, -1, -1), kp_source.expand(count, -1, -1), kp_driving
        )
        return self.spade_generator(warped["out"])

    @property
    def dtype(self) -> torch.dtype:
        return self.spade_generator.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.spade_generator.fc.weight.device


def weight_files(folder: str | Path) -> dict[str, Path]:
    """Network -> its file in a folder laid out as the Hub repository, or as its subfolder "liveportrait".

    Raises PVChatError when the folder or one of the files is missing.
    """
    root = Path(folder)
    root = root / FOLDER if (root / FOLDER).is_dir() else root
    paths = {name: root / file for name, file in FILES.items()}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise PVChatError(
            f"{folder} does not hold the weights of LivePortrait: {missing[0]} is missing "
            f"({len(missing)} of {len(paths)} files); pass a copy of {REPO} from the Hub."
        )
    return paths


def hub_files(repo: str = REPO, revision: str = "main") -> dict[str, Path]:
    """Network -> its file, from the Hub or its cache. Raises MissingBackendError when one cannot be had."""
    return {
        name: hub_file(repo, f"{FOLDER}/{file}", revision, backend="liveportrait", licence=LICENCE)
        for name, file in FILES.items()
    }


def fill_networks(model: LivePortrait, paths: dict[str, Path]) -> LivePortrait:
    """Fills the networks from the official files (flat state dicts; the stitching file holds three of them).

    Raises PVChatError, one line, when a file cannot be read, or names or shapes differ.
    """
    for name, path in paths.items():
        state = load_state(path, "liveportrait")
        if not isinstance(state, dict) or (name == "stitching" and STITCHING_KEY not in state):
            raise PVChatError(f"{path} does not fit: it holds something else; pass the file {FILES[name]} of {REPO}.")
        if name == "stitching":
            state = {key.replace("module.", ""): value for key, value in state[STITCHING_KEY].items()}
        _fill(getattr(model, name), state, path, name)
    return model


def _fill(net: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    wanted = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = sorted(key for key in wanted.keys() & given.keys() if wanted[key] != given[key])
    problems = [
        f"{len(keys)} tensors {what} (first: {keys[0]})"
        for what, keys in (("are missing", missing), ("are unknown", extra), ("have another shape", other))
        if keys
    ]
    if problems:
        raise PVChatError(f"{path} does not fit: {', '.join(problems)}; pass the file {FILES[name]} of {REPO}.")
    net.load_state_dict(state)
