"""Captions in UNITER's text databases: LMDB records that are msgpack in an LZ4 frame, with the files beside them.

A record has ``input_ids`` (WordPiece ids without special tokens), and ``img_fname``, its picture's regions. Beside it
lie ``meta.json`` (``CLS``, ``SEP``), ``id2len.json``, ``txt2img.json`` and ``img2txts.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DataError, MissingExtraError
from hivlp.files.reading import one_line, printable, read_json
from hivlp.systems.lmdb_file import LmdbFile

LIMIT = 1 << 20
"""Bytes of a record, at most."""


class TokenizedCaption(NamedTuple):
    """One caption.

    Attributes:
        ids: (T,) int64 with [CLS] before and [SEP] after, as UNITER is given it.
        regions: name of its picture's record in :class:`hivlp.systems.regions.RegionLmdb`.
    """

    ids: NDArray[np.int64]
    regions: str


class TextLmdb(Mapping[str, TokenizedCaption]):
    """UNITER's text database of a split, such as ``itm_flickr30k_test.db``: caption id -> tokens and picture.

    Attributes:
        captions: name of a picture's regions -> ids of its captions.
    """

    def __init__(self, folder: Path) -> None:
        """Open the database.

        Args:
            folder: with ``data.mdb``, ``meta.json``, ``txt2img.json`` and ``img2txts.json``.

        Raises:
            DataError: if one of them is missing or has another layout.
            MissingExtraError: if ``lmdb``, ``msgpack`` or ``lz4`` is not installed.
        """
        try:
            import lz4.frame
            import msgpack  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("captions in LMDB", "systems") from error
        self._where, self._lz4 = printable(folder), lz4.frame
        for name in ("data.mdb", "meta.json", "txt2img.json", "img2txts.json"):
            if not (folder / name).is_file():
                raise DataError(f"{self._where} has no {name}: it is no text database of UNITER's")
        meta, self._pictures, captions = (
            read_json(folder / f"{name}.json") for name in ("meta", "txt2img", "img2txts")
        )
        self._ends = meta.get("CLS"), meta.get("SEP")
        if not all(type(each) is int for each in self._ends):
            raise DataError(f"{self._where}, meta.json: CLS and SEP must be ids of tokens")
        if not all(isinstance(name, str) for name in self._pictures.values()) or not all(
            isinstance(ids, list) and all(isinstance(each, str) for each in ids) for ids in captions.values()
        ):
            raise DataError(f"{self._where}: txt2img.json and img2txts.json must name captions and pictures")
        self.captions: dict[str, list[str]] = captions
        self._file = LmdbFile(folder, "captions in LMDB")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __getitem__(self, caption: str) -> TokenizedCaption:
        if caption not in self._pictures:
            raise KeyError(caption)
        where = f"{self._where}, caption {caption:.60}"
        value = self._file.get(caption)
        if value is None:
            raise DataError(f"{where}: not in the database, though txt2img.json names it")
        record = self._record(value, where)
        ids, name = record.get("input_ids"), record.get("img_fname", self._pictures[caption])
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < 1 << 31 for each in ids):
            raise DataError(f"{where}: input_ids must be a list of ids")
        if name != self._pictures[caption]:
            raise DataError(f"{where}: its picture is {name!r:.60} here and another in txt2img.json")
        first, last = self._ends
        return TokenizedCaption(np.array([first, *ids, last], np.int64), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def _record(self, value: bytes, where: str) -> dict[str, Any]:
        """A record's fields, decompressed within :data:`LIMIT`.

        Raises:
            DataError: if it is damaged or larger.
        """
        import msgpack

        try:
            unpacking = self._lz4.LZ4FrameDecompressor()
            data = unpacking.decompress(value, max_length=LIMIT)
            if not unpacking.eof:
                raise ValueError(f"cut short, or more than {LIMIT} bytes")
            record = msgpack.unpackb(data, raw=False)
            if not isinstance(record, dict):
                raise ValueError("no fields")
        except (RuntimeError, ValueError, TypeError, msgpack.UnpackException) as error:
            raise DataError(f"{where}: not a readable record: {one_line(error)}") from error
        return record
