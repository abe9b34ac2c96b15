"""What a recipe says of the objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which terms are on, and how strongly; a weight of 0 switches a term off.

    Attributes:
        loss: of the contrastive terms: ``softmax`` (:class:`~hivlp.objective.terms.InfoNCE`) or ``sigmoid``
            (:class:`~hivlp.objective.terms.SigmoidContrastive`).
        contrastive: level -> weight of its contrastive term; 1 for a level that is not named.
        distillation: weight of :class:`~hivlp.objective.terms.RankingDistillation`, for each level but the finest.
        shortlist: weight of :class:`~hivlp.objective.terms.ShortlistLoss`, for each level but the finest.
        shortlist_size: candidates that a coarse level hands on, as a share of the batch.
        shortlist_top: how many of the finest level's first hits must be among them.
        hard_negatives: weight of :class:`~hivlp.objective.terms.HardNegatives`, for each level but the first.
        hard_negative_count: how many candidates the coarsest level picks for it.
        codes: level -> ``float``, ``int8`` or ``binary``: how its items will be stored, and so how the loss sees them.
        temperature: initial temperature of every level; learned from there.
        learned_weights: weigh levels by learned uncertainties (Kendall et al., 2018, equation 7).
        chunk: queries scored at once; 0 chooses. Memory grows with ``chunk`` times the batch, not with the square of
            the batch.
    """

    loss: str = "softmax"
    contrastive: Mapping[str, float] = field(default_factory=dict)
    distillation: float = 1.0
    shortlist: float = 0.0
    shortlist_size: float = 0.05
    shortlist_top: int = 10
    hard_negatives: float = 0.0
    hard_negative_count: int = 64
    codes: Mapping[str, str] = field(default_factory=dict)
    temperature: float = 0.05
    learned_weights: bool = False
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss must be softmax or sigmoid, not {self.loss!r}")
        if not 0 < self.shortlist_size <= 1:
            raise ValueError(f"shortlist_size must be a share between 0 and 1, not {self.shortlist_size}")
        for name in ("shortlist_top", "hard_negative_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.chunk < 0:
            raise ValueError(f"chunk must not be negative: {self.chunk}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
