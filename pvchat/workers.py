"""The same function over many items, several at a time: in processes on this machine, or on a Ray cluster.

An item costs no other one: where its process dies, its result is `None`, and the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any

from .errors import PVChatError

ENGINES = ("local", "ray")


def check_engine(engine: str, workers: int) -> None:
    """Raises PVChatError for an engine that does not exist or is not installed, and for less than one worker."""
    if engine not in ENGINES:
        raise PVChatError(f"There is no engine {engine!r}; choose one of: {', '.join(ENGINES)}.")
    if workers < 1:
        raise PVChatError(f"workers must be at least 1, got {workers}.")
    if engine == "ray":
        from .dataset_builder.engine_ray import check_ray

        check_ray()


def run_all(
    function: Callable[[Any], Any], items: Sequence[Any], engine: str, workers: int
) -> Iterator[tuple[int, Any]]:
    """Yields (number of the item, result) as they are done; the result is None where the process died.

    Args:
        function: of a module, so that other processes find it.
        engine: "local": processes, or this one where `workers` is 1; each has a GPU of its own as far as there are
            some. "ray": tasks on the cluster of RAY_ADDRESS, with a GPU each where it has some.
    """
    if engine == "ray":
        return _on_ray(function, items, workers)
    if workers == 1 or not items:
        return ((number, function(item)) for number, item in enumerate(items))
    return _in_processes(function, items, min(workers, len(items)))


class _Process:
    """A worker process, started when needed and again after it died."""

    def __init__(self, number: int, gpus: int):
        self.number, self.gpus, self.pool = number, gpus, None

    def run(self, function: Callable[[Any], Any], item: Any) -> Any:
        if self.pool is None:
            gpu = self.number % self.gpus if self.gpus else None
            self.pool = ProcessPoolExecutor(1, get_context("spawn"), _take_gpu, (gpu,))
        try:
            return self.pool.submit(function, item).result()
        except BrokenProcessPool:
            self.close()
            return None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None


def _take_gpu(number: int | None) -> None:
    if number is not None:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if shown is None else shown.split(",")[number]


def _in_processes(function, items, workers: int) -> Iterator[tuple[int, Any]]:
    import torch

    processes = [_Process(number, torch.cuda.device_count()) for number in range(workers)]
    free: SimpleQueue[_Process] = SimpleQueue()
    for process in processes:
        free.put(process)

    def run(item: Any) -> Any:
        process = free.get()
        try:
            return process.run(function, item)
        finally:
            free.put(process)

    threads = ThreadPoolExecutor(workers)
    try:
        futures: dict[Future, int] = {threads.submit(run, item): number for number, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # after an error, what runs ends and the rest is left
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()


def _on_ray(function, items, workers: int) -> Iterator[tuple[int, Any]]:
    from .dataset_builder.engine_ray import start_ray

    ray = start_ray()
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")(function)
    waiting = list(enumerate(items))[::-1]
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            number, item = waiting.pop()
            running[task.remote(item)] = number
        (done,), _ = ray.wait(list(running), num_returns=1)
        try:
            result = ray.get(done)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
            result = None
        yield running.pop(done), result
