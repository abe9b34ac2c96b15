"""Inverted lists: the codes of all rows, list after list, in blocks of 32, whether new or of an earlier index."""

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

PIECE = 1 << 15
"""Codes that are copied between two moments at which other threads may run."""


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


@dataclass
class Codes:
    """Codes of some rows, one for each list that a row is assigned to, in any order.

    Attributes:
        lists: (codes,) int32.
        rows: (codes,) uint32.
        sign_codes: (codes, sign_dims / 16, 2) uint8.
        sign_scales: (codes,) uint8.
        refine_codes: (codes,) of :func:`hivlp.ann.layout.refine_dtype`.
    """

    lists: NDArray[np.int32]
    rows: NDArray[np.uint32]
    sign_codes: NDArray[np.uint8]
    sign_scales: NDArray[np.uint8]
    refine_codes: NDArray[np.void]

    @classmethod
    def room(cls, count: int, dims: int, sign_dims: int) -> Codes:
        """Codes that are still to be filled in."""
        return cls(
            np.empty(count, np.int32),
            np.empty(count, np.uint32),
            np.empty((count, sign_dims // 16, 2), np.uint8),
            np.empty(count, np.uint8),
            np.empty(count, layout.refine_dtype(dims, sign_dims)),
        )


def encode(items: Stored, quantizer: Quantizer, assignments: int, tell: Progress, first: int = 0) -> Codes:
    """Codes of items, each in the lists of its nearest centroids.

    Args:
        items: (n, d) float16 or float32, or records of int8.
        quantizer: trained on such items.
        assignments: lists a row, at most ``nlist``.
        tell: called with the step, how much of it is done, and of how much.
        first: row of the first item.
    """
    (nlist, dims), sign_dims, centroids = quantizer.centroids.shape, quantizer.sign_dims, quantizer.decoded_centroids
    copies = min(assignments, nlist)
    made = Codes.room(len(items) * copies, dims, sign_dims)
    for start, part in quantizer.projected_chunks(items):
        members = assign(centroids, part, copies)
        for copy in range(copies):
            at = slice(start * copies + copy, (start + len(part)) * copies, copies)
            residual = part - centroids[members[:, copy]]
            signed = residual[:, :sign_dims]
            scale = sign_scales(np.abs(signed), quantizer.sign_amplitude) / quantizer.sign_scale
            made.lists[at] = members[:, copy]
            made.rows[at] = np.arange(first + start, first + start + len(part))
            made.sign_codes[at] = layout.sign_bytes(signed > 0)
            made.sign_scales[at] = np.clip(np.rint(scale), 0, 255)
            codes, scale = refine(residual, quantizer.refine_step, sign_dims)
            made.refine_codes["codes"][at] = layout.pack_refine_codes(codes, sign_dims)
            made.refine_codes["scale"][at] = np.clip(np.rint(scale / quantizer.refine_scale), 0, 65_535)
        tell("codes", start + len(part), len(items))
    return made


def codes_of(lists: InvertedLists, kept: NDArray[np.int64] | None = None) -> Codes:
    """Codes that lie in inverted lists, of all rows or of some under new numbers.

    Args:
        lists: or :class:`hivlp.ann.arrays.Arrays`, which have the same arrays.
        kept: (n,) ascending rows, of which the first is row 0 from now on; None for all, as they are.
    """
    known = lists.row_ids.ravel()
    wanted = known != NO_ROW
    if kept is not None:
        renumbered = np.full(int(lists.counts[0]), NO_ROW, np.uint32)
        renumbered[kept] = np.arange(len(kept))
        known = np.where(wanted, renumbered[np.where(wanted, known, 0)], np.uint32(NO_ROW))
        wanted = known != NO_ROW
    chosen = np.flatnonzero(wanted)
    of_block = np.repeat(np.arange(len(lists.list_offsets) - 1, dtype=np.int32), np.diff(lists.list_offsets))
    blocks, words = lists.sign_codes.shape[:2]
    signs = lists.sign_codes.reshape(blocks, words, 2, CODE_LANES).transpose(0, 3, 1, 2)
    block, lane = np.divmod(chosen, CODE_LANES)
    taken = Codes(
        of_block[block], known[chosen], np.empty((len(chosen), words, 2), np.uint8),
        lists.sign_scales.ravel()[chosen], np.empty(len(chosen), lists.refine_codes.dtype),
    )  # fmt: skip
    for start in range(0, len(chosen), PIECE):
        part = slice(start, start + PIECE)
        taken.sign_codes[part] = signs[block[part], lane[part]]
        taken.refine_codes[part] = lists.refine_codes[block[part], lane[part]]
    return taken


def lay_out(parts: list[Codes], nlist: int, count: int) -> InvertedLists:
    """Inverted lists of codes, whoever made them and in whatever order.

    Args:
        parts: together, as many codes of each row as of any other.
        nlist: number of lists.
        count: number of rows.
    """
    lists, scales, rows = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("lists", "sign_scales", "rows")
    )
    offsets, positions = place(lists, scales, rows, nlist)
    blocks = int(offsets[-1])
    ids = np.full(blocks * CODE_LANES, NO_ROW, np.uint32)
    ids[positions] = rows
    held = np.zeros(blocks * CODE_LANES, np.uint8)
    held[positions] = scales
    words = parts[0].sign_codes.shape[1]
    signs = np.zeros((blocks, words, 2, CODE_LANES), np.uint8)
    refined = np.zeros((blocks, CODE_LANES), parts[0].refine_codes.dtype)
    done = 0
    for part in parts:
        for start in range(0, len(part.rows), PIECE):
            some = slice(start, start + PIECE)
            block, lane = np.divmod(positions[done + start : done + min(start + PIECE, len(part.rows))], CODE_LANES)
            signs[block, :, :, lane] = part.sign_codes[some]
            refined[block, lane] = part.refine_codes[some]
        done += len(part.rows)
    return InvertedLists(
        np.array([count, len(rows) // count], np.int64), offsets, ids.reshape(blocks, CODE_LANES),
        signs.reshape(blocks, words, 2 * CODE_LANES), held.reshape(blocks, CODE_LANES), refined,
    )  # fmt: skip


def place(
    lists: NDArray[np.int32], scales: NDArray[np.uint8], rows: NDArray[np.uint32], nlist: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(nlist + 1,) first block of each list and the end, and (codes,) position of each code.

    In a list the largest sign scales come first, equal ones by their rows: the further a list's centroid is from a
    query, the longer a residual must be to reach the threshold, so that a prefix of the list is all that needs to be
    read.
    """
    sizes = np.bincount(lists, minlength=nlist)
    offsets = np.concatenate([[0], np.cumsum(-(-sizes // CODE_LANES))]).astype(np.int64)
    order = np.argsort(lists.astype(np.uint64) << 40 | (255 - scales).astype(np.uint64) << 32 | rows)
    positions = np.empty(len(lists), np.int64)
    firsts = offsets[:-1] * CODE_LANES - (np.cumsum(sizes) - sizes)
    positions[order] = np.arange(len(lists)) + np.repeat(firsts, sizes)
    return offsets, positions
