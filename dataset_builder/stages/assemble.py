"""assemble: rows -> the dataset folder. Several people give one merged dataset, in which every clip occurs once for
each person that it is asked about."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..assemble import BUILD_FOLDER, LocalDataset, assemble_dataset, load_local
from ..merge import merge_datasets
from ..records import VideoRow
from .common import Build


def assemble(
    build: Build, rows: Sequence[VideoRow], out: Path, about: dict[str, dict[str, Any]], extra: dict[str, Any]
) -> LocalDataset:
    """about: name -> manifest fields of each subject. extra: manifest fields of the whole."""
    if len(build.subjects) == 1:
        name = build.subjects[0].name
        return assemble_dataset(name, list(rows), out, about[name] | extra)
    parts = out / BUILD_FOLDER / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    folders = []
    for number, spec in enumerate(build.subjects, 1):
        own = [row for row in rows if row.subject == spec.name]
        folders.append(parts / str(number))
        assemble_dataset(spec.name, own, folders[-1], about[spec.name])
    merge_datasets(folders, out, extra=extra)
    return load_local(out)
