"""A small model of rendered scenes, both towers from random weights, for measurements that train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hivlp.config import PictureConfig, TextConfig, TowerConfig
from hivlp.levels import Level
from hivlp.objective import ObjectiveConfig
from hivlp.train.job import train
from hivlp.train.publish import TrainResult
from hivlp.train.recipe.schema import Augment, Compute, Init, Optim, Recipe, Source

FINE = Level("fine", 256, 4, 2)
EARLY, LATE = Level("coarse", 128, 2, 1), Level("coarse", 128, 4, 2)
"""A coarse level from half of each tower's layers, and one from all of them."""


def scenes_recipe(count: int, epochs: int, **changes: Any) -> Recipe:
    """The towers and settings of `recipes/scenes_cpu.yaml`, with one level unless ``changes`` say otherwise.

    Args:
        count: of rendered scenes, all splits together.
        epochs: passes through the training part.
        changes: fields of the recipe.
    """
    bert = {"vocab_size": 30522, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert |= {"intermediate_size": 512, "max_position_embeddings": 32}
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    rate = 1e-3
    settings: dict[str, Any] = {
        "name": "scenes",
        "levels": (FINE,),
        "image_tower": TowerConfig("convnet"),
        "text_tower": TowerConfig("bert", {**bert, **without_dropout}),
        "train": (Source(f"scenes:{count}"),),
        "picture": PictureConfig(64),
        "text": TextConfig(24),
        "init": Init(tokenizer="hivlp-mini"),
        "augment": Augment(views=0, zoom=(1.0, 1.0), colour=0.0, flip=False, folders=False),
        "optim": Optim(epochs, 256, lr=rate, text_lr=rate, tower_lr=rate, weight_decay=0.05, warmup_steps=100),
        "compute": Compute(trackers=()),
        "objective": ObjectiveConfig(temperature=0.07),
        "quantize": False,
    }
    return Recipe(**{**settings, **changes})


def hard_recipe(count: int, epochs: int, coarse: Level | None = EARLY, **changes: Any) -> Recipe:
    """The towers and settings of `recipes/scenes_hard_cpu.yaml` at half its learning rate, for shorter runs.

    Another coarse level may be given, or None for none; its gradient reaches the towers.

    However many there are to train on, validation is on 961 pictures and the test on 1,037; the cascade's shortlist of
    50 is 5% of either.
    """
    levels: tuple[Level, ...] = (FINE,) if coarse is None else (coarse, FINE)
    heads = {level.name: "mlp" for level in levels[:-1]}
    gradient = {level.name: 1.0 for level in levels[:-1]}
    easy = scenes_recipe(count, epochs)
    narrow = {"num_attention_heads": 2, "intermediate_size": 256, "hidden_act": "relu", "max_position_embeddings": 48}
    settings: dict[str, Any] = {
        "name": "hard scenes",
        "levels": levels,
        "image_tower": replace(easy.image_tower, heads=heads),
        "text_tower": replace(easy.text_tower, options={**easy.text_tower.options, **narrow}, heads=heads),
        "text": TextConfig(48),
        "train": (Source(f"scenes:{count}:hard"),),
        "validation": "scenes:6000:hard:val",
        "test": "scenes:4600:hard:test",
        "shortlist": 50,
        "optim": replace(easy.optim, batch_size=128, tower_gradient=gradient, checkpoint_every=50),
        "compute": Compute(trackers=(), precision="bf16"),
    }
    return replace(easy, **{**settings, **changes})


def train_on_scenes(recipe: Recipe, out: Path, *, resume: bool = False) -> TrainResult:
    """Run the recipe in this process; ``resume`` goes on with what is in the folder, if there is anything."""
    result = train(recipe, out, resume=resume)
    assert result is not None, "a measurement is one process"
    return result
