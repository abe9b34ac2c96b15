"""What a coarse level does beside an approximate index: docs/experiments/2026-11-28-coarse-level-beside-ann.md.

    OMP_NUM_THREADS=1 python tools/coarse_beside_ann.py PART     # one of PARTS, one thread, JSON lines on stdout

WordNet's words are the items and its glosses the queries (``hivlp bench ann`` encodes and keeps them); the pictures are
Tux Paint's stamps and Debian's clip-art with their captions.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.ann import AnnIndex
from hivlp.ann.layout import refine_dtype
from hivlp.bench.ann.real import GLOSSES, TESTED, TRAINED_FROM, read_real, read_wordnet
from hivlp.coarse.choose import SAMPLE_ITEMS, fit_coarse
from hivlp.coarse.maps import FINE
from hivlp.data.load import load_pairs
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.stream import encode_stream
from hivlp.evaluate import score
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.levels import Embeddings
from hivlp.search.exhaustive import ExhaustiveScanner, best_first

K, ASKED, TARGETS = 10, 300, (0.95, 0.99)
SIZES = (10_000, 50_000, 148_730)
SHORTLISTS = (10, 12, 14, 17, 20, 25, 30, 40, 50, 70, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800)


def say(**row: Any) -> None:
    """One line of the result."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def words(model: HiVLP, width: int | None = None) -> tuple[Any, Any, Any]:
    """(148730, d) float16 items in a random order, (300, d) and (23000, d) float32 queries; ``width``: turned, cut."""
    real = read_real(model)
    items = np.asarray(real.words)[np.random.default_rng(0).permutation(len(real.words))]
    test, train = np.asarray(real.glosses[:TESTED])[:ASKED], np.asarray(real.glosses[TRAINED_FROM:])
    if width is not None:
        turn = np.linalg.qr(np.random.default_rng(3).normal(size=(items.shape[1],) * 2))[0][:, :width]
        items, test, train = (unit(each @ turn.astype(np.float32)) for each in (items, test, train))
    return items.astype(np.float16), test, train


def unit(vectors: Any) -> Any:
    """Rows at unit length."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def truth_of(items: Any, test: Any) -> list[set[int]]:
    """The exact ten best of each query."""
    return [set(rows.tolist()) for rows, _ in ExhaustiveScanner(items).top_many(test, K)]


def recall(found: Any, truth: list[set[int]]) -> float:
    """Share of the true rows that were found."""
    return sum(len(set(rows.tolist()) & best) for rows, best in zip(found, truth, strict=True)) / (K * len(truth))


def p50(search: Callable[[int], Any], queries: int, repeats: int = 3) -> float:
    """Median over the queries of each one's best time, in ms."""
    times = np.full(queries, np.inf)
    for _ in range(repeats):
        for number in range(queries):
            start = time.perf_counter()
            search(number)
            times[number] = min(times[number], (time.perf_counter() - start) * 1000)
    return float(np.median(times))


def scan_ms(items: Any, test: Any) -> float:
    """Median time of an exact scan."""
    scanner = ExhaustiveScanner(items)
    return p50(lambda number: scanner.top(test[number], K), 30)


def text_ms(model: HiVLP, texts: list[str], level: str) -> float:
    """Median time of encoding one text up to a level."""
    return p50(lambda number: model.encode_text([texts[number]], levels=[level]), len(texts))


def coarse_levels(model: HiVLP, items: Any, test: Any, train: Any, ways: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Name, seconds of the fit, (n, 64) float16 items, (q, 64) test and (m, 64) train queries."""
    sample = np.asarray(items[:SAMPLE_ITEMS], np.float32)
    for way in ways:
        fitted = fit_coarse(sample, train[:20_000], method=way)  # type: ignore[arg-type]
        parts = [
            fitted.maps.of_items(items[at : at + 20_000].astype(np.float32)).coarse
            for at in range(0, len(items), 20_000)
        ]
        asked = (fitted.maps.of_queries(each).coarse for each in (test, train))
        yield f"fitted: {fitted.method}", fitted.seconds, np.concatenate(parts).astype(np.float16), *asked


def of_model(model: HiVLP) -> tuple[Any, Any, Any]:
    """hivlp-mini's own coarse level of the words (in the order of :func:`words`), and of the test and train glosses."""
    texts, glosses = read_wordnet()
    items = model.encode_text(texts, levels=["coarse"]).coarse[np.random.default_rng(0).permutation(len(texts))]
    asked = model.encode_text(glosses[:GLOSSES], levels=["coarse"]).coarse
    return items.astype(np.float16), asked[:ASKED], asked[TRAINED_FROM:]


def cascade(coarse: Any, asked: Any, items: Any, test: Any, truth: list[set[int]], **about: Any) -> None:
    """Scan of the coarse level, and the shortlist that it takes."""
    scanner, fine = ExhaustiveScanner(coarse), ExhaustiveScanner(items)
    ranked = np.stack([rows for rows, _ in scanner.top_many(asked, min(SHORTLISTS[-1], len(coarse)))])
    shares = {size: recall(ranked[:, :size], truth) for size in SHORTLISTS}
    for target in TARGETS:
        size = next((size for size, share in shares.items() if share >= target), None)
        if size is None:
            say(way="cascade", **about, target=target, shortlist=None, best=max(shares.values()))
            continue

        def search(number: int, size: int = size) -> Any:
            rows = scanner.top(asked[number], size)[0]
            return best_first(rows, fine.rescore(test[number], rows))

        touched = coarse.nbytes + size * items[0].nbytes
        say(
            way="cascade",
            **about,
            target=target,
            shortlist=size,
            recall=shares[size],
            p50_ms=p50(search, 100),
            mb_touched=touched / 1e6,
            fine_rows=size,
            disk_mb=coarse.nbytes / 1e6,
            memory_mb=coarse.nbytes / 1e6,
        )
    say(way="cascade", **about, recall_at_200=shares[200])


def ann(items: Any, test: Any, train: Any, truth: list[set[int]], **about: Any) -> AnnIndex:
    """The approximate index over the finest level."""
    start = time.perf_counter()
    engine = AnnIndex.build(items, queries=train)
    built = time.perf_counter() - start
    constant = sum(
        getattr(engine.arrays, name).nbytes
        for name in ("query_projection", "router_keys", "group_keys", "router_bias", "router_scales")
    )
    signed, dims = len(engine.arrays.sign_amplitude), engine.dims
    for target in TARGETS:
        best: dict[str, Any] = {}
        for setting in engine.params_grid():
            share = recall(engine.search(test, K, setting)[0], truth)
            if share < target:
                continue
            before = [getattr(engine.stats, name) for name in ("lists", "sign_codes", "refine_codes", "vectors")]
            spent = p50(lambda number, s=setting: engine.search(test[number][None], K, s), 100)  # type: ignore[misc]
            _lists, codes, nibbles, fine = (
                (getattr(engine.stats, name) - was) / 300
                for name, was in zip(("lists", "sign_codes", "refine_codes", "vectors"), before, strict=True)
            )
            if spent < best.get("p50_ms", np.inf):
                touched = (
                    constant
                    + codes * (signed / 8 + 1)
                    + nibbles * (refine_dtype(dims, signed).itemsize + 4)
                    + fine * items[0].nbytes
                )
                best = {
                    "recall": share,
                    "p50_ms": spent,
                    "codes": codes,
                    "nibbles": nibbles,
                    "fine_rows": fine,
                    "mb_touched": touched / 1e6,
                    "setting": str(setting),
                }
        say(
            way="ann",
            **about,
            target=target,
            **best,
            dims=dims,
            lists=engine.nlist,
            memory_mb=engine.bytes_per_vector * len(items) / 1e6,
            build_s=built,
        )
    rows = np.arange(len(items), dtype=np.uint32)
    for size in (10, 12, 14, 17, 20, 25, 30, 40, 60):
        found = [engine.search_rows(query, rows, K, size)[0] for query in test[:100]]
        say(
            way="codes",
            **about,
            shortlist=size,
            recall=recall(found, truth[:100]),
            code_bytes=refine_dtype(dims, signed).itemsize,
        )
    return engine


def ann_of_coarse(
    coarse: Any, asked: Any, learnt: Any, items: Any, test: Any, truth: list[set[int]], **about: Any
) -> None:
    """An approximate index over the coarse level, re-ranked by the finest one."""
    start = time.perf_counter()
    engine = AnnIndex.build(coarse, queries=learnt)
    built, fine = time.perf_counter() - start, ExhaustiveScanner(items)
    settings = [each for each in engine.params_grid() if each.nprobe]
    for target in TARGETS:
        best: dict[str, Any] = {}
        for size in (size for size in SHORTLISTS if 30 <= size <= 1600):
            for setting in (*settings[::3], engine.thorough_params(size)):
                share = recall(engine.search(asked, size, setting)[0], truth)
                if share < target:
                    continue

                def search(number: int, setting: Any = setting, size: int = size) -> Any:
                    rows = engine.search(asked[number][None], size, setting)[0][0]
                    rows = rows[rows >= 0]
                    return best_first(rows, fine.rescore(test[number], rows))

                spent = p50(search, 100, 1)
                if spent < best.get("p50_ms", np.inf):
                    best = {"recall": share, "p50_ms": spent, "fine_rows": size, "setting": str(setting)}
        say(
            way="ann of coarse",
            **about,
            target=target,
            **best,
            dims=engine.dims,
            memory_mb=engine.bytes_per_vector * len(items) / 1e6 + coarse.nbytes / 1e6,
            build_s=built,
        )


def part_ranking(model: HiVLP) -> None:
    """Ways to the same recall, by number of rows."""
    all_items, test, train = words(model)
    own = of_model(model)
    for count in SIZES:
        items = np.ascontiguousarray(all_items[:count])
        truth = truth_of(items, test)
        levels = [("hivlp-mini's own", 0.0, np.ascontiguousarray(own[0][:count]), own[1], own[2])]
        levels += coarse_levels(model, items, test, train, ("lean", "distill"))
        say(way="exact", rows=count, p50_ms=scan_ms(items, test), mb_touched=items.nbytes / 1e6)
        for name, seconds, coarse, asked, learnt in levels:
            cascade(coarse, asked, items, test, truth, rows=count, level=name, fit_s=seconds)
            if count != 50_000 and name != "fitted: lean":
                ann_of_coarse(coarse, asked, learnt, items, test, truth, rows=count, level=name)
        ann(items, test, train, truth, rows=count)


def part_width(model: HiVLP) -> None:
    """CLIP's width."""
    items, test, train = words(model, 512)
    truth = truth_of(items, test)
    for name, seconds, coarse, asked, _ in coarse_levels(model, items, test, train, ("lean",)):
        cascade(coarse, asked, items, test, truth, rows=len(items), level=name, fit_s=seconds, width=512)
    ann(items, test, train, truth, rows=len(items), width=512)


def part_pictures(model: HiVLP) -> None:
    """Captions look for pictures, by hivlp-mini's own levels; int8 rows; what encoding takes."""
    pairs = load_pairs("stamps") + load_pairs("openclipart")
    stream = encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture))
    batches = list(stream)
    pictures = Embeddings.concatenate([batch.embeddings for batch in batches])
    captions = [job.captions[0] for batch in batches for job in batch.jobs]
    texts = model.encode_text(captions)
    items, test = pictures.fine.astype(np.float16), texts.fine[:: len(captions) // ASKED][:ASKED]
    truth = truth_of(items, test)
    cascade(
        pictures.coarse.astype(np.float16),
        texts.coarse[:: len(captions) // ASKED][:ASKED],
        items,
        test,
        truth,
        rows=len(items),
        level="hivlp-mini's own",
        what="pictures",
    )
    ann(items, test, texts.fine, truth, rows=len(items), what="pictures")
    eighth(items, test, truth, "pictures")
    stamps = [pair for pair in load_pairs("stamps") if pair.split == "test"]
    seen = Embeddings.concatenate(
        [b.embeddings for b in encode_stream(model, stamps, lambda pair: load_pixels(pair.read(), model.picture))]
    )
    asked, owner = model.encode_text([pair.captions[0] for pair in stamps]), np.arange(len(stamps))
    for name, changed_rows in (
        ("float32", seen.fine),
        ("float16", seen.fine.astype(np.float16)),
        ("int8", int8(seen.fine)),
    ):
        changed = Embeddings({"coarse": seen.coarse, "fine": unit(changed_rows.astype(np.float32))})
        say(way="stamps", rows=name, test=len(stamps), **score(changed, asked, owner)["levels"]["fine"])
    some = captions[:100]
    for level in ("coarse", "fine"):
        say(way="encode a text", level=level, p50_ms=text_ms(model, some, level))
    data = [pair.read() for pair in pairs[:100]]
    pixels = [load_pixels(each, model.picture) for each in data]
    say(way="decode a picture", p50_ms=p50(lambda n: load_pixels(data[n], model.picture), 100, 1))
    say(way="encode a picture", p50_ms=p50(lambda n: model.encode_pixels(pixels[n][None]), 100, 1))


def int8(rows: Any) -> Any:
    """What int8 with one scale a row stands for."""
    rows = np.asarray(rows, np.float32)
    step = np.abs(rows).max(1, keepdims=True) / 127
    return np.rint(rows / step) * step


def eighth(items: Any, test: Any, truth: list[set[int]], what: str) -> None:
    """Recall of the float16 ranking's ten by int8 rows, alone and where float16 decides among a few."""
    ranked = [rows for rows, _ in ExhaustiveScanner(int8(items)).top_many(test, 20)]
    for size in (10, 11, 12, 15, 20):
        say(
            way="int8 rows",
            what=what,
            width=items.shape[1],
            handed_on=size,
            recall=recall([rows[:size] for rows in ranked], truth),
        )


def part_int8(model: HiVLP) -> None:
    """int8 rows of the words."""
    for width in (None, 512):
        items, test, _ = words(model, width)
        eighth(items, test, truth_of(items, test), "words")


def part_cold(model: HiVLP) -> None:
    """Bytes that are read from the disk where the finest level is not in memory."""
    items, test, train = words(model)
    (_, _, coarse, asked, _) = next(coarse_levels(model, items, test, train, ("lean",)))
    scanner = ExhaustiveScanner(coarse)
    engine = AnnIndex.build(items, queries=train)
    truth = truth_of(items, test)
    settings = [(recall(engine.search(test, K, s)[0], truth), s) for s in engine.params_grid() if np.isfinite(s.margin)]
    setting = min((s for s in settings if s[0] >= TARGETS[1]), key=lambda each: each[0])[1]
    with tempfile.TemporaryDirectory(dir=os.environ.get("HIVLP_SCRATCH")) as folder:
        path = Path(folder) / "fine.f16"
        items.tofile(path)
        os.sync()
        for advice in ("MADV_NORMAL", "MADV_RANDOM"):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                mapped.madvise(getattr(mmap, advice))
                fine = np.frombuffer(mapped, np.float16).reshape(items.shape)
                over, exact = AnnIndex(engine.arrays, fine), ExhaustiveScanner(fine)

                def listed(number: int, size: int, exact: Any = exact) -> Any:
                    rows = scanner.top(asked[number], size)[0]
                    return best_first(rows, exact.rescore(test[number], rows))

                ways: dict[str, Callable[[int], Any]] = {
                    "cascade, 200": lambda n, go=listed: go(n, 200),  # type: ignore[misc]
                    "cascade, 600": lambda n, go=listed: go(n, 600),  # type: ignore[misc]
                    "ann": lambda n, over=over: over.search(test[n][None], K, setting),  # type: ignore[misc]
                    "exact": lambda n, exact=exact: exact.top(test[n], K),  # type: ignore[misc]
                }
                for name, search in ways.items():
                    search(0)
                    read, faults, spent, rows = [], [], [], over.stats.vectors
                    asked_of = range(1, 61 if name != "exact" else 6)
                    for number in asked_of:
                        mapped.madvise(mmap.MADV_DONTNEED)
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        was, had, start = (
                            _read_bytes(),
                            resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
                            time.perf_counter(),
                        )
                        search(number)
                        spent.append((time.perf_counter() - start) * 1000)
                        read.append(_read_bytes() - was)
                        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - had)
                    say(
                        way=name,
                        advice=advice,
                        fine_rows=(over.stats.vectors - rows) / len(asked_of),
                        read_mb=float(np.mean(read)) / 1e6,
                        faults=float(np.mean(faults)),
                        p50_ms=float(np.median(spent)),
                    )
                del fine, over, exact, listed, ways, search


def _read_bytes() -> int:
    return next(
        int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes")
    )


def part_folder(model: HiVLP) -> None:
    """An index folder of given vectors, as a user holds it: before ``tune`` and after, by number of rows."""
    items, test, train = words(model)
    for count in (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 148_730):
        with tempfile.TemporaryDirectory() as scratch:
            folder, source = Path(scratch) / "index", Path(scratch) / "v.npy"
            np.save(source, items[:count].astype(np.float32))
            report = index_embeddings(folder, source, method="lean")
            row: dict[str, Any] = {
                "items": count,
                "fit_s": report.fit.seconds if report.fit else None,
                "add_s": report.added.seconds,
            }
            with Index.open(folder) as index:
                for name, options in (("cascade", {"shortlist": 200}), ("untuned", {}), ("exact", {"exact": True})):
                    row |= _timed(index, name, test, options)
                if count >= 1000:
                    start = time.perf_counter()
                    index.tune(train)
                    row["tune_s"] = time.perf_counter() - start
                    row |= _timed(index, "tuned", test, {}) | _timed(index, "exact by bound", test, {"exact": True})
            sizes = {
                name: sum(f.stat().st_size for f in folder.rglob(name) if f.is_file())
                for name in ("coarse.*", "fine.*", "items.db")
            }
            sizes["ann"] = sum(f.stat().st_size for f in folder.rglob("*/*") if f.is_file())
            say(way="folder", **row, **{f"{name} MB": size / 1e6 for name, size in sizes.items()})


def _timed(index: Index, name: str, test: Any, options: dict[str, Any]) -> dict[str, float]:
    truth = [{hit.id for hit in hits} for hits in index.search_many(vectors={FINE: test[:100]}, k=K, exact=True)]
    found = [{hit.id for hit in index.search(vector={FINE: query}, k=K, **options)} for query in test[:100]]
    share = sum(len(a & b) for a, b in zip(found, truth, strict=True)) / (K * len(truth))
    return {
        f"{name} ms": p50(lambda n: index.search(vector={FINE: test[n]}, k=K, **options), 60),
        f"{name} recall": share,
    }


PARTS = {
    "ranking": part_ranking,
    "width": part_width,
    "pictures": part_pictures,
    "int8": part_int8,
    "cold": part_cold,
    "folder": part_folder,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](HiVLP.from_pretrained("hivlp-mini"))
