"""Loading weights from a folder or the Hub, with an id for cache keys and errors of one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....errors import MissingBackendError

WEIGHTS = (".safetensors", ".bin", ".pt")


def load_weights(load: Callable[..., Any], name: str | Path, licence: str, **options: Any) -> Any:
    """`load(name, **options)`; load is a `from_pretrained`.

    Raises MissingBackendError: the model is not there, the Hub cannot be reached or refuses, or a package is missing.
    """
    try:
        return load(str(name), **options)
    except ImportError as error:
        raise MissingBackendError(
            f'{name} needs a package that is missing or too new ({first_line(error)}); pip install "pvchat[generate]".'
        ) from error
    except (OSError, ValueError) as error:
        raise MissingBackendError(
            f"{name} (licence: {licence}) cannot be loaded ({first_line(error)}); pass a folder with the model, or "
            f"let this computer reach the Hub (a gated model needs `hf auth login`)."
        ) from error


def weights_id(name: str | Path, model: Any) -> str:
    """The model's name with the revision of its weights: the commit on the Hub, or the hash of a local folder."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{(getattr(model.config, '_commit_hash', None) or 'unknown')[:12]}"
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS or p.name == "config.json"):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"{folder.name}@{digest.hexdigest()[:12]}"


def first_line(error: Exception) -> str:
    """What an error says, at most 160 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
