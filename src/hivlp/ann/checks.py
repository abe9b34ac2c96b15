"""Validity of the arrays of an approximate index, checked before a kernel reads them.

Kernels trust lengths, order and list offsets. The values they compute with may be any number: a wrong one makes answers
worse, never unsafe. Values that no index has are refused all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout
from hivlp.ann.constants import CODE_LANES, LIST_LANES, MAX_DIMS, NO_ROW

MAX_WIDTH = 1 << 20  # dims of a vector
MAX_LISTS = 1 << 22
MAX_CODES = 1 << 31  # of all rows: positions are 32 bits
MAX_ASSIGNMENTS = 64
LARGEST = 1e18  # of any float
SCALE_NAMES = ("centroid_scale", "sign_scale", "group_scale", "refine_scale", "refine_error")
"""Scalars of an approximate index: those of :class:`hivlp.ann.training.Quantizer`, and the step of the group keys."""
SCALES = np.dtype([(name, "<f4") for name in SCALE_NAMES])

Shape = tuple[int, ...]
Fault = tuple[str, str]  # the file, and what is wrong with it
ByName = Mapping[str, NDArray[Any]]


def fault(arrays: ByName) -> Fault | None:
    """File and reason of the first fault of the arrays of an approximate index; None if they are sound."""
    sizes = {
        name: _length(arrays[name]) for name in ("refine_step", "mean", "router_bias", "sign_codes", "sign_amplitude")
    }
    dims, width, nlist, blocks, sign_dims = sizes.values()
    groups = -(-nlist // LIST_LANES)
    limits = (
        ("refine_step", 16, MAX_DIMS, 16), ("mean", 1, MAX_WIDTH, 1), ("router_bias", 1, MAX_LISTS, 1),
        ("sign_amplitude", 16, dims, 16), ("sign_codes", 1, MAX_CODES // CODE_LANES, 1),
    )  # fmt: skip
    for name, least, most, multiple in limits:
        if not least <= sizes[name] <= most or sizes[name] % multiple:
            return f"{name}.npy", f"it has {sizes[name]} rows, not {least} to {most} by {multiple}"
    float32, uint8, by_block = np.dtype(np.float32), np.dtype(np.uint8), (blocks, CODE_LANES)
    layouts: dict[str, tuple[Shape, np.dtype[Any]]] = {
        "mean": ((width,), float32),
        "item_projection": ((width, dims), float32),
        "query_projection": ((dims, width), np.dtype(np.float16)),
        "refine_step": ((dims,), float32),
        "sign_amplitude": ((sign_dims,), float32),
        "centroids": ((nlist, dims), np.dtype(np.int8)),
        "router_keys": ((groups, dims // 8, LIST_LANES, 4), uint8),
        "router_bias": ((nlist,), float32),
        "router_scales": ((nlist,), float32),
        "group_keys": ((-(-groups // LIST_LANES), dims // 4, LIST_LANES, 4), uint8),
        "group_bias": ((groups,), float32),
        "scales": ((1,), SCALES),
        "counts": ((2,), np.dtype(np.int64)),
        "list_offsets": ((nlist + 1,), np.dtype(np.int64)),
        "row_ids": (by_block, np.dtype(np.uint32)),
        "sign_codes": ((blocks, sign_dims // 16, 64), uint8),
        "sign_scales": (by_block, uint8),
        "refine_codes": (by_block, layout.refine_dtype(dims, sign_dims)),
    }
    for name, (shape, dtype) in layouts.items():
        reason = misfit(arrays[name], shape, dtype)
        if reason:
            return f"{name}.npy", reason
    for name, (holds, words) in CONTENTS.items():
        if not holds(arrays):
            return f"{name}.npy", words
    return None


def misfit(array: NDArray[Any], shape: Shape, dtype: np.dtype[Any]) -> str | None:
    """Reason why a kernel cannot read an array as one of this shape and dtype; None if it can."""
    if array.shape != shape or array.dtype != dtype:
        return f"it is {array.shape} of {array.dtype}, not {shape} of {dtype}"
    if not (array.flags.c_contiguous and array.flags.aligned):
        return "it is not in C order, or not aligned"
    return None


def within(array: NDArray[Any], low: float, high: float = LARGEST) -> bool:
    """Whether all numbers are in a range; a NaN is in none."""
    most = float(np.finfo(array.dtype).max)
    return bool(((array >= max(low, -most)) & (array <= min(high, most))).all())


def positive(record: NDArray[np.void], low: float = 1e-38) -> bool:
    """Whether all floats of a record array are at least ``low``."""
    return all(within(record[name], low) for name in record.dtype.names or ())


def _length(array: NDArray[Any]) -> int:
    return len(array) if array.ndim else 0


def _counts(arrays: ByName) -> bool:
    rows, assignments = (int(number) for number in arrays["counts"])
    return rows >= 1 and 1 <= assignments <= MAX_ASSIGNMENTS and rows * assignments <= arrays["row_ids"].size


def _offsets(arrays: ByName) -> bool:
    offsets = arrays["list_offsets"]
    # Compared, not subtracted: a difference may wrap.
    ordered = bool((offsets[1:] >= offsets[:-1]).all())
    return ordered and int(offsets[0]) == 0 and int(offsets[-1]) == len(arrays["sign_codes"])


def _row_ids(arrays: ByName) -> bool:
    """Whether every row has as many codes as the counts say, and only ends of lists are empty."""
    count, assignments = (int(number) for number in arrays["counts"])
    rows = arrays["row_ids"][arrays["row_ids"] != NO_ROW]
    if len(rows) != count * assignments or int(rows.max()) >= count or not _filled(arrays):
        return False
    return bool((np.bincount(rows, minlength=count) == assignments).all())


def _filled(arrays: ByName) -> bool:
    """Whether lanes are empty at the end of a list's last block only."""
    empty, offsets = arrays["row_ids"] == NO_ROW, arrays["list_offsets"]
    some = np.flatnonzero(empty.any(1))
    if not len(some):
        return True
    last = np.zeros(len(empty), bool)
    last[offsets[1:][offsets[1:] > offsets[:-1]] - 1] = True
    held = empty[some]
    return bool(last[some].all() and not held[:, 0].any() and (held[:, 1:] >= held[:, :-1]).all())


def _descending(arrays: ByName) -> bool:
    scales = np.asarray(arrays["sign_scales"]).ravel()
    rising = np.flatnonzero(scales[1:] > scales[:-1]) + 1
    firsts = np.zeros(len(arrays["sign_scales"]) + 1, bool)
    firsts[arrays["list_offsets"]] = True
    return bool((rising % CODE_LANES == 0).all() and firsts[rising // CODE_LANES].all())


def _finite(name: str) -> Callable[[ByName], bool]:
    return lambda arrays: within(arrays[name], -LARGEST)


CONTENTS: dict[str, tuple[Callable[[ByName], bool], str]] = {
    "counts": (_counts, "it is not the number of rows and of assignments a row"),
    "list_offsets": (_offsets, "the lists do not follow one another from the first block to the last"),
    "row_ids": (_row_ids, "a row does not occur once for each of its assignments"),
    "sign_scales": (_descending, "the scales of a list are not in descending order"),
    "scales": (lambda arrays: positive(arrays["scales"]), "a scale is no positive number"),
    "refine_step": (lambda arrays: within(arrays["refine_step"], 1e-38), "a step is no positive number"),
    "sign_amplitude": (lambda arrays: within(arrays["sign_amplitude"], 1e-38), "an amplitude is no positive number"),
    "router_scales": (lambda arrays: within(arrays["router_scales"], 0), "a scale is negative or no number"),
    **{
        name: (_finite(name), "it holds what is no number")
        for name in ("mean", "item_projection", "query_projection", "router_bias", "group_bias")
    },
}
"""Checks of the values, each relying on those before it."""
