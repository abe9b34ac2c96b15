"""The arrays that the engine is made of, and how they lie in a folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import checks, layout
from hivlp.ann import learning as fit
from hivlp.ann.building import Half, Learnt, Packed, refine
from hivlp.ann.manifest import MANIFEST as MANIFEST
from hivlp.ann.manifest import Manifest, RefusedEngineError, read_manifest
from hivlp.ann.manifest import manifest_check as manifest_check
from hivlp.files import npy
from hivlp.levels import Vectors

LEARNT = ("mean", "item_map", "map", "step", "amplitude", "centres")  # arrays that are as they were learnt
PACKED = ("held", "starts", "rows", "signs", "factors", "nibbles")  # arrays that change with the items

MAPPED = ("rows", "signs", "factors", "nibbles")  # that stay on disk until they are read
LATER = ("signs", "nibbles")  # by far the longest, and safe whatever they hold: summed up when an exact answer needs it


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

    def __post_init__(self) -> None:
        self._unread: dict[str, tuple[npy.Buffer, int]] = {}  # files that are still to be summed up, and their sums

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
        """Open what :meth:`AnnIndex.save` wrote: what is long stays on disk, and all but :data:`LATER` is summed up.

        Args:
            folder: of the engine.

        Raises:
            RefusedEngineError: naming the file, if one is missing or not as it was written, if arrays do not fit to
                each other, or hold what no engine holds.
        """
        manifest = read_manifest(folder)
        arrays, unread = {}, {}
        for name in (each.name for each in fields(cls)):
            file = f"{name}.npy"
            later = name in LATER
            data, arrays[name] = read_array(folder, file, None if later else manifest, mapped=name in MAPPED)
            if later:
                unread[file] = data, manifest.check_of(file)
        loaded = cls(**arrays)
        loaded._unread = unread
        reason = checks.fault(loaded)
        if reason:
            raise RefusedEngineError(folder, *reason)
        # Another process may have put a new one in its place meanwhile.
        if read_manifest(folder) != manifest:
            raise RefusedEngineError(folder, MANIFEST, "it has just changed")
        return loaded

    def damage(self) -> str | None:
        """The name of a file of :data:`LATER` that is not as it was written; looked for once."""
        while self._unread:
            file, (data, check) = next(iter(self._unread.items()))
            if npy.checksum(data) != check:
                return file
            del self._unread[file]
        return None

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
    try:
        return npy.checksum(npy.map_file(path))
    except (OSError, ValueError):
        return None


def read_array(
    folder: Path, file: str, manifest: Manifest | None, *, mapped: bool = False
) -> tuple[npy.Buffer, NDArray[Any]]:
    """The bytes of an engine's file, and the array that they are.

    Args:
        folder: of the engine.
        file: its name.
        manifest: what its sum must be; None if that is not looked at.
        mapped: whether it stays on disk.

    Raises:
        RefusedEngineError: if it cannot be read, or is not as it was written.
    """
    try:
        data = npy.map_file(folder / file) if mapped else npy.read_file(folder / file)
        if manifest is not None and npy.checksum(data) != manifest.check_of(file):
            raise ValueError("it is not what was written")
        return data, npy.parse(data)
    except OSError as error:
        raise RefusedEngineError(
            folder, file, f"it cannot be read ({(error.strerror or str(error)).lower()})"
        ) from error
    except (ValueError, MemoryError) as error:
        raise RefusedEngineError(folder, file, str(error)) from error
