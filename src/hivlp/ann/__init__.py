"""The engine: a cascade of ever finer codes over one collection of vectors, in memory-mapped arrays.

Signs of a learnt projection choose among lists that a learnt router picked, four bits of each of these dimensions and
two of some more choose among those, and the stored float16 vectors decide.
"""

from hivlp.ann.ann_index import AnnIndex, SearchParams

__all__ = ["AnnIndex", "SearchParams"]
