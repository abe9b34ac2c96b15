"""One engine on one collection, measured in a process of its own that may be slow, large or crash."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.collection import ITEMS, TEST, TRAIN, TRUTH, Collection
from hivlp.bench.ann.rivals.base import Product
from hivlp.bench.ann.truth import recall
from hivlp.bench.child import ONE_THREAD, listen, say
from hivlp.bench.report import memory_bytes
from hivlp.levels import Vectors

K = 10
ENOUGH = 0.997
ROUNDS = 3
ENOUGH_SECONDS = 3.0


def measure(
    rival: str, collection: Collection, timeout: float, queries: int = 1000, target: float | None = None
) -> dict[str, Any]:
    """Measure in a child process.

    Args:
        rival: ``module:Class``.
        collection: what to index and ask.
        timeout: seconds after which the child is stopped; what it measured by then is kept.
        queries: how many are timed one by one.
        target: the only recall whose speed matters: settings that do not find as much are not timed, and of those that
            find more and more only the first is (None: up to :data:`ENOUGH`).

    Returns:
        ``engine``; ``status`` ("ok", "not installed", "timeout", or what went wrong); if built, ``build_s``, and
        ``peak_mb`` and ``resident_mb`` over the process before; ``rows`` with ``setting``, ``recall``, ``qps``,
        ``p50_us``, ``p99_us`` and ``batch_qps``; of our index ``overheads`` (see
        :meth:`hivlp.bench.ann.rivals.base.Product.overheads`).
    """
    arguments = [rival, str(collection.folder), str(queries), *([] if target is None else ["--target", str(target)])]
    said = listen("hivlp.bench.ann.measure", arguments, timeout, ONE_THREAD)
    return {"engine": rival.partition(":")[2], "rows": [], **said}


def child(rival: str, folder: Path, queries: int, target: float | None = None) -> None:
    """What the child process does: a line of JSON for every step."""
    module, _, name = rival.partition(":")
    engine = getattr(importlib.import_module(module), name)()
    collection = Collection(folder)
    say({"engine": engine.name})
    # In memory before the engine is built, so that its own memory is what is added.
    items, train = np.array(collection.read(ITEMS)), np.array(collection.read(TRAIN))
    asked, truth = np.array(collection.read(TEST))[:queries], np.array(collection.read(TRUTH))[:queries, :K]
    before = memory_bytes("VmRSS") / 2**20
    started = time.perf_counter()
    try:
        engine.build(items, train)
    except ModuleNotFoundError:
        say({"status": "not installed"})
        return
    seconds = time.perf_counter() - started
    memory = {
        "peak_mb": round(memory_bytes("VmHWM") / 2**20 - before),
        "resident_mb": round(memory_bytes("VmRSS") / 2**20 - before),
    }
    say({"build_s": round(seconds, 2), **memory})
    for ladder in engine.settings():
        for setting in ladder:
            row = time_setting(engine, setting, asked, truth, target or 0)
            if row is None:
                continue
            say({"rows": [row]})
            if row["recall"] >= (target or ENOUGH):
                break
    if isinstance(engine, Product):
        say({"overheads": engine.overheads(asked, K)})


def time_setting(
    engine: Any, setting: dict[str, Any], queries: Vectors, truth: NDArray[np.int64], least: float = 0
) -> dict[str, Any] | None:
    """One setting: all queries at once for the recall and the batch speed, one by one for the others.

    None if the recall is less than ``least``.
    """
    for query in queries[:20]:
        engine.search(query[None], K, setting)
    batches: list[float] = []
    rounds: list[list[float]] = []
    for _ in range(ROUNDS):  # the least disturbed one counts: other programs may run
        started = time.perf_counter()
        found = engine.search(queries, K, setting)
        batches.append(len(queries) / (time.perf_counter() - started))
        if not rounds and recall(found, truth) < least:
            return None
        times: list[float] = []
        for query in queries:
            started = time.perf_counter()
            engine.search(query[None], K, setting)
            times.append(time.perf_counter() - started)
            if sum(times) > ENOUGH_SECONDS and len(times) >= 100:
                break
        rounds.append(times)
        if sum(times) > ENOUGH_SECONDS:  # slow enough to be sure
            break
    times, batch = min(rounds, key=lambda times: sum(times) / len(times)), max(batches)
    p50, p99 = np.percentile(times, [50, 99]) * 1e6
    return {
        "setting": {key: str(value) if not isinstance(value, int | float) else value for key, value in setting.items()},
        "recall": round(recall(found, truth), 4),
        "qps": round(len(times) / sum(times), 1),
        "p50_us": round(float(p50), 1),
        "p99_us": round(float(p99), 1),
        "batch_qps": round(batch, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rival")
    parser.add_argument("folder", type=Path)
    parser.add_argument("queries", type=int)
    parser.add_argument("--target", type=float)
    given = parser.parse_args()
    child(given.rival, given.folder, given.queries, given.target)
