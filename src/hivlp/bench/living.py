"""A tuned index that goes on living: filters, additions, removals, compaction, and what each leaves of its figures.

WordNet's words are the items and its glosses the queries, as in ``hivlp bench ann``; everything goes through the index
folder, with its catalog, checksums and commits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hivlp.bench.ann.real import TESTED, TRAINED_FROM, read_real
from hivlp.bench.machine import describe
from hivlp.coarse.maps import FINE
from hivlp.encode import HiVLP
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.levels import Vectors
from hivlp.search.results import SearchResult

K = 10
LATER = 0.2  # of the items, added when the index is tuned already
REMOVED = 0.1
ASKED = 300
FILTERS = {"1%": "id % 100 = 0", "10%": "id % 10 = 0", "50%": "id % 2 = 0"}


def run(model: HiVLP, queries: int = ASKED) -> dict[str, Any]:
    """Measure on one thread.

    Args:
        model: encodes words and glosses, unless a bench has done so before.
        queries: how many are asked, each time.

    Returns:
        ``items``; ``vectors_per_second``: ``empty``, into an empty index, with its coarse level fitted before, and
        ``living``, into the tuned one; ``seconds`` of the fit, of ``tune``, of ``compact`` and of ``refresh`` after
        the additions and after the removals; ``stages``: figures (see :func:`figures`) when ``tuned``, ``grown`` and
        ``compacted``; the machine.
    """
    real = read_real(model, pictures=False)
    words, asked = np.asarray(real.words, np.float32), np.asarray(real.glosses[:TESTED], np.float32)[:queries]
    later = int(len(words) * (1 - LATER))
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=6, desc="stages", disable=None) as bar:
        folder, first, rest = Path(scratch) / "index", Path(scratch) / "first.npy", Path(scratch) / "rest.npy"
        np.save(first, words[:later])
        np.save(rest, words[later:])
        report = index_embeddings(folder, first, method="lean")
        seconds["fit"] = report.fit.seconds if report.fit else 0.0
        rates = {"empty": later / report.added.seconds}
        bar.update()
        with Index.open(folder) as index:
            start = time.perf_counter()
            index.tune(np.asarray(real.glosses[TRAINED_FROM:], np.float32))
            seconds["tune"] = time.perf_counter() - start
            bar.update()
            stages = {"tuned": figures(index, asked, words[:later])}
            bar.update()
            rates["living"] = (len(words) - later) / index.add_embeddings(rest).seconds
            seconds["refresh"] = _seconds(lambda: index.refresh())
            stages["grown"] = figures(index, asked, words[:later])
            bar.update()
            ids = np.random.default_rng(0).permutation(len(words))[: int(REMOVED * len(words))] + 1
            index.remove(ids.tolist())
            seconds["compact"] = _seconds(index.compact)
            seconds["refresh_compacted"] = _seconds(lambda: index.refresh())
            bar.update()
            stages["compacted"] = figures(index, asked, words[:later])
            bar.update()
    return {
        "items": len(words),
        "vectors_per_second": {name: round(rate) for name, rate in rates.items()},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "stages": stages,
        "machine": describe("numpy"),
    }


def figures(index: Index, queries: Vectors, items: Vectors) -> dict[str, Any]:
    """What a tuned index does with these queries, one at a time.

    Args:
        index: tuned.
        queries: like those that it was tuned with.
        items: some of what it holds.

    Returns:
        By ``all`` and each of :data:`FILTERS`: ``recall`` of the exact ten best, ``p50_ms`` and ``p99_ms``, and
        ``times``, of what it takes without a filter; ``kinds`` (see :func:`kinds_of_queries`); ``exact_ms`` and
        ``everything_ms``: the median of an exact search, and of one that reads every vector.
    """
    result: dict[str, Any] = {}
    for name, where in ({"all": None} | FILTERS).items():
        truth = index.search_many(vectors={FINE: queries}, k=K, exact=True, where=where)
        found, times = [], []
        index.search(vector={FINE: queries[0]}, k=K, where=where)  # a filter is worked out once
        for query in queries:
            start = time.perf_counter()
            found.append(index.search(vector={FINE: query}, k=K, where=where))
            times.append((time.perf_counter() - start) * 1000)
        result[name] = {"recall": _recall(truth, found), **_quantiles(times)}
        result[name]["times"] = round(result[name]["p50_ms"] / result["all"]["p50_ms"], 2)
    result["kinds"] = kinds_of_queries(index, queries, items)
    some = queries[:60]
    result["exact_ms"] = _median_ms(lambda query: index.search(vector={FINE: query}, k=K, exact=True), some)
    everything = index.snapshot().collection.scanners[-1]
    result["everything_ms"] = _median_ms(lambda query: everything.top(query, K, None), some)
    return result


def kinds_of_queries(index: Index, queries: Vectors, items: Vectors) -> dict[str, dict[str, float]]:
    """What a tuned index finds for queries like those that it was tuned with, and for others.

    Returns:
        By kind, ``recall`` of the exact ten best, ``p50_ms`` and ``p99_ms``, and the share of queries that were seen to
        be unlike the sample and were ``widened``.
    """
    rng = np.random.default_rng(0)
    noise = _unit(rng.normal(size=queries.shape).astype(np.float32))
    kinds = {
        "like the sample": queries,
        "items": _unit(items[rng.permutation(len(items))[: len(queries)]]),
        "noisy": _unit(queries + noise),
        "noisier": _unit(queries + 2 * noise),
        "random directions": noise,
        "negated": -queries,
        "another model's": _unit(queries[:, rng.permutation(queries.shape[1])]),
    }
    result = {}
    for name, asked in kinds.items():
        truth, found, times, widened = index.search_many(vectors={FINE: asked}, k=K, exact=True), [], [], 0
        for query in asked:
            start = time.perf_counter()
            found.append(index.search(vector={FINE: query}, k=K))
            times.append((time.perf_counter() - start) * 1000)
            widened += any("widened" in step for step in found[-1].plan)
        result[name] = {"recall": _recall(truth, found), **_quantiles(times), "widened": round(widened / len(asked), 3)}
    return result


def format_text(result: Mapping[str, Any]) -> str:
    """A table for the terminal."""
    rates, seconds = result["vectors_per_second"], result["seconds"]
    lines = [
        f"{result['items']} vectors; added {rates['empty']}/s to an empty index, {rates['living']}/s to a tuned one",
        f"tuned in {seconds['tune']:.0f} s, compacted in {seconds['compact']:.1f} s; the engine took a fifth more in "
        f"within {seconds['refresh']:.0f} s, and a tenth fewer within {seconds['refresh_compacted']:.0f} s",
        f"{'':12s}{'passing':>8s}{'recall':>8s}{'p50 ms':>8s}{'p99 ms':>8s}{'times':>7s}",
    ]
    for stage, found in result["stages"].items():
        for name in ("all", *FILTERS):
            row = found[name]
            lines.append(
                f"{stage:12s}{name:>8s}{row['recall']:8.4f}{row['p50_ms']:8.3f}{row['p99_ms']:8.3f}{row['times']:7.2f}"
            )
        for kind, row in found["kinds"].items():
            figures_of = f"recall {row['recall']:.4f}, p50 {row['p50_ms']:.3f} ms, widened {row['widened']:.0%}"
            lines.append(f"{stage:12s}{kind:>18s} {figures_of}")
        lines.append(f"{stage:12s}exact {found['exact_ms']} ms, reading everything {found['everything_ms']} ms")
    return "\n".join(lines)


def _recall(truth: Sequence[SearchResult], found: Sequence[SearchResult]) -> float:
    shares = [
        len({hit.id for hit in one} & {hit.id for hit in other}) / max(1, len(one))
        for one, other in zip(truth, found, strict=True)
    ]
    return round(float(np.mean(shares)), 4)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _quantiles(times: list[float]) -> dict[str, float]:
    return {f"p{share}_ms": round(float(np.percentile(times, share)), 3) for share in (50, 99)}


def _median_ms(action: Callable[[Vectors], object], queries: Vectors) -> float:
    times = []
    for query in queries:
        start = time.perf_counter()
        action(query)
        times.append((time.perf_counter() - start) * 1000)
    return round(float(np.median(times)), 2)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
