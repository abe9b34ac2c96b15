"""Sidecars: XMP files beside pictures, where photo programs put what people say of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from hivlp.data.pictures.facts import Facts
from hivlp.data.pictures.xmp import MAX_BYTES, read_xmp


@dataclass(frozen=True)
class Sidecar:
    """A sidecar that was found.

    Attributes:
        path: of the file.
        changed: when it last was, in ns.
    """

    path: str
    changed: int

    def facts(self) -> Facts:
        """What it says; nothing if it cannot be read."""
        try:
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(self.path, flags), "rb") as file:
                return read_xmp(file.read(MAX_BYTES))
        except OSError:
            return Facts()


def find_sidecar(path: str) -> Sidecar | None:
    """The sidecar of a picture, ``a.jpg.xmp`` or ``a.xmp`` beside ``a.jpg``; no link, which could show any file."""
    stem = os.path.splitext(path)[0]  # noqa: PTH122 (a Path for every picture is slow)
    for place in (f"{path}.xmp", f"{stem}.xmp", f"{stem}.XMP"):
        try:
            status = os.lstat(place)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            return Sidecar(place, max(status.st_mtime_ns, status.st_ctime_ns))
    return None


def with_sidecar(facts: dict[str, Any], sidecar: Sidecar | None) -> dict[str, Any]:
    """Facts of a picture, and over them what its sidecar says, whose name is the fact ``sidecar``."""
    if sidecar is None:
        return facts
    told = sidecar.facts().to_metadata()
    return {**facts, **told, "sidecar": os.path.basename(sidecar.path)}  # noqa: PTH119
