"""What every array of an engine must be before a kernel reads it: the one place that says so.

Kernels trust lengths, order and the places that lists begin at. What they compute with may be any number: a false one
makes answers worse, never unsafe. It is refused all the same where no engine holds such numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout

if TYPE_CHECKING:
    from hivlp.ann.arrays import Arrays

MOST_DIMS = 2048  # of codes: a table's sums, 63 for every four of them, stay within 15 bits
MOST_LISTS = 1 << 22
MOST_CODES = 1 << 31  # of all rows: their places are 32 bits
MOST_COPIES = 64
LARGEST = 1e18  # of any float

Shape = tuple[int, ...]
Fault = tuple[str, str]  # the file, and what is wrong with it


def fault(arrays: Arrays) -> Fault | None:
    """What is wrong with the arrays of an engine, if something is."""
    dims, width, lists, blocks = (_rows(part) for part in (arrays.step, arrays.mean, arrays.key_bias, arrays.signs))
    signed, groups = _rows(arrays.amplitude), -(-lists // layout.LANES)
    limits = (
        ("step", dims, 16, MOST_DIMS, 16), ("mean", width, 1, 1 << 20, 1), ("key_bias", lists, 1, MOST_LISTS, 1),
        ("amplitude", signed, 16, dims, 16), ("signs", blocks, 1, MOST_CODES // layout.SIGN_LANES, 1),
    )  # fmt: skip
    for name, length, least, most, step in limits:
        if not least <= length <= most or length % step:
            return f"{name}.npy", f"it has {length} rows, not {least} to {most} by {step}"
    single, byte, of_blocks = np.dtype(np.float32), np.dtype(np.uint8), (blocks, layout.SIGN_LANES)
    layouts: dict[str, tuple[Shape, np.dtype[Any]]] = {
        "mean": ((width,), single), "item_map": ((width, dims), single), "map": ((dims, width), np.dtype(np.float16)),
        "step": ((dims,), single), "amplitude": ((signed,), single), "centres": ((lists, dims), np.dtype(np.int8)),
        "keys": ((groups, dims // 8, layout.LANES, 4), byte), "key_bias": ((lists,), single),
        "key_steps": ((lists,), single),
        "group_keys": ((-(-groups // layout.LANES), dims // 4, layout.LANES, 4), byte),
        "group_bias": ((groups,), single), "scales": ((5,), single), "held": ((2,), np.dtype(np.int64)),
        "starts": ((lists + 1,), np.dtype(np.int64)), "rows": (of_blocks, np.dtype(np.uint32)),
        "signs": ((blocks, signed // 16, 64), byte), "factors": (of_blocks, byte),
        "nibbles": (of_blocks, layout.code_type(dims, signed)),
    }  # fmt: skip
    for name, (shape, dtype) in layouts.items():
        reason = misfit(getattr(arrays, name), shape, dtype)
        if reason:
            return f"{name}.npy", reason
    for name, (of, words) in CONTENTS.items():
        if not of(arrays):
            return f"{name}.npy", words
    return None


def misfit(array: NDArray[Any], shape: Shape, dtype: np.dtype[Any]) -> str | None:
    """Why an array is not one that a kernel can read as being of this shape and dtype; None if it is."""
    if array.shape != shape or array.dtype != dtype:
        return f"it is {array.shape} of {array.dtype}, not {shape} of {dtype}"
    if not (array.flags.c_contiguous and array.flags.aligned):
        return "it does not lie in memory as it must"
    return None


def within(array: NDArray[Any], low: float, high: float = LARGEST) -> bool:
    """Whether all numbers are in a range; a NaN is in none."""
    most = float(np.finfo(array.dtype).max)
    return bool(((array >= max(low, -most)) & (array <= min(high, most))).all())


def _rows(array: NDArray[Any]) -> int:
    return len(array) if array.ndim else 0


def _held(arrays: Arrays) -> bool:
    rows, copies = (int(number) for number in arrays.held)
    return rows >= 1 and 1 <= copies <= MOST_COPIES and rows * copies <= arrays.rows.size


def _starts(arrays: Arrays) -> bool:
    starts = arrays.starts
    # Compared, not subtracted: a difference may wrap.
    ordered = bool((starts[1:] >= starts[:-1]).all())
    return ordered and int(starts[0]) == 0 and int(starts[-1]) == len(arrays.signs)


def _lists(arrays: Arrays) -> bool:
    """Whether places are empty at the end of a list's last block only."""
    empty = arrays.rows == layout.EMPTY
    some = np.flatnonzero(empty.any(1))
    if not len(some):
        return True
    last = np.zeros(len(arrays.rows), bool)
    last[arrays.starts[1:][arrays.starts[1:] > arrays.starts[:-1]] - 1] = True
    held = empty[some]
    return bool(last[some].all() and not held[:, 0].any() and (held[:, 1:] >= held[:, :-1]).all())


def _rows_of(arrays: Arrays) -> bool:
    """Whether every row has as many codes as is said, and no other row has any."""
    count, copies = (int(number) for number in arrays.held)
    rows = arrays.rows[arrays.rows != layout.EMPTY]
    if len(rows) != count * copies or int(rows.max()) >= count or not _lists(arrays):
        return False
    return bool((np.bincount(rows, minlength=count) == copies).all())


def _factors(arrays: Arrays) -> bool:
    factors = np.asarray(arrays.factors).ravel()
    rising = np.flatnonzero(factors[1:] > factors[:-1]) + 1
    firsts = np.zeros(len(arrays.factors) + 1, bool)
    firsts[arrays.starts] = True
    return bool((rising % layout.SIGN_LANES == 0).all() and firsts[rising // layout.SIGN_LANES].all())


def _finite(name: str) -> Callable[[Arrays], bool]:
    return lambda arrays: within(getattr(arrays, name), -LARGEST)


CONTENTS: dict[str, tuple[Callable[[Arrays], bool], str]] = {
    "held": (_held, "it is not how many rows there are, and how many codes of each"),
    "starts": (_starts, "the lists do not follow one another from the first block to the last"),
    "rows": (_rows_of, "its rows are not each there as often as is said"),
    "factors": (_factors, "the largest factors of a list do not come first"),
    "scales": (lambda arrays: within(arrays.scales, 1e-38), "a scale is no positive number"),
    "step": (lambda arrays: within(arrays.step, 1e-38), "a step is no positive number"),
    "amplitude": (lambda arrays: within(arrays.amplitude, 1e-38), "an amplitude is no positive number"),
    "key_steps": (lambda arrays: within(arrays.key_steps, 0), "a step is negative or no number"),
    **{
        name: (_finite(name), "it holds what is no number")
        for name in ("mean", "item_map", "map", "key_bias", "group_bias")
    },
}
"""What each must hold, in an order in which one may rely on those before it."""
