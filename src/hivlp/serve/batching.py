"""Dynamic batching: a lone task starts at once; what queues while others run is run together.

Nothing waits for a batch to fill: a batch is what came in one round of the event loop, or while every worker was busy.
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
REST_SECONDS = 0.01
"""Seconds that a loop which refuses may sleep."""


class _Waiting(NamedTuple, Generic[T, R]):
    task: T
    answer: asyncio.Future[R]
    since: float
    inline: bool


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
        self._free = workers
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"hivlp-{name}")
        self._called = self._resting = False
        self._reserved = 0
        self._done = threading.Event()

    async def do(self, task: T, *, inline: bool = False) -> R:
        """The answer to a task.

        Args:
            task: that is run together with those that arrive in the same round of the event loop.
            inline: whether it may run in the event loop's own thread if a worker is idle, which saves two hops between
                threads (some 0.1 ms) and holds up whatever arrives meanwhile.

        Raises:
            RequestError: if too many wait already.
        """
        if self.is_full:
            raise self.refusal()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append(_Waiting(task, answer, time.perf_counter(), inline))
        self._call(loop)
        return await answer

    def at_once(self, task: T) -> R:
        """The answer to a task that runs now, in the thread that calls, whoever waits.

        For the only one that anybody asks for: it is spared a round of the event loop.
        """
        self._metrics.batch.observe(1, self.name)
        self._metrics.queue.observe(0.0, self.name)
        (answer,) = self._run([task])
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        return len(self._waiting) >= self._room

    def reserve(self) -> bool:
        """Whether one more may wait, beside those for which others have reserved a place in this round of the loop.

        What a round reads is queued after all of it was read: were there only :attr:`is_full`, all would be let in.
        """
        if len(self._waiting) + self._reserved >= self._room:
            return False
        if not self._reserved:
            asyncio.get_running_loop().call_soon(self._forget)
        self._reserved += 1
        return True

    def _forget(self) -> None:
        self._reserved = 0

    def refusal(self) -> RequestError:
        """What one is told that comes while it is full; it is counted."""
        self._metrics.refused.add(self.name)
        return busy(f"{self._room} {self.name} are waiting already: ask again in a moment")

    @property
    def waiting(self) -> int:
        """Tasks that no worker has taken yet."""
        return len(self._waiting)

    def rest(self) -> None:
        """Have the event loop sleep at the end of its round, until a worker is done or for some milliseconds.

        For a loop that refuses: waking for each request takes more from workers on the same core than the refusal does,
        so that those which come meanwhile are refused in one go (as network cards moderate their interrupts).
        """
        if not self._resting:
            self._resting = True
            asyncio.get_running_loop().call_soon(self._rest)

    def close(self) -> None:
        """End the threads when they are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _rest(self) -> None:
        self._resting = False
        if not self._free:
            self._done.wait(REST_SECONDS)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the next batch begin at the end of this round."""
        if self._waiting and self._free and not self._called:
            self._called = True
            loop.call_soon(self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run what this round of the event loop has brought."""
        self._called = False
        while self._waiting and self._free:
            inline = all(waiting.inline for waiting in self._waiting)
            batch = self._taken()
            if inline:
                _settle(batch, self._answers(batch))
                self._call(loop)  # for the rest, when these have been told
                return
            if batch:
                self._start(loop, batch)

    def _taken(self) -> list[_Waiting[T, R]]:
        """The next batch."""
        batch: list[_Waiting[T, R]] = []
        while self._waiting and len(batch) < self._most:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():  # whoever asked may have gone
                batch.append(waiting)
        return batch

    def _start(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[T, R]]) -> None:
        """Give a batch to a free worker."""
        self._free -= 1
        self._threads.submit(self._work, loop, batch)

    def _work(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[T, R]]) -> None:
        answers = self._answers(batch)
        self._done.set()
        try:
            loop.call_soon_threadsafe(self._finish, loop, batch, answers)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    def _answers(self, batch: list[_Waiting[T, R]]) -> Sequence[R | Exception]:
        if not batch:
            return []
        now = time.perf_counter()
        self._metrics.batch.observe(len(batch), self.name)
        for waiting in batch:
            self._metrics.queue.observe(now - waiting.since, self.name)
        try:
            return self._run([waiting.task for waiting in batch])
        except Exception as error:
            return [error] * len(batch)

    def _finish(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[T, R]], answers: Sequence[R | Exception]
    ) -> None:
        self._free += 1
        self._done.clear()
        _settle(batch, answers)
        self._begin(loop)


def _settle(batch: Sequence[_Waiting[T, R]], answers: Sequence[R | Exception]) -> None:
    """Give each of those that wait its answer."""
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(answer, Exception):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
