"""Byte layouts of codes and keys in memory and on disk; ``c/kernels.h`` draws them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.constants import LIST_LANES

Bytes = NDArray[np.uint8]


def interleave(rows: Bytes) -> Bytes:
    """(blocks, width / 4, 16, 4) uint8 from (n, width): 16 rows share a block, zeros fill the last one."""
    count, width = rows.shape
    blocks = -(-count // LIST_LANES)
    full = np.zeros((blocks * LIST_LANES, width), np.uint8)
    full[:count] = rows
    return np.ascontiguousarray(full.reshape(blocks, LIST_LANES, width // 4, 4).transpose(0, 2, 1, 3))


def pack_int8_keys(keys: NDArray[np.int8]) -> Bytes:
    """(blocks, dims / 4, 16, 4) uint8 from (n, dims) int8, each value plus 128."""
    return interleave((keys.astype(np.int16) + 128).astype(np.uint8))


def pack_router_keys(codes: Bytes) -> Bytes:
    """(blocks, dims / 8, 16, 4) uint8 from (n, dims) 4-bit codes."""
    return interleave(pack_nibbles(codes))


def sign_bytes(positive: NDArray[np.bool_]) -> Bytes:
    """(n, dims / 16, 2) uint8 from (n, dims) bool: eight dims a byte, the first in the lowest bit."""
    count, dims = positive.shape
    return np.packbits(positive.reshape(count, dims // 16, 2, 8), axis=-1, bitorder="little")[..., 0]


def pack_nibbles(codes: Bytes) -> Bytes:
    """(rows, dims / 2) uint8 from (rows, dims) 4-bit codes: the first half of the dims in the low nibbles."""
    half = codes.shape[1] // 2
    packed: Bytes = codes[:, :half] | codes[:, half:] << np.uint8(4)
    return packed


def unpack_nibbles(packed: Bytes) -> Bytes:
    """Inverse of :func:`pack_nibbles`."""
    return np.concatenate([packed & 15, packed >> 4], 1)


def pack_refine_codes(codes: Bytes, sign_dims: int) -> Bytes:
    """(rows, sign_dims / 2 + (dims - sign_dims) / 4) uint8 from (rows, dims) codes: nibbles, then 2-bit codes."""
    fours = np.split(codes[:, sign_dims:], 4, 1)
    packed = fours[0] | fours[1] << np.uint8(2) | fours[2] << np.uint8(4) | fours[3] << np.uint8(6)
    return np.concatenate([pack_nibbles(codes[:, :sign_dims]), packed], 1)


def unpack_refine_codes(packed: Bytes, sign_dims: int) -> Bytes:
    """Inverse of :func:`pack_refine_codes`."""
    fours = packed[:, sign_dims // 2 :]
    return np.concatenate(
        [
            unpack_nibbles(packed[:, : sign_dims // 2]),
            *(fours >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)),
        ],
        1,
    )


def refine_dtype(dims: int, sign_dims: int) -> np.dtype[np.void]:
    """Record of one refinement code: the bytes of :func:`pack_refine_codes` and the scale, a uint16."""
    return np.dtype([("codes", np.uint8, (sign_dims // 2 + (dims - sign_dims) // 4,)), ("scale", "<u2")])


def code_bytes(dims: int, sign_dims: int) -> int:
    """Bytes of one code in an inverted list: sign code and scale, refinement code and scale, row id."""
    return sign_dims // 8 + 1 + refine_dtype(dims, sign_dims).itemsize + 4
