"""The plan of a run (``hivlp train --plan``): the recipe checked, its steps and parameters counted, nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hivlp.objective import HierarchicalObjective
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
            *(
                f"learns      {group.parameters:,} parameters, lr {group.lr:g}, weight decay {group.weight_decay:g}, "
                f"betas {group.betas[0]:g} {group.betas[1]:g}, eps {group.eps:g}"
                for group in self.learning
            ),
        ])  # fmt: skip


def plan(recipe: Recipe, out: Path) -> TrainingPlan:
    """Check a recipe and count what it would do.

    Args:
        recipe: what to do.
        out: where the model would be written.

    Raises:
        RecipeError: if it cannot be carried out.
    """
    model = check_recipe(recipe)
    pairs = check_data(recipe)
    objective = HierarchicalObjective([level.name for level in recipe.taught], recipe.objective)
    groups = parameter_groups(model, objective, nn.ModuleList(), recipe)
    count = pairs_of_epoch(recipe, pairs)
    each = steps_of_epoch(count, recipe.optim.batch_size)
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
    )
