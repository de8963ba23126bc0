"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Writes under a temporary name in the same folder (made if needed), then renames.

    The name is always the same, so what a kill leaves behind is taken by the next call: for files that one process
    writes. The builder's store, which several may share, has `engine.write_atomically`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """The text as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def move_into_place(stage: Path, folder: Path, names: Iterable[str]) -> None:
    """Moves these files and folders from `stage` to `folder`, in place of those that are there, and deletes `stage`.

    Each appears whole; for all of them to count at once, `folder` needs a file that is written after this one returns.
    """
    for name in names:
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(stage / name, target)
    shutil.rmtree(stage)


def replace_folder(source: Path, target: Path) -> None:
    """Moves `source` to `target`; an older `target` disappears only when the new one is in place."""
    if not target.exists():
        os.replace(source, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent)) / target.name
    os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old.parent)
