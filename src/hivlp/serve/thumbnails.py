"""Thumbnails: made once by a decoding process, kept on disk, the oldest ones given up when they take too much."""

from __future__ import annotations

import hashlib
import itertools
from contextlib import suppress
from pathlib import Path

from hivlp.files.digests import cache_folder
from hivlp.files.scratch import write_whole
from hivlp.serve.decoding import Decoders
from hivlp.serve.originals import open_original
from hivlp.serve.served import Served
from hivlp.store.records import Item

SIDES = (160, 320, 640, 1280, 2048)
"""Pixels of the longer side; what is asked for is rounded up to one of these."""
IN_MEMORY = 64 << 20
"""Bytes of an original up to which it is handed over as it was opened; a larger one by its path."""
LOOK_EVERY = 500
"""Thumbnails after which their bytes are counted again."""


def side_for(size: int) -> int:
    """The side in which a thumbnail is made."""
    return next((side for side in SIDES if side >= size), SIDES[-1])


def etag(item: Item, side: int) -> str:
    """What names a thumbnail: another one if the content is another."""
    return hashlib.sha256(item.hash + b"%d" % side).hexdigest()[:32]


class Thumbnails:
    """Thumbnails of items, kept in a folder."""

    def __init__(self, decoders: Decoders, most: int) -> None:
        """Thumbnails in the cache's folder.

        Args:
            decoders: that make them.
            most: bytes that they may take together.
        """
        self._folder, self._decoders, self._most = cache_folder() / "thumbnails", decoders, most
        self._made = itertools.count()

    def of(self, served: Served, item: Item, side: int) -> bytes:
        """The WebP of an item.

        Raises:
            RequestError: if its file is not there, or may not be shown.
            PictureError: if it cannot be decoded.
        """
        name = etag(item, side)
        place = self._folder / name[:2] / f"{name}.webp"
        original = open_original(item.path, served.roots)  # a thumbnail is shown to whom the original is
        with original.file:
            with suppress(OSError):
                return place.read_bytes()
            if original.size <= IN_MEMORY:
                made = self._decoders.thumbnail(original.file.read(IN_MEMORY + 1), side)
            else:
                made = self._decoders.thumbnail(Path(item.path), side)
        self._keep(place, made)
        return made

    def _keep(self, place: Path, made: bytes) -> None:
        with suppress(OSError):  # a cache that cannot be written is done without
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, lambda scratch: scratch.write_bytes(made))
            if next(self._made) % LOOK_EVERY == 0:
                self._give_up_old()

    def _give_up_old(self) -> None:
        kept = [(status.st_mtime, status.st_size, file) for file in self._folder.glob("*/*.webp")
                if (status := file.stat())]  # fmt: skip
        total = sum(size for _, size, _ in kept)
        for _, size, file in sorted(kept):
            if total <= 0.9 * self._most:
                return
            if total > self._most or file:
                file.unlink(missing_ok=True)
                total -= size
