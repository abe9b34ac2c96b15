"""Stored rows: vectors as float16, float32, or int8 codes with a scale, as files hold them and kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.levels import Vectors

Stored = NDArray[Any]
"""(n, dim) float16 or float32, or (n,) records of :func:`int8_row`."""


def int8_row(dim: int) -> np.dtype[Any]:
    """Record of a row's ``codes``, (dim,) int8, and the float32 ``scale`` that they are multiplied with."""
    return np.dtype([("codes", "i1", (dim,)), ("scale", "<f4")])


def is_int8(stored: Stored) -> bool:
    """Whether rows are records of int8 codes and a scale."""
    return stored.dtype.names is not None


def dim(stored: Stored) -> int:
    """Length of the vectors that stored rows stand for."""
    return int(stored.dtype["codes"].shape[0] if is_int8(stored) else stored.shape[1])


def floats(stored: Stored) -> Vectors:
    """(n, dim) float32 vectors of stored rows, not copied where they are float32 already."""
    if not is_int8(stored):
        return np.asarray(stored, np.float32)
    vectors: Vectors = stored["codes"].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of a damaged file
        vectors *= stored["scale"][:, None]
    return vectors
