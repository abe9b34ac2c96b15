"""The kernels in numpy: what runs where they could not be compiled, and what the tests hold them against.

Integer scores are the same to the last bit; only the last float32 sums may differ by rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hivlp.engine import layout, whole
from hivlp.levels import Vectors

if TYPE_CHECKING:
    from hivlp.engine.arrays import Arrays
    from hivlp.engine.building import Half
    from hivlp.engine.engine import Setting

Rows = NDArray[np.int64]
SPARE = np.float32(2)  # how much less than the margin a group may be below the best one


class Query:
    """All that is derived from one query; the fields of ``scratch`` in kernels.c."""

    def __init__(self, arrays: Arrays, query: Vectors) -> None:
        self.z = np.asarray(arrays.map, np.float32) @ query
        self.small, self.small_scale = _to_small(self.z)
        self.nibble, self.nibble_scale = _to_small(self.z * arrays.step)
        terms = (self.z * arrays.amplitude).reshape(-1, 4)
        widths = np.abs(terms).sum(1)
        self.table_unit = max(2 * float(widths.max()) / 63, 1e-20)
        signs = (np.arange(16)[:, None] >> np.arange(4) & 1) * 2 - 1
        sums = widths[:, None] + terms @ signs.T.astype(np.float32)
        self.table = np.rint(sums / np.float32(self.table_unit)).astype(np.int32)  # (dims / 4, 16)
        self.middle = int(np.rint(widths.sum() / self.table_unit))


def _to_small(values: Vectors) -> tuple[NDArray[np.int32], float]:
    most = max(float(np.abs(values).max()), 1e-20)
    return np.rint(values * np.float32(127 / most)).astype(np.int32), most / 127


def list_scores(arrays: Arrays, query: Query, margin: float) -> Vectors:
    """(lists,) what the router says of each list, -inf for those in groups of which it says too little."""
    said = _key_scores(arrays.group_keys, arrays.group_bias, arrays.scales[3], query)
    scores = _key_scores(arrays.keys, arrays.key_bias, arrays.scales[0], query)
    worth = said >= said.max() - np.float32(margin) - SPARE
    scores[~np.repeat(worth, layout.LANES)[: len(scores)]] = -np.inf
    return scores


def _key_scores(packed: NDArray[np.uint8], bias: Vectors, scale: np.float32, query: Query) -> Vectors:
    keys = layout.unpack_keys(packed)[: len(bias)]
    unit = np.float32(query.small_scale) * scale
    scores: Vectors = (keys.astype(np.int32) @ query.small).astype(np.float32) * unit + bias
    return scores


def sign_scores(arrays: Arrays, query: Query, chosen: Rows) -> tuple[Rows, Rows]:
    """The places of the codes in these lists, and their integer scores by their signs."""
    places, scores = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    unit = query.table_unit * float(arrays.scales[2])
    for number in chosen:
        first, last = arrays.starts[number : number + 2]
        dot = int(arrays.centres[number].astype(np.int64) @ query.small)
        offset = int(np.rint(np.float32(dot) * np.float32(query.small_scale * float(arrays.scales[1]) / unit)))
        positive = layout.unpack_signs(np.asarray(arrays.signs[first:last]))
        codes = (positive.reshape(len(positive), -1, 4) << np.arange(4)).sum(2)
        sums = query.table[np.arange(codes.shape[1]), codes].sum(1) - query.middle
        scores.append(offset + sums * np.asarray(arrays.factors[first:last]).ravel().astype(np.int64))
        places.append(np.arange(first * layout.SIGN_LANES, last * layout.SIGN_LANES))
    return np.concatenate(places), np.concatenate(scores)


def nibble_scores(arrays: Arrays, query: Query, rows: Rows) -> Vectors:
    """(rows,) scores by their lists' centres and their nibbles."""
    nibbles = np.asarray(arrays.nibbles[rows])
    sums = 2 * (layout.unpack_nibbles(nibbles["codes"]).astype(np.int32) @ query.nibble) - 15 * int(query.nibble.sum())
    dots = (arrays.centres[nibbles["home"]].astype(np.int32) @ query.small).astype(np.float32)
    of_list = dots * (np.float32(query.small_scale) * arrays.scales[1])
    scores: Vectors = of_list + nibbles["stretch"] * (sums.astype(np.float32) * np.float32(query.nibble_scale / 2))
    return scores


def search(
    arrays: Arrays, fine: Half, queries: Vectors, k: int, setting: Setting, allowed: NDArray[np.uint8] | None
) -> tuple[Rows, Vectors]:
    """:meth:`hivlp.engine.Engine.search` without kernels."""
    out_rows, out_scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    small = whole.codes(arrays.learnt, fine[: len(arrays.nibbles)]) if setting.lists == 0 else np.empty((0, 0), np.int8)
    for number, vector in enumerate(queries):
        query = Query(arrays, vector)
        if setting.lists == 0:
            rows = _all_rows(arrays, allowed)
            scores = small[rows].astype(np.int32) @ query.small
            rows = rows[np.lexsort((rows, -scores))[: setting.last]]
        else:
            rows = _shortlist(arrays, query, setting, allowed)
        rows, found = decide(arrays, fine, vector, query, rows, k, setting.last)
        out_rows[number, : len(rows)], out_scores[number, : len(rows)] = rows, found
    return out_rows, out_scores


def _all_rows(arrays: Arrays, allowed: NDArray[np.uint8] | None) -> Rows:
    if allowed is None:
        return np.arange(len(arrays.nibbles))
    return np.flatnonzero(np.unpackbits(allowed, count=len(arrays.nibbles), bitorder="little"))


def _shortlist(arrays: Arrays, query: Query, setting: Setting, allowed: NDArray[np.uint8] | None) -> Rows:
    lists = list_scores(arrays, query, setting.margin)
    order = np.lexsort((np.arange(len(lists)), -lists))[: setting.lists]
    chosen = order[(lists[order] >= lists[order[0]] - np.float32(setting.margin)) & np.isfinite(lists[order])]
    places, scores = sign_scores(arrays, query, chosen)
    rows = np.asarray(arrays.rows).ravel()[places].astype(np.int64)
    held = rows < len(arrays.nibbles)
    if allowed is not None:
        held[held] = allowed[rows[held] >> 3] >> (rows[held] & 7) & 1
    rows, places, scores = rows[held], places[held], scores[held]
    best: Rows = np.unique(rows[np.lexsort((places, -scores))[: setting.shortlist]])
    return best


def decide(
    arrays: Arrays, fine: Half, vector: Vectors, query: Query, rows: Rows, k: int, last: int
) -> tuple[Rows, Vectors]:
    """The best ``k`` of some rows: nibbles choose ``last`` of them, the float16 vectors decide."""
    if len(rows) > last:
        scores = nibble_scores(arrays, query, rows)
        rows = np.sort(rows[np.lexsort((rows, -scores))[:last]])
    products: Vectors = np.einsum("rd,d->r", np.asarray(fine[rows], np.float32), vector)
    best = np.lexsort((rows, -products))[:k]
    return rows[best], products[best]
