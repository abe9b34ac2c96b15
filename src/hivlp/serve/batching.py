"""Dynamic batching: a lone task starts at once; what queues while others run is run together.

Nothing waits for a batch to fill: a batch is what came in while every worker was busy.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from hivlp.serve.errors import RequestError, busy
from hivlp.serve.metrics import Metrics

T = TypeVar("T")
R = TypeVar("R")
REST_SECONDS = 0.005


class _Waiting(NamedTuple, Generic[T, R]):
    task: T
    answer: asyncio.Future[R]
    since: float


class Batcher(Generic[T, R]):
    """A bounded queue of tasks in front of worker threads, each of which takes all that has queued, up to a limit."""

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        metrics: Metrics,
        *,
        workers: int = 1,
        most: int = 32,
        room: int = 256,
    ) -> None:
        """Nothing is queued yet.

        Args:
            name: of the queue, in metrics and messages.
            run: what makes the answers of several tasks, in their order; an exception is raised to the one that asked.
            metrics: where waiting times and sizes are told.
            workers: threads.
            most: tasks of one batch.
            room: tasks that may wait.
        """
        self.name = name
        self._run, self._metrics, self._most, self._room = run, metrics, most, room
        self._workers = self._free = workers
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._done, self._resting = threading.Event(), False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"hivlp-{name}")

    async def do(self, task: T, *, inline: bool = False) -> R:
        """The answer to a task.

        Args:
            task: that is run by a worker.
            inline: run it in the event loop's own thread if every worker is idle, which saves a lone task two hops
                between threads (some 0.1 ms) and holds up whatever arrives meanwhile.

        Raises:
            RequestError: if too many wait already.
        """
        if self.is_full:
            raise self.refusal()
        if inline and self._free == self._workers and not self._waiting:
            return self._run_inline(task)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append(_Waiting(task, answer, time.perf_counter()))
        if self._free:
            self._start(loop)
        return await answer

    def _run_inline(self, task: T) -> R:
        self._metrics.batch.observe(1, self.name)
        self._metrics.queue.observe(0.0, self.name)
        (answer,) = self._run([task])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rest(self) -> None:
        """Have the event loop sleep at the end of its round, until a worker is done or for some milliseconds.

        For a loop that refuses: waking for each request takes more from workers on the same core than the refusal does,
        so that those which come meanwhile are refused in one go (as network cards moderate their interrupts).
        """
        if not self._resting:
            self._resting = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self._resting = False
        self._done.wait(REST_SECONDS)

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        return len(self._waiting) >= self._room

    def refusal(self) -> RequestError:
        """What one is told that comes while it is full; it is counted."""
        self._metrics.refused.add(self.name)
        return busy(f"{self._room} {self.name} are waiting already: ask again in a moment")

    @property
    def waiting(self) -> int:
        """Tasks that no worker has taken yet."""
        return len(self._waiting)

    def close(self) -> None:
        """End the threads when they are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give a free worker what has queued."""
        batch: list[_Waiting[T, R]] = []
        while self._waiting and len(batch) < self._most:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():  # whoever asked may have gone
                batch.append(waiting)
        if not batch:
            return
        self._free -= 1
        now = time.perf_counter()
        self._metrics.batch.observe(len(batch), self.name)
        for waiting in batch:
            self._metrics.queue.observe(now - waiting.since, self.name)
        self._threads.submit(self._work, loop, batch)

    def _work(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[T, R]]) -> None:
        try:
            answers: Sequence[R | Exception] = self._run([waiting.task for waiting in batch])
        except Exception as error:
            answers = [error] * len(batch)
        self._done.set()
        try:
            loop.call_soon_threadsafe(self._finish, loop, batch, answers)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    def _finish(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[T, R]], answers: Sequence[R | Exception]
    ) -> None:
        self._free += 1
        self._done.clear()
        if self._waiting:
            self._start(loop)
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
