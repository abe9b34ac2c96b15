"""Fusion models that re-rank the last candidates of a search, one file a family."""

from hivlp.systems.fusion.load import FAMILIES, load_reranker

__all__ = ["FAMILIES", "load_reranker"]
