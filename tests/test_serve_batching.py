"""Dynamic batching: which thread runs a task, what runs together, and the rest of a loop that refuses."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from hivlp.serve import batching
from hivlp.serve.batching import Batcher
from hivlp.serve.errors import RequestError
from hivlp.serve.metrics import Metrics


def batcher(run, **options):
    return Batcher("searches", run, Metrics(), **options)


def threads_of(tasks):
    return [threading.current_thread().name for _ in tasks]


def test_a_lone_task_runs_in_the_loop_s_thread_where_it_may():
    queue = batcher(threads_of)

    async def ask():
        return await queue.do(1, inline=True), await queue.do(2)

    inline, queued = asyncio.run(ask())
    assert inline == threading.current_thread().name and queued.startswith("hivlp-searches")
    assert 'hivlp_batch_size_count{queue="searches"} 2' in queue._metrics.text()


def test_the_only_task_runs_at_once_and_is_told_what_was_wrong_with_it():
    queue = batcher(lambda tasks: [task if task else ValueError("no task") for task in tasks])
    assert queue.at_once(7) == 7
    with pytest.raises(ValueError, match="no task"):
        queue.at_once(0)
    told = queue._metrics.text()
    assert all(f'hivlp_{name}_count{{queue="searches"}} 2' in told for name in ("batch_size", "queue_seconds"))


def test_places_are_kept_for_what_a_round_of_the_loop_has_read():
    queue = batcher(threads_of, room=3)

    async def ask():
        waiting = asyncio.create_task(queue.do(0))
        queue._free = 0  # nobody takes it
        await asyncio.sleep(0)
        first = [queue.reserve() for _ in range(4)]
        await asyncio.sleep(0)
        second = [queue.reserve() for _ in range(4)]
        waiting.cancel()
        return first, second

    assert asyncio.run(ask()) == ([True, True, False, False],) * 2


@pytest.mark.parametrize("inline", [False, True])
def test_what_comes_in_one_round_or_while_workers_are_busy_is_one_batch(inline):
    free, sizes = threading.Event(), []

    def run(tasks):
        sizes.append(len(tasks))
        free.wait(10)
        return threads_of(tasks)

    queue = batcher(run, most=3)

    async def ask():
        first = [asyncio.create_task(queue.do(n)) for n in range(2)]
        while queue._free:
            await asyncio.sleep(0)
        others = [asyncio.create_task(queue.do(n, inline=inline)) for n in range(5)]
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*first), await asyncio.gather(*others)

    first, others = asyncio.run(ask())
    assert sizes == [2, 3, 2] and {name.startswith("hivlp-searches") for name in first} == {True}
    assert {name.startswith("hivlp-searches") for name in others} == {not inline}


def test_an_inline_task_that_fails_is_told_so_and_a_full_queue_refuses_it():
    async def ask(queue):
        return await queue.do(1, inline=True)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(ask(batcher(lambda tasks: [ZeroDivisionError()])))
    with pytest.raises(RequestError, match="0 searches are waiting"):
        asyncio.run(ask(batcher(threads_of, room=0)))


def test_a_loop_that_refuses_rests_once_a_round_until_a_worker_is_done(monkeypatch):
    monkeypatch.setattr(batching, "REST_SECONDS", 30.0)
    begun, rests = threading.Event(), []

    def run(tasks):
        begun.set()
        time.sleep(0.02)
        return tasks

    queue = batcher(run)
    wait = queue._done.wait
    queue._done = SimpleNamespace(
        wait=lambda seconds: rests.append(seconds) or wait(seconds), set=queue._done.set, clear=queue._done.clear
    )

    async def ask():
        asked = asyncio.create_task(queue.do("answer"))
        await asyncio.to_thread(begun.wait)
        for _ in range(5):
            queue.rest()
        return await asyncio.wait_for(asked, 10)

    assert asyncio.run(ask()) == "answer"
    assert rests == [30.0]
