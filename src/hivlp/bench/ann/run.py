"""Measure every engine on one collection, and say what ours is worth."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hivlp.bench.ann import rivals
from hivlp.bench.ann.collection import ITEMS, Collection, write_collection
from hivlp.bench.ann.kept import Kept
from hivlp.bench.ann.measure import measure
from hivlp.bench.ann.real import TESTED, TRAINED_FROM, RealSet, bench_folder, read_real
from hivlp.bench.ann.sentences import MILLION, read_sentences
from hivlp.bench.report import Report, machine, measured
from hivlp.encode import HiVLP
from hivlp.errors import MissingExtraError

POOLS = (1_000, 5_000, 31_014, 123_287)
WANTED = 0.99
RECALLS = (0.93, 0.95, 0.97, WANTED)
TIMEOUTS = {"small": 180.0, "full": 4 * 3600.0}
DEADLINES = 420.0, 600.0  # seconds after which the small size tries no more engines, and no more parts
LEAST = 10.0  # seconds in which an engine can say anything
LIBRARIES = ("faiss-cpu", "hnswlib", "usearch", "scann", "rabitqlib", "pyvsag", "numpy")


@dataclass(frozen=True, kw_only=True)
class AnnReport(Report):
    """Speed and recall of ours and of other libraries' indexes; see :func:`compare` and :func:`run`."""

    size: str
    items: int
    dim: int
    speedup_best_rival: float | None
    best_rival: str | None
    speedup_flat: float | None
    speedup_best_rival_batch: float | None
    best_rival_batch: str | None
    speedup_best_rival_product: float | None
    speedup_best_rival_product_batch: float | None
    product_overhead_us: dict[str, float] = field(default_factory=dict)
    product_overhead_batch: dict[str, float] = field(default_factory=dict)
    overheads: list[dict[str, Any]]
    engines: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    pools: list[dict[str, Any]]
    speedups: list[dict[str, Any]]

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{self.items} vectors of {self.dim} dimensions, one thread, recall@10 ≥ {WANTED}"]
        lines.append(
            f"{'engine':28s}{'recall':>8s}{'µs p50':>9s}{'p99':>9s}{'QPS':>9s}{'batch':>9s}{'build s':>9s}{'MB':>7s}"
        )
        for about in self.engines:
            rows = [row for row in self.rows if row["engine"] == about["engine"]]
            there = [row for row in rows if row["recall"] >= WANTED]
            row = (
                max(there, key=lambda row: row["qps"])
                if there
                else max(rows, key=lambda row: row["recall"], default=None)
            )
            note = "" if about["status"] == "ok" else f"  {about['status']}"
            note += f"  measured on {about['measured']}" if "measured" in about else ""
            if row is None:
                lines.append(f"{about['engine']:28s}{note}")
                continue
            batch = max((row["batch_qps"] for row in there), default=row["batch_qps"])
            lines.append(
                f"{about['engine']:28s}{row['recall']:8.4f}{row['p50_us']:9.0f}{row['p99_us']:9.0f}{row['qps']:9.0f}"
                f"{batch:9.0f}{about['build_s']:9.0f}{about['resident_mb']:7.0f}{note}"
            )
        for each in self.speedups:
            for what, ending in (("one at a time", ""), ("many at once", "_batch")):
                if (gain := each[f"speedup_best_rival{ending}"]) is not None:
                    best = each[f"best_rival{ending}"]
                    lines.append(f"recall ≥ {each['recall']}, {what}: {gain:.2f} times the best other engine ({best})")
            if (gain := each["speedup_best_rival_product"]) is not None:
                batch = each["speedup_best_rival_product_batch"]
                lines.append(
                    f"  and by Index.search, ids taken from its results, {gain:.2f} times; many at once {batch:.2f}"
                )
        lines += [
            f"{each['items']:>9d} items, recall {each['recall']}: the engine takes {each['engine_us']:.0f} µs, "
            f"Index.search {each['overhead_us']:.0f} more, with every hit looked at {each['hits_us']:.0f} in all; "
            f"many at once {each['batch_overhead']:+.0%}, with every hit {each['batch_hits_us']:.0f} µs"
            for each in self.overheads
        ]
        if self.speedup_flat is not None:
            lines.append(f"one at a time: {self.speedup_flat:.1f} times an exhaustive scan")
        lines += [
            f"{pool['items']:>9d} real vectors: {pool['speedup']:.1f} times an exhaustive scan"
            for pool in self.pools
            if pool["speedup"] is not None
        ]
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def run(
    size: str, model: HiVLP, plot: Path | None = None, *, sentences: int = MILLION, fresh: bool = False
) -> AnnReport:
    """Measure.

    Args:
        size: ``small``, words asked for by glosses, the best-known engines, ten minutes; ``full``, sentences asked for
            by titles, all engines: hours. It goes on where it stopped: what was encoded is not encoded again, and other
            engines than ours that were measured before, on this machine and with this code, are not measured again.
        model: encodes the texts.
        plot: where to draw recall and speed.
        sentences: of the full size, how many.
        fresh: measure all again.

    Returns:
        What :func:`compare` returns; ``pools``: our index's gain over an exhaustive scan of parts of the words;
        ``overheads``, of these and of the whole; ``product_overhead_us`` and ``product_overhead_batch``: of them, µs a
        search and share of many at once at 99% recall, by number of items; the machine.

    Raises:
        DataError: if a package with texts is not installed.
        MissingExtraError: if faiss or, for a plot, matplotlib is not installed.
    """
    if _version("faiss-cpu") is None or (plot is not None and _version("matplotlib") is None):
        raise MissingExtraError("`hivlp bench ann`", "bench")
    started = time.perf_counter()
    real = read_real(model)
    collection = read_sentences(model, sentences) if size == "full" else _words(real)
    chosen = rivals.SMALL if size == "small" else rivals.FULL
    libraries = [name for name in LIBRARIES if _version(name) is not None]
    of_engines, of_parts = (started + each if size == "small" else None for each in DEADLINES)
    kept = Kept(collection.folder / "measured", machine(*libraries)) if size == "full" and not fresh else None
    result = compare(collection, [_path_of(each) for each in chosen], TIMEOUTS[size], of_engines, kept)
    beside = pools(real, TIMEOUTS[size], of_parts)
    overheads = [*(each for pool in beside for each in pool.pop("overheads")), *result.pop("overheads")]
    if plot is not None:
        draw(result, plot)
    return AnnReport(
        size=size,
        **result,
        product_overhead_us=_by_size(overheads, "overhead_us"),
        product_overhead_batch=_by_size(overheads, "batch_overhead"),
        overheads=overheads,
        pools=beside,
        **measured(started, *libraries),
    )


def _by_size(overheads: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    return {str(each["items"]): each[key] for each in overheads if each["recall"] == WANTED}


def compare(
    collection: Collection,
    engines: Sequence[str],
    timeout: float,
    deadline: float | None = None,
    kept: Kept | None = None,
    target: float | None = None,
) -> dict[str, Any]:
    """Measure engines one after another; the first is ours, the second the exhaustive one.

    Args:
        collection: to search.
        engines: ``module:Class``.
        timeout: seconds for each.
        deadline: by :func:`time.perf_counter`, when all must be done; what has no time left says so.
        kept: what was measured of others than ours before, and where to keep what is measured now.
        target: the only recall whose speed matters, if there is one.

    Returns:
        ``items``, ``dim``; ``engines``: as :func:`hivlp.bench.ann.measure.measure` says, without rows, and
        ``measured``, the day, for what was kept; ``rows``: of
        all, with ``engine`` and whether they are on its Pareto ``front``; ``speedup_best_rival``: our speed, one
        query at a time, over that of the fastest other engine, each with the fastest setting that finds 99% of the
        exact top ten, and ``best_rival``; ``speedup_flat``: over the exhaustive scan; ``speedup_best_rival_batch``,
        ``best_rival_batch``: many queries at once. None if an engine to compare with does not get there. ``speedups``:
        those over other engines at each of :data:`RECALLS`, with ``recall``, and ``speedup_best_rival_product``,
        ``speedup_best_rival_product_batch``: of ``Index.search``, asked for ids as they are. ``overheads``: what
        ``Index.search`` takes beyond the engine inside it.
    """
    rows, about = [], []
    for engine in tqdm(engines, desc="engines", disable=None):
        left = timeout if deadline is None else min(timeout, deadline - time.perf_counter())
        if left < LEAST:
            about.append({"engine": engine.partition(":")[2], "status": "no time left"})
            continue
        keep = kept if about else None  # ours is measured each time
        found = keep.read(engine) if keep is not None else None
        if found is None:
            found = measure(engine, collection, left, target=target)
            if keep is not None:
                keep.write(engine, found)
        of_engine = found.pop("rows")
        front = pareto([(row["recall"], row["qps"]) for row in of_engine])
        rows += [
            {"engine": found["engine"], **row, "front": place in front} for place, row in enumerate(of_engine)
        ]  # fmt: skip
        about.append(found)
    count, dim = collection.read(ITEMS).shape
    for each in about:
        if each.get("resident_mb") is not None:
            each["bytes_per_vector"] = round(each["resident_mb"] * 2**20 / count)
    names = [each["engine"] for each in about]
    overheads = [{"items": count, **each} for found in about for each in found.pop("overheads", [])]
    speedups = [_speedups(rows, names, least) for least in RECALLS]
    return {
        "items": count,
        "dim": dim,
        **{key: value for key, value in speedups[-1].items() if key != "recall"},
        "speedup_flat": _gain(fastest(rows, "qps"), names[0], names[1:2])[1],
        "speedups": speedups,
        "overheads": overheads,
        "engines": about,
        "rows": rows,
    }


def pools(
    real: RealSet, timeout: float, deadline: float | None = None, sizes: Sequence[int] = POOLS
) -> list[dict[str, Any]]:
    """Our index beside an exhaustive scan on random parts of the real set.

    Returns:
        For each part ``items``, both speeds at 99% recall, and ``overheads``.
    """
    ours, flat = _path_of(rivals.OurIndex), _path_of(rivals.FaissFlat)
    items, test, train = _parts(real)
    order = np.random.default_rng(0).permutation(len(items))
    result = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            part = write_collection(Path(scratch), items[order[:size]], test, train)
            found = compare(part, [ours, flat], timeout, deadline, target=WANTED)
        single, batch = fastest(found["rows"], "qps"), fastest(found["rows"], "batch_qps")
        names = [each["engine"] for each in found["engines"]]
        result.append(
            {
                "items": len(items[order[:size]]),
                **{f"{name}_qps": single.get(engine) for name, engine in zip(("ours", "flat"), names, strict=True)},
                **{
                    f"{name}_batch_qps": batch.get(engine) for name, engine in zip(("ours", "flat"), names, strict=True)
                },
                "speedup": found["speedup_flat"],
                "speedup_batch": _gain(batch, names[0], names[1:])[1],
                "overheads": found["overheads"],
            }
        )
    return result


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which (recall, speed) points no other beats in one without losing in the other."""
    front, best = set(), -np.inf
    for place in sorted(range(len(points)), key=lambda place: (-points[place][0], -points[place][1])):
        if points[place][1] > best:
            front.add(place)
            best = points[place][1]
    return front


def fastest(rows: Sequence[Mapping[str, Any]], speed: str, least: float = WANTED) -> dict[str, float]:
    """By engine, the speed of the fastest setting with at least that recall; engines without one are left out."""
    result: dict[str, float] = {}
    for row in rows:
        if row["recall"] >= least:
            result[row["engine"]] = max(result.get(row["engine"], 0.0), row[speed])
    return result


def _speedups(rows: Sequence[Mapping[str, Any]], names: Sequence[str], least: float) -> dict[str, Any]:
    """Ours, the first, and the index around it beside the best other engine."""
    single, batch = fastest(rows, "qps", least), fastest(rows, "batch_qps", least)
    others = [name for name in names[1:] if name not in rivals.OURS]
    best, gain = _gain(single, names[0], others)
    best_batch, gain_batch = _gain(batch, names[0], others)
    return {
        "recall": least,
        "speedup_best_rival": gain,
        "best_rival": best,
        "speedup_best_rival_batch": gain_batch,
        "best_rival_batch": best_batch,
        "speedup_best_rival_product": _gain(single, rivals.OurIndex.name, others)[1],
        "speedup_best_rival_product_batch": _gain(batch, rivals.OurIndex.name, others)[1],
    }


def _gain(speeds: Mapping[str, float], ours: str, others: Sequence[str]) -> tuple[str | None, float | None]:
    best = max((name for name in others if name in speeds), key=lambda name: speeds[name], default=None)
    if best is None or ours not in speeds:
        return best, None
    return best, round(speeds[ours] / speeds[best], 2)


def _path_of(engine: type) -> str:
    return f"{rivals.__name__}:{engine.__name__}"


def _words(real: RealSet) -> Collection:
    collection = Collection(bench_folder() / f"words-{real.key}")
    return collection if collection.is_whole() else write_collection(collection.folder, *_parts(real))


def _parts(real: RealSet) -> tuple[Any, Any, Any]:
    return np.asarray(real.words), np.asarray(real.glosses[:TESTED]), np.asarray(real.glosses[TRAINED_FROM:])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Each engine's front: recall, and queries a second on one thread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(15, 6), sharey=True)
    colours = [matplotlib.colormaps["tab20"](number) for number in range(20)]
    for axis, speed, title in zip(axes, ("qps", "batch_qps"), ("one query at a time", "many at once"), strict=True):
        for place, about in enumerate(result["engines"]):
            rows = [row for row in result["rows"] if row["engine"] == about["engine"]]
            kept = pareto([(row["recall"], row[speed]) for row in rows])
            points = sorted((rows[place]["recall"], rows[place][speed]) for place in kept)
            points = [point for point in points if point[0] >= 0.8]
            if points:
                style = {"linewidth": 2.5, "color": "black"} if place == 0 else {"color": colours[place % len(colours)]}
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=about["engine"], **style)
        axis.set(yscale="log", xlabel="recall of the exact top 10", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("queries a second, one thread")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(f"{result['items']:,} vectors of {result['dim']} dimensions")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
