"""Region features of the bottom-up-attention detector, as UNITER and LightningDOT publish them: ``.npz`` files or LMDB.

A picture has ``features`` (n, 2048), ``norm_bb`` (n, 6: x1, y1, x2, y2, width, height as shares) and ``conf`` (n),
sorted by confidence. Nothing is unpickled: arrays of objects are refused.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hivlp.data.pairs import within
from hivlp.errors import DataError, MissingExtraError
from hivlp.files.npy import parse
from hivlp.files.reading import one_line, parse_json_value, printable, read_json, read_regular
from hivlp.levels import Vectors
from hivlp.systems.lmdb_file import LmdbFile

LIMIT = 1 << 26
"""Bytes of one picture's arrays, at most."""
FIXED = 36
"""Regions of every picture where the number is fixed."""
KEYS = "__keys__"
"""Key of a database's list of names."""
NUMBERS = frozenset(order + kind for order in "<>|=" for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"))
"""Types of arrays as ``msgpack-numpy`` spells them."""


class PictureRegions(NamedTuple):
    """Regions of one picture.

    Attributes:
        features: (n, 2048) float32.
        boxes: (n, 7) float32: x1, y1, x2, y2, width, height as shares of the picture's, and width · height.
    """

    features: Vectors
    boxes: Vectors


@dataclass(frozen=True)
class Kept:
    """How many of a picture's regions are kept, the first ones.

    Attributes:
        threshold: regions more confident than this are kept; None for :data:`FIXED` of them.
        least: but never fewer, where there are so many.
        most: and never more.
    """

    threshold: float | None = 0.2
    least: int = 10
    most: int = 100

    def of(self, confidence: NDArray[Any] | None) -> int:
        """How many, by the (n,) confidence of each."""
        if self.threshold is None:
            return FIXED
        if confidence is None:
            return self.most
        return int(np.clip((confidence > self.threshold).sum(), self.least, self.most))

    @property
    def name(self) -> str:
        """What UNITER calls a database with such regions."""
        return f"numbb{FIXED}" if self.threshold is None else f"th{self.threshold}_max{self.most}_min{self.least}"


class RegionFolder(Mapping[str, PictureRegions]):
    """A folder with one ``.npz`` file a picture."""

    def __init__(self, folder: Path, kept: Kept | None = None) -> None:
        """Look into the folder.

        Args:
            folder: with ``flickr30k_000000000001.npz`` and so on.
            kept: which regions count (default: 10 to 100, those above 0.2).

        Raises:
            DataError: if there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{printable(folder)} is no folder of region features")
        self._folder, self._kept = folder, kept or Kept()

    def __getitem__(self, name: str) -> PictureRegions:
        path = within(self._folder, name, printable(self._folder))
        if not path.is_file():
            raise KeyError(name)
        arrays = read_npz(read_regular(path, LIMIT), printable(path))
        return regions_of(arrays, self._kept.of(arrays.get("conf")), printable(path))

    def __iter__(self) -> Any:
        return iter(sorted(path.name for path in self._folder.glob("*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self._folder.glob("*.npz"))


class RegionLmdb(Mapping[str, PictureRegions]):
    """UNITER's LMDB of a data set: ``feat_th0.2_max100_min10``, ``feat_numbb36`` or ``all``, compressed or not."""

    def __init__(self, folder: Path, kept: Kept | None = None) -> None:
        """Open the database.

        Args:
            folder: of the data set, with the database's folder and, where regions were counted, ``nbb_….json``.
            kept: which regions count (default: 10 to 100, those above 0.2).

        Raises:
            DataError: if there is no such database.
            MissingExtraError: if ``lmdb`` is not installed.
        """
        self._kept = kept or Kept()
        names = [f"feat_{self._kept.name}", "all"]
        places = [folder / f"{name}{end}" for name in names for end in ("_compressed", "")]
        place = next((each for each in places if (each / "data.mdb").is_file()), None)
        if place is None:
            raise DataError(f"{printable(folder)} has no database {' or '.join(each.name for each in places)}")
        self._where, self._compressed = printable(place), place.name.endswith("_compressed")
        counts = folder / f"nbb_{self._kept.name}.json"
        self._counts = read_json(counts) if counts.is_file() else {}
        self._file = LmdbFile(place, "region features in LMDB")
        names = parse_json_value((self._file.get(KEYS) or b"null").decode("utf-8", "replace"), f"{self._where}, {KEYS}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self._where} cannot be read: {KEYS} is not a list of names")
        self._names: list[str] = [name for name in names if name != KEYS]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __getitem__(self, name: str) -> PictureRegions:
        value = None if name == KEYS else self._file.get(name)
        if value is None:
            raise KeyError(name)
        where = f"{self._where}, {name:.60}"
        arrays = read_npz(value, where) if self._compressed else read_msgpack(value, where)
        count = self._counts.get(name)
        if count is None or self._kept.threshold is None:
            count = self._kept.of(arrays.get("conf"))
        if type(count) is not int or count < 0:
            raise DataError(f"{where}: the number of regions is {count!r:.40}")
        return regions_of(arrays, count, where)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def regions_of(arrays: Mapping[str, NDArray[Any]], count: int, where: str) -> PictureRegions:
    """The first ``count`` regions, in float32, with the seventh number of their boxes.

    Raises:
        DataError: if an array is missing, has another shape, or is not finite.
    """
    features, boxes = arrays.get("features"), arrays.get("norm_bb")
    if features is None or boxes is None or features.ndim != 2 or boxes.ndim != 2:
        raise DataError(f"{where}: features (n, 2048) and norm_bb (n, 6) are needed")
    if len(features) != len(boxes) or boxes.shape[1] != 6 or not len(features):
        raise DataError(f"{where}: features {features.shape} and norm_bb {boxes.shape} do not belong together")
    seen, placed = (np.asarray(part[:count], np.float32) for part in (features, boxes))
    if not (np.isfinite(seen).all() and np.isfinite(placed).all()):
        raise DataError(f"{where}: not all numbers are finite")
    return PictureRegions(seen, np.concatenate([placed, placed[:, 4:5] * placed[:, 5:6]], 1))


def read_npz(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in a ``.npz`` file; others, which pickle may hide, are left out.

    Raises:
        DataError: if it is damaged, or larger than :data:`LIMIT`.
    """
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(each.file_size for each in archive.infolist()) > LIMIT:
                raise ValueError(f"more than {LIMIT} bytes")
            for name in ("features", "norm_bb", "conf"):
                if f"{name}.npy" in archive.namelist():
                    found[name] = parse(archive.read(f"{name}.npy"))
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DataError(f"{where}: not a readable .npz file: {one_line(error)}") from error
    return found


def read_msgpack(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in a dict that ``msgpack-numpy`` wrote.

    Raises:
        DataError: if it is damaged, or holds objects.
        MissingExtraError: if ``msgpack`` is not installed.
    """
    try:
        import msgpack
    except ImportError as error:
        raise MissingExtraError("region features in LMDB", "systems") from error
    try:
        if len(data) > LIMIT:
            raise ValueError(f"more than {LIMIT} bytes")
        held = msgpack.unpackb(data, raw=False, strict_map_key=False)
        return {name: _array(held[name]) for name in ("features", "norm_bb", "conf") if name in held}
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
        raise DataError(f"{where}: not a readable record: {one_line(error)}") from error


def _array(value: Any) -> NDArray[Any]:
    """An array as ``msgpack-numpy`` encodes it: its type, shape and bytes.

    Raises:
        ValueError: if it is one of anything but numbers.
    """
    said = {key.decode() if isinstance(key, bytes) else key: part for key, part in value.items()}
    name = said["type"].decode() if isinstance(said["type"], bytes) else said["type"]
    if said.get("nd") is not True or said.get("kind") not in (b"", "", None) or name not in NUMBERS:
        raise ValueError("an array of something else than numbers")
    dtype = np.dtype(name)
    return np.frombuffer(said["data"], dtype).reshape(said["shape"])
