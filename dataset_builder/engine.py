"""The resumable engine: content-addressed artefacts, one file plus one sidecar each.

    objects/ab/<key>.<suffix>   the artefact
    objects/ab/<key>.done.json  its provenance, written last: an artefact is done when its sidecar exists and agrees

The key is the hash of everything that decides the content, so a rerun after a kill finds what is finished and redoes
the rest, and any change of input, parameter, backend, stage version or seed gives another key. Files are written under
a temporary name and renamed; what a kill leaves behind is never read. Two processes that make the same artefact write
the same bytes, so the store may be shared.

A stage turns its records into tasks; `Engine.map` runs them and counts. `run_item` makes one artefact and needs
nothing but its arguments, all of which can be sent to another process. `engine_ray` and `engine_shard` run tasks
elsewhere.

An item has four ends. It is made. It is dropped, because its stage raised `Rejected`: the store remembers that. It
fails, because something raised an exception that nobody foresaw: it is dropped with the exception as the reason, and a
rerun tries it again. Or the whole run ends, because a stage raised PVChatError: what was given cannot be used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .records import Reject

log = logging.getLogger(__name__)
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


@dataclass(frozen=True)
class Task:
    """One item of one stage, by value: whoever runs it needs the store and the backends, nothing else.

    make: a function of a module, called as `make(target, backends, **args)`; it writes the file `target` and returns
    JSON-able facts about it, or raises `Rejected`.
    item: names the item in the drop list. args: plain values, paths and dataclasses of them, no pixels.
    params, inputs (sha256 of everything read) and seed decide the content, with the stage.
    """

    stage: Stage
    item: str
    make: Callable[..., dict[str, Any] | None]
    args: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    seed: int = 0

    @cached_property
    def key(self) -> str:
        stage = self.stage
        return hash_text(stage.name, stage.version, stage.backend, self.params, list(self.inputs), self.seed)


@dataclass(frozen=True)
class Outcome:
    """What `run_item` did: the record of the sidecar, whether it was found finished, seconds spent. failure: the
    traceback of an item that failed; its record is not kept."""

    record: dict[str, Any]
    resumed: bool
    seconds: float
    failure: str | None = None


@dataclass
class StageCount:
    """What one stage did: items in and out, drops by reason, how many were found finished, how many failed, seconds
    spent; or why it was skipped."""

    items_in: int = 0
    items_out: int = 0
    resumed: int = 0
    failed: int = 0
    dropped: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    skipped: str | None = None
    reported: tuple[int, int] | None = None  # in and out, where the items are not artefacts

    def to_json(self) -> dict[str, Any]:
        items_in, items_out = self.reported or (self.items_in, self.items_out)
        return {
            "in": items_in,
            "out": items_out,
            "resumed": self.resumed,
            "dropped": dict(sorted(self.dropped.items())),
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
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
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")  # machines share process numbers
    try:
        result = write(temporary)
        os.replace(temporary, path)
        return result
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def object_path(root: Path, task: Task) -> Path:
    """Where the artefact of a task lies, made or not."""
    key = task.key
    return root / "objects" / key[:2] / f"{key}{task.stage.suffix}"


def sidecar_path(root: Path, task: Task) -> Path:
    return object_path(root, task).with_name(f"{task.key}.done.json")


def run_item(root: Path, task: Task, backends: Any = None) -> Outcome:
    """Makes the artefact of a task in the store at `root`, unless it is there already.

    Depends on its arguments alone, so that it may run in any process on any machine that sees the store.
    Raises PVChatError where the stage does; an item that fails is an outcome.
    """
    started = time.perf_counter()
    record = finished(root, task)
    if record is not None:
        return Outcome(record, True, time.perf_counter() - started)
    record = new_record(task)

    def make(target: Path) -> None:
        record["meta"] = task.make(target, backends, **task.args) or {}
        record["sha256"] = hash_file(target)

    try:
        write_atomically(object_path(root, task), make)
    except Rejected as rejected:
        record["reject"] = str(rejected)
    except PVChatError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0][:200]
        reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        return failed(task, reason, traceback.format_exc(), time.perf_counter() - started)
    write_json(sidecar_path(root, task), record)
    return Outcome(record, False, time.perf_counter() - started)


def new_record(task: Task) -> dict[str, Any]:
    """The sidecar's content before the artefact is made."""
    return {
        "stage": task.stage.name,
        "version": task.stage.version,
        "backend": task.stage.backend,
        "params": task.params,
        "inputs": list(task.inputs),
        "seed": task.seed,
        "reject": None,
        "sha256": None,
        "meta": {},
    }


def finished(root: Path, task: Task) -> dict[str, Any] | None:
    """The sidecar's record when the artefact is complete, or was dropped for good; else None."""
    try:
        record = json.loads(sidecar_path(root, task).read_text(encoding="utf-8"))
        if record["reject"] is not None or hash_file(object_path(root, task)) == record["sha256"]:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def failed(task: Task, reason: str, trace: str, seconds: float = 0.0) -> Outcome:
    """The outcome of an item that failed, on any engine."""
    return Outcome(new_record(task) | {"reject": f"failed: {reason}"}, False, seconds, trace)


def in_order(tasks: Sequence[Task], arriving: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[Task, Outcome]]:
    """The tasks with their outcomes in the tasks' order, for outcomes that arrive as (number of the task, outcome)."""
    early: dict[int, Outcome] = {}
    said = 0
    for number, outcome in arriving:
        early[number] = outcome
        while said in early:
            yield tasks[said], early.pop(said)
            said += 1


class Engine:
    """Runs the tasks of a stage over the store at `root`, one after the other in this process, and counts.

    backends: handed to every task. progress: called as (stage, done, total) after every item.
    `made` and `rejects` list what every stage gave, by stage, for people who want to look.
    """

    def __init__(self, root: str | Path, backends: Any = None, progress: Progress | None = None):
        self.root, self.backends = Path(root), backends
        self.counts: dict[str, StageCount] = {}
        self.rejects: list[tuple[str, Reject]] = []
        self.made: list[tuple[str, str, Path]] = []
        self._progress = progress
        self._totals: Counter = Counter()

    def map(self, tasks: Iterable[Task]) -> list[Artefact | Reject]:
        """The artefacts, made now or found finished, in the tasks' order; a Reject for an item that was dropped or
        failed.

        Raises RuntimeError when not one item of a stage could be made or dropped: then the stage itself is broken.
        """
        tasks = list(tasks)
        for task in tasks:
            self._totals[task.stage.name] += 1
        results = []
        for task, outcome in self.outcomes(tasks):
            results.append(self._count(task, outcome))
            name = task.stage.name
            if self.counts[name].failed == self._totals[name]:
                raise RuntimeError(f"All items of the stage {name} failed; the last one:\n{outcome.failure}")
        return results

    def run(self, task: Task) -> Artefact | Reject:
        return self.map([task])[0]

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Every task with its outcome, in order. What another way of running tasks has to replace."""
        for task in tasks:
            yield task, run_item(self.root, task, self.backends)

    def _count(self, task: Task, outcome: Outcome) -> Artefact | Reject:
        name, record = task.stage.name, outcome.record
        count = self.counts.setdefault(name, StageCount())
        count.items_in += 1
        count.skipped = None
        count.resumed += outcome.resumed
        count.seconds += outcome.seconds
        if record["reject"] is None:
            count.items_out += 1
            path = object_path(self.root, task)
            result = Artefact(task.key, path, record["sha256"], record["meta"])
            self.made.append((name, task.item, path))
        else:
            result = self.drop(name, task.item, record["reject"])
        if outcome.failure is not None:
            count.failed += 1
            log.warning("%s, %s is left out, because it failed:\n%s", name, task.item, outcome.failure)
        if self._progress is not None:
            self._progress(name, count.items_in, max(self._totals[name], count.items_in))
        return result

    def drop(self, stage: str, item: str, reason: str, *, made: bool = False) -> Reject:
        """Records a drop that was decided outside a task. made: the item had been counted as made."""
        reject = Reject(item, reason)
        count = self.counts.setdefault(stage, StageCount())
        count.dropped[reason] += 1
        count.items_out -= made
        self.rejects.append((stage, reject))
        return reject

    def skip(self, stage: str, reason: str) -> None:
        """Records that a recipe does not need a stage, unless the stage has had something to do."""
        count = self.counts.setdefault(stage, StageCount())
        if not count.items_in:
            count.skipped = reason

    def report(self, stage: str, items_in: int, items_out: int) -> None:
        """Adds what a stage took in and gave, where its items are not artefacts: the table shows these numbers."""
        count = self.counts.setdefault(stage, StageCount())
        before = count.reported or (0, 0)
        count.reported = before[0] + items_in, before[1] + items_out

    def table(self, order: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One row per stage: stage, in, out, resumed, dropped by reason, seconds, why it was skipped. Stages in
        `order` come first, the others as they ran."""
        names = [*(name for name in order if name in self.counts), *(n for n in self.counts if n not in order)]
        return [{"stage": name, **self.counts[name].to_json()} for name in names]
