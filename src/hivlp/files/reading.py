"""Files that nobody vouches for: opened without waiting, read within limits, parsed into plain values.

Whatever is wrong with one becomes one of our errors, on one line that names the file and the place.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hivlp.errors import DataError, HivlpError

LINE_LIMIT = 16 << 20
"""Characters in one line of a text file, at most."""
JSON_LIMIT = 64 << 20
"""Bytes in one settings file, at most."""

Key = tuple[int, int]
"""Device and inode of a file."""
LOCKED: set[Key] = set()
"""Databases that are open in this process: to close any other handle of one lets go of SQLite's locks on it (POSIX)."""

# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_regular(path: Path, error: type[HivlpError] = DataError, what: str = "cannot be read") -> BinaryIO:
    """A regular file, open for reading; a pipe or a device is refused, and never waited for.

    Args:
        path: of the file.
        error: what to raise.
        what: it says, between the file and the reason.

    Raises:
        error: if the file is missing, cannot be read, or is of another kind.
    """
    try:
        return open_file(path)
    except (OSError, ValueError) as problem:
        raise error(f"{printable(path)} {what}: {reason(problem)}") from problem


def open_file(path: Path) -> BinaryIO:
    """As :func:`open_regular`, for callers with their own word for what is wrong.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is of another kind, or the path is none.
    """
    # Opening a device may already do something, so look first; look again, as the name may have changed hands.
    status = path.stat()
    _must_be_regular(status.st_mode)
    if (status.st_dev, status.st_ino) in LOCKED:
        raise ValueError("it is the catalog of an index that is open")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _must_be_regular(os.fstat(descriptor).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def key_of(file: Path | int) -> Key:
    """Device and inode of a path or a handle.

    Raises:
        OSError: if there is none.
    """
    status = os.stat(file)  # noqa: PTH116  (also of a handle)
    return status.st_dev, status.st_ino


def _must_be_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(mode):
        raise ValueError("it is not a regular file")


def read_regular(path: Path, limit: int, error: type[HivlpError] = DataError) -> bytes:
    """All of a regular file.

    Raises:
        error: as :func:`open_regular`, or if it holds more than ``limit`` bytes.
    """
    with open_regular(path, error) as file:
        try:
            content = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{printable(path)} cannot be read: {reason(problem)}") from problem
    if len(content) > limit:
        raise error(f"{printable(path)} is too large: more than {limit} bytes")
    return content


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends (LF, CR LF or CR), in UTF-8 or as its byte-order mark says.

    Raises:
        DataError: naming file and line, if it is not text, or a line is longer than :data:`LINE_LIMIT`.
    """
    with open_regular(path) as file:
        encoding = _encoding(file.read(4))
        file.seek(0)
        number = 1
        text = io.TextIOWrapper(file, encoding, newline="")
        try:
            while line := text.readline(LINE_LIMIT + 1):
                if len(line) > LINE_LIMIT:
                    raise DataError(f"{printable(path)}, line {number}: longer than {LINE_LIMIT} characters")
                if "\0" in line:
                    raise DataError(
                        f"{printable(path)}, line {number}: holds a NUL character: not text, or damaged, or text in "
                        "UTF-16 without its mark"
                    )
                yield line
                number += 1
        except UnicodeError as problem:
            raise DataError(f"{printable(path)}{_where_undecodable(file, encoding)}") from problem
        except OSError as problem:
            raise DataError(f"{printable(path)} cannot be read: {reason(problem)}") from problem


def read_text(path: Path, limit: int = LINE_LIMIT, error: type[HivlpError] = DataError) -> str:
    """All of a text file, in UTF-8 or as its byte-order mark says.

    Raises:
        error: naming file and line, if it is not text, or as :func:`read_regular`.
    """
    content = read_regular(path, limit, error)
    encoding = _encoding(content[:4])
    try:
        return content.decode(encoding)
    except UnicodeError as problem:
        raise error(f"{printable(path)}{_where_undecodable(io.BytesIO(content), encoding)}") from problem


def _encoding(start: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8-sig")


def _where_undecodable(file: BinaryIO, encoding: str) -> str:
    """The first line that is not of the encoding, and the byte."""
    name = encoding.removesuffix("-sig").upper()
    if encoding == "utf-8-sig":
        file.seek(0)
        for number, line in enumerate(iter(lambda: file.readline(4 * LINE_LIMIT), b""), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as problem:
                byte = f"byte {problem.start + 1} (0x{line[problem.start]:02x})"
                return f" is not {name} text: line {number}, {byte}; save the file as UTF-8"
    return f" is not {name} text; save the file as UTF-8"


def read_json(path: Path, error: type[HivlpError] = DataError, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        error: as :func:`read_text` and :func:`parse_json`.
    """
    return parse_json(read_text(path, limit, error), printable(path), error)


def parse_json(text: str, where: str, error: type[HivlpError] = DataError) -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        text: of one value.
        where: file and place, for the error.
        error: what to raise.

    Raises:
        error: if it is not JSON, not an object, names a key twice, or is nested deeper than Python's stack.
    """
    value = parse_json_value(text, where, error)
    if not isinstance(value, dict):
        raise error(f"{where}: not a JSON object")
    return value


def parse_json_value(
    text: str, where: str, error: type[HivlpError] = DataError, keep: frozenset[str] | None = None
) -> Any:
    """As :func:`parse_json`, any value; ``keep``: names outside these are dropped from every object while parsing."""

    def checked(items: list[tuple[str, Any]]) -> dict[str, Any]:
        # The last of two values would win, and the first be lost in silence.
        if keep is not None:
            items = [item for item in items if item[0] in keep]
        found = dict(items)
        if len(found) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r:.40} occurs twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=checked)
    except RecursionError as problem:
        raise error(f"{where}: not JSON that can be read: it is nested too deeply") from problem
    except MemoryError as problem:
        raise error(f"{where}: not JSON that can be read: it needs more memory than there is") from problem
    except ValueError as problem:
        raise error(f"{where}: not JSON: {one_line(problem)}") from problem


def reason(problem: BaseException) -> str:
    """Why something failed, on one line and of bounded length."""
    return getattr(problem, "strerror", None) or one_line(problem)


def one_line(problem: object, limit: int = 200) -> str:
    """The text of an error, on one line and of bounded length."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


def printable(path: Path | str) -> str:
    """The path on one line, with bytes that are no text replaced."""
    return str(path) if str(path).isprintable() else repr(str(path))[1:-1]
