"""Ways to give a model a coarse level, ours among them, on the vectors of frozen towers.

Every way gets the same pairs, the same heads' size and as many steps in all: those that need a finished fine level
spend some on that and the rest on the coarse one, those that train both together spend all on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hivlp.linalg import lean_vec
from hivlp.model.heads import ProjectionHead
from hivlp.objective import HierarchicalObjective, ObjectiveConfig
from hivlp.objective.codes import quantize
from hivlp.train.distillation.closed_form import sign_rotation
from hivlp.train.distillation.level import Side, distill_level
from hivlp.train.recipe.schema import SelfDistillation

WARMUP = 30
SPLITS = ("train", "val", "test")
CODES = ("float", "int8", "binary")


@dataclass(frozen=True)
class Pairs:
    """Pictures and their captions as a frozen model's vectors.

    Attributes:
        images: (N, W) unit vectors.
        texts: (N, W) unit vectors; row i belongs to row i of ``images``.
        ids: (N,) equal for pairs with the same caption.
        rows: split -> its rows.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor
    rows: Mapping[str, Tensor]


@dataclass(frozen=True)
class Budget:
    """What a way may spend: steps on a fine level, steps on coarse ones, pairs in a step."""

    fine_steps: int
    coarse_steps: int
    batch: int
    dim: int = 256
    lr: float = 3e-4


@dataclass(frozen=True)
class Vectors:
    """(N, D) vectors of all pictures and all texts at one level."""

    images: Tensor
    texts: Tensor

    def mapped(self, image_map: Tensor, text_map: Tensor) -> Vectors:
        """Both sides through a linear map, rows of unit length."""
        return Vectors(F.normalize(self.images @ image_map, dim=-1), F.normalize(self.texts @ text_map, dim=-1))

    def rows(self, rows: Tensor) -> Vectors:
        """Some of the pairs."""
        return Vectors(self.images[rows], self.texts[rows])


def kept(queries: Tensor, items: Tensor, coarse_queries: Tensor, coarse_items: Tensor, share: float, top: int) -> float:
    """Percent of the fine level's first ``top`` items that are in the coarse level's shortlist.

    Args:
        queries: (Q, D) fine.
        items: (N, D) fine.
        coarse_queries: (Q, d).
        coarse_items: (N, d) as they are stored.
        share: of the N items that the shortlist holds.
        top: how many of the fine level's first items count.
    """
    size = max(1, round(share * len(items)))
    lost = found = 0
    for block in torch.split(torch.arange(len(queries)), 1024):
        wanted = (queries[block] @ items.T).topk(top, 1).indices
        shortlist = (coarse_queries[block] @ coarse_items.T).topk(size, 1).indices
        hit = torch.zeros(len(block), len(items), dtype=torch.bool).scatter_(1, shortlist, True).gather(1, wanted)
        found, lost = found + int(hit.sum()), lost + int((~hit).sum())
    return 100 * found / (found + lost)


def train_heads(pairs: Pairs, dims: Sequence[int], budget: Budget, seed: int, *, nested: bool) -> dict[int, Vectors]:
    """Heads trained on the pairs, one contrastive loss for each of some widths, the last of which is the fine level's.

    Args:
        pairs: trained on their ``train`` part.
        dims: widths, ascending; one alone is an ordinary dual encoder.
        budget: ``fine_steps`` are spent on one width, ``coarse_steps`` more if there are several.
        seed: of initial weights and batches.
        nested: prefixes of one head (Matryoshka; Kusupati et al., 2022) instead of a head for each.

    Returns:
        Width -> vectors.
    """
    rows = pairs.rows["train"]
    moments = [side[rows].T @ side[rows] for side in (pairs.images, pairs.texts)]
    principal = torch.linalg.eigh(moments[0] + moments[1]).eigenvectors.flip(1)
    heads = nn.ModuleDict()
    widths = dims[-1:] if nested else dims
    for width in widths:
        # Prefixes begin as principal components, the best that can be said for them; a single level has no order.
        turn = torch.eye(width)
        if len(dims) == 1:
            turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
        for side in ("images", "texts"):
            heads[f"{side}{width}"] = head = nn.Linear(principal.shape[0], width, bias=False)
            nn.init.zeros_(head.weight)
            head.weight.data[: principal.shape[1]] = (principal[:, :width] @ turn[: principal.shape[1]]).T
    names = [f"d{width}" for width in dims]
    objective = HierarchicalObjective(names, ObjectiveConfig(distillation=0.0))

    def vectors(side: str, inputs: Tensor) -> dict[str, Tensor]:
        outputs = {width: heads[f"{side}{width}"](inputs) for width in widths}
        if nested:
            return {f"d{width}": F.normalize(outputs[dims[-1]][:, :width], dim=-1) for width in dims}
        return {f"d{width}": F.normalize(output, dim=-1) for width, output in outputs.items()}

    def loss(chosen: Tensor) -> Tensor:
        images, texts = vectors("images", pairs.images[chosen]), vectors("texts", pairs.texts[chosen])
        total: Tensor = objective(images, texts, pairs.ids[chosen])["loss"]
        return total

    steps = budget.fine_steps + (budget.coarse_steps if len(dims) > 1 else 0)
    _descend([*heads.parameters(), *objective.parameters()], loss, rows, steps, budget, seed)
    with torch.no_grad():
        images, texts = vectors("images", pairs.images), vectors("texts", pairs.texts)
    return {width: Vectors(images[f"d{width}"], texts[f"d{width}"]) for width in dims}


def _descend(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    rows: Tensor,
    steps: int,
    budget: Budget,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(parameters, lr=budget.lr, weight_decay=0.1)
    for step in range(steps):
        factor = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = budget.lr * factor
        order: NDArray[np.int64] = rng.permutation(len(rows))[: budget.batch]
        optimizer.zero_grad()
        loss(rows[torch.from_numpy(order)]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def linear_maps(fine: Vectors, train: Tensor, dim: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Maps of pictures and texts, (D, dim) each, that need no training, by the name of the way.

    Args:
        fine: vectors of the finished fine level.
        train: rows that may be looked at.
        dim: of the coarse level.
        seed: of the random projection.
    """
    images, texts = fine.images[train], fine.texts[train]
    width = images.shape[1]
    first = torch.eye(width)[:, :dim]
    random = torch.linalg.qr(torch.randn(width, dim, generator=torch.Generator().manual_seed(seed))).Q
    both = torch.linalg.eigh(images.T @ images + texts.T @ texts).eigenvectors.flip(1)[:, :dim]
    moments = [(side.T @ side / len(side)).double().numpy() for side in (images, texts)]
    image_map, text_map = (torch.from_numpy(matrix[:, :dim]).float() for matrix in lean_vec(moments[0], moments[1]))
    return {
        "truncation": (first, first),
        "random projection": (random, random),
        "PCA": (both, both),
        "LeanVec-OOD": (image_map, text_map),
    }


def ours(fine: Vectors, train: Tensor, dim: int, settings: SelfDistillation, seed: int) -> Vectors:
    """The coarse level that :func:`hivlp.train.distillation.level.distill_level` fits to the fine one."""
    width = fine.images.shape[1]
    image_head, text_head = ProjectionHead(width, dim), ProjectionHead(width, dim)
    sides = [Side(vectors[train], vectors[train], torch.ones(len(train))) for vectors in (fine.images, fine.texts)]
    distill_level(image_head, text_head, sides[0], sides[1], settings, seed)
    with torch.no_grad():
        return Vectors(image_head(fine.images), text_head(fine.texts))


def coded(coarse: Vectors, train: Tensor, code: str, better: Callable[[Vectors], float]) -> Vectors:
    """A level that knows nothing of how it is stored, given the best chance: for signs, rotated if that is better.

    Args:
        coarse: vectors of the level.
        train: rows that may be looked at.
        code: how the level is stored.
        better: recall on validation.
    """
    if code != "binary":
        return coarse
    seen = torch.cat([coarse.images[train], coarse.texts[train]])
    rotation = sign_rotation(seen)
    return max((coarse, coarse.mapped(rotation, rotation)), key=better)


def recall(
    fine: Vectors, coarse: Vectors, code: str, asked: Tensor, items: Tensor, share: float, top: int
) -> list[float]:
    """:func:`kept` from texts to pictures and from pictures to texts.

    Args:
        fine: of all pairs.
        coarse: of all pairs.
        code: how a coarse item is stored; queries stay as they are.
        asked: rows that ask.
        items: rows among which they look.
        share: see :func:`kept`.
        top: see :func:`kept`.
    """
    to_images = (fine.texts, fine.images, coarse.texts, coarse.images)
    to_texts = (fine.images, fine.texts, coarse.images, coarse.texts)
    return [
        kept(query[asked], item[items], coarse_query[asked], quantize(coarse_item[items], code), share, top)
        for query, item, coarse_query, coarse_item in (to_images, to_texts)
    ]
