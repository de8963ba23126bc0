"""Several processes that make one build together, on one machine or on many, without anything between them but the
folder of the store.

Every process runs the whole build over the same store. In a stage, shard I of N begins with every N-th item; then it
takes what nobody has, and waits for what others are making. So no process needs another one to be there: those that
start late join in, and what a dead one leaves is taken over. The last run, which is no shard, finds everything done.

An item is taken by a file `<key>.claim` beside its artefact, which only one process can create, and which is touched
as long as the process lives. A claim that stays untouched is nobody's. Claims save work and decide nothing: two
processes that make the same artefact write the same bytes.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .engine import Engine, Outcome, Progress, Task, in_order, object_path, run_item, sidecar_path

POLL = 1.0  # seconds between two looks at what others are making
TOUCH = 10.0  # seconds between two touches of a claim
STALE = 120.0  # seconds after which an untouched claim is nobody's; by this machine's clock alone


@dataclass(frozen=True)
class Shard:
    """Number `index` (from 1) of `count` processes."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "3/8" is the third of eight. Raises PVChatError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise PVChatError(f"A shard is I/N with I from 1 to N, such as 3/8; got {text!r}.")
        return shard


class ShardEngine(Engine):
    """See `Engine`."""

    def __init__(self, root: str | Path, backends: Any = None, progress: Progress | None = None, *, shard: Shard):
        super().__init__(root, backends, progress)
        self.shard = shard
        self._seen: dict[Path, tuple[int, float]] = {}  # claim of another -> its time stamp, and when we first saw it

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        return in_order(tasks, self._arriving(tasks))

    def _arriving(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        first, count = self.shard.index - 1, self.shard.count
        waiting = sorted(range(len(tasks)), key=lambda number: ((number - first) % count, number))
        while waiting:
            left = []
            for number in waiting:
                outcome = self._try(tasks[number])
                if outcome is None:
                    left.append(number)
                else:
                    yield number, outcome
            if len(left) == len(waiting):
                time.sleep(POLL)
            waiting = left

    def _try(self, task: Task) -> Outcome | None:
        """The outcome of a task that is finished or that nobody is making; None while somebody is."""
        if sidecar_path(self.root, task).exists():
            return run_item(self.root, task, self.backends)
        claim = object_path(self.root, task).with_name(f"{task.key}.claim")
        if not self._take(claim):
            return None
        with _touched(claim):
            return run_item(self.root, task, self.backends)

    def _take(self, claim: Path) -> bool:
        """Creates the claim, or takes over one that is nobody's any more."""
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(claim, "x", encoding="utf-8") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}\n")
            return True
        except FileExistsError:
            pass
        try:
            stamp = claim.stat().st_mtime_ns
        except FileNotFoundError:  # given back just now
            return False
        now = time.monotonic()
        before, since = self._seen.get(claim, (None, now))
        if stamp != before:
            self._seen[claim] = (stamp, now)
            return False
        if now - since < STALE:
            return False
        os.utime(claim)  # for the others it is alive again
        return True


@contextmanager
def _touched(claim: Path) -> Iterator[None]:
    """Keeps a claim alive, and gives it back at the end."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(TOUCH):
            try:
                os.utime(claim)
            except OSError:  # somebody else gave it back
                return

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        claim.unlink(missing_ok=True)
