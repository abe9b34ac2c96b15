"""Manifest of an approximate index: the checksum of each file, and what the caller knows of it."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.errors import IndexFolderError
from hivlp.files import npy

MANIFEST = "engine.json"
FORMAT = 9
MOST_BYTES = 1 << 22  # of a manifest: one is some 20 kB
NAME = re.compile(r"[a-z_]{1,40}\.npy")


class InvalidAnnIndexError(IndexFolderError):
    """An approximate index that is not as it was written, or holds what no approximate index has.

    Attributes:
        file: of the index, that is to blame.
    """

    def __init__(self, folder: Path, file: str, reason: str) -> None:
        super().__init__(f"{folder / file} is damaged: {reason}; `hivlp tune` builds it again")
        self.file = file


@dataclass(frozen=True)
class Manifest:
    """Manifest of an approximate index, written by :meth:`hivlp.ann.AnnIndex.save`.

    Attributes:
        id: random, new with every save.
        checks: CRC-32 of each file by its name.
        about: the caller's own JSON object.
        format: version of the folder's format.
    """

    id: str
    checks: Mapping[str, int]
    about: dict[str, Any]
    format: int = FORMAT

    def checksum_of(self, file: str) -> int:
        """Expected CRC-32 of a file.

        Raises:
            ValueError: if the manifest does not say.
        """
        if file not in self.checks:
            raise ValueError(f"{MANIFEST} does not name it")
        return self.checks[file]

    def text(self) -> str:
        """JSON with a checksum of its own."""
        said = {"format": self.format, "id": self.id, "checks": dict(self.checks), "about": self.about}
        return json.dumps({**said, "check": manifest_check(said)})


@dataclass(frozen=True)
class Number:
    """Range of a number in a manifest.

    Attributes:
        low: smallest value.
        high: largest value.
        whole: whether it must be an integer.
        absent: value that JSON's null stands for; None if it may not be null.
    """

    low: float
    high: float
    whole: bool = False
    absent: float | None = None

    def read(self, data: Any, name: str) -> Any:
        """Number of this name in a JSON object.

        Raises:
            ValueError: if it is missing or out of range.
        """
        value: Any = data.get(name) if isinstance(data, dict) else None
        if value is None and self.absent is not None and isinstance(data, dict) and name in data:
            return self.absent
        # JSON's true is an int to Python, and 1e400 is infinite.
        fits = type(value) is int or (type(value) is float and not self.whole and math.isfinite(value))
        if not fits or not self.low <= value <= self.high:
            kind = "a whole number" if self.whole else "a number"
            shown = repr(value) if len(repr(value)) < 40 else repr(value)[:37] + "..."
            raise ValueError(f"{name} is {shown}, not {kind} from {self.low} to {self.high}")
        return value


def read_numbers(data: Any, wanted: Mapping[str, Number]) -> dict[str, Any]:
    """Numbers of a JSON object by name.

    Raises:
        ValueError: naming the first that is missing or out of its range.
    """
    return {name: number.read(data, name) for name, number in wanted.items()}


def read_manifest(folder: Path, *, older: bool = False) -> Manifest:
    """Manifest of the approximate index in a folder.

    Args:
        folder: of the approximate index.
        older: whether to accept earlier formats, too.

    Raises:
        InvalidAnnIndexError: if it is missing, unreadable or not as it was written.
        IndexFolderError: if it is of another format.
    """
    try:
        said = json.loads(npy.read_file(folder / MANIFEST, MOST_BYTES), parse_constant=_no_number)
    except OSError as error:
        reason = f"it cannot be read ({(error.strerror or str(error)).lower()})"
        raise InvalidAnnIndexError(folder, MANIFEST, reason) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidAnnIndexError(folder, MANIFEST, "it is no JSON") from error
    known = isinstance(said, dict) and type(said.get("format")) is int
    if not known or not (1 if older else FORMAT) <= said["format"] <= FORMAT:
        raise IndexFolderError(f"{folder} is of another format; `hivlp tune` builds it again")
    check = said.pop("check", None)
    if type(check) is not int or check != manifest_check(said) or not _is_whole(said):
        raise InvalidAnnIndexError(folder, MANIFEST, "it is not what was written")
    return Manifest(said["id"], said["checks"], said["about"], said["format"])


def manifest_check(said: Mapping[str, Any]) -> int:
    """CRC-32 of a manifest's content."""
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _is_whole(said: dict[str, Any]) -> bool:
    checks = said.get("checks")
    return (
        isinstance(said.get("id"), str)
        and isinstance(said.get("about"), dict)
        and isinstance(checks, dict)
        and all(NAME.fullmatch(name) and type(check) is int for name, check in checks.items())
    )


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
