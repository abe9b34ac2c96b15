"""Protocols and metrics of image-text retrieval."""

from hivlp.evaluate.recall import evaluate, score
from hivlp.evaluate.results import Evaluation, Recalls, Scores

__all__ = ["Evaluation", "Recalls", "Scores", "evaluate", "score"]
