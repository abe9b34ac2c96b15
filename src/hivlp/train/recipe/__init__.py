"""A recipe: everything that a training run depends on, in one YAML file."""

from hivlp.train.recipe.schema import (
    Augment,
    Compute,
    Init,
    Optim,
    Pretext,
    Recipe,
    SelfDistillation,
    Source,
    Watch,
    load_recipe,
    split_of,
)

__all__ = [
    "Augment",
    "Compute",
    "Init",
    "Optim",
    "Pretext",
    "Recipe",
    "SelfDistillation",
    "Source",
    "Watch",
    "load_recipe",
    "split_of",
]
