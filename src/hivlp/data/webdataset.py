"""Webdataset: tar files in which neighbours with the same stem are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hivlp.data.pairs import Pair, clean_captions, split_of_shard
from hivlp.data.table import CAPTION_COLUMNS
from hivlp.errors import DataError, PictureError

_PICTURES = ("jpg", "jpeg", "png", "webp")
_TEXT_LIMIT = 1 << 20


@dataclass(frozen=True)
class TarMember:
    """A file inside an uncompressed tar, read from its place without unpacking."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The member's content.

        Raises:
            PictureError: if the tar cannot be read or has become shorter.
        """
        try:
            with self.tar.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise PictureError(f"cannot be read from {self.tar}: {error.strerror}") from error
        if len(content) < self.size:
            raise PictureError(f"cannot be read from {self.tar}: the file is too short")
        return content


def read_webdataset(tars: Sequence[Path]) -> list[Pair]:
    """Read tar files whose samples have a picture (jpg, jpeg, png, webp) and captions (txt or json).

    Each line of a ``txt`` is a caption; a ``json`` holds a caption or a list of them under one of
    :data:`hivlp.data.table.CAPTION_COLUMNS`, which counts if there is no ``txt``. Samples without picture or caption
    are passed over. A tar whose name begins with a split's name (``val-0001.tar``) is of that split. Nothing is
    unpacked to disk, and pictures stay in the tar until they are read.

    Raises:
        DataError: naming file and sample, if a tar or its captions cannot be read.
    """
    pairs = []
    for tar in tars:
        split = split_of_shard(tar)
        for key, picture, captions in _samples(tar):
            pairs.append(Pair(f"{tar.stem}/{key}", picture, captions, split))
    return pairs


def _samples(path: Path) -> Iterator[tuple[str, TarMember, tuple[str, ...]]]:
    """Key, picture and captions of the complete samples."""
    key: str | None = None
    parts: dict[str, tarfile.TarInfo] = {}
    try:
        # "r:" refuses compressed tars, in which nothing can be read from its place.
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
                stem, dot, suffix = name.partition(".")
                if not (member.isreg() and not member.issparse() and stem and dot):
                    continue
                this = str(folder / stem)
                if this != key:
                    if key is not None:
                        yield from _sample(tar, path, key, parts)
                    key, parts = this, {}
                    tar.members = []  # type: ignore[attr-defined]  # or the whole directory stays in memory
                parts.setdefault(suffix.lower(), member)
            if key is not None:
                yield from _sample(tar, path, key, parts)
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a readable, uncompressed tar file: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _sample(
    tar: tarfile.TarFile, path: Path, key: str, parts: dict[str, tarfile.TarInfo]
) -> Iterator[tuple[str, TarMember, tuple[str, ...]]]:
    picture = next((parts[suffix] for suffix in _PICTURES if suffix in parts), None)
    if picture is None:
        return
    captions: tuple[str, ...] = ()
    where = f"{path}, sample {key}"
    if "txt" in parts:
        captions = clean_captions(_text(tar, parts["txt"], where).splitlines())
    if not captions and "json" in parts:
        try:
            record = json.loads(_text(tar, parts["json"], where))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: not a JSON object")
        captions = next((texts for name in CAPTION_COLUMNS if (texts := clean_captions(record.get(name)))), ())
    if captions:
        yield key, TarMember(path, picture.offset_data, picture.size), captions


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if member.size > _TEXT_LIMIT:
        raise DataError(f"{where}: {member.name} is too large for captions")
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {member.name} is not UTF-8 text") from error
