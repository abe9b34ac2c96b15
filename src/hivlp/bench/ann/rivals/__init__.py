"""Engines that are measured: ours and those of other libraries, behind one interface.

A library may use every core to build; every search runs on one thread. A library that is not installed raises
ModuleNotFoundError from ``build``.
"""

from hivlp.bench.ann.rivals.faiss_codes import (
    FaissFastScan,
    FaissFastScanWide,
    FaissFlat,
    FaissIvfFastScan,
    FaissIvfFastScanWide,
    FaissRabitq,
    FaissRabitqWhole,
)
from hivlp.bench.ann.rivals.graphs import (
    FaissHnsw,
    FaissHnswByte,
    FaissHnswHalf,
    FaissHnswQuick,
    Hnswlib,
    Symqg,
    Usearch,
    UsearchByte,
    Vsag,
)
from hivlp.bench.ann.rivals.ours import Ours
from hivlp.bench.ann.rivals.partitions import Rabitqlib, Scann

# The best ones first: on few cores there may be no time for all, and what is left must not look like the best.
SMALL = (Ours, FaissFlat, Symqg, Scann, FaissFastScan, FaissIvfFastScan, FaissHnswQuick)
# The quick ones first, so that hours bring something early.
FULL = (
    Ours, FaissFlat, FaissFastScan, FaissFastScanWide, FaissIvfFastScan, FaissIvfFastScanWide, Rabitqlib, Scann, Symqg,
    FaissRabitq, FaissRabitqWhole, FaissHnswByte, Vsag, UsearchByte, Usearch, FaissHnswHalf, Hnswlib, FaissHnsw,
)  # fmt: skip

__all__ = ["FULL", "SMALL", "FaissFlat", "Ours"]
