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
from hivlp.bench.ann.rivals.product import OurIndex

# The best ones first: on few cores there may be no time for all, and what is left must not look like the best.
SMALL = (Ours, FaissFlat, OurIndex, Symqg, FaissFastScan, FaissIvfFastScan, Scann, FaissHnswQuick)
# The quick ones first, so that hours bring something early.
FULL = (
    Ours, FaissFlat, OurIndex, FaissFastScan, FaissFastScanWide, FaissIvfFastScan, FaissIvfFastScanWide, Rabitqlib,
    Scann, Symqg, FaissRabitq, FaissRabitqWhole, FaissHnswByte, Vsag, UsearchByte, Usearch, FaissHnswHalf, Hnswlib,
    FaissHnsw,
)  # fmt: skip

OURS = (Ours.name, OurIndex.name)
"""Our engine, and the index around it."""

__all__ = ["FULL", "OURS", "SMALL", "FaissFlat", "OurIndex", "Ours"]
