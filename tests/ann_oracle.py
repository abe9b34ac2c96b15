"""The kernels in numpy: what runs where they could not be compiled, and what the tests hold them against.

Integer scores are the same to the last bit; only the last float32 sums may differ by rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout, whole
from hivlp.ann.building import step_of_spread
from hivlp.levels import Vectors

if TYPE_CHECKING:
    from hivlp.ann.ann_index import SearchParams
    from hivlp.ann.arrays import Arrays
    from hivlp.ann.building import Half

Rows = NDArray[np.int64]
SPARE = np.float32(1)  # how much further than the margin a group may be below the best one
SPREAD = 0.756  # standard deviation of a normal variable's size, its mean being 1
MOST_SPARE = 8191  # steps of a table
MEAN_FACTOR = 1.5708  # its mean square, likewise: what a factor is on average
MOST_WINDOW = 1 << 28
FIRST = 8  # lists that are read whole: they say what a code has to reach


class Query:
    """All that is derived from one query; the fields of ``scratch`` in kernels.c."""

    def __init__(self, arrays: Arrays, query: Vectors) -> None:
        self.z = np.asarray(arrays.map, np.float32) @ query
        self.small, self.small_scale = _to_small(self.z)
        self.nibble, nibble_scale = _to_small(self.z * arrays.step)
        signed = len(arrays.amplitude)
        terms = (self.z[:signed] * arrays.amplitude).reshape(-1, 4)
        widths = np.abs(terms).sum(1)
        table_unit = max(2 * float(widths.max()) / 63, 1e-20)
        signs = (np.arange(16)[:, None] >> np.arange(4) & 1) * 2 - 1
        sums = widths[:, None] + terms @ signs.T.astype(np.float32)
        self.table = np.rint(sums / np.float32(table_unit)).astype(np.int32)  # (dims / 4, 16)
        self.middle = int(np.rint(widths.sum() / table_unit))
        of_dims = self.z * arrays.step / step_of_spread(len(self.z), signed)
        left_out = float(np.hypot(SPREAD * np.linalg.norm(terms), np.linalg.norm(of_dims[signed:])))
        self.spread = max(1, int(np.rint(left_out / table_unit)))
        self.deviation = max(1, int(np.rint(float(np.linalg.norm(of_dims)) / (table_unit * MEAN_FACTOR))))
        centre_scale, factor_scale, _, stretch_scale, error = arrays.scales.tolist()
        unit = table_unit * factor_scale  # what one step of a code's score stands for
        self.centre_unit = np.float32(self.small_scale * centre_scale / unit)
        self.nibble_unit = np.float32(nibble_scale / 2 * stretch_scale / unit)
        length = float(np.linalg.norm(query.astype(np.float64)))
        self.error = float(error) * length / unit  # of nibbles, in a score's steps


def _to_small(values: Vectors) -> tuple[NDArray[np.int32], float]:
    most = max(float(np.abs(values).max()), 1e-20)
    return np.rint(values * np.float32(127 / most)).astype(np.int32), most / 127


def list_scores(arrays: Arrays, query: Query, margin: float) -> Vectors:
    """(lists,) what the router says of each list, -inf for those in groups of which it says too little."""
    small, unit = query.small, np.float32(query.small_scale)
    of_groups = layout.unpack_keys(arrays.group_keys)[: len(arrays.group_bias)].astype(np.int32) @ small
    said = of_groups.astype(np.float32) * (unit * arrays.scales[2]) + arrays.group_bias
    codes = layout.unpack_nibble_keys(arrays.keys)[: len(arrays.key_bias)].astype(np.int32)
    products = (2 * (codes @ small) - 15 * int(small.sum())).astype(np.float32)
    scores: Vectors = products * (unit / 2 * arrays.key_steps) + arrays.key_bias
    worth = said >= said.max() - np.float32(margin) - SPARE
    scores[~np.repeat(worth, layout.LANES)[: len(scores)]] = -np.inf
    return scores


def list_offsets(arrays: Arrays, query: Query, lists: Rows) -> Rows:
    """(lists,) what a code's score has from its list's centre."""
    dots = (arrays.centres[lists].astype(np.int32) @ query.small).astype(np.float32)
    offsets: Rows = np.rint(dots * query.centre_unit).astype(np.int64)
    return offsets


def sign_scores(arrays: Arrays, query: Query, chosen: Rows, blocks: Rows, slack: float = 0.0) -> tuple[Rows, Rows]:
    """Places and scores, by their signs and if these left out so much, of the codes in so many blocks of lists."""
    places, scores = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    spare = int(np.rint(np.clip(np.float32(slack) * np.float32(query.spread), -MOST_SPARE, MOST_SPARE)))
    for number, count, offset in zip(chosen, blocks, list_offsets(arrays, query, chosen), strict=True):
        first, last = arrays.starts[number], arrays.starts[number] + count
        positive = layout.unpack_signs(np.asarray(arrays.signs[first:last]))
        codes = (positive.reshape(len(positive), -1, 4) << np.arange(4)).sum(2)
        sums = query.table[np.arange(codes.shape[1]), codes].sum(1) - query.middle + spare
        scores.append(offset + sums * np.asarray(arrays.factors[first:last]).ravel().astype(np.int64))
        places.append(np.arange(first * layout.SIGN_LANES, last * layout.SIGN_LANES))
    return np.concatenate(places), np.concatenate(scores)


def nibble_scores(arrays: Arrays, query: Query, places: Rows) -> Rows:
    """The scores of the codes at these places by their nibbles."""
    nibbles = np.asarray(arrays.nibbles.ravel()[places])
    signed, middles = len(arrays.amplitude), layout.middles(len(query.z), len(arrays.amplitude))
    sums = 2 * (layout.unpack_codes(nibbles["codes"], signed).astype(np.int32) @ query.nibble)
    sums -= int(2 * middles @ query.nibble)
    beyond = nibbles["stretch"].astype(np.float32) * (sums.astype(np.float32) * query.nibble_unit)
    offsets = list_offsets(arrays, query, arrays.homes[places // layout.SIGN_LANES].astype(np.int64))
    scores: Rows = offsets + np.rint(beyond).astype(np.int64)
    return scores


def search(
    arrays: Arrays, fine: Half, queries: Vectors, k: int, params: SearchParams, allowed: NDArray[np.uint8] | None
) -> tuple[Rows, Vectors]:
    """:meth:`hivlp.ann.AnnIndex.search` without kernels."""
    out_rows, out_scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    small = whole.codes(arrays.learnt, fine[: arrays.count]) if params.nprobe == 0 else np.empty((0, 0), np.int8)
    for number, vector in enumerate(queries):
        query = Query(arrays, vector)
        if params.nprobe == 0:
            rows = _all_rows(arrays, allowed)
            scores = small[rows].astype(np.int32) @ query.small
            rows = rows[np.lexsort((rows, -scores))[: params.rerank]]
        else:
            rows = _last(arrays, query, params, k * int(arrays.held[1]), allowed)
        rows, found = decide(fine, vector, rows, k)
        out_rows[number, : len(rows)], out_scores[number, : len(rows)] = rows, found
    return out_rows, out_scores


def search_rows(arrays: Arrays, fine: Half, vector: Vectors, rows: Rows, k: int, last: int) -> tuple[Rows, Vectors]:
    """:meth:`hivlp.ann.AnnIndex.search_rows` without kernels."""
    if len(rows) > last:
        scores = nibble_scores(arrays, Query(arrays, vector), arrays.places[rows].astype(np.int64))
        rows = rows[np.lexsort((np.arange(len(rows)), -scores))[:last]]
    return decide(fine, vector, rows, k)


def _all_rows(arrays: Arrays, allowed: NDArray[np.uint8] | None) -> Rows:
    if allowed is None:
        return np.arange(arrays.count)
    return np.flatnonzero(np.unpackbits(allowed, count=arrays.count, bitorder="little"))


def _last(arrays: Arrays, query: Query, params: SearchParams, wanted: int, allowed: NDArray[np.uint8] | None) -> Rows:
    lists = list_scores(arrays, query, params.margin)
    order = np.lexsort((np.arange(len(lists)), -lists))[: params.nprobe]
    chosen = order[(lists[order] >= lists[order[0]] - np.float32(params.margin)) & np.isfinite(lists[order])]
    blocks = np.diff(arrays.starts)[chosen]
    best, others = chosen[:FIRST], chosen[FIRST:]
    rows, places, scores = _scored(arrays, query, best, blocks[:FIRST], params.slack, allowed)
    if len(others):
        bar = _bar(query, scores, params, wanted)
        gaps = (lists[chosen[0]] - lists[others]).astype(np.float32)
        within = _blocks_within(arrays, query, others, bar, np.float32(params.margin) - gaps * np.float32(0.5))
        some = within > 0
        more = _scored(arrays, query, others[some], within[some], params.slack, allowed)
        rows, places, scores = (
            np.concatenate(both) for both in zip((rows, places, scores), more, strict=True)
        )  # fmt: skip
    best = np.lexsort((places, -scores))[: params.rerank]
    kept: Rows = np.unique(rows[best[scores[best] >= _bar(query, scores, params, wanted)]])
    return kept


def _bar(query: Query, scores: Rows, params: SearchParams, wanted: int) -> float:
    """What a code's score has to reach to be handed on: among so many, and near to the last of those wanted."""
    ordered, bar = np.sort(scores)[::-1], -np.inf
    if len(scores) >= params.rerank:
        bar = float(ordered[params.rerank - 1])
    if len(scores) >= wanted:
        window = int(np.rint(np.fmin(params.tolerance * query.error, MOST_WINDOW)))
        bar = max(bar, float(ordered[wanted - 1] - window))
    return bar


def _scored(
    arrays: Arrays, query: Query, chosen: Rows, blocks: Rows, slack: float, allowed: NDArray[np.uint8] | None
) -> tuple[Rows, Rows, Rows]:
    """Rows, places and scores of the codes in so many blocks of lists."""
    places, most = sign_scores(arrays, query, chosen, blocks, slack)
    rows = arrays.rows.ravel()[places].astype(np.int64)
    held = rows < arrays.count
    if allowed is not None:
        held[held] = allowed[rows[held] >> 3] >> (rows[held] & 7) & 1
    rows, places, most = rows[held], places[held], most[held]
    return rows, places, np.minimum(nibble_scores(arrays, query, places), most)


def _blocks_within(arrays: Arrays, query: Query, lists: Rows, bar: float, deviations: Vectors) -> Rows:
    """(lists,) in how many blocks of each there are codes that reach the bar if they have so many deviations of it."""
    short = bar - list_offsets(arrays, query, lists)
    blocks: Rows = np.diff(arrays.starts)[lists]
    for number in np.flatnonzero(short > 0):
        least = np.float32(short[number]) / (deviations[number] * np.float32(query.deviation))
        first, last = arrays.starts[lists[number] : lists[number] + 2]
        blocks[number] = int(np.argmin(np.append(arrays.heads[first:last] >= least, False)))
    return blocks


def decide(fine: Half, vector: Vectors, rows: Rows, k: int) -> tuple[Rows, Vectors]:
    """The best ``k`` of some rows by their float16 vectors."""
    products: Vectors = np.einsum("rd,d->r", np.asarray(fine[rows], np.float32), vector)
    best = np.lexsort((rows, -products))[:k]
    return rows[best], products[best]
