"""The sum of all terms over levels and directions, computed block by block over all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hivlp.objective import gather
from hivlp.objective.codes import quantize
from hivlp.objective.computed import Computed, exact
from hivlp.objective.config import MAX_SCALE, MIN_SCALE, ObjectiveConfig
from hivlp.objective.terms import (
    Block,
    HardNegatives,
    InfoNCE,
    RankingDistillation,
    ShortlistLoss,
    SigmoidContrastive,
    Term,
)

BLOCK_SCORES = (2**20, 2**25)  # of one block, on a CPU (so that it stays in its caches) and on a GPU


class HierarchicalObjective(nn.Module):
    """Weighted sum of the terms of every level, the mean over both directions and over the queries of all processes.

    The gradient with respect to the vectors is computed in the forward pass, one block of queries at a time, so that no
    matrix of the batch against itself ever exists: memory is linear in the batch. With several processes each scores
    its own queries against the candidates of all; the sum is that of one process with the whole batch.
    """

    FIRST_BIAS = -10.0  # SigLIP's

    def __init__(self, levels: Sequence[str], config: ObjectiveConfig) -> None:
        """Build the terms.

        Args:
            levels: names, coarse to fine.
            config: which terms, and how strongly.

        Raises:
            ValueError: if the configuration names a level that is not there, or a code that does not exist.
        """
        super().__init__()
        self.levels = tuple(levels)
        for name, settings in (("contrastive", config.contrastive), ("codes", config.codes)):
            if unknown := set(settings) - set(levels):
                raise ValueError(f"objective.{name} names levels that the model lacks: {', '.join(sorted(unknown))}")
        for code in config.codes.values():
            quantize(torch.zeros(1, 1), code)
        self.config = config
        self.terms = _terms(self.levels, config)
        self.log_scales = nn.Parameter(torch.full((len(levels),), -torch.tensor(config.temperature).log().item()))
        sigmoid = config.loss == "sigmoid"
        self.biases = nn.Parameter(torch.full((len(levels),), self.FIRST_BIAS)) if sigmoid else None
        self.log_variances = nn.Parameter(torch.zeros(len(levels))) if config.learned_weights else None

    def scales(self) -> Tensor:
        """(levels,) inverse temperatures."""
        return _bounded(self.log_scales.exp())

    @torch.no_grad()
    def keep_bounds(self) -> None:
        """Bring what an optimiser's step took beyond its bound back to it; to be called after each step."""
        self.log_scales.clamp_(math.log(MIN_SCALE), math.log(MAX_SCALE))

    def forward(
        self, image: Mapping[str, Tensor], text: Mapping[str, Tensor], ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Every term by name, unweighted and without gradient, and their weighted sum as ``loss``.

        With several processes the gradient of ``loss`` with respect to the vectors is meant for a mean over processes,
        as ``DistributedDataParallel`` takes it; the gradient of the objective's own parameters is already the whole.

        Args:
            image: level -> (B, D) unit vectors of this process.
            text: level -> (B, D) unit vectors; row i belongs to row i of ``image``.
            ids: (B,) equal numbers for pairs whose texts describe each other's pictures as well; default: none do.
        """
        device = image[self.levels[-1]].device
        sizes = gather.counts(len(image[self.levels[-1]]), device)
        own = gather.own_rows(sizes)
        if ids is None:
            ids = torch.arange(own.start, own.stop, device=device)
        ids = gather.gather(ids.to(device), sizes)
        vectors = [side[level] for side in (image, text) for level in self.levels]
        parameters = [p for p in (self.log_scales, self.biases, self.log_variances) if p is not None]

        def compute(vectors: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            return self._values_and_gradients(vectors, parameters, ids, sizes, own)

        loss, *values = Computed.apply(  # type: ignore[no-untyped-call]
            compute, len(vectors), *vectors, *parameters
        )
        names = [f"{term.name}/{level}" for level, _, term in self.terms]
        return {"loss": loss, **dict(zip(names, values, strict=True))}

    def _values_and_gradients(
        self, vectors: Sequence[Tensor], parameters: Sequence[Tensor], ids: Tensor, sizes: list[int], own: slice
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Loss and terms over all processes; gradients of this process's vectors, and of the parameters."""
        count = len(self.levels)
        everything = [gather.gather(vector.detach(), sizes) for vector in vectors]
        gradients = [torch.zeros_like(vector, dtype=exact(vector)) for vector in everything]
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        found_for_leaves = [torch.zeros_like(leaf) for leaf in leaves]
        sums = torch.zeros(1 + len(self.terms), dtype=exact(everything[-1]), device=ids.device)
        codes = [self.config.codes.get(level, "float") for level in self.levels]
        sides = slice(0, count), slice(count, 2 * count)
        for asking, answering in (sides, sides[::-1]):
            queries = everything[asking]
            candidates = [quantize(vector, code) for vector, code in zip(everything[answering], codes, strict=True)]
            for first in range(own.start, own.stop, self._chunk(ids)):
                rows = slice(first, min(first + self._chunk(ids), own.stop))
                # Autograd sees the scores only: what lies below is two matrix products, added up in place.
                scores = [
                    (query[rows] @ candidate.T).to(exact(query)).requires_grad_()
                    for query, candidate in zip(queries, candidates, strict=True)
                ]
                with torch.enable_grad():
                    loss, values = self._block(scores, leaves, ids[rows, None] == ids[None, :], 2 * len(ids))
                    found = torch.autograd.grad(loss, [*scores, *leaves], allow_unused=True)
                for level, gradient in enumerate(found[:count]):
                    if gradient is not None:
                        query, candidate = queries[level][rows], candidates[level]
                        gradients[asking][level][rows] += gradient.to(candidate.dtype) @ candidate
                        # What a code is taught is handed straight through to the vector that it stands for.
                        gradients[answering][level].addmm_(gradient.T, query.to(gradient.dtype))
                for total, gradient in zip(found_for_leaves, found[count:], strict=True):
                    if gradient is not None:
                        total += gradient
                sums += torch.stack([loss.detach(), *values]).to(sums.dtype)
                del scores, loss, values, found, gradient  # before the next block's are made beside them
        gather.total([*gradients, *found_for_leaves, sums])
        mean = [
            (len(sizes) * gradient[own]).to(vector.dtype) if len(sizes) > 1 else gradient.to(vector.dtype)
            for gradient, vector in zip(gradients, vectors, strict=True)
        ]
        return list(sums.unbind()), [*mean, *found_for_leaves]

    def _chunk(self, ids: Tensor) -> int:
        """Queries scored at once."""
        return self.config.chunk or max(16, BLOCK_SCORES[ids.device.type == "cuda"] // len(ids))

    def _block(
        self, scores: Sequence[Tensor], parameters: Sequence[Tensor], positives: Tensor, queries: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The block's share of the loss, and of each term."""
        remaining = list(parameters)
        scales = _bounded(remaining.pop(0).exp())
        biases = remaining.pop(0) if self.biases is not None else torch.zeros_like(scales)
        block = Block(
            scores=dict(zip(self.levels, scores, strict=True)),
            scales=dict(zip(self.levels, scales, strict=True)),
            biases=dict(zip(self.levels, biases, strict=True)),
            positives=positives,
        )
        factors = [scales.new_ones(())] * len(self.levels)
        loss = scales.new_zeros(())
        if self.log_variances is not None:
            log_variances = remaining.pop(0)
            factors = list((-log_variances).exp().unbind())
            loss = loss + log_variances.sum() / 2 * len(positives) / queries
        values = []
        for level, weight, term in self.terms:
            value = term(block) / queries
            loss = loss + weight * factors[self.levels.index(level)] * value
            values.append(value.detach())
        return loss, values


def _bounded(scales: Tensor) -> Tensor:
    """Never above the bound, with a gradient even there, so that a temperature may rise again."""
    return scales.clamp(max=MAX_SCALE).detach() + (scales - scales.detach())


def _terms(levels: Sequence[str], config: ObjectiveConfig) -> list[tuple[str, float, Term]]:
    """Level, weight and term, for every term that is on."""
    *coarser, finest = levels
    contrastive: type[SigmoidContrastive | InfoNCE] = SigmoidContrastive if config.loss == "sigmoid" else InfoNCE
    terms: list[tuple[str, float, Term]] = []
    for level in levels:
        terms.append((level, config.contrastive.get(level, 1.0), contrastive(level)))
        if level in coarser:
            shortlist = ShortlistLoss(level, finest, config.shortlist_size, config.shortlist_top)
            terms += [(level, config.distillation, RankingDistillation(level, finest))]
            terms += [(level, config.shortlist, shortlist)]
        if level != levels[0]:
            terms += [(level, config.hard_negatives, HardNegatives(level, levels[0], config.hard_negative_count))]
    return [(level, weight, term) for level, weight, term in terms if weight]
