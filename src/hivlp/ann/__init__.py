"""Approximate nearest-neighbour index over one collection of vectors, in memory-mapped arrays.

A learned router picks inverted lists, 1-bit sign codes prune their rows, 4-bit refinement codes (2-bit in the last
dims) rank what is left, and the stored float16 vectors re-rank the best.
"""

from hivlp.ann.ann_index import AnnIndex, SearchParams

__all__ = ["AnnIndex", "SearchParams"]
