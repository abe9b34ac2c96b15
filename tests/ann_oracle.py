"""The approximate index in plain numpy: what the kernels are held against.

Integer scores are the same to the last bit; only the last float32 sums may differ by rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import SearchParams, layout
from hivlp.ann.arrays import Arrays
from hivlp.ann.bounds import Bounds
from hivlp.ann.codes import code_centers, relative_steps
from hivlp.ann.constants import CODE_LANES, CONSTANTS, LIST_LANES
from hivlp.ann.rows import Stored, floats
from hivlp.levels import Vectors

Rows = NDArray[np.int64]
Bytes = NDArray[np.uint8]
GROUP_SLACK = np.float32(CONSTANTS["GROUP_SLACK"])
ABS_SPREAD, MEAN_SIGN_SCALE = float(CONSTANTS["ABS_SPREAD"]), float(CONSTANTS["MEAN_SIGN_SCALE"])
MAX_SIGN_SLACK, MAX_WINDOW = int(CONSTANTS["MAX_SIGN_SLACK"]), int(CONSTANTS["MAX_WINDOW"])
WHOLE_LISTS = int(CONSTANTS["WHOLE_LISTS"])


def deinterleave(packed: Bytes) -> Bytes:
    """Inverse of :func:`hivlp.ann.layout.interleave`, with the rows that fill the last block."""
    blocks, groups, _, _ = packed.shape
    return packed.transpose(0, 2, 1, 3).reshape(blocks * LIST_LANES, groups * 4)


def unpack_int8_keys(packed: Bytes) -> NDArray[np.int8]:
    """Inverse of :func:`hivlp.ann.layout.pack_int8_keys`, with the rows that fill the last block."""
    return (deinterleave(packed).astype(np.int16) - 128).astype(np.int8)


def unpack_router_keys(packed: Bytes) -> Bytes:
    """Inverse of :func:`hivlp.ann.layout.pack_router_keys`, with the rows that fill the last block."""
    return layout.unpack_nibbles(deinterleave(packed))


def pack_sign_codes(positive: NDArray[np.bool_]) -> Bytes:
    """(blocks, dims / 16, 64) uint8 from (32 * blocks, dims) bool."""
    blocks, dims = len(positive) // CODE_LANES, positive.shape[1]
    packed = layout.sign_bytes(positive).reshape(blocks, CODE_LANES, dims // 16, 2)
    return np.ascontiguousarray(packed.transpose(0, 2, 3, 1)).reshape(blocks, dims // 16, 64)


def unpack_sign_codes(codes: Bytes) -> NDArray[np.bool_]:
    """Inverse of :func:`pack_sign_codes`."""
    blocks, groups, _ = codes.shape
    bits = np.unpackbits(codes.reshape(blocks, groups, 2, CODE_LANES, 1), axis=-1, bitorder="little")
    return bits.transpose(0, 3, 1, 2, 4).reshape(blocks * CODE_LANES, groups * 16).astype(bool)


class Query:
    """All that is derived from one query; the fields of ``scratch`` in kernels.c."""

    def __init__(self, arrays: Arrays, query: Vectors) -> None:
        self.projected = np.asarray(arrays.query_projection, np.float32) @ query
        self.int8, self.int8_scale = _to_int8(self.projected)
        self.refine, refine_unit = _to_int8(self.projected * arrays.refine_step)
        signed = len(arrays.sign_amplitude)
        terms = (self.projected[:signed] * arrays.sign_amplitude).reshape(-1, 4)
        widths = np.abs(terms).sum(1)
        lut_unit = max(2 * float(widths.max()) / 63, 1e-20)
        signs = (np.arange(16)[:, None] >> np.arange(4) & 1) * 2 - 1
        sums = widths[:, None] + terms @ signs.T.astype(np.float32)
        self.lut = np.rint(sums / np.float32(lut_unit)).astype(np.int32)  # (dims / 4, 16)
        self.lut_offset = int(np.rint(widths.sum() / lut_unit))
        of_dims = self.projected * arrays.refine_step / relative_steps(len(self.projected), signed)
        left_out = float(np.hypot(ABS_SPREAD * np.linalg.norm(terms), np.linalg.norm(of_dims[signed:])))
        self.spread = max(1, int(np.rint(left_out / lut_unit)))
        self.deviation = max(1, int(np.rint(float(np.linalg.norm(of_dims)) / (lut_unit * MEAN_SIGN_SCALE))))
        centroid_scale, sign_scale, _, refine_scale, error = (float(value) for value in arrays.scales[0])
        unit = lut_unit * sign_scale  # what one step of a code's score stands for
        self.centroid_unit = np.float32(self.int8_scale * centroid_scale / unit)
        self.refine_unit = np.float32(refine_unit / 2 * refine_scale / unit)
        length = float(np.linalg.norm(query.astype(np.float64)))
        self.error = float(error) * length / unit  # of codes, in a score's steps


def _to_int8(values: Vectors) -> tuple[NDArray[np.int32], float]:
    most = max(float(np.abs(values).max()), 1e-20)
    return np.rint(values * np.float32(127 / most)).astype(np.int32), most / 127


def list_scores(arrays: Arrays, query: Query, margin: float) -> Vectors:
    """(lists,) what the router says of each list, -inf for those in groups of which it says too little."""
    int8, unit = query.int8, np.float32(query.int8_scale)
    of_groups = unpack_int8_keys(arrays.group_keys)[: len(arrays.group_bias)].astype(np.int32) @ int8
    said = of_groups.astype(np.float32) * (unit * arrays.scales["group_scale"][0]) + arrays.group_bias
    codes = unpack_router_keys(arrays.router_keys)[: len(arrays.router_bias)].astype(np.int32)
    products = (2 * (codes @ int8) - 15 * int(int8.sum())).astype(np.float32)
    scores: Vectors = products * (unit / 2 * arrays.router_scales) + arrays.router_bias
    worth = said >= said.max() - np.float32(margin) - GROUP_SLACK
    scores[~np.repeat(worth, LIST_LANES)[: len(scores)]] = -np.inf
    return scores


def centroid_scores(arrays: Arrays, query: Query, lists: Rows) -> Rows:
    """(lists,) term of a score that is its centroid's."""
    dots = (arrays.centroids[lists].astype(np.int32) @ query.int8).astype(np.float32)
    offsets: Rows = np.rint(dots * query.centroid_unit).astype(np.int64)
    return offsets


def sign_scores(arrays: Arrays, query: Query, chosen: Rows, blocks: Rows, slack: float = 0.0) -> tuple[Rows, Rows]:
    """Places and scores, by their signs and if these left out so much, of the codes in so many blocks of lists."""
    positions, scores = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    spare = int(np.rint(np.clip(np.float32(slack) * np.float32(query.spread), -MAX_SIGN_SLACK, MAX_SIGN_SLACK)))
    for number, count, offset in zip(chosen, blocks, centroid_scores(arrays, query, chosen), strict=True):
        first, last = arrays.list_offsets[number], arrays.list_offsets[number] + count
        positive = unpack_sign_codes(np.asarray(arrays.sign_codes[first:last]))
        codes = (positive.reshape(len(positive), -1, 4) << np.arange(4)).sum(2)
        sums = query.lut[np.arange(codes.shape[1]), codes].sum(1) - query.lut_offset + spare
        scores.append(offset + sums * np.asarray(arrays.sign_scales[first:last]).ravel().astype(np.int64))
        positions.append(np.arange(first * CODE_LANES, last * CODE_LANES))
    return np.concatenate(positions), np.concatenate(scores)


def refine_scores(arrays: Arrays, query: Query, positions: Rows) -> Rows:
    """The scores of the codes at these positions by their codes."""
    codes = np.asarray(arrays.refine_codes.ravel()[positions])
    signed, middles = len(arrays.sign_amplitude), code_centers(len(query.projected), len(arrays.sign_amplitude))
    sums = 2 * (layout.unpack_refine_codes(codes["codes"], signed).astype(np.int32) @ query.refine)
    sums -= int(2 * middles @ query.refine)
    beyond = codes["scale"].astype(np.float32) * (sums.astype(np.float32) * query.refine_unit)
    offsets = centroid_scores(arrays, query, arrays.block_lists[positions // CODE_LANES].astype(np.int64))
    scores: Rows = offsets + np.rint(beyond).astype(np.int64)
    return scores


def search(
    arrays: Arrays, vectors: Stored, queries: Vectors, k: int, params: SearchParams, allowed: NDArray[np.uint8] | None
) -> tuple[Rows, Vectors]:
    """:meth:`hivlp.ann.AnnIndex.search` without kernels."""
    out_rows, out_scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    for number, vector in enumerate(queries):
        query = Query(arrays, vector)
        rows = kept_rows(arrays, query, params, k * arrays.assignments, allowed)
        rows, found = rerank(vectors, vector, rows, k)
        out_rows[number, : len(rows)], out_scores[number, : len(rows)] = rows, found
    return out_rows, out_scores


def kept_rows(
    arrays: Arrays, query: Query, params: SearchParams, wanted: int, allowed: NDArray[np.uint8] | None
) -> Rows:
    lists = list_scores(arrays, query, params.margin)
    order = np.lexsort((np.arange(len(lists)), -lists))[: params.nprobe]
    chosen = order[(lists[order] >= lists[order[0]] - np.float32(params.margin)) & np.isfinite(lists[order])]
    blocks = np.diff(arrays.list_offsets)[chosen]
    best, others = chosen[:WHOLE_LISTS], chosen[WHOLE_LISTS:]
    rows, positions, scores = _scored(arrays, query, best, blocks[:WHOLE_LISTS], params.slack, allowed)
    if len(others):
        threshold = _threshold(query, scores, params, wanted)
        gaps = (lists[chosen[0]] - lists[others]).astype(np.float32)
        within = _blocks_within(arrays, query, others, threshold, np.float32(params.margin) - gaps * np.float32(0.5))
        some = within > 0
        more = _scored(arrays, query, others[some], within[some], params.slack, allowed)
        rows, positions, scores = (
            np.concatenate(both) for both in zip((rows, positions, scores), more, strict=True)
        )  # fmt: skip
    best = np.lexsort((positions, -scores))[: params.rerank]
    kept: Rows = np.unique(rows[best[scores[best] >= _threshold(query, scores, params, wanted)]])
    return kept


def _threshold(query: Query, scores: Rows, params: SearchParams, wanted: int) -> float:
    """What a code's score has to reach to be handed on: among so many, and near to the last of those wanted."""
    ordered, threshold = np.sort(scores)[::-1], -np.inf
    if len(scores) >= params.rerank:
        threshold = float(ordered[params.rerank - 1])
    if len(scores) >= wanted:
        window = int(np.rint(np.fmin(params.tolerance * query.error, MAX_WINDOW)))
        threshold = max(threshold, float(ordered[wanted - 1] - window))
    return threshold


def _scored(
    arrays: Arrays, query: Query, chosen: Rows, blocks: Rows, slack: float, allowed: NDArray[np.uint8] | None
) -> tuple[Rows, Rows, Rows]:
    """Rows, positions and scores of the codes in so many blocks of lists."""
    positions, most = sign_scores(arrays, query, chosen, blocks, slack)
    rows = arrays.row_ids.ravel()[positions].astype(np.int64)
    held = rows < arrays.count
    if allowed is not None:
        held[held] = allowed[rows[held] >> 3] >> (rows[held] & 7) & 1
    rows, positions, most = rows[held], positions[held], most[held]
    return rows, positions, np.minimum(refine_scores(arrays, query, positions), most)


def _blocks_within(arrays: Arrays, query: Query, lists: Rows, threshold: float, deviations: Vectors) -> Rows:
    """(lists,) number of each list's first blocks with codes that reach the threshold with so many deviations."""
    short = threshold - centroid_scores(arrays, query, lists)
    blocks: Rows = np.diff(arrays.list_offsets)[lists]
    for number in np.flatnonzero(short > 0):
        least = np.float32(short[number]) / (deviations[number] * np.float32(query.deviation))
        first, last = arrays.list_offsets[lists[number] : lists[number] + 2]
        blocks[number] = int(np.argmin(np.append(arrays.max_sign_scales[first:last] >= least, False)))
    return blocks


def rerank(vectors: Stored, vector: Vectors, rows: Rows, k: int) -> tuple[Rows, Vectors]:
    """The best ``k`` of some rows by their stored vectors."""
    products: Vectors = np.einsum("rd,d->r", floats(vectors[rows]), vector)
    best = np.lexsort((rows, -products))[:k]
    return rows[best], products[best]


def bounds_of(bounds: Bounds, query: Vectors) -> NDArray[np.float64]:
    """(n,) bound of every row on its inner product with a (d,) query."""
    bound, arrays = bounds.of(query), bounds.index.arrays
    whole = (128 * bound.high.astype(np.int64) + bound.low)[: bounds.index.dims]
    positions = arrays.positions
    codes = np.asarray(arrays.refine_codes.ravel()[positions])
    sums = layout.unpack_refine_codes(codes["codes"], len(arrays.sign_amplitude)).astype(np.int64) @ whole
    inner = codes["scale"].astype(np.float64) * (bound.unit * sums + bound.slack)
    lists = bound.lists[arrays.lists_of(positions)]
    return bound.offset + lists + inner + bound.reach * bounds.norms.ravel()[positions].astype(np.float64)
