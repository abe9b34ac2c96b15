"""Content hashes of a data set, by which cached work on it is used again or not, and changes are named.

Names, sizes and dates do not tell: a picture may be replaced in place. So the pictures' bytes are hashed, as they are
read for the work itself or, later, to find out whether they are still those.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import __version__ as pillow

from hivlp import __version__ as hivlp
from hivlp.config import PictureConfig
from hivlp.data.pairs import Pair
from hivlp.data.pictures import load_pixels
from hivlp.errors import PictureError
from hivlp.files.scratch import write_whole

PREPARED_BY = f"hivlp {hivlp}, Pillow {pillow}"
"""Whose work the pixels of a picture are."""


@dataclass(frozen=True)
class Contents:
    """Pairs in their order: names, and hashes of pictures and captions.

    Attributes:
        ids: of the pairs.
        pictures: :func:`content_hash` of each encoded picture; empty where it could not be read.
        captions: :func:`content_hash` of each pair's captions.
    """

    ids: tuple[str, ...]
    pictures: tuple[str, ...]
    captions: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[Pair], pictures: Sequence[str]) -> Contents:
        """The contents of pairs whose pictures have been hashed."""
        captions = tuple(content_hash(json.dumps(pair.captions).encode()) for pair in pairs)
        return cls(tuple(pair.id for pair in pairs), tuple(pictures), captions)

    @classmethod
    def read(cls, pairs: Sequence[Pair]) -> Contents:
        """Read every picture, several at a time."""
        with ThreadPoolExecutor() as pool:
            return cls.of(pairs, list(pool.map(hash_picture, pairs)))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over everything, in order."""
        return hashlib.sha256(json.dumps([self.ids, self.pictures, self.captions]).encode()).hexdigest()

    def changes(self, before: Contents) -> str:
        """What is different since, as in ``1 picture added, 2 removed, captions of 3 changed``; empty if nothing is."""
        now, then = self._by_id(), before._by_id()
        common = [name for name in now if name in then]
        counts = {
            "added": len(now) - len(common),
            "removed": len(then) - len(common),
            "changed": sum(now[name][0] != then[name][0] for name in common),
        }
        found = [f"{count} {kind}" for kind, count in counts.items() if count]
        if found:
            count, kind = found[0].split()
            found[0] = f"{count} picture{'s' if count != '1' else ''} {kind}"
        if captions := sum(now[name][1] != then[name][1] for name in common):
            found.append(f"captions of {captions} picture{'s' if captions != 1 else ''} changed")
        if common != [name for name in then if name in now]:
            found.append("the order changed")
        return ", ".join(found)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = json.dumps([self.ids, self.pictures, self.captions])
        write_whole(path, lambda place: place.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, path: Path) -> Contents | None:
        """What :meth:`save` wrote; None if it is not there or not whole."""
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))
            ids, pictures, captions = (tuple(map(str, part)) for part in parts)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return cls(ids, pictures, captions)

    def _by_id(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Hashes by name, and by how often the name has occurred before."""
        seen: Counter[str] = Counter()
        named: dict[tuple[str, int], tuple[str, str]] = {}
        for name, picture, caption in zip(self.ids, self.pictures, self.captions, strict=True):
            named[name, seen[name]] = picture, caption
            seen[name] += 1
        return named


def content_hash(data: bytes) -> str:
    """32 hexadecimal digits (BLAKE2b)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_picture(pair: Pair) -> str:
    """:func:`content_hash` of the encoded picture; empty if it cannot be read."""
    try:
        return content_hash(pair.read())
    except PictureError:
        return ""


def read_pixels(pair: Pair, config: PictureConfig) -> tuple[str, NDArray[np.uint8] | PictureError]:
    """:func:`content_hash` of the encoded picture (empty if it cannot be read), and its pixels or why it has none.

    Returns:
        The hash, and (size, size, 3) uint8 RGB as a model takes it.
    """
    content = ""
    try:
        data = pair.read()
        content = content_hash(data)
        return content, load_pixels(data, config)
    except PictureError as error:
        return content, error


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)}\0{content}\0".encode())
    return digest.hexdigest()
