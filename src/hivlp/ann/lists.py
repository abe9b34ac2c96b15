"""Inverted lists: the codes of all rows, list after list, in blocks of 32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout
from hivlp.ann.codes import refine, sign_scales
from hivlp.ann.constants import CODE_LANES, NO_ROW
from hivlp.ann.kmeans import assign
from hivlp.ann.rows import Stored
from hivlp.ann.training import Progress, Quantizer


@dataclass
class InvertedLists:
    """Codes of all rows, list after list.

    Attributes:
        counts: (2,) int64 number of rows, and of assignments a row.
        list_offsets: (nlist + 1,) int64 first block of each list, and the end.
        row_ids: (blocks, 32) uint32, :data:`~hivlp.ann.constants.NO_ROW` where a lane is empty.
        sign_codes: (blocks, sign_dims / 16, 64) uint8.
        sign_scales: (blocks, 32) uint8, descending in each list.
        refine_codes: (blocks, 32) of :func:`hivlp.ann.layout.refine_dtype`.
    """

    counts: NDArray[np.int64]
    list_offsets: NDArray[np.int64]
    row_ids: NDArray[np.uint32]
    sign_codes: NDArray[np.uint8]
    sign_scales: NDArray[np.uint8]
    refine_codes: NDArray[np.void]


def encode(items: Stored, quantizer: Quantizer, assignments: int, tell: Progress) -> InvertedLists:
    """Encode all items, in two passes over them in the order of their rows."""
    count, (nlist, dims), sign_dims = len(items), quantizer.centroids.shape, quantizer.sign_dims
    centroids = quantizer.decoded_centroids
    members = np.empty((count, min(assignments, nlist)), np.int32)
    scales = np.empty(members.shape, np.uint8)
    for start, part in quantizer.projected_chunks(items):
        stop = start + len(part)
        members[start:stop] = assign(centroids, part, assignments)
        for copy in range(members.shape[1]):
            residual = part[:, :sign_dims] - centroids[members[start:stop, copy], :sign_dims]
            scale = sign_scales(np.abs(residual), quantizer.sign_amplitude) / quantizer.sign_scale
            scales[start:stop, copy] = np.clip(np.rint(scale), 0, 255)
        tell("lists", stop, count)
    offsets, positions = place(members, scales, nlist)
    blocks = int(offsets[-1])
    rows = np.full((blocks, CODE_LANES), NO_ROW, np.uint32)
    signs = np.zeros((blocks, sign_dims // 16, 2, CODE_LANES), np.uint8)
    block_scales = np.zeros((blocks, CODE_LANES), np.uint8)
    refined = np.zeros((blocks, CODE_LANES), layout.refine_dtype(dims, sign_dims))
    for start, part in quantizer.projected_chunks(items):
        stop = start + len(part)
        for copy in range(members.shape[1]):
            residual = part - centroids[members[start:stop, copy]]
            block, lane = np.divmod(positions[start:stop, copy], CODE_LANES)
            rows[block, lane] = np.arange(start, stop)
            signs[block, :, :, lane] = layout.sign_bytes(residual[:, :sign_dims] > 0)
            block_scales[block, lane] = scales[start:stop, copy]
            codes, scale = refine(residual, quantizer.refine_step, sign_dims)
            refined["codes"][block, lane] = layout.pack_refine_codes(codes, sign_dims)
            refined["scale"][block, lane] = np.clip(np.rint(scale / quantizer.refine_scale), 0, 65_535)
        tell("codes", stop, count)
    counts = np.array([count, members.shape[1]], np.int64)
    return InvertedLists(counts, offsets, rows, signs.reshape(blocks, sign_dims // 16, 64), block_scales, refined)


def place(
    members: NDArray[np.int32], scales: NDArray[np.uint8], nlist: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(nlist + 1,) first block of each list and the end, and (n, assignments) position of each code.

    In a list the largest sign scales come first: the further a list's centroid is from a query, the longer a residual
    must be to reach the threshold, so that a prefix of the list is all that needs to be read.
    """
    flat = members.T.ravel()
    sizes = np.bincount(flat, minlength=nlist)
    offsets = np.concatenate([[0], np.cumsum(-(-sizes // CODE_LANES))]).astype(np.int64)
    order = np.argsort(flat.astype(np.int64) << 8 | (255 - scales.T.ravel()), kind="stable")
    positions = np.empty(len(flat), np.int64)
    firsts = offsets[:-1] * CODE_LANES - (np.cumsum(sizes) - sizes)
    positions[order] = np.arange(len(flat)) + np.repeat(firsts, sizes)
    return offsets, np.ascontiguousarray(positions.reshape(members.shape[::-1]).T)
