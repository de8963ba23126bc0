"""The resumable engine: content-addressed artefacts, one file plus one sidecar each.

    objects/ab/<key>.<suffix>   the artefact
    objects/ab/<key>.done.json  its provenance, written last: an artefact is done when its sidecar exists and agrees

The key is the hash of everything that decides the content, so a rerun after a kill finds what is finished and redoes
the rest, and any change of input, parameter, backend, stage version or seed gives another key. Files are written under
a temporary name and renamed; what a kill leaves behind is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import Reject

Progress = Callable[[str, int, int], None]  # (stage, done, total)


class Rejected(Exception):
    """Raised inside a stage to drop the item; the message is the reason."""


@dataclass(frozen=True)
class Stage:
    """name and version of the code, id of the backend, and the suffix of the file it writes (with its dot)."""

    name: str
    version: int
    backend: str
    suffix: str


@dataclass(frozen=True)
class Artefact:
    """A finished object: its file, the file's sha256, and what its stage reported about it."""

    key: str
    path: Path
    sha256: str
    meta: dict[str, Any]


@dataclass
class StageCount:
    """What one stage did: items in and out, drops by reason, how many were found finished, seconds spent."""

    items_in: int = 0
    items_out: int = 0
    resumed: int = 0
    dropped: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "in": self.items_in,
            "out": self.items_out,
            "resumed": self.resumed,
            "dropped": dict(sorted(self.dropped.items())),
            "seconds": round(self.seconds, 3),
        }


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_text(*parts: Any) -> str:
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


def hash_file(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def derive_seed(*parts: Any) -> int:
    """A seed below 2**31 for one item: the same parts give the same seed, other parts an unrelated one."""
    return int(hash_text("seed", *parts)[:8], 16) & 0x7FFFFFFF


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Any:
    """Calls `write(temporary path)` and renames the result to `path`; leaves nothing behind when `write` fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        result = write(temporary)
        os.replace(temporary, path)
        return result
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class Engine:
    """Runs one item of one stage at a time over the store at `root`, and counts.

    progress: called as (stage, done, total) after every item.
    """

    def __init__(self, root: str | Path, progress: Progress | None = None):
        self.root = Path(root)
        self.counts: dict[str, StageCount] = {}
        self.rejects: list[tuple[str, Reject]] = []
        self._progress = progress
        self._totals: dict[str, int] = {}

    def expect(self, stage: str, total: int) -> None:
        """Announces how many items a stage will see, for the progress callback."""
        self._totals[stage] = total
        self.counts.setdefault(stage, StageCount())

    def drop(self, stage: str, item: str, reason: str) -> Reject:
        """Records a drop that was decided outside `run`."""
        reject = Reject(item, reason)
        self.counts.setdefault(stage, StageCount()).dropped[reason] += 1
        self.rejects.append((stage, reject))
        return reject

    def run(
        self,
        stage: Stage,
        make: Callable[[Path], dict[str, Any]],
        *,
        item: str,
        params: dict[str, Any],
        inputs: Sequence[str] = (),
        seed: int = 0,
    ) -> Artefact | Reject:
        """Returns the artefact, made now or found finished; a Reject when `make` raised `Rejected`.

        make: writes the file at the path it is given and returns JSON-able facts about it.
        item: names the item in the drop list. inputs: sha256 of everything read.
        """
        key = hash_text(stage.name, stage.version, stage.backend, params, list(inputs), seed)
        path = self.root / "objects" / key[:2] / f"{key}{stage.suffix}"
        sidecar = self.root / "objects" / key[:2] / f"{key}.done.json"
        count = self.counts.setdefault(stage.name, StageCount())
        count.items_in += 1
        started = time.perf_counter()
        record = self._finished(sidecar, path)
        if record is not None:
            count.resumed += 1
        else:
            record = {
                "stage": stage.name,
                "version": stage.version,
                "backend": stage.backend,
                "params": params,
                "inputs": list(inputs),
                "seed": seed,
                "reject": None,
                "sha256": None,
                "meta": {},
            }
            try:
                record["meta"] = write_atomically(path, make) or {}
                record["sha256"] = hash_file(path)
            except Rejected as rejected:
                record["reject"] = str(rejected)
            write_json(sidecar, record)
        count.seconds += time.perf_counter() - started
        if record["reject"] is None:
            count.items_out += 1
            outcome = Artefact(key, path, record["sha256"], record["meta"])
        else:
            outcome = self.drop(stage.name, item, record["reject"])
        if self._progress is not None:
            self._progress(stage.name, count.items_in, max(self._totals.get(stage.name, 0), count.items_in))
        return outcome

    @staticmethod
    def _finished(sidecar: Path, path: Path) -> dict[str, Any] | None:
        """The sidecar's record when the artefact is complete, else None."""
        try:
            record = json.loads(sidecar.read_text(encoding="utf-8"))
            if record["reject"] is not None or hash_file(path) == record["sha256"]:
                return record
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def table(self) -> list[dict[str, Any]]:
        """One row per stage in the order they ran: stage, in, out, resumed, dropped by reason, seconds."""
        return [{"stage": name, **count.to_json()} for name, count in self.counts.items()]
