"""What lies beside an engine's arrays: which files there are, their sums, and what the caller knows of it."""

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
FORMAT = 8
MOST_BYTES = 1 << 22  # of a manifest: one is some 20 kB
NAME = re.compile(r"[a-z_]{1,40}\.npy")


class RefusedEngineError(IndexFolderError):
    """An engine is not used, since it is not what was written, or not what an engine can be.

    Attributes:
        file: of the engine, that is to blame.
    """

    def __init__(self, folder: Path, file: str, reason: str) -> None:
        super().__init__(f"{folder / file} is damaged: {reason}; `hivlp tune` builds the engine again")
        self.file = file


@dataclass(frozen=True)
class Manifest:
    """What :meth:`hivlp.ann.AnnIndex.save` noted.

    Attributes:
        id: of this very engine.
        checks: CRC-32 of each file by its name.
        about: what the caller wanted to be noted.
        format: of the folder.
    """

    id: str
    checks: Mapping[str, int]
    about: dict[str, Any]
    format: int = FORMAT

    def check_of(self, file: str) -> int:
        """What a file's CRC-32 must be.

        Raises:
            ValueError: if the manifest does not say.
        """
        if file not in self.checks:
            raise ValueError(f"{MANIFEST} does not name it")
        return self.checks[file]

    def text(self) -> str:
        """JSON with a sum of its own."""
        said = {"format": self.format, "id": self.id, "checks": dict(self.checks), "about": self.about}
        return json.dumps({**said, "check": manifest_check(said)})


@dataclass(frozen=True)
class Number:
    """What a number in a manifest may be.

    Attributes:
        low: the least.
        high: the greatest.
        whole: whether it must be an integer.
        absent: what JSON's null stands for, if it may be that.
    """

    low: float
    high: float
    whole: bool = False
    absent: float | None = None

    def read(self, data: Any, name: str) -> Any:
        """The number of this name in a JSON object.

        Raises:
            ValueError: saying what it is and what it may be.
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
    """The numbers of a JSON object, by their names.

    Raises:
        ValueError: naming the first that is missing or out of its range.
    """
    return {name: number.read(data, name) for name, number in wanted.items()}


def read_manifest(folder: Path, *, older: bool = False) -> Manifest:
    """What :meth:`hivlp.ann.AnnIndex.save` noted beside the arrays.

    Args:
        folder: of the engine.
        older: whether one of an earlier format will do.

    Raises:
        RefusedEngineError: if it is missing, unreadable or not as it was written.
        IndexFolderError: if it is of another format.
    """
    try:
        said = json.loads(npy.read_file(folder / MANIFEST, MOST_BYTES), parse_constant=_no_number)
    except OSError as error:
        reason = f"it cannot be read ({(error.strerror or str(error)).lower()})"
        raise RefusedEngineError(folder, MANIFEST, reason) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RefusedEngineError(folder, MANIFEST, "it is no JSON") from error
    known = isinstance(said, dict) and type(said.get("format")) is int
    if not known or not (1 if older else FORMAT) <= said["format"] <= FORMAT:
        raise IndexFolderError(f"{folder} is of another format; `hivlp tune` builds the engine again")
    check = said.pop("check", None)
    if type(check) is not int or check != manifest_check(said) or not _is_whole(said):
        raise RefusedEngineError(folder, MANIFEST, "it is not what was written")
    return Manifest(said["id"], said["checks"], said["about"], said["format"])


def manifest_check(said: Mapping[str, Any]) -> int:
    """CRC-32 of what a manifest says."""
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
