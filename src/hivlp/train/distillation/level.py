"""Distillation of a finished fine level into a coarse one: closed-form start, then AdamW on the hierarchical objective.

No pairs are needed. The fine level is asked which of some pictures it would choose for some texts, and which of the
texts for the pictures, and the coarse level learns to answer alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.errors import HivlpError, ModelError
from hivlp.model.heads import FittedHead
from hivlp.objective import HierarchicalObjective, ObjectiveConfig
from hivlp.objective.config import MAX_SCALE, MIN_SCALE
from hivlp.train.distillation.closed_form import ridge, score_directions, sign_rotation
from hivlp.train.recipe.schema import SelfDistillation
from hivlp.train.schedule import matrices_and_vectors

RIDGE = 0.001  # relative to the mean squared feature
WARMUP = 50
BLOCK = 1024
NEIGHBOURS = 32
SAMPLE = 50_000


@dataclass(frozen=True)
class Side:
    """The texts, or the pictures, that the finest level is asked about.

    Attributes:
        inputs: (N, W) what the coarse head reads.
        teacher: (N, D) vectors of the finest level.
        weights: (N,) how often each is drawn, up to a factor.
    """

    inputs: Tensor
    teacher: Tensor
    weights: Tensor

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Rows at random, by weight."""
        upto = self.weights.double().cumsum(0).numpy()
        rows: NDArray[np.int64] = np.searchsorted(upto, rng.random(count) * upto[-1], side="right")
        return rows.clip(max=len(self.inputs) - 1)


def distill_level(
    image_head: nn.Module, text_head: nn.Module, pictures: Side, texts: Side, config: SelfDistillation, seed: int
) -> None:
    """Fit a level's two heads to the finest level, which stays as it is.

    Args:
        image_head: a :class:`~hivlp.model.heads.FittedHead`; in evaluation mode, on the CPU.
        text_head: a :class:`~hivlp.model.heads.FittedHead`; in evaluation mode, on the CPU.
        pictures: with as many different pictures as can be had.
        texts: with as many different texts as can be had.
        config: how long to learn, and what.
        seed: of every random choice.

    Raises:
        ModelError: if a head cannot be fitted.
    """
    for head in (image_head, text_head):
        if not isinstance(head, FittedHead):
            raise ModelError(f"a {type(head).__name__} cannot be fitted to the finest level: choose another head")
    assert isinstance(image_head, FittedHead) and isinstance(text_head, FittedHead)
    directions = score_directions(texts.teacher, texts.weights, pictures.teacher, image_head.project.out_features)
    if config.code == "binary":  # a few directions hold nearly everything; signs need it spread over all of them
        directions = directions @ sign_rotation(torch.cat([pictures.teacher, texts.teacher])[:SAMPLE] @ directions)
    standards = []
    with torch.no_grad():
        for head, side in ((image_head, pictures), (text_head, texts)):
            if head.reads_finest:
                head.start(directions.T)
                standards.append((torch.zeros(side.inputs.shape[1]), torch.ones(())))
                continue
            # Learning goes best in standardised features; the head is told of them afterwards.
            mean, deviation = side.inputs.mean(0), side.inputs.std()
            head.start(*ridge((side.inputs - mean) / deviation, side.teacher @ directions, RIDGE, side.weights))
            standards.append((mean, deviation))
    if config.steps:
        _learn((image_head, text_head), (pictures, texts), standards, directions, config, seed)
    for head, (mean, deviation) in zip((image_head, text_head), standards, strict=True):
        head.absorb(mean, deviation)


def _learn(
    heads: tuple[FittedHead, FittedHead],
    sides: tuple[Side, Side],
    standards: list[tuple[Tensor, Tensor]],
    directions: Tensor,
    config: SelfDistillation,
    seed: int,
) -> None:
    """The objective without its contrastive terms, plus one minus the cosine to where the closed form aims."""
    settings = ObjectiveConfig(
        contrastive={"coarse": 0.0, "fine": 0.0},
        distillation=config.distillation,
        shortlist=config.shortlist,
        shortlist_size=config.shortlist_size,
        codes={"coarse": config.code},
        temperature=min(max(config.temperature, 1 / MAX_SCALE), 1 / MIN_SCALE),
    )
    objective = HierarchicalObjective(("coarse", "fine"), settings)
    learning = [head for head in heads if config.learn_projections or not head.reads_finest]
    # Texts and pictures may share a head.
    parameters = list(dict.fromkeys(parameter for head in learning for parameter in head.parameters()))
    groups = matrices_and_vectors({"params": parameters, "weight_decay": config.weight_decay})
    groups.append({"params": [objective.log_scales], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, config.lr, betas=config.betas)
    near = [neighbours(one, other) for one, other in (sides, sides[::-1])] if config.neighbours else None
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    ids = torch.arange(config.batch_size)
    for step in tqdm(range(config.steps), desc="fit", unit="step", disable=None):
        factor = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        batch: list[dict[str, Tensor]] = []
        pull = torch.zeros(())
        rows_of = _draw(sides, near, config, rng)
        for head, side, (mean, deviation), rows in zip(heads, sides, standards, rows_of, strict=True):
            fine = side.teacher[rows]
            coarse = head((side.inputs[rows] - mean) / deviation)
            batch.append({"coarse": coarse, "fine": fine})
            if config.cosine and not head.reads_finest:
                aim = nn.functional.normalize(fine @ directions, dim=-1)
                pull = pull + (1 - (coarse * aim).sum(1)).mean()
        loss = objective(*batch, ids)["loss"] + config.cosine * pull
        optimizer.zero_grad()
        if not bool(loss.detach().isfinite()):
            raise HivlpError(f"fitting the coarse level failed at step {step}: the loss is {loss.item()}; lower its lr")
        loss.backward()
        optimizer.step()
        objective.keep_bounds()


def _draw(
    sides: tuple[Side, Side], near: list[Tensor] | None, config: SelfDistillation, rng: np.random.Generator
) -> list[Tensor]:
    """Rows of either side for one step; with neighbours, half are random and half are close to the other side's."""
    if near is None:
        return [torch.from_numpy(side.draw(rng, config.batch_size)) for side in sides]
    half = config.batch_size // 2
    random = [torch.from_numpy(side.draw(rng, half)) for side in sides]
    rest = config.batch_size - half
    column = [torch.from_numpy(rng.integers(NEIGHBOURS, size=rest)) for _ in sides]
    first = near[1][random[1][:rest], column[0] % near[1].shape[1]]
    second = near[0][random[0][:rest], column[1] % near[0].shape[1]]
    return [torch.cat([random[0], first]), torch.cat([random[1], second])]


def neighbours(one: Side, other: Side, count: int = NEIGHBOURS) -> Tensor:
    """(N, count) for each of one side, the rows of the other that its finest vector ranks first."""
    count = min(count, len(other.teacher))
    return torch.cat([(block @ other.teacher.T).topk(count, 1).indices for block in torch.split(one.teacher, BLOCK)])
