"""Parameter groups of AdamW and their learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hivlp.model.hivlp_model import HiVLPModel
from hivlp.objective import HierarchicalObjective
from hivlp.train.recipe.schema import Recipe


def parameter_groups(
    model: HiVLPModel, objective: HierarchicalObjective, tasks: nn.Module, recipe: Recipe
) -> list[dict[str, Any]]:
    """AdamW groups with their peak learning rates, betas, eps and weight decay.

    They hold the heads of the objective's levels and of pretext tasks, and towers that learn. What is in no group is
    frozen for good.
    """
    optim = recipe.optim
    prototypes: list[nn.Parameter] = []
    heads = [model.image_heads[level] for level in objective.levels]
    for module in nn.ModuleList(heads).modules():
        if callable(found := getattr(module, "prototypes", None)):
            prototypes += found()
    special = {id(parameter) for parameter in prototypes}
    image_heads = [parameter for head in heads for parameter in head.parameters() if id(parameter) not in special]
    text_heads = [parameter for level in objective.levels for parameter in model.text_heads[level].parameters()]
    groups: list[dict[str, Any]] = [
        {"params": image_heads, "peak": optim.lr, "weight_decay": optim.weight_decay},
        {"params": text_heads, "peak": optim.text_lr, "weight_decay": optim.weight_decay},
        {"params": prototypes, "peak": optim.prototype_lr, "weight_decay": 0.0},
        {"params": list(objective.parameters()), "peak": optim.objective_lr, "weight_decay": 0.0},
        {"params": list(tasks.parameters()), "peak": optim.lr, "weight_decay": optim.weight_decay},
    ]
    groups = [{**group, "betas": optim.betas} for group in groups]
    if optim.tower_lr > 0:
        groups += tower_groups(model, recipe)
    groups = [part for group in groups for part in matrices_and_vectors(group, optim.decay_vectors)]
    groups = [{"delay": 0, **group, "lr": group["peak"], "eps": optim.eps} for group in groups]
    learning = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    return groups


def matrices_and_vectors(group: dict[str, Any], decay_vectors: bool = False) -> list[dict[str, Any]]:
    """A group split in two: matrices, which decay, and vectors (biases, gains), which do not; no empty parts."""
    if decay_vectors or not group["weight_decay"]:
        return [group] if group["params"] else []
    matrices = [parameter for parameter in group["params"] if parameter.ndim > 1]
    vectors = [parameter for parameter in group["params"] if parameter.ndim <= 1]
    parts = [{**group, "params": matrices}, {**group, "params": vectors, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def tower_groups(model: HiVLPModel, recipe: Recipe) -> list[dict[str, Any]]:
    """One group for each layer that learns; lower layers learn slower (Clark et al., 2020)."""
    optim = recipe.optim
    groups = []
    for name, tower, last in (
        ("image", model.image_tower, max(model.image_layers)),
        ("text", model.text_tower, max(model.text_layers)),
    ):
        frozen = optim.freeze.get(name, 0)
        spared = {id(parameter) for name, parameter in tower.named_parameters() if tower.undecayed.search(name)}
        layers: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for layer, parameter in tower.parameters_by_layer():
            learns = layer > frozen or not frozen
            if learns and (layer <= last):
                decays = optim.decay_vectors or id(parameter) not in spared
                layers.setdefault((layer, decays), []).append(parameter)
        for (layer, decays), parameters in sorted(layers.items(), key=lambda each: (each[0][0], not each[0][1])):
            peak = optim.tower_lr * optim.layer_decay ** (tower.depth - layer)
            decay, betas = optim.tower_weight_decay if decays else 0.0, optim.tower_betas or optim.betas
            groups.append(
                {"params": parameters, "peak": peak, "weight_decay": decay, "betas": betas, "delay": optim.tower_delay}
            )
    return groups


def set_learning_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    """Linear warm-up, from a group's delay on, then a cosine to zero at the end of the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        done = step + 1 - group["delay"]
        group["lr"] = group["peak"] * cosine * min(1.0, max(0, done) / max(1, recipe.optim.warmup_steps))
