"""From vectors to the engine's arrays: what is learnt from a sample, and the codes of every item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout
from hivlp.ann import learning as fit
from hivlp.levels import Vectors

Half = NDArray[np.float16]
Progress = Callable[[str, int, int], None]

SAMPLE = 100_000
PARTITION_SAMPLE = 500_000
ERROR_SAMPLE = 4000  # items
FEW_A_LIST = 50  # vectors to find a list's centre by
CHUNK = 16_384
KEPT = 0.995  # of the best, by as many dimensions as there shall be
STEP_OF_SPREAD = 0.335  # of a standard deviation: the best uniform step of four bits for a normal distribution
COARSE_STEP = 0.996  # of two bits
CANDIDATE_DIMS = (64, 96, 128, 160, 176, 192, 224, 256, 320, 384)
SMALL = 500_000  # items up to which codes come from the processor's cache for a good part, and may be read more of
COPIES = (2, 1)  # lists that an item lies in, of few items and of many
MOST_SIGNED = 128  # dimensions that have signs, of many items; of few, all
MEMORY = 1.15e9  # bytes that codes may take before they get fewer dimensions than they need
MEMORY_EACH = 115  # bytes that they always may, of a vector


@dataclass
class Learnt:
    """What the codes of an item depend on, beside the item."""

    mean: Vectors  # (d,) of the items
    item_map: Vectors  # (d, dims)
    map: Half  # (dims, d) for queries
    step: Vectors  # (dims,) what one step of a code stands for, times the code's stretch
    amplitude: Vectors  # (signed,) what a sign stands for, of the first dimensions
    centres: NDArray[np.int8]  # (lists, dims)
    centre_scale: float
    factor_scale: float
    stretch_scale: float
    error: float  # of nibbles: what they leave out of a product with a query of unit length, root mean square

    @property
    def exact_centres(self) -> Vectors:
        """(lists, dims) float32."""
        return self.centres.astype(np.float32) * np.float32(self.centre_scale)

    def project(self, items: NDArray[Any]) -> Vectors:
        """(n, dims) of (n, d) items, seen from their mean."""
        return np.asarray((np.asarray(items, np.float32) - self.mean) @ self.item_map, np.float32)

    def chunks(self, items: NDArray[Any]) -> Iterator[tuple[int, Vectors]]:
        """The projections of all items, so many at a time, with the row of the first."""
        for start in range(0, len(items), CHUNK):
            yield start, self.project(items[start : start + CHUNK])


@dataclass
class Packed:
    """The codes of all items, list after list, 32 a block."""

    held: NDArray[np.int64]  # (2,) how many items, and how many codes of each
    starts: NDArray[np.int64]  # (lists + 1,) first block of each list
    rows: NDArray[np.uint32]  # (blocks, 32) the item that each code is of
    signs: NDArray[np.uint8]  # (blocks, signed / 16, 64)
    factors: NDArray[np.uint8]  # (blocks, 32), the largest of each list first
    nibbles: NDArray[np.void]  # (blocks, 32) of layout.code_type


def learn(
    items: NDArray[Any],
    queries: Vectors | None,
    dims: int | None,
    signed: int | None,
    lists: int | None,
    copies: int,
    rng: np.random.Generator,
    tell: Progress,
) -> Learnt:
    """Projection, partition and scales, from a sample of items and of queries; see :meth:`AnnIndex.build`."""
    chosen = np.sort(rng.choice(len(items), min(len(items), SAMPLE), replace=False))
    sample = np.asarray(items[chosen], np.float32)
    asked = sample if queries is None else queries[:SAMPLE]
    tell("projection", 0, 1)
    mean, of_items, of_queries = fit.projections(sample, asked)
    if dims is None:
        of_signs, needed = choose_dims(sample, asked, mean, of_items, of_queries, len(items))
        signed = choose_signed(of_signs, len(items)) if signed is None else signed
        dims = affordable_dims(signed, needed, len(items), copies)
    signed = choose_signed(dims, len(items)) if signed is None else min(signed, dims)
    turn = np.zeros((dims, dims), np.float32)
    turn[:signed, :signed] = fit.rotation(signed, rng)
    turn[signed:, signed:] = fit.rotation(dims - signed, rng)
    item_map, query_map = of_items[:, :dims] @ turn, of_queries[:, :dims] @ turn
    projected = (sample - mean) @ item_map
    tell("projection", 1, 1)
    lists = lists or max(1, min(len(items) // 64, int(4 * np.sqrt(len(items)))))
    tell("partition", 0, 1)
    wider = projected
    wanted = min(len(items), FEW_A_LIST * lists, PARTITION_SAMPLE)
    if wanted > len(sample):
        more = np.sort(rng.choice(len(items), wanted, replace=False))
        parts = (np.asarray(items[more[at : at + CHUNK]], np.float32) - mean for at in range(0, wanted, CHUNK))
        wider = np.concatenate([part @ item_map for part in parts])
    centres, centre_scale = fit.to_int8(fit.partition(wider, min(lists, len(wider)), rng))
    tell("partition", 1, 1)
    exact = centres.astype(np.float32) * np.float32(centre_scale)
    nearest = exact[fit.assign(exact, projected, 1)[:, 0]]
    residual = projected - nearest
    size = np.abs(residual[:, :signed])
    amplitude = np.maximum(size.mean(0), 1e-12)
    spread = np.sqrt(np.einsum("nd,nd->d", residual, residual) / len(residual))
    step = (step_of_spread(dims, signed) * np.maximum(spread, 1e-12)).astype(np.float32)
    factors, (codes, stretches) = sign_factors(size, amplitude), refine(residual, step, signed)
    some = slice(None, None, -(-len(sample) // ERROR_SAMPLE))
    middles = layout.middles(dims, signed).astype(np.float32)
    said = nearest[some] + (codes[some] - middles) * step * stretches[some, None]
    return Learnt(
        mean=mean,
        item_map=np.ascontiguousarray(item_map),
        map=np.ascontiguousarray(query_map.T, np.float16),
        step=step,
        amplitude=amplitude,
        centres=centres,
        centre_scale=centre_scale,
        # Room for items that lie further out than any of the sample.
        factor_scale=max(1.5 * float(np.quantile(factors, 0.999)), 1e-20) / 255,
        stretch_scale=max(4 * float(stretches.max(initial=0)), 1e-20) / 65_535,
        error=max(1e-20, _root_mean_square(asked[:1000], sample[some] - mean - said @ query_map.T)),
    )


def _root_mean_square(queries: Vectors, left_out: Vectors) -> float:
    """Of the products of (n, d) vectors with (m, d) queries, as if these were of unit length."""
    products = queries @ left_out.T
    return float(np.sqrt(np.mean(products**2) / max(np.mean(np.einsum("qd,qd->q", queries, queries)), 1e-20)))


def pack(items: NDArray[Any], learnt: Learnt, copies: int, tell: Progress) -> Packed:
    """The codes of all items, in two passes over them in the order of their rows."""
    count, (lists, dims), signed = len(items), learnt.centres.shape, len(learnt.amplitude)
    centres = learnt.exact_centres
    members = np.empty((count, min(copies, lists)), np.int32)
    lengths = np.empty(members.shape, np.uint8)
    for start, part in learnt.chunks(items):
        stop = start + len(part)
        members[start:stop] = fit.assign(centres, part, copies)
        for copy in range(members.shape[1]):
            head = part[:, :signed] - centres[members[start:stop, copy], :signed]
            factor = sign_factors(np.abs(head), learnt.amplitude) / learnt.factor_scale
            lengths[start:stop, copy] = np.clip(np.rint(factor), 0, 255)
        tell("lists", stop, count)
    starts, places = place(members, lengths, lists)
    blocks = int(starts[-1])
    rows = np.full((blocks, layout.SIGN_LANES), layout.EMPTY, np.uint32)
    signs = np.zeros((blocks, signed // 16, 2, layout.SIGN_LANES), np.uint8)
    factors = np.zeros((blocks, layout.SIGN_LANES), np.uint8)
    nibbles = np.zeros((blocks, layout.SIGN_LANES), layout.code_type(dims, signed))
    for start, part in learnt.chunks(items):
        stop = start + len(part)
        for copy in range(members.shape[1]):
            residual = part - centres[members[start:stop, copy]]
            block, lane = np.divmod(places[start:stop, copy], layout.SIGN_LANES)
            rows[block, lane] = np.arange(start, stop)
            signs[block, :, :, lane] = layout.sign_bytes(residual[:, :signed] > 0)
            factors[block, lane] = lengths[start:stop, copy]
            codes, stretch = refine(residual, learnt.step, signed)
            nibbles["codes"][block, lane] = layout.pack_codes(codes, signed)
            nibbles["stretch"][block, lane] = np.clip(np.rint(stretch / learnt.stretch_scale), 0, 65_535)
        tell("codes", stop, count)
    held = np.array([count, members.shape[1]], np.int64)
    return Packed(held, starts, rows, signs.reshape(blocks, signed // 16, 64), factors, nibbles)


def sign_factors(residual: Vectors, amplitude: Vectors) -> Vectors:
    """(n,) how much longer a vector is than its signs say, along them (Gao & Long, RaBitQ, 2024).

    ``sign * amplitude``, times this, has the product with the vector that the vector has with itself; so the estimate
    of a query's product is right on average over random rotations.

    Args:
        residual: (n, dims) absolute values.
        amplitude: (dims,).
    """
    factors: Vectors = np.einsum("nd,nd->n", residual, residual) / np.maximum(residual @ amplitude, 1e-20)
    return factors


def step_of_spread(dims: int, signed: int) -> Vectors:
    """(dims,) what a step is of a standard deviation."""
    return np.where(np.arange(dims) < signed, STEP_OF_SPREAD, COARSE_STEP).astype(np.float32)


def refine(residual: Vectors, step: Vectors, signed: int) -> tuple[NDArray[np.uint8], Vectors]:
    """Four bits a dimension of what the nearest centre leaves out, two of the last ones, as fine as it is short.

    ``(code - middle) * step * stretch`` stands for a residual, and has the product with it that it has with itself, as
    :func:`sign_factors` has it for signs (extended RaBitQ, Gao et al., 2024).

    Args:
        residual: (n, dims).
        step: (dims,) of a residual of mean length.
        signed: dimensions that have four bits.

    Returns:
        (n, dims) codes of 0 to 15, or to 3, (n,) float32 stretches, not negative.
    """
    middle, units = layout.middles(len(step), signed).astype(np.float32), step_of_spread(len(step), signed)
    scaled = residual / step
    spreads = scaled * units
    length = np.sqrt(np.einsum("nd,nd->n", spreads, spreads) / len(step))
    scaled /= np.maximum(length, 1e-20)[:, None]
    codes = np.clip(np.floor(scaled) + (middle + np.float32(0.5)), 0, 2 * middle)
    inner = np.einsum("nd,nd->n", residual, (codes - middle) * step)
    stretch = np.einsum("nd,nd->n", residual, residual) / np.maximum(inner, 1e-20)
    return codes.astype(np.uint8), np.where(inner > 1e-20, stretch, 0).astype(np.float32)


def choose_dims(
    sample: Vectors, queries: Vectors, mean: Vectors, of_items: Vectors, of_queries: Vectors, count: int
) -> tuple[int, int]:
    """The fewest dimensions whose scores keep 99.5% of the ten best of ``count`` items: among forty, and among twenty.

    In a sample of them that is the best few, by as much as it is smaller: the more items, the closer their scores.
    Queries of many items look at more lists, where more dimensions cost more than the rows that they spare: forty do.
    """
    asked = queries[:1000]
    best = max(1, round(10 * len(sample) / count))
    scores = asked @ sample.T
    truth = _best_of(scores, best)
    width = sample.shape[1]
    most = int(min(512, max(16, width // 16 * 16)))
    centred = sample - mean
    scores[:] = 0
    of_forty = done = 0
    for dims in (dims for dims in CANDIDATE_DIMS if dims < min(width, most)):
        scores += (asked @ of_queries[:, done:dims]) @ (centred @ of_items[:, done:dims]).T
        done = dims
        own = np.take_along_axis(scores, truth, 1)
        ranks = np.stack([np.count_nonzero(scores > one[:, None], axis=1) for one in own.T])
        if not of_forty and np.mean(ranks < 4 * best) >= KEPT:
            of_forty = dims
        if of_forty and (count > SMALL or np.mean(ranks < 2 * best) >= KEPT):
            return of_forty, dims
    return of_forty or most, most


def choose_signed(dims: int, count: int) -> int:
    """Of how many dimensions a code of ``count`` items has signs.

    What comes from memory is read sooner if it is shorter, and the nibbles of some more codes cost less than that.
    """
    return dims if count <= SMALL else min(dims, MOST_SIGNED)


def affordable_dims(signed: int, needed: int, count: int, copies: int) -> int:
    """As many dimensions as needed, or the most with which the codes of ``count`` items stay within :data:`MEMORY`."""
    most = max(MEMORY, MEMORY_EACH * count)

    def fits(dims: int) -> bool:
        return count * copies * layout.code_bytes(dims, min(signed, dims)) <= most

    return (
        needed if fits(needed) else max((dims for dims in CANDIDATE_DIMS if dims < needed and fits(dims)), default=64)
    )


def _best_of(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    count = min(count, scores.shape[1])
    return np.argpartition(-scores, count - 1, 1)[:, :count]


def place(
    members: NDArray[np.int32], lengths: NDArray[np.uint8], lists: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where everything lies: (lists + 1,) first block of each list and the end, (n, copies) place of each code.

    In a list the longest codes come first: the further away it is, the longer must be what reaches a query from there.
    """
    flat = members.T.ravel()
    sizes = np.bincount(flat, minlength=lists)
    starts = np.concatenate([[0], np.cumsum(-(-sizes // layout.SIGN_LANES))]).astype(np.int64)
    order = np.argsort(flat.astype(np.int64) << 8 | (255 - lengths.T.ravel()), kind="stable")
    places = np.empty(len(flat), np.int64)
    firsts = starts[:-1] * layout.SIGN_LANES - (np.cumsum(sizes) - sizes)
    places[order] = np.arange(len(flat)) + np.repeat(firsts, sizes)
    return starts, np.ascontiguousarray(places.reshape(members.shape[::-1]).T)
