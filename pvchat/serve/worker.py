"""One request at a time, and a queue of bounded length in front of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ..session import Piece


class Busy(Exception):
    """The queue is full."""


class Worker:
    """Runs work in a thread of its own and hands its pieces to the event loop.

    Args:
        max_waiting: how many requests may be unanswered at once, with the one that is being answered.
    """

    def __init__(self, max_waiting: int):
        self.max_waiting = max_waiting
        self.waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pvchat-model")

    async def stream(self, work: Callable[[], Iterator[Piece]]) -> AsyncIterator[Piece]:
        """The pieces of `work()`, or its exception. Closing the iterator stops the work before its next piece.

        Raises:
            Busy: there are `max_waiting` requests already.
        """
        if self.waiting >= self.max_waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        stopped = threading.Event()

        def run() -> None:
            last: BaseException | None = None
            answer = work()
            try:
                for piece in answer:
                    if stopped.is_set():
                        break
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except Exception as error:  # of any kind: it is raised again where the request is answered
                last = error
            finally:
                answer.close()
            loop.call_soon_threadsafe(pieces.put_nowait, last)

        self.waiting += 1
        future = self._thread.submit(run)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._done, done))
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stopped.set()
            future.cancel()

    def _done(self, future: Future) -> None:
        self.waiting -= 1

    def close(self) -> None:
        """Waits for the request that is being answered and drops the others."""
        self._thread.shutdown(cancel_futures=True)
