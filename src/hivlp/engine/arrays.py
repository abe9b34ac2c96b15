"""The arrays that the engine is made of, and how they lie in a folder."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.engine import fit, layout
from hivlp.engine.building import Half, Learnt, Packed, refine
from hivlp.errors import IndexFolderError
from hivlp.levels import Vectors

MANIFEST = "engine.json"
FORMAT = 7
LEARNT = ("mean", "item_map", "map", "step", "amplitude", "centres")  # arrays that are as they were learnt
PACKED = ("held", "starts", "rows", "signs", "factors", "nibbles")  # arrays that change with the items


DTYPES = {
    "held": np.int64, "starts": np.int64, "rows": np.uint32, "map": np.float16,
    **dict.fromkeys(("keys", "group_keys", "signs", "factors"), np.uint8), "centres": np.int8,
    **dict.fromkeys(("mean", "step", "amplitude", "key_bias", "key_steps", "group_bias", "scales"), np.float32),
}  # fmt: skip


@dataclass(frozen=True)
class Router:
    """What says, as the logarithm of a probability, where a query's best items lie.

    Attributes:
        keys: (lists, dims).
        bias: (lists,).
        group_keys: (groups, dims) of the blocks of lists.
        group_bias: (groups,).
    """

    keys: Vectors
    bias: Vectors
    group_keys: Vectors
    group_bias: Vectors


@dataclass
class Arrays:
    """All that the engine holds, beside the float16 vectors; a file each."""

    mean: Vectors  # (d,)
    item_map: Vectors  # (d, dims)
    map: Half  # (dims, d)
    step: Vectors  # (dims,)
    amplitude: Vectors  # (signed,)
    centres: NDArray[np.int8]  # (lists, dims)
    keys: NDArray[np.uint8]  # (list blocks, dims / 8, 16, 4) nibbles
    key_bias: Vectors  # (lists,)
    key_steps: Vectors  # (lists,) what one step of a key stands for
    group_keys: NDArray[np.uint8]  # (group blocks, dims / 4, 16, 4); a group is a block of lists
    group_bias: Vectors  # (groups,)
    scales: Vectors  # (5,) of centres, factors, group keys and stretches; the error
    held: NDArray[np.int64]  # (2,) rows, and codes of each
    starts: NDArray[np.int64]  # (lists + 1,)
    rows: NDArray[np.uint32]  # (blocks, 32)
    signs: NDArray[np.uint8]  # (blocks, signed / 16, 64)
    factors: NDArray[np.uint8]  # (blocks, 32), the largest of each list first
    nibbles: NDArray[np.void]  # (blocks, 32) of layout.code_type

    @classmethod
    def of(cls, learnt: Learnt, packed: Packed, router: Router | None = None) -> Arrays:
        """Put together what was learnt, the codes, and a router (by default, all groups and their nearest lists)."""
        centres = learnt.exact_centres
        if router is None:
            groups = -(-len(centres) // layout.LANES)
            nothing = np.zeros((groups, centres.shape[1]), np.float32), np.zeros(groups, np.float32)
            router = Router(centres, np.zeros(len(centres), np.float32), *nothing)
        codes, steps = refine(router.keys, np.ones(centres.shape[1], np.float32), centres.shape[1])
        of_groups, group_scale = fit.to_int8(router.group_keys)
        scales = learnt.centre_scale, learnt.factor_scale, group_scale, learnt.stretch_scale, learnt.error
        return cls(
            **{name: getattr(learnt, name) for name in LEARNT},
            **{name: getattr(packed, name) for name in PACKED},
            keys=layout.pack_nibble_keys(codes),
            key_bias=np.ascontiguousarray(router.bias, np.float32),
            key_steps=steps,
            group_keys=layout.pack_keys(of_groups),
            group_bias=np.ascontiguousarray(router.group_bias, np.float32),
            scales=np.array(scales, np.float32),
        )

    @classmethod
    def load(cls, folder: Path) -> Arrays:
        """Open what :meth:`Engine.save` wrote, memory-mapped.

        Raises:
            IndexFolderError: if it is missing, of another format, or not whole.
        """
        before = read_manifest(folder)
        try:
            arrays = cls(
                **{
                    each.name: np.load(folder / f"{each.name}.npy", mmap_mode="r", allow_pickle=False)
                    for each in fields(cls)
                }
            )
        except (OSError, ValueError) as error:
            raise IndexFolderError(f"{folder} is damaged: {error}; build it again with `hivlp tune`") from error
        # Another process may have put a new one in its place meanwhile.
        if read_manifest(folder) != before or not arrays.fit():
            raise IndexFolderError(f"{folder} is damaged or has just changed; build it again with `hivlp tune`")
        return arrays

    def fit(self) -> bool:
        """Whether all lengths belong together, so that no kernel reads beyond an array."""
        dims, width, lists, blocks = len(self.step), len(self.mean), len(self.key_bias), len(self.signs)
        groups, signed = -(-lists // layout.LANES), len(self.amplitude)
        shapes = {
            "item_map": (width, dims), "map": (dims, width), "centres": (lists, dims),
            "keys": (groups, dims // 8, layout.LANES, 4), "key_steps": (lists,), "group_bias": (groups,),
            "group_keys": (-(-groups // layout.LANES), dims // 4, layout.LANES, 4),
            "scales": (5,), "held": (2,), "starts": (lists + 1,),
            "signs": (blocks, signed // 16, 64),
            **dict.fromkeys(("rows", "factors", "nibbles"), (blocks, layout.SIGN_LANES)),
        }  # fmt: skip
        starts = self.starts
        return (
            all(getattr(self, name).shape == shape for name, shape in shapes.items())
            and all(getattr(self, name).dtype == dtype for name, dtype in DTYPES.items())
            and self.nibbles.dtype == layout.code_type(dims, signed)
            and bool((np.diff(starts) >= 0).all())
            and 0 < signed <= dims
            and dims % 16 == signed % 16 == 0
            and (int(starts[0]), int(starts[-1])) == (0, blocks)
        )

    @property
    def learnt(self) -> Learnt:
        """What the codes depend on."""
        return Learnt(
            **{name: getattr(self, name) for name in LEARNT},
            centre_scale=float(self.scales[0]),
            factor_scale=float(self.scales[1]),
            stretch_scale=float(self.scales[3]),
            error=float(self.scales[4]),
        )

    @property
    def count(self) -> int:
        """Rows that there are codes of."""
        return int(self.held[0])

    @cached_property
    def homes(self) -> NDArray[np.uint32]:
        """(blocks,) the list of each block."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.uint32), np.diff(self.starts))

    @cached_property
    def heads(self) -> NDArray[np.uint8]:
        """(blocks,) the largest factor of each block, which is its first."""
        return np.ascontiguousarray(self.factors[:, 0])

    @cached_property
    def places(self) -> NDArray[np.uint32]:
        """(rows,) where a code of each row is, and of several the one that is stretched least: of its nearest list."""
        rows = self.rows.ravel()
        held = np.flatnonzero(rows < self.count)
        if self.held[1] > 1:
            held = held[np.argsort(-self.nibbles["stretch"].ravel()[held].astype(np.int32), kind="stable")]
        places = np.zeros(self.count, np.uint32)
        places[rows[held]] = held
        return places


def file_check(path: Path) -> int | None:
    """CRC-32 of a file; None if it cannot be read."""
    check = 0
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 22):
                check = zlib.crc32(part, check)
    except OSError:
        return None
    return check


def read_manifest(folder: Path, *, older: bool = False) -> dict[str, Any]:
    """What :meth:`hivlp.engine.Engine.save` noted beside the arrays.

    Args:
        folder: of the engine.
        older: whether one of an earlier format will do.

    Raises:
        IndexFolderError: if it is missing, unreadable or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise IndexFolderError(f"{folder} is damaged: {error}; build it again with `hivlp tune`") from error
    formats = range(1, FORMAT + 1) if older else (FORMAT,)
    if not isinstance(manifest, dict) or manifest.get("format") not in formats:
        raise IndexFolderError(f"{folder} is of another format; build it again with `hivlp tune`")
    check = manifest.pop("check", None)
    if check != manifest_check(manifest):
        raise IndexFolderError(f"{folder} is damaged: {MANIFEST} is not what was written; build it again")
    return manifest


def manifest_check(manifest: dict[str, Any]) -> int:
    """CRC-32 of what a manifest says."""
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
