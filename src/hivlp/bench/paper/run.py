"""The speed table: milliseconds a query by pool size, and how many times faster HiVLP is.

Protocol. One thread (torch, FAISS and ONNX Runtime alike). A query is a caption of twelve words, or a picture. Query
encoding and search are measured apart, each the median over runs after a warm-up; the total is their sum. The vectors
of the pool are computed beforehand, as in LightningDOT's evaluation, and the hundred best are asked for, as there. A
batch of 400 is reported per query, encoded 32 at a time. A fusion model takes a pass for each pair of the pool: it is
measured on a stated number of pairs, and scaled. Towers of the published sizes have random weights, on which time does
not depend; pools are real vectors of hivlp-mini (words), as an approximate search does depend on those, and queries
are real too.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hivlp.bench.ann.collection import ITEMS, TEST, TRAIN
from hivlp.bench.ann.real import TRAINED_FROM, RealSet, bench_folder, read_real
from hivlp.bench.ann.sentences import MILLION, read_sentences
from hivlp.bench.paper.plot import draw
from hivlp.bench.paper.published import POOLS, PUBLISHED
from hivlp.bench.paper.towers import CAPTIONS, Published, flops, int8_tower, same_tower
from hivlp.bench.report import Report, measured, median_ms, milliseconds
from hivlp.data.pictures import Found, find_pictures
from hivlp.encode import HiVLP
from hivlp.errors import IndexFolderError
from hivlp.files.scratch import scratch_folder
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.levels import Vectors
from hivlp.systems.lightningdot import as_cosine

BEST = 100
"""Items that are asked for, as LightningDOT's script does."""
TUNE_FROM = 10_000
"""Items from which an index is tuned; fewer are ranked exactly in half a millisecond."""
TUNING = 1_500
"""Queries that an index is tuned with."""
BATCH = 400
"""Queries of a batch, as LightningDOT's."""
CANDIDATES = 100
"""Of a re-ranking."""
DEADLINE = {"small": 300.0, "full": 4 * 3600.0}
"""Seconds after which no further index is built."""
LIGHTNINGDOT_HNSW = "LightningDOT, PyTorch + FAISS HNSW"
LIGHTNINGDOT, UNITER, METER = "LightningDOT, PyTorch + FAISS flat", "UNITER-base", "METER, CLIP-B/16 at 384"
SAME, INT8, SHIPPED = "HiVLP, same tower", "HiVLP, same tower in int8", "HiVLP as shipped"
TO_IMAGE, TO_TEXT = "text_to_image", "image_to_text"


@dataclass(frozen=True)
class Row:
    """One system on one pool; milliseconds a query.

    Attributes:
        system: what it is.
        direction: ``text_to_image`` or ``image_to_text``.
        pool: items that are searched.
        batch: queries at once.
        encode_ms: encoding of a query; None for a fusion model, which does nothing else.
        search_ms: of the pool.
        total_ms: their sum.
        core_seconds: of a thousand queries, our measure of energy: as many as milliseconds a query, on one thread.
        pairs: that a fusion model was measured on; None for others. Its time is scaled from these to the pool.
        gflop: operations of a query in the network, 10⁹; None where they were not counted.
        search_gflop: operations of an exhaustive search, 10⁹; None for others, which read codes and lists.
        item_bytes: that an item takes on disk: vectors in a flat index, all files of ours over the items.
    """

    system: str
    direction: str
    pool: int
    batch: int
    encode_ms: float | None
    search_ms: float | None
    total_ms: float
    core_seconds: float
    pairs: int | None = None
    gflop: float | None = None
    search_gflop: float | None = None
    item_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PaperReport(Report):
    """Times by system and pool; see :func:`run`.

    Attributes:
        rows: see :class:`Row`.
        ratio_uniter: system -> pool -> how many times UNITER-base's total time (text to image, one query at a time).
        ratio_lightningdot: system -> pool -> how many times LightningDOT's.
        published: speed-ups as published.
        reranking: what kept picture tokens save a re-ranking of :data:`CANDIDATES` by ALBEF.
        left_out: pools that there was no time for.
        flat: library of the exhaustive searches.
        int8_cosine: lowest cosine of the captions' vectors by the int8 tower with those by the same one in float32.
    """

    rows: list[dict[str, Any]]
    ratio_uniter: dict[str, dict[str, float]]
    ratio_lightningdot: dict[str, dict[str, float]]
    published: dict[str, Any]
    reranking: dict[str, float]
    left_out: list[int]
    flat: str
    int8_cosine: float

    def to_text(self) -> str:
        """Tables for the terminal."""
        head = f"{'system':38s}{'direction':15s}{'pool':>9s}{'batch':>6s}{'encode':>9s}{'search':>9s}{'total ms':>14s}"
        lines = [head]
        for row in self.rows:
            parts = (row["encode_ms"], row["search_ms"])
            cells = "".join(f"{'' if value is None else f'{value:.2f}':>9s}" for value in parts)
            scaled = f"  scaled from {row['pairs']} pairs" if row["pairs"] else ""
            about = f"{row['system']:38s}{row['direction']:15s}{row['pool']:9d}{row['batch']:6d}"
            lines.append(f"{about}{cells}{row['total_ms']:14.2f}{scaled}")
        for name, ratios in ((UNITER, self.ratio_uniter), ("LightningDOT", self.ratio_lightningdot)):
            for system, by_pool in ratios.items():
                cells = ", ".join(f"{pool}: {ratio:,.1f}" for pool, ratio in by_pool.items())
                lines.append(f"times faster than {name}, {system}: {cells}")
        over_uniter, over_dot = (self.published[f"hivlp_over_{name}"] for name in ("uniter", "lightningdot"))
        lines.append(f"published over UNITER: {over_uniter}; over LightningDOT: {over_dot}")
        again = self.reranking
        lines.append(f"re-ranking {CANDIDATES} candidates by ALBEF: {again['without_ms']:.0f} ms (scaled from "
                     f"{again['pictures']:.0f} pictures), {again['kept_ms']:.0f} ms with kept tokens: "
                     f"{again['ratio']:.1f} times faster")  # fmt: skip
        if self.left_out:
            pools = ", ".join(map(str, self.left_out))
            lines.append(f"no time for pools of {pools}: what was built is kept, so run it again")
        lines.append(f"int8 tower: cosine {self.int8_cosine:.4f} or more with float32")
        return "\n".join([*lines, f"exhaustive searches by {self.flat}; one thread; {self.seconds:.0f} s"])


def run(size: str, model: HiVLP, plot: Path | None = None) -> PaperReport:
    """Measure.

    Args:
        size: ``small``, pools up to 123,287, ten minutes; ``full``, a million too, which take hours to build. Indexes
            and exported models are kept in the cache.
        model: HiVLP as shipped.
        plot: where to draw total times by pool size, both axes logarithmic.
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
    systems = Published(folder / "words")
    real = read_real(model)
    rows: list[Row] = []
    flat = FlatSearch()
    encoders, cosine = _encoders(systems, model, folder)
    fusion = {TO_IMAGE: _pair_times(systems)}
    fusion[TO_TEXT] = fusion[TO_IMAGE]  # a pair is a pair
    reranking = _reranking(systems)
    systems.drop()
    left_out = []
    for pool in tqdm(POOLS[size], desc="pools", disable=None):
        quick = pool < TUNE_FROM or _opens(_index_folder(folder, real, pool))
        if time.perf_counter() - started > DEADLINE[size] and not quick:
            left_out.append(pool)
            continue
        vectors = _vectors(real, model, pool)
        for direction, times in fusion.items():
            rows += [
                Row(name, direction, pool, 1, None, None, round(each * pool, 2), round(each * pool, 2), pairs, gflop)
                for name, (each, pairs, gflop) in times.items()
            ]
        place = _index_folder(folder, real, pool)
        searched = {
            **{name: flat.times(vectors.items[:, :dim], vectors.queries[:, :dim]) for name, dim in FLAT.items()},
            "index": _index_times(place, vectors),
        }
        size_of = {name: 4 * dim for name, dim in FLAT.items()} | {"index": _bytes(place) // pool}
        if (graph := flat.graph(place.with_name(f"hnsw-{pool}"), vectors, pool <= HNSW_MOST[size])) is not None:
            searched["hnsw"], size_of["hnsw"] = graph
        for encoder in encoders:
            for kind in (encoder.index, *(["hnsw"] if encoder.name == LIGHTNINGDOT and "hnsw" in searched else [])):
                name = LIGHTNINGDOT_HNSW if kind == "hnsw" else encoder.name
                reads = round(2 * pool * FLAT[kind] / 1e9, 3) if kind in FLAT else None
                for batch, encode in encoder.times.items():
                    total = round(encode + searched[kind][batch], 3)
                    rows.append(Row(name, encoder.direction, pool, batch, round(encode, 3),
                                    round(searched[kind][batch], 3), total, total, None, encoder.gflop, reads,
                                    size_of[kind]))  # fmt: skip
    return PaperReport(
        rows=[asdict(row) for row in rows],
        ratio_uniter=_ratios(rows, UNITER),
        ratio_lightningdot=_ratios(rows, LIGHTNINGDOT),
        published=PUBLISHED,
        reranking=reranking,
        left_out=left_out,
        flat=flat.name,
        int8_cosine=cosine,
        **measured(started, "torch", "transformers", "onnxruntime", "numpy"),
    )


FLAT = {"flat 768": 768, "flat 512": 512}
"""Exhaustive searches by the length of their vectors."""
HNSW_MOST = {"small": 5_000, "full": 123_287}
"""Largest pool for which LightningDOT's HNSW is built; its 512 links take minutes and gigabytes beyond."""


@dataclass(frozen=True)
class _Encoder:
    name: str
    direction: str
    index: str
    times: dict[int, float]
    gflop: float | None = None


def _encoders(systems: Published, model: HiVLP, folder: Path) -> tuple[list[_Encoder], float]:
    """Times of encoding a query, by batch; and the lowest cosine of the int8 tower with float32."""
    texts = [CAPTIONS[number % len(CAPTIONS)] for number in range(BATCH)]
    found = []

    def add(name: str, direction: str, index: str, call: Callable[[int], Any], gflop: float | None = None,
            counted: bool = True) -> None:  # fmt: skip
        if counted:
            gflop = round(flops(lambda: call(1)) / 1e9, 2)
        call(1)
        times = {1: median_ms(call, [1] * 9), BATCH: milliseconds(lambda: call(32)) / 32}
        found.append(_Encoder(name, direction, index, times, gflop))

    add(LIGHTNINGDOT, TO_IMAGE, "flat 768", lambda count: systems.lightningdot_text(texts[:count]))
    regions = systems.regions(32)
    add(LIGHTNINGDOT, TO_TEXT, "flat 768", lambda count: systems.lightningdot_picture(
        type(regions)(regions.features[:count], regions.boxes[:count], regions.mask[:count])))  # fmt: skip
    clip = systems.clip()
    ids, mask = systems.ids(texts)
    pixels = torch.randn(32, 3, 224, 224)
    add("CLIP ViT-B/32, PyTorch + FAISS flat", TO_IMAGE, "flat 512",
        lambda count: clip.get_text_features(input_ids=ids[:count], attention_mask=mask[:count]))  # fmt: skip
    add("CLIP ViT-B/32, PyTorch + FAISS flat", TO_TEXT, "flat 512",
        lambda count: clip.get_image_features(pixel_values=pixels[:count]))  # fmt: skip
    systems.drop()
    same = same_tower(folder / "same-tower")
    add(SAME, TO_IMAGE, "index", lambda count: same.encode_text(texts[:count]), found[0].gflop, False)
    int8 = int8_tower(folder / "same-tower", folder / "same-tower-int8")
    add(INT8, TO_IMAGE, "index", lambda count: int8.encode_text(texts[:count]), found[0].gflop, False)
    cosine = float((same.encode_text(CAPTIONS).fine * int8.encode_text(CAPTIONS).fine).sum(1).min())
    add(SHIPPED, TO_IMAGE, "index", lambda count: model.encode_text(texts[:count]), counted=False)
    picture = _picture()
    add(SHIPPED, TO_TEXT, "index", lambda count: model.encode_image([picture] * count), counted=False)
    return found, round(cosine, 5)


def _pair_times(systems: Published) -> dict[str, tuple[float, int, float]]:
    """Milliseconds of a pair, pairs measured, and gigaflops of one, by fusion model."""
    calls: tuple[tuple[str, int, Callable[[int], Any]], ...] = (
        (UNITER, 32, lambda count: systems.uniter([CAPTIONS[0]] * count, systems.regions(count))),
        (METER, 1, lambda count: systems.meter([CAPTIONS[0]] * count, torch.randn(count, 3, 384, 384))),
    )
    found = {}
    for name, count, call in calls:
        gflop = round(flops(partial(call, 1)) / 1e9, 2)
        found[name] = (median_ms(call, [count] * 2) / count, count, gflop)
    return found


def _reranking(systems: Published, pictures: int = 1) -> dict[str, float]:
    """Milliseconds of re-ranking :data:`CANDIDATES` for one text by ALBEF, with and without their tokens at hand."""
    model = systems.albef()
    tokens, mask = systems.ids([CAPTIONS[0]])
    seen = model.encode_image(torch.randn(1, 3, 384, 384))
    encode = median_ms(lambda count: model.encode_image(torch.randn(count, 3, 384, 384)), [pictures] * 2) / pictures

    def fuse(count: int) -> None:
        text = model.encode_text(tokens, mask)
        for _ in range(0, count, 25):
            model.fuse(text.expand(25, -1, -1), mask.expand(25, -1), seen.expand(25, -1, -1))

    fuse(25)
    kept = milliseconds(lambda: fuse(CANDIDATES))
    without = kept + CANDIDATES * encode
    return {"candidates": CANDIDATES, "pictures": pictures, "without_ms": round(without, 1), "kept_ms": round(kept, 1),
            "ratio": round(without / kept, 2), "item_bytes": 2 * seen.shape[1] * seen.shape[2]}  # fmt: skip


class FlatSearch:
    """Exhaustive search by FAISS's ``IndexFlatIP``, or by torch where FAISS is not installed.

    Attributes:
        name: of what searches.
    """

    def __init__(self) -> None:
        """Look for FAISS."""
        try:
            self._faiss: Any = importlib.import_module("faiss")
            self._faiss.omp_set_num_threads(1)
            self.name = f"FAISS {metadata.version('faiss-cpu')}"
        except ImportError:
            self._faiss, self.name = None, "torch (FAISS is not installed)"

    def times(self, items: Vectors, queries: Vectors) -> dict[int, float]:
        """Milliseconds a query, by batch.

        Args:
            items: (N, dim) float32.
            queries: (at least :data:`BATCH`, dim) float32.
        """
        items, queries = (np.require(part, np.float32, ["C", "W"]) for part in (items, queries))
        best = min(BEST, len(items))
        if self._faiss is not None:
            index = self._faiss.IndexFlatIP(items.shape[1])
            index.add(items)

            def search(asked: Vectors) -> Any:
                return index.search(asked, best)

        else:
            held = torch.from_numpy(items)

            def search(asked: Vectors) -> Any:
                return (torch.from_numpy(asked) @ held.T).topk(best, dim=1)

        search(queries[:1])
        one = median_ms(search, [queries[number : number + 1] for number in range(15)])
        return {1: one, BATCH: milliseconds(lambda: search(queries[:BATCH])) / BATCH}

    def graph(self, place: Path, pool: _Vectors, build: bool) -> tuple[dict[int, float], int] | None:
        """Milliseconds a query by batch of LightningDOT's HNSW, and bytes an item; None without FAISS or an index.

        As its script has it: 512 links, 200 candidates in building, 128 in searching, and inner products as distances
        by one more coordinate.

        Args:
            place: where the index is kept.
            pool: what it holds, and is asked.
            build: whether it is built where it is not there.
        """
        if self._faiss is None or not (build or place.is_file()):
            return None
        items, queries = as_cosine(pool.items, pool.queries)
        if place.is_file():
            index = self._faiss.read_index(str(place))
        else:
            index = self._faiss.IndexHNSWFlat(items.shape[1], 512)
            index.hnsw.efConstruction = 200
            index.add(items)
            self._faiss.write_index(index, str(place))
        index.hnsw.efSearch = 128
        best = min(BEST, len(items))
        index.search(queries[:1], best)
        one = median_ms(lambda asked: index.search(asked, best), [queries[at : at + 1] for at in range(15)])
        many = milliseconds(lambda: index.search(queries[:BATCH], best)) / BATCH
        return {1: one, BATCH: many}, place.stat().st_size // len(items)


@dataclass(frozen=True)
class _Vectors:
    """A pool's (N, 768) float32 vectors, (at least 400, 768) queries, and others to tune with."""

    items: Vectors
    queries: Vectors
    train: Vectors


def _vectors(real: RealSet, model: HiVLP, count: int) -> _Vectors:
    """WordNet's words, asked for by their glosses; of a larger pool, sentences asked for by others."""
    if count <= len(real.words):
        items, queries, train = real.words, real.glosses, real.glosses[TRAINED_FROM:]
    else:
        sentences = read_sentences(model, MILLION)
        items, queries, train = (sentences.read(name) for name in (ITEMS, TEST, TRAIN))
    parts = (np.asarray(part[:most], np.float32) for part, most in ((items, count), (queries, BATCH), (train, TUNING)))
    return _Vectors(*parts)


def _opens(place: Path) -> bool:
    """Whether there is an index that this version of hivlp reads."""
    try:
        Index.open(place).close()
    except IndexFolderError:
        return False
    return True


def _index_folder(folder: Path, real: RealSet, count: int) -> Path:
    return folder / f"index-{real.key}-{count}"


def _index_times(place: Path, pool: _Vectors) -> dict[int, float]:
    """Milliseconds a query of an index in a user's hands, hits with their paths included, by batch.

    Args:
        place: where the index is kept.
        pool: what it holds, and is asked.
    """
    if not _opens(place):
        shutil.rmtree(place, ignore_errors=True)
        with scratch_folder(place) as scratch:
            np.save(scratch / "items.npy", pool.items)
            index_embeddings(scratch / "index", scratch / "items.npy", method="none")
            if len(pool.items) >= TUNE_FROM:
                with Index.open(scratch / "index") as index:
                    index.tune(pool.train)
            (scratch / "index").replace(place)
    with Index.open(place) as index:
        level, best = index.levels[-1].name, min(BEST, len(pool.items))

        def search(query: Vectors) -> list[str]:
            return [hit.path for hit in index.search(vector={level: query}, k=best)]

        for query in pool.queries[:10]:
            search(query)
        one = median_ms(search, list(pool.queries[:100]))
        asked = {level: pool.queries}
        many = milliseconds(lambda: [list(found) for found in index.search_many(vectors=asked, k=best)])
    return {1: one, BATCH: many / BATCH}


def _bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _picture() -> bytes:
    folder = Path(str(resources.files("hivlp") / "assets" / "pictures"))
    return next(found.path for found in find_pictures([folder]) if isinstance(found, Found)).read_bytes()


def _ratios(rows: Sequence[Row], slower: str) -> dict[str, dict[str, float]]:
    """How many times a system's total is another's, text to image, one query at a time."""
    asked = [row for row in rows if row.direction == TO_IMAGE and row.batch == 1]
    bar = {row.pool: row.total_ms for row in asked if row.system == slower}
    found: dict[str, dict[str, float]] = {}
    for row in asked:
        if row.system in (SAME, INT8, SHIPPED) and row.pool in bar:
            found.setdefault(row.system, {})[str(row.pool)] = round(bar[row.pool] / row.total_ms, 2)
    return found
