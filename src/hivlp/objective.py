"""The hierarchical retrieval objective: a contrastive loss at every level, and coarse levels that rank as fine ones.

HiVLP (arXiv 2205.12105) trains one short and one long representation for coarse-to-fine retrieval but does not
publish its losses; these are ours, each term with its own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, positives: Tensor | None = None) -> Tensor:
    """Symmetric in-batch cross-entropy (InfoNCE; Radford et al., 2021, figure 3).

    Args:
        image: (B, D) unit vectors.
        text: (B, D) unit vectors; row i belongs to row i of ``image``.
        scale: scalar inverse temperature.
        positives: (B, B) bool, True where a text fits a picture; its diagonal must be True. Pairs beyond the
            diagonal (two pictures with the same caption) share the target's probability equally.

    Returns:
        Scalar, the mean of both directions.
    """
    logits = scale * image @ text.T
    if positives is None:
        target = torch.arange(len(logits), device=logits.device)
        return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    share = positives.to(logits.dtype)
    forward = -(share / share.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    backward = -(share.T / share.T.sum(1, keepdim=True) * logits.T.log_softmax(1)).sum(1).mean()
    return (forward + backward) / 2


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positives: Tensor | None = None) -> Tensor:
    """Every pair judged by itself, fits or does not (SigLIP; Zhai et al., 2023, equation 1).

    Args:
        image: (B, D) unit vectors.
        text: (B, D) unit vectors; row i belongs to row i of ``image``.
        scale: scalar inverse temperature.
        bias: scalar added to every logit; begins far below zero, because nearly all pairs do not fit.
        positives: (B, B) bool, True where a text fits a picture; default the diagonal.

    Returns:
        Scalar: the sum over all pairs divided by B.
    """
    logits = scale * image @ text.T + bias
    if positives is None:
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return -nn.functional.logsigmoid(torch.where(positives, logits, -logits)).sum() / len(logits)


def ranking_distillation(coarse: Tensor, fine: Tensor) -> Tensor:
    """KL divergence from the fine level's in-batch ranking to the coarse level's, both directions.

    The teacher's distribution is held fixed: the fine level is not pulled towards the coarse one.

    Args:
        coarse: (B, B) logits (similarity times inverse temperature) of the level that learns.
        fine: (B, B) logits of the level that teaches.

    Returns:
        Scalar, the mean of image-to-text and text-to-image.
    """
    fine = fine.detach()
    loss = coarse.new_zeros(())
    for student, teacher in ((coarse, fine), (coarse.T, fine.T)):
        target = teacher.log_softmax(1)
        loss = loss + (target.exp() * (target - student.log_softmax(1))).sum(1).mean()
    return loss / 2


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms, as a recipe states them.

    Attributes:
        loss: of the contrastive terms: ``softmax`` (:func:`contrastive_loss`) or ``sigmoid`` (:func:`sigmoid_loss`).
        contrastive: level name -> weight of its contrastive term (default 1 for every level).
        distillation: weight of coarse <- finest ranking distillation, for each level but the finest.
        temperature: initial temperature of every level; learned from there.
    """

    loss: str = "softmax"
    contrastive: Mapping[str, float] | None = None
    distillation: float = 1.0
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss must be softmax or sigmoid, not {self.loss!r}")


class HierarchicalObjective(nn.Module):
    """Sum over levels of the contrastive term, plus the distillation of each coarse level from the finest."""

    MAX_SCALE = 100.0  # CLIP's bound: a colder softmax makes training unstable
    FIRST_BIAS = -10.0  # SigLIP's

    def __init__(self, levels: tuple[str, ...], config: ObjectiveConfig) -> None:
        super().__init__()
        self.levels = levels
        unknown = set(config.contrastive or {}) - set(levels)
        if unknown:
            raise ValueError(f"objective names levels that the model lacks: {', '.join(sorted(unknown))}")
        self.weights = {level: (config.contrastive or {}).get(level, 1.0) for level in levels}
        self.distillation = config.distillation
        self.log_scales = nn.Parameter(torch.full((len(levels),), -torch.tensor(config.temperature).log().item()))
        sigmoid = config.loss == "sigmoid"
        self.biases = nn.Parameter(torch.full((len(levels),), self.FIRST_BIAS)) if sigmoid else None

    def scales(self) -> Tensor:
        """(levels,) inverse temperatures."""
        return self.log_scales.exp().clamp(max=self.MAX_SCALE)

    def forward(
        self, image: Mapping[str, Tensor], text: Mapping[str, Tensor], positives: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Every term by name, unweighted, and their weighted sum as ``loss``.

        Args:
            image: level -> (B, D) unit vectors.
            text: level -> (B, D) unit vectors.
            positives: see :func:`contrastive_loss`.
        """
        scales = self.scales()
        terms: dict[str, Tensor] = {}
        total = scales.new_zeros(())
        finest = self.levels[-1]
        teacher = scales[-1] * image[finest] @ text[finest].T
        for number, level in enumerate(self.levels):
            if self.biases is None:
                term = contrastive_loss(image[level], text[level], scales[number], positives)
            else:
                term = sigmoid_loss(image[level], text[level], scales[number], self.biases[number], positives)
            terms[f"contrastive/{level}"] = term
            total = total + self.weights[level] * term
            if level != finest and self.distillation:
                student = scales[number] * image[level] @ text[level].T
                term = ranking_distillation(student, teacher)
                terms[f"distillation/{level}"] = term
                total = total + self.distillation * term
        return {"loss": total, **terms}
