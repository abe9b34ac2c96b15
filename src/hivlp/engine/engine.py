"""The engine itself: built once from vectors, kept in plain arrays, searched by kernels or by numpy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.engine import fit, layout, native, reference
from hivlp.levels import Vectors

Half = NDArray[np.float16]
Progress = Callable[[str, int, int], None]
SAMPLE = 100_000
CHUNK = 16_384


@dataclass(frozen=True)
class Setting:
    """How hard to look.

    Attributes:
        lists: lists to read at most.
        margin: a list is read only if the router's score for it is at most so far below the best one's.
        shortlist: how many the signs hand on to the nibbles.
        last: how many the nibbles hand on to the float16 vectors.
    """

    lists: int
    margin: float
    shortlist: int
    last: int


@dataclass
class Work:
    """What searches did: lists and codes read, nibble rows and fine rows scored."""

    lists: int = 0
    codes: int = 0
    nibbles: int = 0
    fine: int = 0


@dataclass
class Arrays:
    """All that the engine holds, beside the float16 vectors."""

    map: Half  # (dims, d)
    amplitude: Vectors  # (dims,)
    step: Vectors  # (dims,)
    mean: Vectors  # (d,)
    item_map: Vectors  # (d, dims)
    keys: NDArray[np.uint8]  # (blocks, dims / 4, 16, 4)
    key_bias: Vectors  # (lists,)
    centres: NDArray[np.int8]  # (lists, dims)
    starts: NDArray[np.int64]  # (lists + 1,)
    signs: NDArray[np.uint8]  # (blocks, dims / 16, 64)
    rows: NDArray[np.uint32]  # (blocks, 32)
    nibbles: NDArray[np.uint8]  # (n, groups * 64)
    scales: Vectors = field(default_factory=lambda: np.ones(2, np.float32))  # of keys and centres


class Engine:
    """Approximate search of (n, d) float16 vectors by inner product."""

    def __init__(self, arrays: Arrays, fine: Half) -> None:
        self.arrays, self.fine = arrays, fine
        self.work = Work()
        self._struct = self._pointers()

    # Building.

    @classmethod
    def build(
        cls,
        items: NDArray[Any],
        *,
        queries: Vectors | None = None,
        dims: int | None = None,
        lists: int | None = None,
        copies: int = 2,
        router_queries: int = 20_000,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> Engine:
        """Learn from the items and from queries like those to come, and pack the codes.

        Args:
            items: (n, d) float16 or float32 vectors; kept as float16, as they are if they are that already.
            queries: (m, d) a sample of queries; without it the items themselves stand in for them.
            dims: of the codes, a multiple of 16 (default: what these vectors need).
            lists: how many (default: about four times the square root of n).
            copies: lists that an item lies in.
            router_queries: how many queries the router learns from at most.
            seed: of samples and rotations.
            on_progress: called with what is done, how much of it, and of how much.
        """
        rng = np.random.default_rng(seed)
        tell = on_progress or (lambda what, done, total: None)
        count, width = items.shape
        fine = items if items.dtype == np.float16 else items.astype(np.float16)
        chosen = np.sort(rng.choice(count, min(count, SAMPLE), replace=False))
        sample = np.asarray(items[chosen], np.float32)
        asked = sample if queries is None else np.asarray(queries, np.float32)
        tell("projection", 0, 1)
        mean, of_items, of_queries, values = fit.projections(sample, asked[:SAMPLE])
        dims = dims or choose_dims(sample, asked, mean, of_items, of_queries)
        turn = fit.rotation(dims, rng)
        item_map, query_map = of_items[:, :dims] @ turn, of_queries[:, :dims] @ turn
        codes = (sample - mean) @ item_map
        tell("projection", 1, 1)

        lists = lists or max(1, min(count // 64 + 1, int(4 * np.sqrt(count))))
        lists = min(lists, len(sample))
        tell("partition", 0, 1)
        metric = np.sqrt(np.maximum(values[:dims], 1e-12)) if False else None
        del metric
        centres = fit.partition(codes, lists, rng)
        tell("partition", 1, 1)
        bias = -0.5 * np.einsum("ld,ld->l", centres, centres)
        spread = codes.std(0)
        step = np.float32(STEP_OF_SPREAD) * np.maximum(spread, 1e-12)

        members = np.empty((count, min(copies, lists)), np.int32)
        nibbles = np.empty((count, -(-dims // 128) * 64), np.uint8)
        for start, part in _chunks(items, mean, item_map):
            stop = start + len(part)
            members[start:stop] = fit.assign(centres, bias, part, copies)[0]
            level = np.clip(np.floor(part / step) + 8, 0, 15).astype(np.uint8)
            nibbles[start:stop] = layout.pack_nibbles(level)
            tell("items", stop, count)

        small_centres, centre_scale = fit.to_int8(centres)
        starts, rows = _lists(members, lists)
        signs = np.empty((len(rows), dims // 16, 64), np.uint8)
        total, seen = np.zeros(dims), 0
        exact_centres = small_centres.astype(np.float32) * centre_scale
        list_of = np.repeat(np.arange(lists), np.diff(starts))
        for first in range(0, len(rows), CHUNK // layout.SIGN_LANES):
            some = rows[first : first + CHUNK // layout.SIGN_LANES]
            flat = some.ravel()
            held = np.flatnonzero(flat != layout.EMPTY)
            vectors = np.zeros((len(flat), dims), np.float32)
            order = np.argsort(flat[held], kind="stable")  # read the file in one direction
            picked = flat[held][order]
            vectors[held[order]] = (np.asarray(items[picked], np.float32) - mean) @ item_map
            residual = vectors - exact_centres[list_of[first : first + len(some)]].repeat(layout.SIGN_LANES, 0)
            signs[first : first + len(some)] = layout.pack_signs(residual > 0)
            total += np.abs(residual[held]).sum(0)
            seen += len(held)
            tell("codes", min(first + len(some), len(rows)), len(rows))

        keys, key_scale = fit.to_int8(centres)
        arrays = Arrays(
            map=np.ascontiguousarray(query_map.T, np.float16),
            amplitude=(total / max(seen, 1)).astype(np.float32),
            step=step.astype(np.float32),
            mean=mean,
            item_map=item_map,
            keys=layout.pack_keys(keys),
            key_bias=np.zeros(lists, np.float32),
            centres=small_centres,
            starts=starts,
            signs=signs,
            rows=rows,
            nibbles=nibbles,
            scales=np.array([key_scale, centre_scale], np.float32),
        )
        engine = cls(arrays, fine)
        engine._members = members
        if len(asked) >= MIN_ROUTER_QUERIES and lists >= 8:
            engine._teach(asked[rng.permutation(len(asked))[:router_queries]], centres, tell, seed)
        return engine

    def _teach(self, queries: Vectors, centres: Vectors, tell: Progress, seed: int) -> None:
        """Learn the router from what a thorough search finds for these queries."""
        found = []
        thorough = Setting(max(8, self.lists // 12), np.inf, 600, 100)
        for start in range(0, len(queries), 512):
            found.append(self.search(queries[start : start + 512], 50, thorough)[0])
            tell("answers", start, len(queries))
        rows = np.concatenate(found)
        whole = (rows >= 0).all(1)
        mapped = (queries @ self.arrays.map.astype(np.float32).T)[whole]
        targets = self._members[rows[whole]][:, :, 0]
        tell("router", 0, 1)
        weights, bias = fit.learn_router(centres, mapped, targets, seed=seed)
        keys, scale = fit.to_int8(weights)
        self.arrays.keys, self.arrays.key_bias = layout.pack_keys(keys), bias
        self.arrays.scales = np.array([scale, self.arrays.scales[1]], np.float32)
        self._struct = self._pointers()
        tell("router", 1, 1)

    # Searching.

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return len(self.arrays.key_bias)

    @property
    def dims(self) -> int:
        """Of the codes."""
        return len(self.arrays.step)

    @property
    def bytes_per_vector(self) -> float:
        """Of what is held in memory, beside the float16 vectors."""
        total = sum(getattr(self.arrays, each.name).nbytes for each in fields(Arrays))
        return float(total / max(1, len(self.fine)))

    def search(
        self, queries: Vectors, k: int, setting: Setting, *, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.int64], Vectors]:
        """The best rows of each query.

        Args:
            queries: (b, d) float32.
            k: how many.
            setting: how hard to look.
            allowed: a bit for each row (``numpy.packbits(..., bitorder="little")``); None for all.

        Returns:
            (b, k) int64 rows, best first, -1 where there are fewer; (b, k) float32 inner products, -inf there.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        shortlist = max(setting.shortlist, k)
        last = min(max(setting.last, k), shortlist)
        library = native.load()
        if library is None:
            return reference.search(self.arrays, self.fine, queries, k, setting, allowed)
        found, work = np.zeros(len(queries), np.int64), native.WorkStruct()
        status = library.hivlp_search(
            self._struct, queries.ctypes.data, len(queries), min(setting.lists, self.lists), setting.margin, shortlist,
            last, k, None if allowed is None else allowed.ctypes.data, rows.ctypes.data, scores.ctypes.data,
            found.ctypes.data, work,
        )  # fmt: skip
        if status:
            raise MemoryError("no memory for a search")
        for name in ("lists", "codes", "nibbles", "fine"):
            setattr(self.work, name, getattr(self.work, name) + getattr(work, name))
        return rows, scores

    def _pointers(self) -> native.EngineStruct:
        a, pointer = self.arrays, native._pointer
        return native.EngineStruct(
            pointer(a.map), pointer(a.amplitude), pointer(a.step), pointer(a.keys), pointer(a.key_bias),
            pointer(a.centres), pointer(a.starts), pointer(a.signs), pointer(a.rows), pointer(a.nibbles),
            pointer(self.fine), len(a.key_bias), len(a.step), a.nibbles.shape[1] // 64, self.fine.shape[1],
            float(a.scales[0]), float(a.scales[1]),
        )  # fmt: skip


STEP_OF_SPREAD = 0.335  # of a standard deviation: the best uniform step of four bits for a normal distribution
MIN_ROUTER_QUERIES = 1000


def choose_dims(sample: Vectors, queries: Vectors, mean: Vectors, of_items: Vectors, of_queries: Vectors) -> int:
    """The fewest dimensions whose scores keep the ten best of a sample among its forty best, for 99.7% of them."""
    items, asked = sample[:20_000], queries[:500]
    truth = np.argpartition(-(asked @ items.T), min(10, len(items) - 1), 1)[:, :10]
    width = sample.shape[1]
    for dims in (64, 128, 256, 384):
        if dims >= width:
            break
        scores = (asked @ of_queries[:, :dims]) @ ((items - mean) @ of_items[:, :dims]).T
        least = np.take_along_axis(scores, truth, 1)
        above = np.stack([(scores > least[:, [column]]).sum(1) for column in range(least.shape[1])])
        if (above < 40).mean() >= 0.997:
            return dims
    return min(512, width // 16 * 16)


def _chunks(items: NDArray[Any], mean: Vectors, item_map: Vectors) -> Iterator[tuple[int, Vectors]]:
    for start in range(0, len(items), CHUNK):
        yield start, (np.asarray(items[start : start + CHUNK], np.float32) - mean) @ item_map


def _lists(members: NDArray[np.int32], lists: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """First block of each list (and the end), and the rows in their blocks."""
    count, copies = members.shape
    flat = members.ravel()
    sizes = np.bincount(flat, minlength=lists)
    blocks = -(-sizes // layout.SIGN_LANES)
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    order = np.argsort(flat, kind="stable")
    within = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.full(int(starts[-1]) * layout.SIGN_LANES, layout.EMPTY, np.uint32)
    rows[starts[:-1].repeat(sizes) * layout.SIGN_LANES + within] = (order // copies).astype(np.uint32)
    return starts, rows.reshape(-1, layout.SIGN_LANES)
