"""Quantisation-aware training: vectors as an index will store them (float, int8, sign codes)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantize(vectors: Tensor, code: str) -> Tensor:
    """What is left of vectors after they have been stored, as vectors again.

    Queries are never stored, so only candidates go through this. Rounding has no useful gradient; the straight-through
    estimator (Bengio et al., 2013) hands the gradient of the code to the vector as it is, which the objective does by
    adding one to the other.

    Args:
        vectors: (N, D).
        code: ``float`` (nothing is lost), ``int8`` (a scale for each vector, 255 values) or ``binary`` (signs).

    Raises:
        ValueError: if the code is unknown.
    """
    if code == "float":
        return vectors
    if code == "int8":
        step = vectors.abs().amax(1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny) / 127
        return (vectors / step).round() * step
    if code == "binary":
        signs: Tensor = torch.where(vectors >= 0, 1.0, -1.0).to(vectors.dtype)
        return signs / math.sqrt(vectors.shape[1])
    raise ValueError(f"unknown code {code!r}; known: float, int8, binary")
