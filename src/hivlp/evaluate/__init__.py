"""Protocols and metrics of image-text retrieval."""

from hivlp.evaluate.evaluation import evaluate
from hivlp.evaluate.recall import score
from hivlp.evaluate.results import Evaluation, Recalls, Scores

__all__ = ["Evaluation", "Recalls", "Scores", "evaluate", "score"]
