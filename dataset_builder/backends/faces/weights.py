"""Packages and weights of the face backends: taken when they are needed, one clear line when they are absent."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

from ....errors import MissingBackendError, PVChatError


def require(package: str, backend: str) -> Any:
    """Imports a package of the extra `faces`. Raises MissingBackendError with the pip line."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingBackendError(
            f'The backend {backend} needs the package {package} ({error}): pip install "pvchat[faces]".'
        ) from error


def local_file(path: str | Path, backend: str) -> Path:
    """Raises PVChatError when `path` is not a file."""
    path = Path(path)
    if not path.is_file():
        raise PVChatError(f"{path} is not a file; pass the weights of the backend {backend}.")
    return path


def file_version(*paths: Path) -> str:
    """12 hex digits that tell these weights from others."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def hub_file(repo: str, filename: str, revision: str | None = None, *, backend: str, licence: str) -> Path:
    """The file from the Hub or its cache. Raises MissingBackendError when it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except OSError as error:  # every error of the Hub's client is one
        reason = str(error).strip().splitlines()
        raise MissingBackendError(
            f"The backend {backend} needs {filename} of {repo} (licence: {licence}) from the Hub, which cannot be had "
            f"({reason[0] if reason else type(error).__name__}); connect to the Hub once, or pass the file's path."
        ) from error


def load_state(path: Path, backend: str) -> dict[str, Any]:
    """A state dict from a .safetensors or a .pt/.pth file; pickled code is never run.

    Raises PVChatError when the file is something else.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise PVChatError(f"{path} cannot be read as weights; pass the weights of the backend {backend}.") from error


def load_strictly(net: Any, state: dict[str, Any], path: Path, backend: str) -> None:
    """Gives `net`, which may be on the meta device, the tensors of `state`.

    Raises PVChatError when a name or a shape differs.
    """
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise PVChatError(
            f"{path} holds the weights of another network; pass the weights of the backend {backend}."
        ) from error
