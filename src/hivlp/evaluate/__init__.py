"""Protocols and metrics of image-text retrieval."""

from hivlp.evaluate.recall import evaluate, score

__all__ = ["evaluate", "score"]
