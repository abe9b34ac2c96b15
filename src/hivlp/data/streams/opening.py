"""Files of a stream, local or behind a URL that fsspec understands, opened for reading and listed with their sizes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

from hivlp.errors import DataError, MissingExtraError
from hivlp.files.reading import one_line, open_regular, printable, reason

SUMS = "SHA256SUMS"
"""A file beside shards that lists their checksums, as ``sha256sum`` writes it."""
# Read ahead by a thread; as many blocks are kept as a sample needs that lies across the edge of one.
_BLOCK, _BLOCKS = 4 << 20, 3
_SUMS_LIMIT = 64 << 20
_SUM = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")


class UnreachableError(DataError):
    """A file of a stream that is missing, or whose storage does not answer; what was read of it is not in doubt."""


def is_url(path: str) -> bool:
    """Whether a path is one for fsspec (``s3://…``, ``https://…``) and not of this machine."""
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """A file that can be sought in, open for reading.

    Raises:
        UnreachableError: if it is missing or its storage does not answer.
        MissingExtraError: if the storage needs a package that is not installed.
    """
    if not is_url(path):
        return open_regular(Path(path), UnreachableError)
    system, inner = _system(path)
    options = {"block_size": _BLOCK, "cache_type": "background", "cache_options": {"maxblocks": _BLOCKS}}
    try:
        return cast(BinaryIO, system.open(inner, "rb", **(options if "memory" not in system.protocol else {})))
    except Exception as error:  # each kind of storage raises its own
        raise UnreachableError(f"{printable(path)} cannot be read: {reason(error)}") from error


def check_reachable(path: str) -> None:
    """Raise if the last byte of a file cannot be read now.

    Raises:
        UnreachableError: saying why.
    """
    with open_file(path) as file:
        try:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            file.read(1)
        except Exception as error:
            raise UnreachableError(f"{printable(path)} cannot be read: {reason(error)}") from error


def sha256(file: BinaryIO) -> str:
    """Hex SHA-256 of a whole file, which is left at its beginning.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(1 << 20):
        digest.update(part)
    file.seek(0)
    return digest.hexdigest()


def sizes_in(folder: str) -> dict[str, int]:
    """Bytes of each file in a folder, by full path or URL; empty if the storage cannot list it, as HTTP mostly cannot.

    Raises:
        UnreachableError: if there is no such folder on this machine.
    """
    if not is_url(folder):
        try:
            with os.scandir(folder) as entries:
                return {f"{folder}/{each.name}": each.stat().st_size for each in entries if each.is_file()}
        except OSError as error:
            raise UnreachableError(f"{printable(folder)} cannot be read: {error.strerror}") from error
    system, inner = _system(folder)
    try:
        found = system.ls(inner, detail=True)
        return {system.unstrip_protocol(each["name"]): int(each["size"]) for each in found if each["type"] == "file"}
    except Exception:
        return {}


def matching(pattern: str) -> list[str]:
    """The files that a glob matches, sorted.

    Raises:
        UnreachableError: if the storage does not answer.
    """
    if not is_url(pattern):
        path = Path(pattern)
        anchor = Path(path.anchor) if path.anchor else Path()
        try:
            return sorted(str(each) for each in anchor.glob(str(path.relative_to(path.anchor))) if each.is_file())
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{printable(pattern)} cannot be looked for: {reason(error)}") from error
    system, inner = _system(pattern)
    try:
        return sorted(system.unstrip_protocol(each) for each in system.glob(inner))
    except Exception as error:
        raise UnreachableError(f"{printable(pattern)} cannot be looked for: {reason(error)}") from error


def checksums(folder: str) -> dict[str, str]:
    """Hex SHA-256 of files in a folder by full path, as its :data:`SUMS` says.

    Raises:
        DataError: if it is not such a file.
        UnreachableError: if it cannot be read.
    """
    path = f"{folder}/{SUMS}"
    with open_file(path) as file:
        try:
            lines = file.read(_SUMS_LIMIT).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{printable(path)} cannot be read: {one_line(error)}") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            match = _SUM.fullmatch(line.rstrip())
            if match is None:
                raise DataError(f"{printable(path)}, line {number}: not a SHA-256 and a name")
            found[f"{folder}/{match[2].removeprefix('./')}"] = match[1].lower()
    return found


def expand(pattern: str) -> Iterator[str]:
    """The words of a pattern with braces: ``{00..11}`` counts with its zeros, ``{a,b}`` lists; they may be nested.

    Raises:
        DataError: if a brace is not closed.
    """
    start = pattern.find("{")
    if start < 0:
        yield pattern
        return
    depth, commas, stop = 0, [start], -1
    for place in range(start, len(pattern)):
        letter = pattern[place]
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 1:
            commas.append(place)
        if not depth:
            stop = place
            break
    if stop < 0:
        raise DataError(f"{pattern}: a brace is not closed")
    edges = [*commas, stop]
    inner = [pattern[low + 1 : high] for low, high in pairwise(edges)]
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", inner[0]) if len(inner) == 1 else None
    if counted is not None:
        first, last = int(counted[1]), int(counted[2])
        width = max(map(len, counted.groups())) if any(text.startswith("0") for text in counted.groups()) else 0
        inner = [f"{number:0{width}}" for number in range(first, last + 1)]
        if not inner:
            raise DataError(f"{pattern}: {{{counted[0]}}} counts backwards")
    for choice in inner:
        for word in expand(choice):
            for rest in expand(pattern[stop + 1 :]):
                yield pattern[:start] + word + rest


def _system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(f"reading {path.partition('://')[0]}://", "train") from error
    try:
        return cast(tuple[Any, str], url_to_fs(path))
    except ImportError as error:
        extra = "s3" if path.startswith("s3") else "train"
        if extra == "s3":
            raise MissingExtraError("reading s3://", extra) from error
        raise DataError(f"{printable(path)}: {one_line(error)}") from error
    except Exception as error:
        raise DataError(f"{printable(path)}: {one_line(error)}") from error
