"""What the backends share: packages and weights with clear errors, ids for cache keys, the device."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import MissingBackendError, PVChatError, first_line
from ..engine import hash_file, hash_text

if TYPE_CHECKING:
    import torch

FACES = '"pvchat[faces]"'  # what pip installs for these backends
GENERATE = '"pvchat[generate]"'
ANSWERING = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".txt", ".py")  # decide what a model says


# Packages


def require(*names: str, backend: str, pip: str) -> Any:
    """Imports the packages and returns the last one. Raises MissingBackendError with the pip line."""
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise MissingBackendError(
                f"The backend {backend} needs the package {name} ({error}): pip install {pip}"
            ) from error
    return module


# Weights


def from_hub(load: Callable[[], Any], *, backend: str, repo: str, licence: str) -> Any:
    """`load()`, which reads the weights `repo` from the Hub or its cache. Raises MissingBackendError when they cannot
    be had; every error of the Hub's client is an OSError."""
    try:
        return load()
    except OSError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingBackendError(
            f"The backend {backend} needs the weights {repo} (licence: {licence}) from the Hub; connect once, or set "
            f"HF_HOME to a cache that has them. They cannot be loaded here: {reason[:200]}"
        ) from error


def hub_file(repo: str, filename: str, revision: str | None = None, *, backend: str, licence: str) -> Path:
    """The file from the Hub or its cache. Raises MissingBackendError when it cannot be had."""
    from huggingface_hub import hf_hub_download

    return Path(
        from_hub(
            lambda: hf_hub_download(repo, filename, revision=revision),
            backend=backend, repo=f"{filename} of {repo}", licence=licence,
        )
    )  # fmt: skip


def local_file(path: str | Path, backend: str) -> Path:
    """Raises PVChatError when `path` is not a file."""
    path = Path(path)
    if not path.is_file():
        raise PVChatError(f"{path} is not a file; pass the weights of the backend {backend}.")
    return path


def weights_file(
    weights: str | Path | None, repo: str, filename: str, revision: str, *, backend: str, licence: str
) -> tuple[Path, str]:
    """The file at `weights`, or the one on the Hub when that is None; and for ids what tells it from others: its hash,
    behind the revision if it is the Hub's. Raises as `local_file` and `hub_file` do."""
    if weights is not None:
        path = local_file(weights, backend)
        return path, file_version(path)
    path = hub_file(repo, filename, revision, backend=backend, licence=licence)
    return path, f"{revision[:8]}.{file_version(path)}"


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


def load_weights(load: Callable[..., Any], name: str | Path, licence: str, **options: Any) -> Any:
    """`load(name, **options)`; load is a `from_pretrained`.

    Raises MissingBackendError: the model is not there, the Hub cannot be reached or refuses, or a package is missing.
    """
    try:
        return load(str(name), **options)
    except ImportError as error:
        raise MissingBackendError(
            f"{name} needs a package that is missing or too new ({first_line(error)}); pip install {GENERATE}."
        ) from error
    except (OSError, ValueError) as error:
        raise MissingBackendError(
            f"{name} (licence: {licence}) cannot be loaded ({first_line(error)}); pass a folder with the model, or "
            f"let this computer reach the Hub (a gated model needs `hf auth login`)."
        ) from error


class LoadsOnce:
    """A backend whose weights are loaded when they are first needed: making it, and reading its id, costs nothing.

    load: gives the model, and its processor or tokenizer.
    """

    def __init__(self, load: Callable[[], tuple[Any, Any]]):
        self._load = load

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, words = self._load()
        return model.eval(), words


def load_chat_model(
    model_class: Any, words_class: Any, name: str | Path, licence: str, revision: str | None
) -> tuple[Any, Any]:
    """A language model and its processor or tokenizer, by their Auto classes; raises as `load_weights` does."""
    words = load_weights(words_class.from_pretrained, name, licence, revision=revision)
    model = load_weights(model_class.from_pretrained, name, licence, revision=revision, dtype=best_dtype())
    return model.to(best_device()), words


# Ids


def backend_id(name: str, version: int, revision: str, **settings: Any) -> str:
    """ "name@version+revision.hash": the hash covers the settings, so that a clip made with others is not taken for
    one of this backend."""
    return f"{name}@{version}+{revision}.{hash_text(settings)[:8]}"


def file_version(*paths: Path) -> str:
    """12 hex digits that tell these weights from others."""
    return hashlib.sha256(b"".join(bytes.fromhex(hash_file(path)) for path in paths)).hexdigest()[:12]


def model_revision(name: str | Path) -> str | None:
    """The commit of a model on the Hub or in its cache, None for a folder. Only its config.json is read.

    Raises OSError, as transformers does, when there is none.
    """
    from transformers.utils import cached_file

    config = cached_file(str(name), "config.json")
    if config is None:
        raise OSError(f"{name} has no config.json")
    return None if Path(name).is_dir() else Path(config).parent.name


def weights_id(name: str | Path, revision: str | None) -> str:
    """The model's name with its commit on the Hub (see `model_revision`), or with the hash of a local folder."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision[:12]}"
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in ANSWERING and p.is_file()):
        digest.update(path.name.encode() + bytes.fromhex(hash_file(path)))
    return f"{folder.resolve().name}@{digest.hexdigest()[:12]}"


# Device


def best_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype() -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
