"""A tuned index that goes on living: filters, additions, removals, compaction, and what each leaves of its figures.

WordNet's words are the items and its glosses the queries, as in ``hivlp bench ann``; everything goes through the index
folder, with its catalog, checksums and commits.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
GROWTH = 1.1  # times as many items, when the rest is added to the tuned index
REMOVED = 0.1  # of these
ASKED = 300
ROUNDS = 3  # that all queries are timed before and after additions
FILTERS = {"1%": "id % 100 = 0", "10%": "id % 10 = 0", "50%": "id % 2 = 0"}


@dataclass(frozen=True, kw_only=True)
class LivingReport(Report):
    """Figures of a tuned index before and after it has changed; see :func:`run`."""

    items: int
    vectors_per_second: dict[str, int]
    durations_s: dict[str, float]
    stages: dict[str, Any]
    grown_ratio: float

    def to_text(self) -> str:
        """Tables for the terminal."""
        rates, seconds = self.vectors_per_second, self.durations_s
        lines = [
            f"{self.items} vectors; added {rates['empty']}/s to an empty index, {rates['living']}/s to a tuned one",
            f"tuned in {seconds['tune']:.0f} s, again in {seconds['tune_again']:.0f} s; a tenth more added in "
            f"{seconds['add']:.1f} s, {seconds['add_plain']:.1f} s to an index that is not tuned; a tenth removed in "
            f"{seconds['remove']:.1f} s, compacted in {seconds['compact']:.1f} s",
            f"a search takes {self.grown_ratio:.2f} times as long after a tenth more",
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
        ``living``, into the tuned one; ``durations_s`` of the fit, of ``tune``, of adding a tenth more (``add``), of
        the same to an index that is not tuned (``add_plain``), of ``remove``, ``compact`` and ``tune_again``;
        ``stages``: figures (see :func:`figures`) when ``tuned``, ``grown``, ``compacted`` and ``tuned again``;
        ``grown_ratio``: the median time of a search after a tenth more over that before, each asked in turns.
    """
    began = time.perf_counter()
    real = read_real(model)
    words, asked = np.asarray(real.words, np.float32), np.asarray(real.glosses[:TESTED], np.float32)[:queries]
    later = int(len(words) / GROWTH)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=6, desc="stages", disable=None) as bar:
        folder, first, rest = Path(scratch) / "index", Path(scratch) / "first.npy", Path(scratch) / "rest.npy"
        plain, before = Path(scratch) / "plain", Path(scratch) / "before"
        np.save(first, words[:later])
        np.save(rest, words[later:])
        report = index_embeddings(folder, first, method="lean")
        seconds["fit"] = report.fit.seconds if report.fit else 0.0
        rates = {"empty": later / report.added.seconds}
        shutil.copytree(folder, plain)
        with Index.open(plain) as other:
            seconds["add_plain"] = _seconds(lambda: other.add_embeddings(rest))
        bar.update()
        with Index.open(folder) as index:
            seconds["tune"] = _seconds(lambda: index.tune(np.asarray(real.glosses[TRAINED_FROM:], np.float32)))
            bar.update()
            there = np.ones(len(words), bool)
            there[later:] = False
            stages = {"tuned": figures(index, asked, words[there])}
            bar.update()
            shutil.copytree(folder, before)
            seconds["add"] = _seconds(lambda: index.add_embeddings(rest))
            rates["living"] = (len(words) - later) / seconds["add"]
            with Index.open(before) as other:
                grown_ratio = _ratio(index, other, asked)
            there[later:] = True
            stages["grown"] = figures(index, asked, words[there])
            bar.update()
            gone = np.random.default_rng(0).permutation(len(words))[: int(REMOVED * len(words))]
            there[gone] = False
            seconds["remove"] = _seconds(lambda: index.remove((gone + 1).tolist()))
            seconds["compact"] = _seconds(index.compact)
            bar.update()
            stages["compacted"] = figures(index, asked, words[there], words[gone])
            bar.update()
            seconds["tune_again"] = _seconds(index.tune)
            stages["tuned again"] = figures(index, asked, words[there], words[gone])
    return LivingReport(
        items=len(words),
        vectors_per_second={name: round(rate) for name, rate in rates.items()},
        durations_s={name: round(value, 2) for name, value in seconds.items()},
        stages=stages,
        grown_ratio=grown_ratio,
        **measured(began, "numpy"),
    )


def figures(index: Index, queries: Vectors, items: Vectors, removed: Vectors | None = None) -> dict[str, Any]:
    """What a tuned index does with these queries, one at a time.

    Args:
        index: tuned.
        queries: like those that it was tuned with.
        items: that it holds.
        removed: items that it held.

    Returns:
        By ``all`` and each of :data:`FILTERS`: ``recall`` of the exact ten best, ``p50_ms`` and ``p99_ms``, and
        ``times``, of what it takes without a filter; ``kinds`` (see :func:`kinds_of_queries`); ``exact_ms`` and
        ``everything_ms``: the median of an exact search, and of one that reads every vector.
    """
    result: dict[str, Any] = {}
    for name, where in ({"all": None} | FILTERS).items():
        result[name], _ = _asked(index, queries, where)
        result[name]["times"] = round(result[name]["p50_ms"] / result["all"]["p50_ms"], 2)
    result["kinds"] = kinds_of_queries(index, queries, items, removed)
    some = queries[:60]
    result["exact_ms"] = round(median_ms(lambda query: index.search(vector={FINE: query}, k=K, exact=True), some), 2)
    everything = index.snapshot().collection.scanners[-1]
    result["everything_ms"] = round(median_ms(lambda query: everything.top(query, K, None), some), 2)
    return result


def kinds_of_queries(
    index: Index, queries: Vectors, items: Vectors, removed: Vectors | None = None
) -> dict[str, dict[str, float]]:
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
    if removed is not None:
        kinds["removed items"] = _unit(removed[: len(queries)])
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


def _ratio(one: Index, other: Index, queries: Vectors) -> float:
    """Median time of a search of one index over that of another, asked in turns: what else runs slows down both."""
    times: tuple[list[float], list[float]] = ([], [])
    for query in np.concatenate([queries[:20], *[queries] * ROUNDS]):
        for index, held in zip((one, other), times, strict=True):
            held.append(milliseconds(partial(index.search, vector={FINE: query}, k=K)))
    medians = [float(np.median(held[20:])) for held in times]
    return round(medians[0] / medians[1], 3)


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
