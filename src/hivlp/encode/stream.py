"""Parallel loading and encoding of many pictures in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hivlp.encode.base import Encoder
from hivlp.errors import HivlpError
from hivlp.levels import Embeddings

T = TypeVar("T")
Pixels = NDArray[np.uint8]


@dataclass
class Batch(Generic[T]):
    """What became of one batch of jobs.

    Attributes:
        jobs: those that succeeded, in input order.
        embeddings: one row for each of ``jobs``.
        failures: those that did not, with the reason.
    """

    jobs: list[T]
    embeddings: Embeddings
    failures: list[tuple[T, HivlpError]] = field(default_factory=list)


def default_workers() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def encode_stream(
    encoder: Encoder,
    jobs: Iterable[T],
    load: Callable[[T], Pixels],
    *,
    batch_size: int = 8,
    workers: int | None = None,
    levels: Sequence[str] | None = None,
) -> Iterator[Batch[T]]:
    """Load and encode jobs in parallel, in order, with a bounded number of pictures in memory.

    Every worker thread loads one batch and runs the image graph on it by itself: decoding and ONNX Runtime both
    release the interpreter lock, and a core that finishes a batch never waits for another core's half of it.
    Encoders are expected to run single-threaded inside a call (see :class:`hivlp.encode.onnx.OnnxEncoder`).

    Args:
        encoder: the model.
        jobs: whatever ``load`` understands; consumed lazily.
        load: gives the (size, size, 3) uint8 pixels of one job; runs in worker threads.
        batch_size: pictures in one run of the graph.
        workers: threads; default one a core.
        levels: names of those that are computed; default all.

    Yields:
        One :class:`Batch` per ``batch_size`` jobs. Only :class:`HivlpError` from ``load`` counts as a failed job;
        anything else is a bug and is raised.
    """
    workers = workers or default_workers()

    def work(chunk: list[T]) -> Batch[T]:
        done: list[T] = []
        pixels: list[Pixels] = []
        failures: list[tuple[T, HivlpError]] = []
        for job in chunk:
            try:
                pixels.append(load(job))
                done.append(job)
            except HivlpError as error:
                failures.append((job, error))
        if pixels:
            stacked = np.stack(pixels)
            embeddings = encoder.encode_pixels(stacked, levels=levels) if levels else encoder.encode_pixels(stacked)
        else:
            wanted = [level for level in encoder.levels if levels is None or level.name in levels]
            embeddings = Embeddings({level.name: np.empty((0, level.dim), np.float32) for level in wanted})
        return Batch(done, embeddings, failures)

    pending: deque[Future[Batch[T]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="hivlp-encode") as pool:
        try:
            for chunk in chunks(jobs, batch_size):
                pending.append(pool.submit(work, chunk))
                # One batch waiting keeps the workers busy while the caller stores another; more would only hold memory.
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def chunks(jobs: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` (the last may be shorter). Python 3.11 has no ``itertools.batched``."""
    chunk: list[T] = []
    for job in jobs:
        chunk.append(job)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
