"""Arrays of an approximate index, and how they lie in a folder: one ``.npy`` file each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import checks, layout
from hivlp.ann.codes import refine, to_int8
from hivlp.ann.constants import CODE_LANES, LIST_LANES
from hivlp.ann.lists import InvertedLists
from hivlp.ann.manifest import MANIFEST, InvalidAnnIndexError, Manifest, read_manifest
from hivlp.ann.router import Router
from hivlp.ann.training import Float16, Quantizer
from hivlp.files import npy
from hivlp.levels import Vectors

TRAINED = tuple(each.name for each in fields(Quantizer) if each.name not in checks.SCALE_NAMES)
ENCODED = tuple(each.name for each in fields(InvertedLists))
"""Arrays that change with the items."""
MAPPED = ("row_ids", "sign_codes", "sign_scales", "refine_codes")
"""Arrays that stay on disk until they are read."""
DEFERRED = ("sign_codes", "refine_codes")
"""The longest arrays, safe for the kernels whatever they hold: checksummed before the first exact answer only."""


@dataclass
class Arrays:
    """All arrays of an approximate index beside the float16 vectors.

    Attributes:
        mean: (d,) of the items.
        item_projection: (d, dims).
        query_projection: (dims, d) float16.
        refine_step: (dims,) step of the refinement codes.
        sign_amplitude: (sign_dims,) value of a sign.
        centroids: (nlist, dims) int8.
        router_keys: (list blocks, dims / 8, 16, 4) 4-bit codes of the router's keys.
        router_bias: (nlist,).
        router_scales: (nlist,) step of each list's key.
        group_keys: (group blocks, dims / 4, 16, 4) int8 plus 128; a group is a block of 16 lists.
        group_bias: (groups,).
        scales: (1,) record of :data:`hivlp.ann.checks.SCALES`.
        counts: see :class:`InvertedLists`, like the arrays that follow.
    """

    mean: Vectors
    item_projection: Vectors
    query_projection: Float16
    refine_step: Vectors
    sign_amplitude: Vectors
    centroids: NDArray[np.int8]
    router_keys: NDArray[np.uint8]
    router_bias: Vectors
    router_scales: Vectors
    group_keys: NDArray[np.uint8]
    group_bias: Vectors
    scales: NDArray[np.void]
    counts: NDArray[np.int64]
    list_offsets: NDArray[np.int64]
    row_ids: NDArray[np.uint32]
    sign_codes: NDArray[np.uint8]
    sign_scales: NDArray[np.uint8]
    refine_codes: NDArray[np.void]

    def __post_init__(self) -> None:
        self._unverified: dict[str, tuple[npy.Buffer, int]] = {}  # bytes and expected CRC-32 of files, by name

    @classmethod
    def of(cls, quantizer: Quantizer, lists: InvertedLists, router: Router | None = None) -> Arrays:
        """Quantizer, codes and router as arrays; without a router, lists are ranked by their centroids."""
        centroids = quantizer.decoded_centroids
        dims = centroids.shape[1]
        if router is None:
            groups = -(-len(centroids) // LIST_LANES)
            nothing = np.zeros((groups, dims), np.float32), np.zeros(groups, np.float32)
            router = Router(centroids, np.zeros(len(centroids), np.float32), *nothing)
        codes, router_scales = refine(router.keys, np.ones(dims, np.float32), dims)
        group_codes, group_scale = to_int8(router.group_keys)
        scales = {**vars(quantizer), "group_scale": group_scale}
        return cls(
            **{name: getattr(quantizer, name) for name in TRAINED},
            **{name: getattr(lists, name) for name in ENCODED},
            router_keys=layout.pack_router_keys(codes),
            router_bias=np.ascontiguousarray(router.bias, np.float32),
            router_scales=router_scales,
            group_keys=layout.pack_int8_keys(group_codes),
            group_bias=np.ascontiguousarray(router.group_bias, np.float32),
            scales=np.array([tuple(scales[name] for name in checks.SCALE_NAMES)], checks.SCALES),
        )

    @classmethod
    def load(cls, folder: Path) -> Arrays:
        """Open what :meth:`hivlp.ann.AnnIndex.save` wrote; all but :data:`DEFERRED` is checksummed.

        Args:
            folder: of the approximate index.

        Raises:
            InvalidAnnIndexError: naming the file, if one is missing or not as it was written, or if arrays do not fit
                each other or hold values that no index has.
        """
        manifest = read_manifest(folder)
        arrays: dict[str, NDArray[Any]] = {}
        unverified = {}
        for name in ARRAYS:
            file = f"{name}.npy"
            deferred = name in DEFERRED
            data, arrays[name] = read_array(folder, file, None if deferred else manifest, mapped=name in MAPPED)
            if deferred:
                unverified[file] = data, manifest.checksum_of(file)
        fault = checks.fault(arrays)
        if fault is not None:
            raise InvalidAnnIndexError(folder, *fault)
        # Another process may have put a new index in its place meanwhile.
        if read_manifest(folder) != manifest:
            raise InvalidAnnIndexError(folder, MANIFEST, "it has just changed")
        loaded = cls(**arrays)
        loaded._unverified = unverified
        return loaded

    def damage(self) -> str | None:
        """Name of a :data:`DEFERRED` file that is not as it was written; each is checksummed once."""
        while self._unverified:
            file, (data, checksum) = next(iter(self._unverified.items()))
            if npy.checksum(data) != checksum:
                return file
            del self._unverified[file]
        return None

    @property
    def quantizer(self) -> Quantizer:
        """What the codes depend on beside the items."""
        values: dict[str, Any] = {name: getattr(self, name) for name in TRAINED}
        values |= {name: float(self.scales[name][0]) for name in checks.SCALE_NAMES if name != "group_scale"}
        return Quantizer(**values)

    @property
    def inverted_lists(self) -> InvertedLists:
        """What changes with the items."""
        return InvertedLists(**{name: getattr(self, name) for name in ENCODED})

    @property
    def count(self) -> int:
        """Number of rows that have codes."""
        return int(self.counts[0])

    @property
    def assignments(self) -> int:
        """Number of lists that each row is stored in."""
        return int(self.counts[1])

    @cached_property
    def block_lists(self) -> NDArray[np.uint32]:
        """(blocks,) list of each block."""
        return np.repeat(np.arange(len(self.list_offsets) - 1, dtype=np.uint32), np.diff(self.list_offsets))

    @cached_property
    def max_sign_scales(self) -> NDArray[np.uint8]:
        """(blocks,) largest sign scale of each block, which is its first."""
        return np.ascontiguousarray(self.sign_scales[:, 0])

    @cached_property
    def positions(self) -> NDArray[np.uint32]:
        """(rows,) position ``block * 32 + lane`` of a code of each row, the one with the smallest refine scale."""
        rows = self.row_ids.ravel()
        filled = np.flatnonzero(rows < self.count)
        if self.assignments > 1:
            # Descending, and of 16 bits still, which numpy sorts by radix.
            filled = filled[np.argsort(~self.refine_codes["scale"].ravel()[filled], kind="stable")]
        positions = np.zeros(self.count, np.uint32)
        positions[rows[filled]] = filled
        return positions

    def lists_of(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
        """(n,) list of the code at each position."""
        lists: NDArray[np.uint32] = self.block_lists[positions // CODE_LANES]
        return lists


ARRAYS = tuple(each.name for each in fields(Arrays))


def file_checksum(path: Path) -> int | None:
    """CRC-32 of a file; None if it cannot be read."""
    try:
        return npy.checksum(npy.map_file(path))
    except (OSError, ValueError):
        return None


def read_array(
    folder: Path, file: str, manifest: Manifest | None, *, mapped: bool = False
) -> tuple[npy.Buffer, NDArray[Any]]:
    """Bytes of a file of an approximate index, and the array that they hold.

    Args:
        folder: of the approximate index.
        file: its name.
        manifest: with the file's checksum; None to read it unverified.
        mapped: whether it stays on disk until it is read.

    Raises:
        InvalidAnnIndexError: if it cannot be read, or is not as it was written.
    """
    try:
        data = npy.map_file(folder / file) if mapped else npy.read_file(folder / file)
        if manifest is not None and npy.checksum(data) != manifest.checksum_of(file):
            raise ValueError("it is not what was written")
        return data, npy.parse(data)
    except OSError as error:
        raise InvalidAnnIndexError(
            folder, file, f"it cannot be read ({(error.strerror or str(error)).lower()})"
        ) from error
    except (ValueError, MemoryError) as error:
        raise InvalidAnnIndexError(folder, file, str(error)) from error
