"""The collection: WordNet's words, its glosses as queries, and coarse levels of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from measures import ASKED, unit

from hivlp.bench.ann.real import GLOSSES, TESTED, TRAINED_FROM, read_real, read_wordnet
from hivlp.coarse.choose import SAMPLE_ITEMS, fit_coarse
from hivlp.encode import HiVLP


def words(model: HiVLP, width: int | None = None) -> tuple[Any, Any, Any]:
    """(148730, d) float16 items in a random order, (300, d) and (23000, d) float32 queries; ``width``: turned, cut."""
    real = read_real(model)
    items = np.asarray(real.words)[np.random.default_rng(0).permutation(len(real.words))]
    test, train = np.asarray(real.glosses[:TESTED])[:ASKED], np.asarray(real.glosses[TRAINED_FROM:])
    if width is not None:
        turn = np.linalg.qr(np.random.default_rng(3).normal(size=(items.shape[1],) * 2))[0][:, :width]
        items, test, train = (unit(each @ turn.astype(np.float32)) for each in (items, test, train))
    return items.astype(np.float16), test, train


def of_model(model: HiVLP) -> tuple[Any, Any, Any]:
    """hivlp-mini's own coarse level of the words (in the order of :func:`words`), and of the test and train glosses."""
    texts, glosses = read_wordnet()
    items = model.encode_text(texts, levels=["coarse"]).coarse[np.random.default_rng(0).permutation(len(texts))]
    asked = model.encode_text(glosses[:GLOSSES], levels=["coarse"]).coarse
    return items.astype(np.float16), asked[:ASKED], asked[TRAINED_FROM:]


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
