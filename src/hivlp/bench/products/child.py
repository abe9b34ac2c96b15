"""One product in a process of its own: a phase of its measurement, and a line of JSON for every figure."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.truth import recall as recall_at
from hivlp.bench.child import say
from hivlp.bench.products.choose import choose
from hivlp.bench.products.collection import (
    FILTERED,
    ITEMS,
    LEARN,
    REMOVE,
    SHARES,
    TEST,
    VALIDATION,
    Collection,
    K,
    filters,
)
from hivlp.bench.products.rivals import PRODUCTS, Product
from hivlp.bench.products.rivals.base import Between, Effort, rows_of
from hivlp.bench.report import memory_bytes
from hivlp.levels import Vectors

WANTED = (0.95, 0.99)
PHASES = {
    "build": ["build", "disk"],
    "ask": [
        "search 0.95",
        "search 0.99",
        "batch 0.95",
        "batch 0.99",
        *(f"filter {share}" for share in SHARES),
        "threads",
    ],
    "open": ["open", "memory"],
    "change": ["added", "removed"],
}
"""Phase -> the measures that it says something of, by what :func:`row` calls them."""

ROUNDS = 3  # of which the least disturbed counts: other programs may run
ENOUGH_SECONDS = 1.0
WARM = 20
LEAST_QUERIES = 30
THREADS = 2


def child(name: str, phase: str, folder: Path, collection: Collection, efforts: dict[str, Any]) -> None:
    """Say ``status`` or ``rows`` of a phase (see :data:`PHASES`) with ``measure`` and its figures.

    Args:
        name: of the product's class.
        phase: ``build``, in an empty folder; ``ask`` and ``open``, what was built; ``change``, a copy of that.
        folder: of the product.
        collection: what is indexed and asked.
        efforts: by recall, what ``ask`` said it chose, for the phases after it.
    """
    product = next(each for each in PRODUCTS if each.__name__ == name)()
    before = memory_bytes("RssAnon")
    try:
        product.load()
    except ModuleNotFoundError as error:
        say({"status": f"not installed: {error.name}"})
        return
    match phase:
        case "build":
            _build(product, folder, collection)
        case "ask":
            product.open(folder)
            _ask(product, collection)
        case "open":
            _open(product, folder, collection, efforts, before)
        case "change":
            product.open(folder)
            _change(product, collection, efforts)


def _build(product: Product, folder: Path, collection: Collection) -> None:
    items, payloads, learn = collection.read(ITEMS), collection.payloads(), np.array(collection.read(LEARN))
    count = collection.later()
    started, of_cores = time.perf_counter(), time.process_time()
    product.build(folder, items[:count], payloads[:count], learn)
    figures = {"build_s": time.perf_counter() - started, "cpu_s": time.process_time() - of_cores}
    row("build", **{name: round(value, 2) for name, value in figures.items()})
    blocks = [path.stat() for path in folder.rglob("*") if path.is_file()]
    # Some make files with holes, which take no room.
    row("disk", disk_mb=round(sum(512 * each.st_blocks for each in blocks) / 2**20, 1))


def _ask(product: Product, collection: Collection) -> None:
    """Choose search parameters on validation queries, and measure them on test queries."""
    pin(1)
    validation, test = (np.array(collection.read(name)) for name in (VALIDATION, TEST))
    truth = {name: collection.truth(name) for name in (VALIDATION, TEST)}
    ladders = product.efforts()

    @each_once
    def recall(effort: Effort) -> float:
        few = affordable(product, validation, effort)
        found = product.search_many(validation[:few], K, effort)
        return recall_at(np.array([rows_of(hits, K) for hits in found]), truth[VALIDATION][:few])

    def one_by_one(effort: Effort) -> float:
        return min(float(np.median(seconds(product, validation[:FILTERED], effort))) for _ in range(2))

    def at_once(effort: Effort) -> float:
        few = affordable(product, validation, effort)
        return min(batch_seconds(product, validation[:few], effort) for _ in range(2)) / few

    chosen: dict[str, Effort] = {}
    for wanted in WANTED:
        single = choose(ladders, wanted, recall, each_once(one_by_one))
        batch = choose(ladders, wanted, recall, each_once(at_once))
        if single is None or batch is None:
            most = max(recall(ladder[-1]) for ladder in ladders)
            for measure in ("search", "batch"):
                row(f"{measure} {wanted}", recall_wanted=wanted, status=f"finds {most:.4f} at most")
            continue
        chosen[str(wanted)] = single
        times, found = rounds(product, test, single)
        figures = {"recall": recall_at(found, truth[TEST][: len(found)]), **spread(times), "queries": len(found)}
        row(f"search {wanted}", recall_wanted=wanted, effort=single, **figures)
        some = test[: affordable(product, test, batch)]
        found = np.array([rows_of(hits, K) for hits in product.search_many(some, K, batch)])
        taken = min(batch_seconds(product, some, batch) for _ in range(ROUNDS))
        figures = {"recall": recall_at(found, truth[TEST][: len(some)]), "qps": round(len(some) / taken, 1)}
        row(f"batch {wanted}", recall_wanted=wanted, effort=batch, **figures, queries=len(some))
    say({"efforts": chosen})
    effort = chosen.get(str(WANTED[-1])) or ladders[-1][-1]
    for share in SHARES:
        _filter(product, collection, share, next(ladder for ladder in ladders if effort in ladder))
    _threads(product, test, effort)


def _filter(product: Product, collection: Collection, share: float, ladder: list[Effort]) -> None:
    """A filter that was never asked for, and one that was, with the effort that it needs for a recall of 0.99."""
    again, *once = filters(share)
    validation, test = (np.array(collection.read(name))[:FILTERED] for name in (VALIDATION, TEST))
    truth = {name: collection.truth(name, str(share)) for name in (VALIDATION, TEST)}

    @each_once
    def recall(effort: Effort) -> float:
        few = affordable(product, validation, effort, again)
        found = [rows_of(product.search(query, K, effort, again), K) for query in validation[:few]]
        return recall_at(np.array(found), truth[VALIDATION][:few])

    effort = choose([ladder], WANTED[-1], recall, lambda effort: 0.0) or ladder[-1]
    first, found_first = [], []
    for query, years in zip(test, once, strict=False):
        started = time.perf_counter()
        hits = product.search(query, K, effort, years)
        first.append(time.perf_counter() - started)
        found_first.append(rows_of(hits, K))
    times, found = rounds(product, test, effort, again)
    row(
        f"filter {share}",
        share=share,
        effort=effort,
        recall=recall_at(found, truth[TEST][: len(found)]),
        recall_first=recall_at(np.array(found_first), collection.truth(TEST, f"first-{share}")),
        first_ms=round(1000 * float(np.median(first)), 4),
        again_ms=spread(times)["p50_ms"],
        queries=len(found),
    )


def _threads(product: Product, queries: Vectors, effort: Effort) -> None:
    """Threads that ask one by one, on as many cores, beside one thread."""
    rates = {}
    for count in (1, THREADS):
        pin(count)
        until, asked = time.perf_counter() + ENOUGH_SECONDS, [0] * count

        def ask(which: int, until: float = until, asked: list[int] = asked) -> None:
            while time.perf_counter() < until:
                product.search(queries[asked[which] % len(queries)], K, effort)
                asked[which] += 1

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[count] = sum(asked) / ENOUGH_SECONDS
    figures = {"qps": round(rates[THREADS], 1), "qps_one": round(rates[1], 1)}
    row("threads", threads=THREADS, effort=effort, **figures, times=round(rates[THREADS] / rates[1], 2))


def _open(product: Product, folder: Path, collection: Collection, efforts: dict[str, Effort], before: int) -> None:
    """Opening and the first query of a process, and the memory of its own that it has after some more."""
    pin(1)
    queries = np.array(collection.read(TEST))[:FILTERED]
    started = time.perf_counter()
    product.open(folder)
    effort = efforts.get(str(WANTED[-1])) or product.efforts()[-1][-1]
    product.search(queries[0], K, effort)
    row("open", ms=round(1000 * (time.perf_counter() - started), 2))
    for query in queries[: affordable(product, queries, effort)]:
        product.search(query, K, effort)
    row("memory", private_mb=round((memory_bytes("RssAnon") - before) / 2**20, 1))


def _change(product: Product, collection: Collection, efforts: dict[str, Effort]) -> None:
    """A tenth more items, then a tenth fewer, with the maintenance that is asked for."""
    count = collection.later()
    effort = efforts.get(str(WANTED[-1])) or product.efforts()[-1][-1]
    test = np.array(collection.read(TEST))
    pin(1)
    before, _ = rounds(product, test, effort)
    unpin()
    more, payloads, remove = collection.read(ITEMS)[count:], collection.payloads()[count:], collection.read(REMOVE)
    changes: dict[str, Callable[[], None]] = {
        "added": lambda: product.add(more, payloads),
        "removed": lambda: product.remove(remove.tolist()),
    }
    for measure, change in changes.items():
        started = time.perf_counter()
        try:
            change()
        except NotImplementedError:
            row(measure, status="cannot be changed while it is open in this way")
            continue
        taken = time.perf_counter() - started
        pin(1)
        times, found = rounds(product, test, effort)
        unpin()
        figures = {"recall": recall_at(found, collection.truth(TEST, measure)[: len(found)]), **spread(times)}
        figures["times"] = round(figures["p50_ms"] / spread(before)["p50_ms"], 2)
        row(measure, effort=effort, change_s=round(taken, 2), **figures, queries=len(found))


def row(measure: str, **figures: Any) -> None:
    """Say the figures of a measure."""
    short = {key: round(value, 4) if key.startswith("recall") else value for key, value in figures.items()}
    say({"rows": [{"measure": measure, "status": "ok", **short}]})


def affordable(product: Product, queries: Vectors, effort: Effort, years: Between | None = None) -> int:
    """How many queries take some seconds, at least :data:`LEAST_QUERIES`."""
    taken = float(np.median(seconds(product, queries[:5], effort, years)))
    return int(np.clip(ENOUGH_SECONDS / taken, min(LEAST_QUERIES, len(queries)), len(queries)))


def rounds(
    product: Product, queries: Vectors, effort: Effort, years: Between | None = None
) -> tuple[list[float], NDArray[np.int64]]:
    """Seconds of queries one by one, those of the quickest round, and the rows that they found."""
    few = affordable(product, queries, effort, years)
    for query in queries[:WARM]:
        product.search(query, K, effort, years)
    best: list[float] = []
    for _ in range(ROUNDS):
        times = seconds(product, queries[:few], effort, years)
        best = times if not best else min(best, times, key=np.median)
        if sum(times) > ENOUGH_SECONDS:  # slow enough to be sure
            break
    return best, np.array([rows_of(product.search(query, K, effort, years), K) for query in queries[:few]])


def seconds(product: Product, queries: Vectors, effort: Effort, years: Between | None = None) -> list[float]:
    """Of each query, asked one by one."""
    times = []
    for query in queries:
        started = time.perf_counter()
        product.search(query, K, effort, years)
        times.append(time.perf_counter() - started)
    return times


def batch_seconds(product: Product, queries: Vectors, effort: Effort) -> float:
    """Of all queries, asked at once."""
    started = time.perf_counter()
    product.search_many(queries, K, effort)
    return time.perf_counter() - started


def spread(times: Sequence[float]) -> dict[str, float]:
    """``p50_ms`` and ``p99_ms`` of some seconds."""
    return {f"p{share}_ms": round(1000 * float(np.percentile(times, share)), 4) for share in (50, 99)}


def each_once(measure: Callable[[Effort], float]) -> Callable[[Effort], float]:
    """A measurement that remembers."""
    cached = functools.cache(lambda text: measure(json.loads(text)))
    return lambda effort: cached(json.dumps(effort))


def pin(cores: int) -> None:
    """Let this process, all its threads included, use so many cores: libraries start threads of their own."""
    if hasattr(os, "sched_setaffinity"):
        some = sorted(CORES)[-cores:]
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), some)


def unpin() -> None:
    """Let it use all cores that it had when it started."""
    pin(len(CORES))


CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("product")
    parser.add_argument("phase", choices=list(PHASES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--efforts", type=json.loads, default={})
    given = parser.parse_args()
    child(given.product, given.phase, given.folder, Collection(given.collection), given.efforts)
    sys.stdout.flush()
