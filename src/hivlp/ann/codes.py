"""Sign codes and refinement codes: how the residual of a vector from its centroid is quantised (RaBitQ)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.constants import COARSE_STEP, REFINE_STEP
from hivlp.levels import Vectors


def to_int8(values: Vectors) -> tuple[NDArray[np.int8], float]:
    """Int8 quantisation with one scale for the whole array: the codes, and the scale."""
    scale = max(float(np.abs(values).max(initial=0)), 1e-20) / 127
    return np.rint(values / scale).astype(np.int8), scale


def sign_scales(magnitudes: Vectors, amplitude: Vectors) -> Vectors:
    """(n,) scale of each sign code: the correction factor of RaBitQ (Gao & Long, 2024).

    ``sign * amplitude`` times this has the same inner product with the residual as the residual itself, so that the
    estimate of a query's inner product is unbiased over random rotations.

    Args:
        magnitudes: (n, sign_dims) absolute values of the residuals.
        amplitude: (sign_dims,) mean of these.
    """
    scales: Vectors = np.einsum("nd,nd->n", magnitudes, magnitudes) / np.maximum(magnitudes @ amplitude, 1e-20)
    return scales


def relative_steps(dims: int, sign_dims: int) -> Vectors:
    """(dims,) quantisation step of the refinement codes, in standard deviations of the residual."""
    return np.where(np.arange(dims) < sign_dims, REFINE_STEP, COARSE_STEP).astype(np.float32)


def code_centers(dims: int, sign_dims: int) -> NDArray[np.float64]:
    """(dims,) middle of the code range: of 0 to 15 in the dims that have a sign, of 0 to 3 in the others."""
    return np.where(np.arange(dims) < sign_dims, 7.5, 1.5)


def refine(residual: Vectors, step: Vectors, sign_dims: int) -> tuple[NDArray[np.uint8], Vectors]:
    """Refinement codes: 4 bits in the dims that have a sign, 2 bits in the others, and a scale for each vector.

    ``(code - center) * step * scale`` stands for the residual, and has the same inner product with it as the residual
    itself (extended RaBitQ, Gao et al., 2024). The step is in proportion to the residual's length.

    Args:
        residual: (n, dims).
        step: (dims,) for a residual of mean length.
        sign_dims: dims with 4 bits.

    Returns:
        (n, dims) uint8 codes, (n,) float32 scales, not negative.
    """
    center, units = code_centers(len(step), sign_dims).astype(np.float32), relative_steps(len(step), sign_dims)
    scaled = residual / step
    spreads = scaled * units
    length = np.sqrt(np.einsum("nd,nd->n", spreads, spreads) / len(step))
    scaled /= np.maximum(length, 1e-20)[:, None]
    codes = np.clip(np.floor(scaled) + (center + np.float32(0.5)), 0, 2 * center)
    inner = np.einsum("nd,nd->n", residual, (codes - center) * step)
    scale = np.einsum("nd,nd->n", residual, residual) / np.maximum(inner, 1e-20)
    return codes.astype(np.uint8), np.where(inner > 1e-20, scale, 0).astype(np.float32)
