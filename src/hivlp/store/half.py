"""Float32 to float16: with the processor's instruction or in whole arrays of integers; numpy goes number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import native

BLOCK = 1 << 16
"""Numbers that are converted at once: what a pass writes, the next one reads from the cache."""

# Bits of float32: between these magnitudes, 2**-14 and 2**15, a number is a normal float16 and stays one when rounded.
LEAST, BEYOND = 0x38800000, 0x47000000
# Half a unit in the last place less one, to round with; and the distance of the two exponents' zeros.
ROUND = np.uint32(((1 << 12) - 1 - (112 << 23)) & 0xFFFFFFFF)


def as_stored(array: NDArray[Any], dtype: np.dtype[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The nearest number of this dtype to each, ties to even, in C order: what ``astype`` gives, bit for bit.

    Args:
        array: of floats.
        dtype: of floats.
        out: where they go, of this dtype and the array's shape, in C order; default a new array, or the one given if
            that is so already.
    """
    if (array.dtype, dtype) != (np.dtype("<f4"), np.dtype("<f2")):
        if out is None:
            return np.ascontiguousarray(array, dtype)
        out[...] = array
        return out
    stored = np.empty(array.shape, dtype) if out is None else out
    numbers, halves = np.ascontiguousarray(array).reshape(-1), stored.reshape(-1).view("<u2")
    if not native.to_half(numbers, halves):
        for start in range(0, len(numbers), BLOCK):
            _convert(numbers[start : start + BLOCK], halves[start : start + BLOCK])
    return stored


def _convert(numbers: NDArray[np.float32], halves: NDArray[np.uint16]) -> None:
    bits = numbers.view("<u4")
    work = bits >> np.uint32(13)
    work &= np.uint32(1)  # the last bit that is kept: a tie goes up if it is odd
    work += bits
    work += ROUND
    sign = work >> np.uint32(16)
    sign &= np.uint32(0x8000)
    work >>= np.uint32(13)
    work |= sign
    halves[:] = work  # bits above 16 are the sign's old place
    np.left_shift(bits, np.uint32(1), out=work)  # without the sign; too small and too large are both far from LEAST on
    work -= np.uint32(LEAST << 1)
    odd = np.flatnonzero(work >= np.uint32((BEYOND - LEAST) << 1))
    if len(odd):
        with np.errstate(over="ignore", invalid="ignore"):
            halves[odd] = numbers[odd].astype("<f2").view("<u2")
