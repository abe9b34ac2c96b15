"""The search parameters with which a product is fastest at a recall, chosen on validation queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Effort


def choose(
    ladders: Sequence[Ladder], wanted: float, recall: Callable[[Effort], float], cost: Callable[[Effort], float]
) -> Effort | None:
    """Of each ladder's :func:`least` parameters, those that cost least; None if no ladder reaches the recall.

    Args:
        ladders: parameters from little effort to much.
        wanted: recall.
        recall: measures what parameters find.
        cost: measures what they take.
    """
    there = [found for ladder in ladders if (found := least(ladder, wanted, recall)) is not None]
    return min(there, key=cost) if len(there) > 1 else next(iter(there), None)


def least(ladder: Ladder, wanted: float, recall: Callable[[Effort], float]) -> Effort | None:
    """The first parameters of a ladder that reach a recall, which is taken to grow along it; None if the last do not.

    Steps of growing width come first, so that parameters which take much longer than needed are not tried.
    """
    low, high, step = 0, 0, 1
    while recall(ladder[high]) < wanted:
        if high == len(ladder) - 1:
            return None
        low, high, step = high + 1, min(high + step, len(ladder) - 1), 2 * step
    while low < high:
        middle = (low + high) // 2
        if recall(ladder[middle]) < wanted:
            low = middle + 1
        else:
            high = middle
    return ladder[low]
