"""Part ``cold``: what is read from the disk where the finest level is not in memory."""

from __future__ import annotations

import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measures import TARGETS, K, recall, say, truth_of
from words import coarse_levels, words

from hivlp.ann import AnnIndex
from hivlp.encode import HiVLP
from hivlp.search.exhaustive import ExhaustiveScanner, best_first


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
