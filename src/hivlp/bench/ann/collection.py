"""Collections that engines are measured on: vectors, queries and their exact answers, in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.truth import exact
from hivlp.files.digests import sha256_of
from hivlp.files.npy import open_npy
from hivlp.files.scratch import write_whole
from hivlp.levels import Vectors

TRAIN, TEST, TRUTH, ITEMS = "train.npy", "queries.npy", "truth.npy", "items.npy"
SUMS = "sha256.json"


@dataclass(frozen=True)
class Collection:
    """A folder with ``items.npy`` (n, d) float16, ``queries.npy`` and ``train.npy`` float32, ``truth.npy`` int64."""

    folder: Path

    def read(self, name: str) -> NDArray[Any]:
        """One of its arrays, memory-mapped."""
        return open_npy(self.folder / name, kinds="fi")

    def is_whole(self) -> bool:
        """Whether every file is there and has the checksum with which it was written."""
        try:
            sums = json.loads((self.folder / SUMS).read_text())
            return all(sha256_of(self.folder / name).hex() == digest for name, digest in sums.items())
        except (OSError, ValueError, AttributeError):
            return False


def write_collection(
    folder: Path, items: NDArray[np.float16] | Vectors, test: Vectors, train: Vectors, **others: Vectors
) -> Collection:
    """Put a collection and its exact answers where engines can read it.

    Args:
        folder: is made unless it is there.
        items: (n, d), written as float16.
        test: (b, d) float32 queries.
        train: (c, d) float32 queries that an engine may learn from.
        others: further arrays, by the names of their files.
    """
    small = items.astype(np.float16, copy=False)
    arrays: dict[str, NDArray[Any]] = {ITEMS: small, TEST: test, TRAIN: train, TRUTH: exact(small, test)}
    arrays |= {f"{name}.npy": array for name, array in others.items()}
    for name, array in arrays.items():
        write_array(folder / name, array)
    sums = {name: sha256_of(folder / name).hex() for name in arrays}
    write_whole(folder / SUMS, lambda scratch: scratch.write_text(json.dumps(sums)))  # last: it says that all is there
    return Collection(folder)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a ``.npy`` file aside and rename it, so that what is there is whole."""
    write_whole(path, lambda scratch: np.save(scratch, array))
