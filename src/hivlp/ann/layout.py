"""How codes lie in memory; the inverse of what kernels.c reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = 16
SIGN_LANES = 32
EMPTY = np.uint32(0xFFFFFFFF)
Bytes = NDArray[np.uint8]


def side_by_side(rows: Bytes) -> Bytes:
    """(blocks, width / 4, 16, 4) uint8 from (n, width): 16 rows share a block, the last one filled with zeros."""
    count, width = rows.shape
    blocks = -(-count // LANES)
    full = np.zeros((blocks * LANES, width), np.uint8)
    full[:count] = rows
    return np.ascontiguousarray(full.reshape(blocks, LANES, width // 4, 4).transpose(0, 2, 1, 3))


def one_by_one(packed: Bytes) -> Bytes:
    """The inverse of :func:`side_by_side`, with the rows that fill the last block."""
    blocks, groups, _, _ = packed.shape
    return packed.transpose(0, 2, 1, 3).reshape(blocks * LANES, groups * 4)


def pack_keys(keys: NDArray[np.int8]) -> Bytes:
    """(blocks, dims / 4, 16, 4) uint8 from (n, dims) int8: 128 more than they are."""
    return side_by_side((keys.astype(np.int16) + 128).astype(np.uint8))


def unpack_keys(packed: Bytes) -> NDArray[np.int8]:
    """The inverse of :func:`pack_keys`, with what fills the last block."""
    return (one_by_one(packed).astype(np.int16) - 128).astype(np.int8)


def pack_nibble_keys(codes: Bytes) -> Bytes:
    """(blocks, dims / 8, 16, 4) uint8 from (n, dims) codes of 0 to 15."""
    return side_by_side(pack_nibbles(codes))


def unpack_nibble_keys(packed: Bytes) -> Bytes:
    """The inverse of :func:`pack_nibble_keys`, with what fills the last block."""
    return unpack_nibbles(one_by_one(packed))


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
    """(rows, dims / 2) uint8 from (rows, dims) codes of 0 to 15: two halves, one over the other."""
    half = codes.shape[1] // 2
    packed: Bytes = codes[:, :half] | codes[:, half:] << np.uint8(4)
    return packed


def unpack_nibbles(packed: Bytes) -> Bytes:
    """The inverse of :func:`pack_nibbles`."""
    return np.concatenate([packed & 15, packed >> 4], 1)


def pack_codes(codes: Bytes, signed: int) -> Bytes:
    """(rows, signed / 2 + (dims - signed) / 4) uint8 from (rows, dims) codes: nibbles, and behind them four a byte."""
    fours = np.split(codes[:, signed:], 4, 1)
    packed = fours[0] | fours[1] << np.uint8(2) | fours[2] << np.uint8(4) | fours[3] << np.uint8(6)
    return np.concatenate([pack_nibbles(codes[:, :signed]), packed], 1)


def unpack_codes(packed: Bytes, signed: int) -> Bytes:
    """The inverse of :func:`pack_codes`."""
    fours = packed[:, signed // 2 :]
    return np.concatenate(
        [unpack_nibbles(packed[:, : signed // 2]), *(fours >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6))],
        1,
    )


def middles(dims: int, signed: int) -> NDArray[np.float64]:
    """(dims,) the middle of the codes of each dimension: of 0 to 15 where there is a sign, beyond of 0 to 3."""
    return np.where(np.arange(dims) < signed, 7.5, 1.5)


def code_type(dims: int, signed: int) -> np.dtype[np.void]:
    """Codes as they lie in memory: what :func:`pack_codes` makes, and how much that is stretched, read together."""
    return np.dtype([("codes", np.uint8, (signed // 2 + (dims - signed) // 4,)), ("stretch", "<u2")])


def code_bytes(dims: int, signed: int) -> int:
    """What one code takes: signs and their factor, nibbles and their stretch, and the row that it is of."""
    return signed // 8 + 1 + code_type(dims, signed).itemsize + 4
