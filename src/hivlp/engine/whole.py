"""Small collections: the nibbles of all rows are read, and no lists are chosen.

Up to some thousand rows that is faster than to choose lists and then a few of what many signs let pass, and it finds
more. It is a setting like others, so that what each costs and finds is measured, not assumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.engine import layout

MOST = 8192  # rows from which on it is not worth a try, nor the memory
LAST = (30, 40, 60, 100, 160)  # rows that the nibbles hand on, worth a try


def pack(nibbles: NDArray[np.uint8], dims: int) -> layout.Bytes:
    """(blocks, dims / 4, 16, 4): nibbles a byte each, rows lying as lists do among their keys."""
    return layout.pack_blocks(layout.unpack_nibbles(np.asarray(nibbles), dims))
