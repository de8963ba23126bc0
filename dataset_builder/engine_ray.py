"""The engine on Ray Data: actors on all machines of a Ray cluster make the artefacts of a stage.

    tasks -> ray.data.from_items -> map(_Worker, actor pool) -> outcomes, in the tasks' order

Each actor makes its own backends when its first task needs them and keeps them loaded for all tasks of the stage; then
the pool goes and leaves the GPUs to the next stage's models. Only paths, hashes and plain values travel: all machines
must see the files under the same paths. What is finished is found in the store as by the local engine, which also
makes whatever is too little to be sent.

An item whose worker process dies (out of memory, a crash in native code) is tried once more and then counts as failed.
Ray's own settings say which cluster it is: RAY_ADDRESS, or else this machine alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import MissingBackendError, PVChatError
from .engine import Engine, Outcome, Progress, Task, failed, finished, in_order, object_path, run_item

ATTEMPTS = 2  # of an item whose worker process dies
DIED = "its worker process died, twice (out of memory, or a crash)"


class RayEngine(Engine):
    """See `Engine`. make_backends: called in every actor, so it must survive pickling. gpu_stages: the stages whose
    actors take a GPU each, where the cluster has some.

    Raises MissingBackendError when Ray is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        backends: Any = None,
        progress: Progress | None = None,
        *,
        make_backends: Callable[[], Any],
        gpu_stages: Collection[str] = (),
    ):
        super().__init__(Path(root).absolute(), backends, progress)
        self.root.mkdir(parents=True, exist_ok=True)
        self._ray = start_ray()
        self._make_backends = make_backends
        self._gpu_stages = set(gpu_stages) if self._ray.cluster_resources().get("GPU") else set()

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        return in_order(tasks, self._arriving(tasks))

    def _arriving(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        same: dict[str, list[int]] = {}
        for number, task in enumerate(tasks):
            same.setdefault(task.key, []).append(number)
        sent = [numbers[0] for numbers in same.values() if finished(self.root, tasks[numbers[0]]) is None]
        if len(sent) == 1 and tasks[sent[0]].stage.name not in self._gpu_stages:
            sent = []  # a pool of actors takes longer to start
        away = set(sent)
        for key in [key for key, numbers in same.items() if numbers[0] not in away]:
            for number in same.pop(key):
                yield number, self._here(tasks[number])
        for number, outcome in self._run(tasks, sent):
            yield number, outcome
            for twin in same[tasks[number].key][1:]:
                yield twin, self._here(tasks[twin])

    def _here(self, task: Task) -> Outcome:
        return run_item(self.root, task, self.backends)

    def _run(self, tasks: Sequence[Task], sent: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        """Makes the tasks with these numbers in a pool of actors."""
        if not sent:
            return
        ray = self._ray
        gpus = 1 if tasks[sent[0]].stage.name in self._gpu_stages else 0
        actors = min(len(sent), max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))))
        rows = [{"number": number, "task": ray.cloudpickle.dumps(tasks[number])} for number in sent]
        with ray.data.DataContext.current(_quiet(ray)):
            outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _Worker,
                fn_constructor_args=(self.root, self._make_backends, os.getcwd(), uuid.uuid4().hex),
                compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
                num_cpus=1,
                num_gpus=gpus,
            )
        for row in outcomes.iter_rows():
            if row["error"]:
                raise PVChatError(row["error"])
            yield row["number"], pickle.loads(row["outcome"])


def start_ray() -> Any:
    """The module `ray`, connected to the cluster that RAY_ADDRESS names, or to a new one on this machine.

    Raises MissingBackendError when it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else every pool of actors prints an "error" that is none
    check_ray()
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def check_ray() -> None:
    """Raises MissingBackendError when Ray Data is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingBackendError(
            'The engine "ray" needs Ray Data (licence: Apache-2.0): pip install "pvchat[ray]".'
        ) from error


def _quiet(ray: Any) -> Any:
    """Ray Data's settings, with nothing printed between our own bars."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


class _Worker:
    """An actor. folder: where the build was started; relative paths are meant from there. run: names this pool.

    Ray starts a dead actor again and gives it the same item, for ever; so each start of an item is written down.
    """

    def __init__(self, root: Path, make_backends: Callable[[], Any], folder: str, run: str):
        with suppress(OSError):  # then only absolute paths are found, and what is not says so itself
            os.chdir(folder)
        self.root, self.backends, self.run = root, make_backends(), run

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        made = {"number": row["number"], "outcome": b"", "error": ""}
        try:
            outcome = self._make(pickle.loads(row["task"]))
        except PVChatError as error:
            return made | {"error": str(error)}
        return made | {"outcome": pickle.dumps(outcome)}

    def _make(self, task: Task) -> Outcome:
        if not self.root.is_dir():
            raise PVChatError(
                f"The machine {socket.gethostname()} does not see {self.root}; with --engine ray, the output folder "
                f"and all inputs must be on a disk that every machine mounts under the same path."
            )
        tried = object_path(self.root, task).with_name(f"{task.key}.tried")
        tried.parent.mkdir(parents=True, exist_ok=True)
        before = tried.read_text(encoding="utf-8").count(self.run) if tried.exists() else 0
        try:
            if before == ATTEMPTS:
                return failed(task, DIED, f"{DIED}; Ray's logs say more.")
            with tried.open("a", encoding="utf-8") as file:
                file.write(f"{self.run}\n")
            return run_item(self.root, task, self.backends)
        finally:
            tried.unlink(missing_ok=True)
