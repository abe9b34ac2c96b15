"""Small collections: a byte a dimension of all rows is read, and no lists are chosen.

Up to some thousand rows that is faster than to choose lists and then a few of what many signs let pass, and it finds
more. It is a setting like others, so that what each costs and finds is measured, not assumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout
from hivlp.ann import learning as fit
from hivlp.ann.building import Half, Learnt

MOST = 8192  # rows from which on it is not worth a try, nor the memory
LAST = (12, 16, 20, 30, 40, 60, 100)  # rows that these codes hand on, worth a try


def codes(learnt: Learnt, fine: Half) -> NDArray[np.int8]:
    """(n, dims) of (n, d) vectors, in steps of one scale for all."""
    return fit.to_int8(learnt.project(fine))[0]


def pack(learnt: Learnt, fine: Half) -> layout.Bytes:
    """(blocks, dims / 4, 16, 4): the same, rows lying as lists do among their keys."""
    return layout.pack_keys(codes(learnt, fine))
