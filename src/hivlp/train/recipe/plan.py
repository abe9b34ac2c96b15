"""The plan of a run (``hivlp train --plan``): the recipe checked, its steps counted and measured, nothing written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hivlp.data.streams.opening import is_url
from hivlp.data.streams.shards import find_shards
from hivlp.errors import DataError, HivlpError, RecipeError
from hivlp.objective import HierarchicalObjective
from hivlp.train.cost import STEPS, Cost, measure
from hivlp.train.inputs.batch import steps_of_epoch
from hivlp.train.recipe.check import check_data, check_recipe, pairs_of_epoch
from hivlp.train.recipe.schema import Recipe
from hivlp.train.schedule import parameter_groups


@dataclass(frozen=True)
class LearningGroup:
    """Parameters that share AdamW's settings: their number, peak learning rate, weight decay, betas and eps."""

    parameters: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is known of a run before its first step.

    Attributes:
        model: the folder that would be written.
        levels: name -> dims.
        pairs: of the training set.
        pairs_per_epoch: with repetitions.
        epochs: passes through the data.
        steps: of the whole run.
        batch: pairs in the smallest and in the largest step.
        parameters: of the model.
        validation: data set, None for none.
        test: data set, None for none.
        learning: groups of parameters that are not frozen.
        missing: data and weights that the run would need and that are not here.
        cost: of its steps on this machine; None if they were not measured.
        hours: to the end at the measured speed, by one process; None if it was not measured.
    """

    model: str
    levels: Mapping[str, int]
    pairs: int
    pairs_per_epoch: int
    epochs: int
    steps: int
    batch: tuple[int, int]
    parameters: int
    validation: str | None
    test: str | None
    learning: tuple[LearningGroup, ...]
    missing: tuple[str, ...] = ()
    cost: Cost | None = None
    hours: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``hivlp train --plan --json`` prints."""
        return asdict(self)

    def to_text(self) -> str:
        """Lines for the terminal."""
        batch = " to ".join(str(size) for size in dict.fromkeys(self.batch))
        levels = ", ".join(f"{name} {dims}" for name, dims in self.levels.items())
        return "\n".join([
            f"model       {self.model} ({levels} dims, {self.parameters:,} parameters)",
            f"training    {self.pairs:,} pairs, {self.pairs_per_epoch:,} an epoch, {self.epochs} epochs",
            f"steps       {self.steps:,} of {batch} pairs",
            f"validation  {self.validation or 'none'}",
            f"test        {self.test or 'none'}",
            *self._learning(),
            *(f"not here    {each}" for each in self.missing),
            *self._costs(),
        ])  # fmt: skip

    def _learning(self) -> list[str]:
        """A line for those that differ in their rates alone, as the layers of a tower do; `--json` has each."""
        alike: dict[tuple[float, tuple[float, float], float], list[LearningGroup]] = {}
        for group in self.learning:
            alike.setdefault((group.weight_decay, group.betas, group.eps), []).append(group)
        lines = []
        for (decay, betas, eps), groups in alike.items():
            rates = sorted(group.lr for group in groups)
            span = f"{rates[0]:.3g}" if rates[0] == rates[-1] else f"{rates[0]:.3g} to {rates[-1]:.3g}"
            many = f" in {len(groups)} groups" if len(groups) > 1 else ""
            lines.append(
                f"learns      {sum(group.parameters for group in groups):,} parameters{many}, lr {span}, "
                f"weight decay {decay:g}, betas {betas[0]:g} {betas[1]:g}, eps {eps:g}"
            )
        return lines

    def _costs(self) -> list[str]:
        if self.cost is None or self.hours is None:
            return []
        cost = self.cost
        parts = ", ".join(f"{name} {value:.2f}" for name, value in cost.memory_gb.items() if name != "total")
        total, device = cost.memory_gb["total"], cost.device_gb
        left = f"{self.hours:,.1f} hours" if self.hours >= 1 else f"{60 * self.hours:.1f} minutes"
        fits = "" if total <= device else ": too much, set compute.micro_batch, or checkpoint_activations or shard"
        return [
            f"hardware    {cost.hardware}, {device:.0f} GB",
            f"a step      {cost.flops / 1e12:,.3f} TFLOPs, {cost.flops / self.batch[1] / 1e9:,.2f} GFLOPs a pair",
            f"memory      {total:.2f} GB in one process ({parts}){fits}",
            f"measured    {cost.samples_per_second:,.1f} pairs a second over {STEPS} steps of {cost.pairs}",
            f"to the end  {left} by one process, reading pictures and validation not counted",
        ]


def plan(recipe: Recipe, out: Path, *, measured: bool = True) -> TrainingPlan:
    """Check a recipe, count what it would do, and measure ten of its steps.

    What a stream reads need not be here, nor its validation and test sets: a stream's ``epoch`` tells the steps.

    Args:
        recipe: what to do.
        out: where the model would be written.
        measured: whether to measure.

    Raises:
        RecipeError: if it cannot be carried out.
    """
    model = check_recipe(recipe)
    missing = _missing_of_stream(recipe)
    try:
        pairs = check_data(recipe)
    except RecipeError as error:
        if recipe.stream is None or not isinstance(error.__cause__, HivlpError):
            raise
        pairs, missing = [], (*missing, str(error))
    objective = HierarchicalObjective([level.name for level in recipe.taught], recipe.objective)
    groups = parameter_groups(model, objective, nn.ModuleList(), recipe)
    count = pairs_of_epoch(recipe, pairs)
    each = steps_of_epoch(count, recipe.optim.batch_size)
    cost = measure(recipe) if measured else None
    hours = None if cost is None else round(count * recipe.optim.epochs / cost.samples_per_second / 3600, 4)
    return TrainingPlan(
        model=str(out),
        levels={level.name: level.dim for level in recipe.levels},
        pairs=len(pairs) if recipe.stream is None else recipe.stream.epoch,
        pairs_per_epoch=count,
        epochs=recipe.optim.epochs,
        steps=each * recipe.optim.epochs,
        batch=(count // each, -(-count // each)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        validation=recipe.validation,
        test=recipe.test,
        learning=tuple(
            LearningGroup(
                sum(parameter.numel() for parameter in group["params"]),
                *(group[key] for key in ("peak", "weight_decay", "betas", "eps")),
            )
            for group in groups
        ),
        missing=missing,
        cost=cost,
        hours=hours,
    )


def _missing_of_stream(recipe: Recipe) -> tuple[str, ...]:
    """Which of a stream's sources are not on this machine; those on other storage are not looked for."""
    missing = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, source in enumerate(recipe.stream.sources if recipe.stream is not None else ()):
            try:
                if not is_url(source.source):
                    find_shards(source.source, source.split, Path(scratch))
            except DataError as error:
                missing.append(f"stream.sources[{number}].source: {error}")
    return tuple(missing)
