"""Part ``folder``: an index folder of given vectors, before ``tune`` and after."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measures import K, p50, say
from words import words

from hivlp.coarse.maps import FINE
from hivlp.encode import HiVLP
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings


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
