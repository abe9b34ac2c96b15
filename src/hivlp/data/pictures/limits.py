"""Limits on pixels, bytes and time of a picture, and on the memory of all that are decoded at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import _imaging as core

from hivlp.errors import PictureError

MAX_PIXELS = 178_956_970
"""Pixels (width × height) of the largest picture that is decoded at full size; a JPEG may have as many once reduced."""

MAX_SIDE = 1 << 17
"""Pixels of the longest side. Decoders and filters keep something for every row and column of a picture."""

MAX_BYTES = 512 << 20
"""Bytes that a picture may take while it is decoded and reduced, and that all pictures being decoded take together."""

MAX_FILE_BYTES = 1 << 29
"""Bytes of the largest file that is opened."""

MAX_SCANS = 256
"""Scans of a JPEG; ten are usual. Each costs a pass over the whole picture, however little data it has."""

MAX_SCANNED_PIXELS = 1 << 31
"""Pixels × scans of a JPEG: a second or so of passes."""

MAX_SLOW_SAMPLES = 1 << 23
"""Samples that are decoded in Python (run-length BMP, plain PPM, PPM of odd depth): some five seconds."""

MAX_PARTS = 1 << 17
"""Chunks, segments, blocks, strips or tiles of one file."""

MAX_PROFILE_BYTES = 4 << 20
"""Bytes of the largest colour profile that is applied; a larger one is ignored."""


class Budget:
    """Memory shared by threads: whoever asks for more than is left waits for the others, first come, first served."""

    def __init__(self, size: int) -> None:
        self._left = self._size = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Hold ``amount`` bytes, at most the whole. A thread that holds some must not ask for more."""
        amount = min(amount, self._size)
        # Whoever waits keeps the turn: a large picture is not overtaken by small ones for ever.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


BUDGET = Budget(MAX_BYTES)

# Pillow keeps a large image in blocks. Those of 16 MB, its default, come from a thread's own heap, which keeps what is
# freed; larger ones go back to the system at once, as the budget takes for granted.
core.set_block_size(64 << 20)


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Refuse a picture by the size that its header claims.

    Raises:
        PictureError: if it has no pixels, more than ``most``, or a side over :data:`MAX_SIDE`.
    """
    if width < 1 or height < 1:
        raise PictureError("has no pixels")
    if width * height > most:
        raise PictureError(f"claims {width}x{height} pixels, over the limit of {most}")
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"claims {width}x{height} pixels, a side over the limit of {MAX_SIDE}")


def check_cost(size: int) -> None:
    """Refuse a picture by the bytes that decoding it would take.

    Raises:
        PictureError: if they are more than :data:`MAX_BYTES`.
    """
    if size > MAX_BYTES:
        raise PictureError(f"would take {size >> 20} MB of memory to decode, over the limit of {MAX_BYTES >> 20} MB")


def check_parts(count: int, what: str) -> None:
    """Refuse a file by the number of its parts.

    Raises:
        PictureError: if there are more than :data:`MAX_PARTS`.
    """
    if count > MAX_PARTS:
        raise PictureError(f"has over {MAX_PARTS} {what}")
