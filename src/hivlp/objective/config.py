"""Settings of the objective: terms and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from hivlp.typed import Between, Checked, Code, Count, Number, PositiveShare, Weight

# Bounds on the inverse temperature; the upper one is CLIP's: a colder softmax makes training unstable.
MIN_SCALE, MAX_SCALE = 0.1, 100.0


@dataclass(frozen=True)
class ObjectiveConfig(Checked):
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
        temperature: initial temperature of every level; learned from there, between 0.01 and 10.
        learned_weights: weigh levels by learned uncertainties (Kendall et al., 2018, equation 7).
        chunk: queries scored at once; 0 chooses. Memory grows with ``chunk`` times the batch, not with the square of
            the batch.
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    contrastive: Mapping[str, Weight] = field(default_factory=dict)
    distillation: Weight = 1.0
    shortlist: Weight = 0.0
    shortlist_size: PositiveShare = 0.05
    shortlist_top: Count = 10
    hard_negatives: Weight = 0.0
    hard_negative_count: Count = 64
    codes: Mapping[str, Code] = field(default_factory=dict)
    temperature: Annotated[float, Between(1 / MAX_SCALE, 1 / MIN_SCALE)] = 0.05
    learned_weights: bool = False
    chunk: Number = 0
