"""Ways to the ten best: a scan of the coarse level, the approximate index over either level, int8 rows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from measures import TARGETS, K, int8, p50, recall, say

from hivlp.ann import AnnIndex
from hivlp.ann.layout import refine_dtype
from hivlp.search.exhaustive import ExhaustiveScanner, best_first

SHORTLISTS = (10, 12, 14, 17, 20, 25, 30, 40, 50, 70, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800)


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
