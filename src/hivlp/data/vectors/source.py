"""Sources of vectors made elsewhere: ``.npy`` files, parquet columns, and folders as clip-retrieval writes them.

Everything is read in pieces; a set of vectors need not fit in memory.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hivlp.data.vectors.files import Chunk, NpyFile, ParquetColumn, Part, Raw, UnfitError
from hivlp.errors import DataError
from hivlp.levels import Vectors

logger = logging.getLogger(__name__)
IMAGE_FOLDER, TEXT_FOLDER, METADATA_FOLDER = "img_emb", "text_emb", "metadata"


class EmbeddingSource:
    """One or several files of vectors, in order.

    Of several files, a damaged one is skipped from where the damage begins; names of rows do not depend on other files.

    Attributes:
        dim: length of every vector.
        rows: how many there are.
        has_columns: whether vectors are a column of parquet.
        damaged: skipped file -> what is wrong with it.
    """

    def __init__(self, parts: Sequence[Part], damaged: Mapping[Path, str] | None = None) -> None:
        self._parts = parts
        self.damaged = dict(damaged or {})
        self.dim = parts[0].dim
        self.rows = sum(part.rows for part in parts)
        self.has_columns = any(isinstance(part, ParquetColumn) for part in parts)
        for part in parts:
            if part.dim != self.dim:
                raise DataError(f"{part.file} holds vectors of {part.dim} dims, {parts[0].file} of {self.dim}")

    def chunks(self) -> Iterator[Chunk]:
        """All rows, some thousands at a time.

        Raises:
            DataError: if a file turns out to be damaged.
        """
        for part in self._parts:
            try:
                yield from part.chunks()
            except DataError as error:
                self._pass_over(part.file, error)

    def _pass_over(self, file: Path, error: DataError) -> None:
        if len(self._parts) == 1:
            raise error
        if file not in self.damaged:
            logger.warning("skipped: %s", error)
        self.damaged[file] = str(error)

    def sample(self, count: int, seed: int = 0) -> Vectors:
        """At most ``count`` unit vectors drawn from all files; rows that are no vectors are passed over.

        Raises:
            DataError: if a file turns out to be damaged.
        """
        rng = np.random.default_rng(seed)
        share = min(1.0, count / max(1, self.rows))
        vectors, filled = np.empty((min(count, self.rows), self.dim), np.float32), 0
        for part in self._parts:
            try:
                for raw in part.some(math.ceil(share * part.rows), rng):
                    good, refused = unit_rows(raw)
                    good = np.delete(good, list(refused), axis=0)[: len(vectors) - filled]
                    vectors[filled : filled + len(good)] = good
                    filled += len(good)
            except DataError as error:
                self._pass_over(part.file, error)
        return vectors[:filled]


def open_embeddings(path: Path | str, *, column: str | None = None, texts: bool = False) -> EmbeddingSource:
    """Open vectors without reading them.

    Args:
        path: a ``.npy`` file of (N, d) float16, float32 or float64; a parquet file with a column of lists of floats,
            beside which ``path`` (or ``image_path``, ``url``, ``id``, …) and ``caption`` are recognised and everything
            else is metadata; a folder of such files; or a clip-retrieval folder (``img_emb/img_emb_0.npy`` beside
            ``metadata/metadata_0.parquet``), whose files are paired by their number.
        column: of parquet that holds the vectors; default ``embedding``.
        texts: take ``text_emb`` of a clip-retrieval folder, not ``img_emb``.

    Raises:
        DataError: if there are no vectors there, or files do not fit together.
        MissingExtraError: if parquet is needed and pyarrow is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        return EmbeddingSource([_open_file(path, column)])
    if (path / IMAGE_FOLDER).is_dir() or (path / TEXT_FOLDER).is_dir():
        return _open_clip_retrieval(path, texts or not (path / IMAGE_FOLDER).is_dir())
    for suffix in (".npy", ".parquet"):
        if files := _numeric_order(path.glob(f"*{suffix}")):
            return _of_several({file: partial(_open_file, file, column) for file in files})
    raise DataError(f"{path} holds no .npy or .parquet files, and no {IMAGE_FOLDER} folder as clip-retrieval writes it")


def has_texts(path: Path) -> bool:
    """Whether this is a clip-retrieval folder with vectors of pictures and of their texts."""
    return (path / IMAGE_FOLDER).is_dir() and (path / TEXT_FOLDER).is_dir()


def unit_rows(raw: Raw, out: Vectors | None = None) -> tuple[Vectors, dict[int, str]]:
    """Vectors at unit length, and row -> why it has none; such rows are zero.

    Args:
        raw: (n, d) floats.
        out: (n, d) where the vectors go; default a new array.

    Returns:
        (n, d) float32, and the refusals.
    """
    with np.errstate(all="ignore"):
        vectors = np.empty(raw.shape, np.float32) if out is None else out
        vectors[:] = raw
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors /= norms[:, None]
    refused = {}
    # Squares outside float32 do not make a vector bad: look again, in double.
    for row in np.flatnonzero(~((norms > 1e-15) & (norms < 1e15))).tolist():
        with np.errstate(invalid="ignore"):  # signalling NaN
            exact = raw[row].astype(np.float64)
        largest = np.abs(exact).max(initial=0.0)
        vectors[row] = 0
        if not np.isfinite(largest):
            refused[row] = f"the vector holds {'NaN' if np.isnan(exact).any() else 'an infinite number'}"
        elif largest == 0:
            refused[row] = "the vector is zero"
        else:
            exact /= largest
            vectors[row] = exact / np.linalg.norm(exact)
    return vectors, refused


def _open_file(file: Path, column: str | None) -> Part:
    match file.suffix.lower():
        case ".npy":
            return NpyFile(file)
        case ".parquet":
            return ParquetColumn(file, column)
    raise DataError(f"{file} is neither .npy nor .parquet")


def _of_several(parts: Mapping[Path, Callable[[], Part]]) -> EmbeddingSource:
    """A source of those parts that can be opened.

    Raises:
        DataError: the first one's, if none can, or if files do not belong together.
    """
    opened: list[Part] = []
    damaged: dict[Path, str] = {}
    first: DataError | None = None
    for file, part in parts.items():
        try:
            opened.append(part())
        except UnfitError:
            raise
        except DataError as error:
            first = first or error
            damaged[file] = str(error)
    if first is not None and not opened:
        raise first
    for why in damaged.values():
        logger.warning("skipped: %s", why)
    return EmbeddingSource(opened, damaged)


def _open_clip_retrieval(folder: Path, texts: bool) -> EmbeddingSource:
    name = TEXT_FOLDER if texts else IMAGE_FOLDER
    vectors = _numbered(folder / name, ".npy")
    if not vectors:
        raise DataError(f"{folder / name} holds no files such as {name}_0.npy")
    if not (folder / METADATA_FOLDER).is_dir():
        return _of_several({file: partial(NpyFile, file) for file in vectors.values()})
    metadata = _numbered(folder / METADATA_FOLDER, ".parquet")
    # A file without its partner would leave captions beside other pictures' vectors, or vectors without a name.
    for number in sorted(vectors.keys() ^ metadata.keys()):
        lone, missing = (vectors, METADATA_FOLDER) if number in vectors else (metadata, name)
        raise DataError(f"{lone[number]} has no partner number {number} in {folder / missing}")
    return _of_several({file: partial(NpyFile, file, metadata[number]) for number, file in vectors.items()})


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Number at the end of a file's name -> the file, in numeric order."""
    found: dict[int, Path] = {}
    for file in folder.glob(f"*{suffix}"):
        if match := re.search(r"(\d+)$", file.stem):
            number = int(match[1])
            if number in found:
                raise DataError(f"{found[number]} and {file} have the same number")
            found[number] = file
    return dict(sorted(found.items()))


def _numeric_order(files: Iterable[Path]) -> list[Path]:
    """By name, numbers in it by their value."""

    def key(file: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", file.name)
        return [(int(part) if place % 2 else 0, part) for place, part in enumerate(parts)]

    return sorted(files, key=key)
