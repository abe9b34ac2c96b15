"""What is measured: recall of the exact ten best, and the median of best times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hivlp.encode import HiVLP
from hivlp.search.exhaustive import ExhaustiveScanner

K, ASKED, TARGETS = 10, 300, (0.95, 0.99)


def say(**row: Any) -> None:
    """One line of the result."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


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


def int8(rows: Any) -> Any:
    """What int8 with one scale a row stands for."""
    rows = np.asarray(rows, np.float32)
    step = np.abs(rows).max(1, keepdims=True) / 127
    return np.rint(rows / step) * step
