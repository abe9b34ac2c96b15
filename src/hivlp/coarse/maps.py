"""Two linear maps that make a coarse level out of vectors somebody has already: one for items, one for queries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hivlp.errors import DamagedIndexError
from hivlp.files import npy
from hivlp.levels import Embeddings, Level, Vectors

# What an index of given vectors says in place of a model's name.
EMBEDDINGS = "embeddings"
COARSE, FINE = "coarse", "fine"
ITEM_FILE, QUERY_FILE = "item_map.npy", "query_map.npy"


@dataclass(frozen=True)
class CoarseMaps:
    """How a coarse level of m dims is had from vectors of d dims.

    Attributes:
        item: (m, d) float32, for what is stored.
        query: (m, d) float32, for what is asked; the same matrix where queries are spread as the items are.
    """

    item: Vectors
    query: Vectors

    def __post_init__(self) -> None:
        for what, matrix in (("item", self.item), ("query", self.query)):
            if matrix.ndim != 2 or matrix.shape != self.item.shape or not 0 < matrix.shape[0] < matrix.shape[1]:
                raise ValueError(f"the {what} map has shape {matrix.shape}: both must be (m, d), m less than d")
            if matrix.dtype != np.float32 or not np.isfinite(matrix).all():
                raise ValueError(f"the {what} map must hold finite float32 numbers")

    @property
    def levels(self) -> tuple[Level, Level]:
        """The coarse level of m dims and the fine one of d dims, which is the vector itself."""
        dims, width = self.item.shape
        return Level(COARSE, dims, 1, 1), Level(FINE, width, 1, 1)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over both maps."""
        digest = hashlib.sha256(repr(self.item.shape).encode())
        for matrix in (self.item, self.query):
            digest.update(np.ascontiguousarray(matrix, "<f4").tobytes())
        return digest.hexdigest()

    def of_items(self, vectors: Vectors) -> Embeddings:
        """Both levels of (N, d) unit vectors that are to be stored."""
        return self._levels(vectors, self.item)

    def of_queries(self, vectors: Vectors) -> Embeddings:
        """Both levels of (N, d) unit vectors that are to be looked for."""
        return self._levels(vectors, self.query)

    def _levels(self, vectors: Vectors, matrix: Vectors) -> Embeddings:
        return Embeddings({COARSE: unit_or_flat(vectors @ matrix.T), FINE: vectors})

    def arrays(self) -> dict[str, Vectors]:
        """File name -> array, as :meth:`load` reads them."""
        return {ITEM_FILE: self.item, QUERY_FILE: self.query}

    @property
    def width(self) -> int:
        """Dims of the vectors that are given."""
        return int(self.item.shape[1])

    @classmethod
    def load(cls, folder: Path, fingerprint: str | None = None) -> CoarseMaps:
        """Read the maps that lie in an index folder.

        Args:
            folder: of the index.
            fingerprint: that they must have, if it is known.

        Raises:
            DamagedIndexError: if one is missing, cannot be read, or is another.
        """
        loaded = []
        for name in (ITEM_FILE, QUERY_FILE):
            try:
                loaded.append(np.array(npy.parse(npy.map_file(folder / name))))
            except FileNotFoundError as error:
                raise DamagedIndexError(f"the index is damaged: {folder / name} is missing") from error
            except (OSError, ValueError, MemoryError) as error:
                raise DamagedIndexError(f"the index is damaged: {folder / name} cannot be read: {error}") from error
        try:
            maps = cls(*loaded)
        except (ValueError, TypeError) as error:
            raise DamagedIndexError(f"the index is damaged: {error}") from error
        if fingerprint not in (None, maps.fingerprint):
            raise DamagedIndexError(f"the index is damaged: the maps in {folder} are not those that it was made with")
        return maps


@dataclass(frozen=True)
class NoCoarseLevel:
    """Given vectors without a coarse level: the finest level is all that is stored.

    Attributes:
        width: dims of the vectors.
    """

    width: int

    @property
    def levels(self) -> tuple[Level]:
        """The fine level, which is the vector itself."""
        return (Level(FINE, self.width, 1, 1),)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the width."""
        return hashlib.sha256(repr(self.width).encode()).hexdigest()

    def of_items(self, vectors: Vectors) -> Embeddings:
        """The only level of (N, d) unit vectors."""
        return Embeddings({FINE: vectors})

    of_queries = of_items

    def arrays(self) -> dict[str, Vectors]:
        """No files."""
        return {}


def load_maps(folder: Path, levels: Sequence[Level], fingerprint: str) -> CoarseMaps | NoCoarseLevel:
    """What makes the levels of an index of given vectors.

    Raises:
        DamagedIndexError: see :meth:`CoarseMaps.load`.
    """
    return NoCoarseLevel(levels[-1].dim) if len(levels) == 1 else CoarseMaps.load(folder, fingerprint)


def unit_or_flat(vectors: Vectors) -> Vectors:
    """Rows at unit length; a row that is zero says nothing, and gets the same value everywhere."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    silent = norms[:, 0] == 0
    if silent.any():
        vectors = vectors.copy()
        vectors[silent] = 1.0
        norms[silent] = np.sqrt(vectors.shape[1])
    result: Vectors = (vectors / norms).astype(np.float32, copy=False)
    return result
