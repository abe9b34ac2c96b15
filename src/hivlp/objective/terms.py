"""The terms of the objective, each a function of a block of queries.

A block is some queries of one direction (pictures that look for texts, or texts that look for pictures) with the scores
of every candidate in the batch. Every term is a sum over queries, so that the objective can go through a batch block by
block, and a block through any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Q queries of one direction against all N candidates of the batch.

    Attributes:
        scores: level -> (Q, N) dot products.
        scales: level -> scalar, the level's inverse temperature.
        biases: level -> scalar, added to the logits by the sigmoid loss.
        positives: (Q, N) bool, True where a candidate belongs to a query; at least one in each row.
    """

    scores: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    positives: Tensor

    @cached_property
    def logits(self) -> dict[str, Tensor]:
        """Level -> (Q, N) scores times inverse temperature, which all terms of the block share."""
        return {level: self.scales[level] * scores for level, scores in self.scores.items()}

    def of_positives(self, values: Tensor) -> Tensor:
        """(Q,) mean of a query's (Q, N) values over its positives."""
        return values.masked_fill(~self.positives, 0.0).sum(1) / self.positives.sum(1)


class Term(Protocol):
    """One part of the objective."""

    @property
    def name(self) -> str:
        """What logs call it."""

    def __call__(self, block: Block) -> Tensor:
        """Scalar: the sum over the block's queries."""


@dataclass(frozen=True)
class InfoNCE:
    """Cross-entropy of finding a query's own candidate among all: ``-log softmax(s·x_i·y_j)_i``.

    Oord et al., 2018, equation 4; with both directions and a learned scale, Radford et al., 2021, figure 3. Candidates
    that share the positive's caption share its probability.
    """

    level: str
    name: str = "contrastive"

    def __call__(self, block: Block) -> Tensor:
        """Scalar: the sum over the block's queries."""
        logits = block.logits[self.level]
        return (logits.logsumexp(1) - block.of_positives(logits)).sum()


@dataclass(frozen=True)
class SigmoidContrastive:
    """Every pair judged by itself, fits or does not: ``-Σ_j log σ(z_ij (s·x_i·y_j + b))`` with ``z = ±1``.

    SigLIP (Zhai et al., 2023, equation 1).
    """

    level: str
    name: str = "contrastive"

    def __call__(self, block: Block) -> Tensor:
        """Scalar: the sum over the block's queries."""
        logits = block.logits[self.level] + block.biases[self.level]
        return -F.logsigmoid(torch.where(block.positives, logits, -logits)).sum()


@dataclass(frozen=True)
class RankingDistillation:
    """The coarse level's distribution over candidates becomes the finest one's: ``KL(p_fine ‖ p_coarse)``.

    Hinton et al., 2015, on in-batch similarities, as in Fang et al., 2021 (SEED), equation 4. The teacher is held
    fixed: the finest level is not pulled towards the coarse one.
    """

    level: str
    teacher: str
    name: str = "distillation"

    def __call__(self, block: Block) -> Tensor:
        """Scalar: the sum over the block's queries."""
        target = block.logits[self.teacher].detach().log_softmax(1)
        return F.kl_div(block.logits[self.level].log_softmax(1), target, reduction="sum", log_target=True)


@dataclass(frozen=True)
class ShortlistLoss:
    """The finest level's first hits must be among the ``size`` candidates that the coarse level hands on.

    A smooth recall@size, with the finest level's ``top`` as what is relevant. A hit's coarse rank is smoothed as in
    Patel et al., 2022 (equations 4 and 5), ``r_i = Σ_j σ(s (x·y_j - x·y_i))``; what it costs is
    ``softplus((r_i - size) / (size/4))`` rather than a sigmoid, which forgets a hit once it is far behind.

    Attributes:
        size: of the shortlist, as a share of the candidates.
        top: how many of the finest level's first hits count; every third of them stands for its neighbours, since each
            costs as much as a term of its own.
    """

    level: str
    teacher: str
    size: float = 0.05
    top: int = 10
    name: str = "shortlist"

    def __call__(self, block: Block) -> Tensor:
        """Scalar: the sum over the block's queries of the mean over their hits."""
        scores, count = block.scores[self.level], block.positives.shape[1]
        hits = block.scores[self.teacher].detach().topk(min(self.top, count), dim=1).indices[:, ::3]
        # The temperature is not this term's to learn: an ever colder one makes any ranking look settled.
        scale, size = block.scales[self.level].detach(), max(1.0, self.size * count)
        loss = scores.new_zeros(())
        for column in hits.unbind(1):
            own = scores.gather(1, column[:, None])
            rank = torch.sigmoid(scale * (scores - own)).sum(1) - 0.5  # it does not stand before itself
            loss = loss + F.softplus((rank - size) / (size / 4)).sum()
        return loss / hits.shape[1]


@dataclass(frozen=True)
class HardNegatives:
    """A query's own candidate against those that a coarser level would hand on in its place.

    What a finer level meets in a cascade is not the whole batch but a shortlist: ``-log softmax`` over the positive and
    the ``count`` highest-scoring wrong candidates of the coarser level. Mining by the model itself is Xiong et al.,
    2021 (ANCE); here the miner is the level that will do it in earnest.
    """

    level: str
    miner: str
    count: int = 64
    name: str = "hard_negatives"

    def __call__(self, block: Block) -> Tensor:
        """Scalar: the sum over the block's queries."""
        mined = block.scores[self.miner].detach().masked_fill(block.positives, -torch.inf)
        values, columns = mined.topk(min(self.count, mined.shape[1]), dim=1)
        logits = block.logits[self.level]
        wrong = logits.gather(1, columns).masked_fill(values.isneginf(), -torch.inf)
        if bool(values[:, 0].isneginf().any()):  # a query whose every candidate is right has nothing to learn
            wrong = torch.cat([wrong, torch.full_like(wrong[:, :1], torch.finfo(wrong.dtype).min)], 1)
        return block.of_positives(F.softplus(wrong.logsumexp(1, keepdim=True) - logits)).sum()
