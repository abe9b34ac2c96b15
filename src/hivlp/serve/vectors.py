"""Vectors as they come in requests, and go in answers."""

from __future__ import annotations

import base64
import binascii

import numpy as np

from hivlp.errors import QueryError
from hivlp.levels import Vectors


def numbers(value: list[float] | str) -> Vectors:
    """A (dim,) float32 vector from numbers, or from base64 of little-endian float32.

    Raises:
        QueryError: if it is neither.
    """
    if isinstance(value, str):
        try:
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32, copy=False)
        except (binascii.Error, ValueError) as error:
            raise QueryError("a vector is a list of numbers, or base64 of little-endian float32") from error
    with np.errstate(over="ignore"):
        return np.array(value, np.float32)


def as_base64(vector: Vectors) -> str:
    """A vector as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode("ascii")
