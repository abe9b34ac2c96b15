"""The speed table: milliseconds a query by pool size, and how many times faster HiVLP is.

Protocol. One thread (torch, FAISS and ONNX Runtime alike). A query is a caption of twelve words, or a picture; every
system gets it at its own length, without padding. Query encoding and search are measured apart, each the median over
runs after a warm-up; the total is their sum. Systems take turns, so that what else the machine does falls on all. The
vectors of the pool are computed beforehand, as in LightningDOT's evaluation, and the hundred best are asked for, as
there; of single queries, the ten best too. A batch of 400 is reported per query, encoded 32 at a time. A fusion model
takes a pass for each pair of the pool: it is measured on a stated number of pairs, and scaled. Towers of the published
sizes have random weights, on which time does not depend; pools and what asks them are real vectors of hivlp-mini, as an
approximate search does depend on those.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from hivlp.bench.ann.real import bench_folder
from hivlp.bench.paper.encoding import Encoder, encoders
from hivlp.bench.paper.fusion import pair_times, reranking
from hivlp.bench.paper.plot import draw
from hivlp.bench.paper.pools import Pool, Pools, index_folder
from hivlp.bench.paper.published import POOLS, PUBLISHED
from hivlp.bench.paper.searching import TUNE_FROM, Flat, Search, Searched, is_index, measure, own_index
from hivlp.bench.paper.systems import BATCH, BEST, FEW, LIGHTNINGDOT, LIGHTNINGDOT_HNSW, TO_IMAGE, TO_TEXT, UNITER
from hivlp.bench.paper.table import PaperReport, Row, headline, ratios
from hivlp.bench.paper.towers import Published
from hivlp.bench.report import measured
from hivlp.encode import HiVLP

DEADLINE = {"small": 300.0, "full": 4 * 3600.0}
"""Seconds after which no further index is built."""
FLAT = {"flat 768": 768, "flat 512": 512}
"""Exhaustive searches by the length of their vectors."""
HNSW_MOST = 5_000
"""Largest pool for which LightningDOT's HNSW is built; its 512 links take minutes and gigabytes beyond."""


def run(size: str, model: HiVLP, plot: Path | None = None) -> PaperReport:
    """Measure.

    Args:
        size: ``small``, pools up to 123,287, ten minutes; ``full``, a million too, which take hours to build. Indexes
            and exported models are kept in the cache.
        model: HiVLP as shipped.
        plot: where to draw total times by pool size, both axes logarithmic.

    Raises:
        DataError: if WordNet, or of a million a package with sentences, is not there.
    """
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            report = _run(size, model, started)
    finally:
        torch.set_num_threads(threads)
    if plot is not None:
        draw(report.rows, plot)
    return report


def _run(size: str, model: HiVLP, started: float) -> PaperReport:
    folder = bench_folder() / "paper"
    systems, pools, flat = Published(folder / "words"), Pools(model), Flat()
    encoded, int8 = encoders(systems, model, folder)
    systems.drop()
    pairs = pair_times(systems)
    kept = reranking(systems)
    rows: list[Row] = []
    left_out = []
    for count in tqdm(POOLS[size], desc="pools", disable=None):
        quick = count < TUNE_FROM or is_index(index_folder(folder, pools.key(count)))
        if time.perf_counter() - started > DEADLINE[size] and not quick:
            left_out.append(count)
            continue
        rows += _fusion_rows(pairs, count)
        searched = _searched(flat, pools.read(count), folder, count <= HNSW_MOST)
        rows += [row for encoder in encoded for row in _rows(encoder, searched, count)]
    return PaperReport(
        rows=[asdict(row) for row in rows],
        headline=headline(rows, int8),
        ratio_uniter=ratios(rows, UNITER),
        ratio_lightningdot=ratios(rows, LIGHTNINGDOT),
        ratio_lightningdot_ten=ratios(rows, LIGHTNINGDOT, FEW),
        published=PUBLISHED,
        reranking=kept,
        left_out=left_out,
        flat=flat.name,
        int8=int8,
        **measured(started, "torch", "transformers", "onnxruntime", "numpy"),
    )


def _searched(flat: Flat, pool: Pool, folder: Path, build_graph: bool) -> dict[str, Searched]:
    """Times of every search of a pool; CLIP's shorter vectors by themselves, so that one float32 copy is held."""
    with ExitStack() as open_ones:
        searches: dict[str, tuple[Search, int]] = {"flat 768": flat.over(pool.items, FLAT["flat 768"])}
        if (graph := flat.graph(folder / f"hnsw-{pool.key}", pool, build_graph)) is not None:
            searches["hnsw"] = graph
        searches["index"] = open_ones.enter_context(own_index(index_folder(folder, pool.key), pool))
        found = measure(searches, pool.queries, "flat 768")
    searches.clear()
    shorter = {"flat 512": flat.over(pool.items, FLAT["flat 512"])}
    return found | measure(shorter, pool.queries, "flat 512")


def _rows(encoder: Encoder, searched: Mapping[str, Searched], pool: int) -> Iterator[Row]:
    """Rows of a system that compares vectors, on one pool."""
    names = {encoder.search: encoder.system}
    if encoder.system == LIGHTNINGDOT and "hnsw" in searched:
        names["hnsw"] = LIGHTNINGDOT_HNSW
    for kind, system in names.items():
        search = searched[kind]
        for batch, best in ((1, BEST), (1, FEW), (BATCH, BEST)):
            encode, look = encoder.times[batch], search.times[batch, best]
            total = round(encode + look, 3)
            yield Row(
                system, encoder.direction, pool, batch, round(encode, 3), round(look, 3), total, total, best,
                gflop=encoder.gflop, search_gflop=round(2 * pool * FLAT[kind] / 1e9, 3) if kind in FLAT else None,
                item_bytes=search.item_bytes, found=search.found.get(best),
            )  # fmt: skip


def _fusion_rows(pairs: Mapping[str, tuple[float, int, float]], pool: int) -> Sequence[Row]:
    """Rows of fusion models, for which both directions are the same pairs."""
    return [
        Row(
            name, direction, pool, 1, None, None, round(each * pool, 2), round(each * pool, 2), pairs=count, gflop=gflop
        )
        for direction in (TO_IMAGE, TO_TEXT)
        for name, (each, count, gflop) in pairs.items()
    ]
