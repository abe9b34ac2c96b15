"""What a recipe would do, if it were run: checked, counted, and nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hivlp.objective import HierarchicalObjective
from hivlp.train.recipe.check import check_data, check_recipe
from hivlp.train.recipe.schema import Recipe
from hivlp.train.schedule import parameter_groups
from hivlp.train.step import steps_of_epoch


def plan(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Everything that is known before the first step.

    Args:
        recipe: what to do.
        out: where the model would be written.

    Returns:
        ``model``, ``levels`` (name -> dims), ``pairs``, ``pairs_per_epoch``, ``epochs``, ``steps``, ``batch`` (the
        smallest and the largest), ``parameters``, ``validation``, ``test``, and ``learning``: for each group of
        parameters that learns its number, peak learning rate, weight decay, betas and eps.

    Raises:
        RecipeError: if it cannot be carried out.
    """
    model = check_recipe(recipe)
    pairs = check_data(recipe)
    taught = recipe.levels if recipe.self_distillation is None else recipe.levels[-1:]
    objective = HierarchicalObjective([level.name for level in taught], recipe.objective)
    groups = parameter_groups(model, objective, nn.ModuleList(), recipe)
    count = sum(repeat for _, repeat in pairs)
    each = steps_of_epoch(count, recipe.optim.batch_size)
    return {
        "model": str(out),
        "levels": {level.name: level.dim for level in recipe.levels},
        "pairs": len(pairs),
        "pairs_per_epoch": count,
        "epochs": recipe.optim.epochs,
        "steps": each * recipe.optim.epochs,
        "batch": [count // each, -(-count // each)],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "validation": recipe.validation,
        "test": recipe.test,
        "learning": [
            {
                "parameters": sum(parameter.numel() for parameter in group["params"]),
                "lr": group["peak"],
                "weight_decay": group["weight_decay"],
                "betas": list(group["betas"]),
                "eps": group["eps"],
            }
            for group in groups
        ],
    }


def format_plan(result: Mapping[str, Any]) -> str:
    """Lines for the terminal."""
    smallest, largest = result["batch"]
    batch = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    levels = ", ".join(f"{name} {dims}" for name, dims in result["levels"].items())
    return "\n".join([
        f"model       {result['model']} ({levels} dims, {result['parameters']:,} parameters)",
        f"training    {result['pairs']:,} pairs, {result['pairs_per_epoch']:,} an epoch, {result['epochs']} epochs",
        f"steps       {result['steps']:,} of {batch} pairs",
        f"validation  {result['validation'] or 'none'}",
        f"test        {result['test'] or 'none'}",
        *(
            f"learns      {group['parameters']:,} parameters, lr {group['lr']:g}, weight decay "
            f"{group['weight_decay']:g}, betas {group['betas'][0]:g} {group['betas'][1]:g}, eps {group['eps']:g}"
            for group in result["learning"]
        ),
    ])  # fmt: skip
