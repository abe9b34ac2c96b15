"""How codes lie in memory; the inverse of what kernels.c reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = 16
SIGN_LANES = 32
EMPTY = np.uint32(0xFFFFFFFF)
Bytes = NDArray[np.uint8]


def pack_keys(keys: NDArray[np.int8]) -> Bytes:
    """(blocks, dims / 4, 16, 4) uint8 from (lists, dims) int8, the last block filled with zeros."""
    return pack_blocks((keys.astype(np.int16) + 128).astype(np.uint8))


def pack_blocks(values: Bytes) -> Bytes:
    """(blocks, dims / 4, 16, 4) from (n, dims), the last block filled with zeros."""
    count, dims = values.shape
    blocks = -(-count // LANES)
    full = np.zeros((blocks * LANES, dims), np.uint8)
    full[:count] = values
    return np.ascontiguousarray(full.reshape(blocks, LANES, dims // 4, 4).transpose(0, 2, 1, 3))


def unpack_keys(packed: Bytes) -> NDArray[np.int8]:
    """The inverse of :func:`pack_keys`, with the lists that fill the last block."""
    blocks, groups, _, _ = packed.shape
    return (packed.transpose(0, 2, 1, 3).reshape(blocks * LANES, groups * 4).astype(np.int16) - 128).astype(np.int8)


def pack_signs(positive: NDArray[np.bool_]) -> Bytes:
    """(blocks, dims / 16, 64) uint8 from (32 * blocks, dims) bool."""
    blocks, dims = len(positive) // SIGN_LANES, positive.shape[1]
    packed = sign_bytes(positive).reshape(blocks, SIGN_LANES, dims // 16, 2)
    return np.ascontiguousarray(packed.transpose(0, 2, 3, 1)).reshape(blocks, dims // 16, 64)


def sign_bytes(positive: NDArray[np.bool_]) -> Bytes:
    """(n, dims / 16, 2) uint8 from (n, dims) bool: eight dimensions to a byte, the first in the lowest bit."""
    count, dims = positive.shape
    return np.packbits(positive.reshape(count, dims // 16, 2, 8), axis=-1, bitorder="little")[..., 0]


def unpack_signs(signs: Bytes) -> NDArray[np.bool_]:
    """The inverse of :func:`pack_signs`."""
    blocks, groups, _ = signs.shape
    bits = np.unpackbits(signs.reshape(blocks, groups, 2, SIGN_LANES, 1), axis=-1, bitorder="little")
    return bits.transpose(0, 3, 1, 2, 4).reshape(blocks * SIGN_LANES, groups * 16).astype(bool)


def pack_nibbles(codes: Bytes) -> Bytes:
    """(rows, ceil(dims / 128) * 64) uint8 from (rows, dims) codes of 0 to 15, filled with zeros."""
    rows, dims = codes.shape
    groups = -(-dims // 128)
    full = np.zeros((rows, groups * 128), np.uint8)
    full[:, :dims] = codes
    halves = full.reshape(rows, groups, 2, 64)
    packed: Bytes = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(rows, groups * 64)
    return packed


def unpack_nibbles(packed: Bytes, dims: int) -> Bytes:
    """The inverse of :func:`pack_nibbles`."""
    rows = len(packed)
    halves = packed.reshape(rows, -1, 64)
    return np.stack([halves & 15, halves >> 4], 2).reshape(rows, -1)[:, :dims]
