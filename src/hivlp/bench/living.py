"""A tuned index that goes on living: filters, additions, removals, compaction, and what each leaves of its figures.

WordNet's words are the items and its glosses the queries, as in ``hivlp bench ann``; everything goes through the index
folder, with its catalog, checksums and commits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hivlp.bench.ann.real import TESTED, TRAINED_FROM, read_real
from hivlp.bench.report import Report, measured, median_ms, milliseconds, quantiles
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


@dataclass(frozen=True, kw_only=True)
class LivingReport(Report):
    """Figures of a tuned index before and after it has changed; see :func:`run`."""

    items: int
    vectors_per_second: dict[str, int]
    durations_s: dict[str, float]
    stages: dict[str, Any]

    def to_text(self) -> str:
        """Tables for the terminal."""
        rates, seconds = self.vectors_per_second, self.durations_s
        lines = [
            f"{self.items} vectors; added {rates['empty']}/s to an empty index, {rates['living']}/s to a tuned one",
            f"tuned in {seconds['tune']:.0f} s, compacted in {seconds['compact']:.1f} s; the approximate index took a "
            f"fifth more in within {seconds['refresh']:.0f} s, and a tenth fewer within "
            f"{seconds['refresh_compacted']:.0f} s",
            f"{'':12s}{'passing':>8s}{'recall':>8s}{'p50 ms':>8s}{'p99 ms':>8s}{'times':>7s}",
        ]
        for stage, found in self.stages.items():
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


def run(model: HiVLP, queries: int = ASKED) -> LivingReport:
    """Measure on one thread.

    Args:
        model: encodes words and glosses, unless a bench has done so before.
        queries: how many are asked, each time.

    Returns:
        ``items``; ``vectors_per_second``: ``empty``, into an empty index, with its coarse level fitted before, and
        ``living``, into the tuned one; ``durations_s`` of the fit, of ``tune``, of ``compact`` and of ``refresh`` after
        the additions and after the removals; ``stages``: figures (see :func:`figures`) when ``tuned``, ``grown`` and
        ``compacted``.
    """
    began = time.perf_counter()
    real = read_real(model)
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
            seconds["tune"] = _seconds(lambda: index.tune(np.asarray(real.glosses[TRAINED_FROM:], np.float32)))
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
    return LivingReport(
        items=len(words),
        vectors_per_second={name: round(rate) for name, rate in rates.items()},
        durations_s={name: round(value, 2) for name, value in seconds.items()},
        stages=stages,
        **measured(began, "numpy"),
    )


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
        result[name], _ = _asked(index, queries, where)
        result[name]["times"] = round(result[name]["p50_ms"] / result["all"]["p50_ms"], 2)
    result["kinds"] = kinds_of_queries(index, queries, items)
    some = queries[:60]
    result["exact_ms"] = round(median_ms(lambda query: index.search(vector={FINE: query}, k=K, exact=True), some), 2)
    everything = index.snapshot().collection.scanners[-1]
    result["everything_ms"] = round(median_ms(lambda query: everything.top(query, K, None), some), 2)
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
        row, found = _asked(index, asked, None)
        widened = sum(any("widened" in step for step in each.plan) for each in found)
        result[name] = {**row, "widened": round(widened / len(asked), 3)}
    return result


def _asked(index: Index, queries: Vectors, where: str | None) -> tuple[dict[str, float], list[SearchResult]]:
    """Recall of the exact ten best and milliseconds of searches one by one, and what they found."""
    truth = index.search_many(vectors={FINE: queries}, k=K, exact=True, where=where)
    found, times = [], []
    index.search(vector={FINE: queries[0]}, k=K, where=where)  # a filter is worked out once
    for query in queries:
        started = time.perf_counter()
        found.append(index.search(vector={FINE: query}, k=K, where=where))
        times.append(1000 * (time.perf_counter() - started))
    return {"recall": _recall(truth, found), **quantiles(times)}, found


def _recall(truth: Sequence[SearchResult], found: Sequence[SearchResult]) -> float:
    shares = [
        len({hit.id for hit in one} & {hit.id for hit in other}) / max(1, len(one))
        for one, other in zip(truth, found, strict=True)
    ]
    return round(float(np.mean(shares)), 4)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _seconds(action: Callable[[], object]) -> float:
    return milliseconds(action) / 1000
