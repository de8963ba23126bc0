"""The folder of a run and its passport, `run.json`. A folder that is not a run is never touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PVChatError

RUN_FORMAT = 1
PASSPORT = "run.json"
PARTS = {"dataset", "gallery", "test"}  # what a run folder may hold before its passport is written


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, seconds by part, SHA-256 of `dataset` and `adapter`, and the content of
    `scores.json` (None without a test split).

    kept: it had been finished before, and nothing was done.
    """

    folder: Path
    seconds: dict[str, float]
    hashes: dict[str, str]
    scores: dict[str, Any] | None
    kept: bool = False

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def to_json(self) -> dict[str, Any]:
        return {"run": str(self.folder), "seconds": self.seconds, "scores": self.scores}


def check_run_folder(folder: Path, inputs: dict[str, Any] | None = None) -> None:
    """A run folder is new, or holds a run (of these inputs, if given).

    Raises:
        PVChatError: it is a file, or holds something else, a run of another version or of other inputs.
    """
    advice = "pass --out with a new folder."
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PVChatError(f"The run folder {folder} is a file; {advice}")
    run = folder / PASSPORT
    if not run.exists():
        others = sorted({p.name for p in folder.iterdir()} - PARTS)
        if others:
            raise PVChatError(f"The folder {folder} holds something else ({others[0]}); {advice}")
        return
    try:
        record = _read(folder)
        before, version = record["inputs"], record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise PVChatError(f"{run} is not the passport of a run; {advice}") from error
    if version != RUN_FORMAT:
        raise PVChatError(f"{folder} was made by another version (format {version}); {advice}")
    now = json.loads(json.dumps(before if inputs is None else inputs))
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        raise PVChatError(f"{folder} is a run of other inputs ({', '.join(changed)} differ); {advice}")


def finished_run(folder: Path, dataset_hash: str) -> Run | None:
    """The finished run in this folder, if it was learned from this dataset. Its inputs have been checked."""
    try:
        record = _read(folder)
        report = folder / "report" / "scores.json"
        scores = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    except (OSError, ValueError):
        return None
    same = record["state"] == "finished" and record["hashes"]["dataset"] == dataset_hash
    return Run(folder, record["seconds"], record["hashes"], scores, kept=True) if same else None


def run_state(folder: Path) -> str:
    """ "new", "unfinished" or "finished"."""
    if not folder.exists():
        return "new"
    try:
        state = _read(folder)["state"]
    except (OSError, ValueError, KeyError):
        return "unfinished"
    return "finished" if state == "finished" else "unfinished"


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / PASSPORT).read_text(encoding="utf-8"))
