"""Cost of a training step, measured over a few of them: FLOPs, memory by part, pairs a second.

Steps are those of the run (towers, objective, pretext tasks, AdamW, precision, micro-batches) with random weights and
random pictures and texts, on this machine's device; neither speed nor memory depends on what the numbers are.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from hivlp.config import HiVLPConfig
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.objective import HierarchicalObjective
from hivlp.objective.hierarchical import BLOCK_SCORES
from hivlp.train.inputs.batch import Batch
from hivlp.train.pretext import Matching, TrainingModel
from hivlp.train.recipe.schema import Recipe
from hivlp.train.schedule import parameter_groups
from hivlp.train.state.shard import checkpoint_activations, tower_layers
from hivlp.train.step import Losses

STEPS, BUDGET = 10, 20.0
"""Steps that are timed, and seconds that they may take together: as many pairs a step as fit."""
MOST = {"cpu": 64, "cuda": 512}
FEATURES = 4096
"""Pairs in a measured step, at most, by device; and of stored features, where the towers are frozen."""


@dataclass(frozen=True)
class Cost:
    """What a run's steps cost on one device of this machine.

    Attributes:
        hardware: of the measurement, and its precision: on a CPU float32.
        pairs: in each of the measured steps.
        flops: of one step of the recipe, forward and backward, all processes together; the optimiser's not counted.
        memory_gb: ``weights``, ``gradients``, ``moments``, ``activations`` and ``loss`` of a step of the recipe in one
            process that has the whole batch, in GB, and their ``total``.
        device_gb: memory of the device.
        samples_per_second: pairs, over :data:`STEPS` steps, by one process; reading pictures is not counted.
    """

    hardware: str
    pairs: int
    flops: float
    memory_gb: Mapping[str, float]
    device_gb: float
    samples_per_second: float


class _Words:
    """As much of a tokenizer as masked words need: a vocabulary of a size, with [MASK]."""

    def __init__(self, size: int) -> None:
        self._size = size

    def token_to_id(self, token: str) -> int | None:
        return {"[PAD]": 0, "[MASK]": 1}.get(token)

    def get_vocab_size(self) -> int:
        return self._size


def measure(recipe: Recipe, steps: int = STEPS, budget: float = BUDGET) -> Cost:
    """Measure a recipe's steps.

    Args:
        recipe: that :func:`hivlp.train.recipe.check.check_recipe` found sound.
        steps: that are timed.
        budget: seconds for them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    config = HiVLPConfig(recipe.name, recipe.levels, recipe.image_tower, recipe.text_tower, recipe.picture, recipe.text)
    model = HiVLPModel(config)
    training = TrainingModel(model, recipe, cast(Tokenizer, _Words(model.text_tower.vocabulary))).to(device)
    objective = HierarchicalObjective([level.name for level in recipe.taught], recipe.objective)
    matching = Matching(recipe.levels[-1].dim) if recipe.pretext.matching else None
    losses = Losses(objective.to(device), None if matching is None else matching.to(device), recipe)
    tasks = nn.ModuleList(task for task in (training.words, matching) if task is not None)
    groups = parameter_groups(model, objective, tasks, recipe)
    optimizer = torch.optim.AdamW(groups)
    training.train()
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.compute.precision)
    if device.type == "cpu":
        precision = None  # most CPUs emulate it, which would say nothing of a machine that is meant
    again = bool(recipe.compute.micro_batch) and recipe.compute.micro_batch < recipe.optim.batch_size

    def forward(batch: Batch) -> Tensor:
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            image, text, more = training(batch.image, batch.text, batch.masked)
            loss, _ = losses.of_vectors(image, text, batch.ids, 0)
            for name, part in more.items():
                loss = loss + getattr(recipe.pretext, name) * part
            return loss

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        if again:  # micro-batches go through the towers twice
            with torch.no_grad():
                forward(batch)
        forward(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    batch = _batch(recipe, model, 2, device)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    flops = counter.get_total_flops() / len(batch)
    kept = _activations(recipe, model, batch, forward) / len(batch)
    if recipe.compute.checkpoint_activations:
        checkpoint_activations(model)
    most = min(MOST[device.type] if recipe.optim.tower_lr else FEATURES, recipe.optim.batch_size)
    while True:  # as many pairs as the time allows, since a step costs something whatever is in it
        started = time.perf_counter()
        step(batch)
        spent, twice = time.perf_counter() - started, 2 * len(batch)
        if 2 * spent * steps > budget or twice > most or kept * twice > _device_bytes(device) / 4:
            break
        batch = _batch(recipe, model, twice, device)
        step(batch)
    pairs = len(batch)
    started = time.perf_counter()
    for _ in tqdm(range(steps), desc="measure", unit="step", leave=False, disable=None):
        step(batch)
    seconds = time.perf_counter() - started
    learning = sum(parameter.numel() for group in groups for parameter in group["params"])
    return Cost(
        hardware=f"{_hardware(device)}, {recipe.compute.precision if precision is not None else 'float32'}",
        pairs=pairs,
        flops=flops * recipe.optim.batch_size + _flops_of_scores(recipe),
        memory_gb=_memory(recipe, training, learning, kept),
        device_gb=round(_device_bytes(device) / 1e9, 1),
        samples_per_second=round(pairs * steps / seconds, 2),
    )


def _batch(recipe: Recipe, model: HiVLPModel, pairs: int, device: torch.device) -> Batch:
    """Random pictures and texts as long as they may be; features where the towers are frozen."""
    ids = torch.arange(pairs)
    if not recipe.optim.tower_lr:
        sides = ((model.image_tower, model.image_layers), (model.text_tower, model.text_layers))
        image, text = ({n: torch.randn(pairs, tower.widths[n - 1]) for n in layers} for tower, layers in sides)
        return Batch(image, text, ids).to(device)
    size, length = recipe.picture.size, recipe.text.max_tokens
    pixels = torch.randint(0, 256, (pairs, size, size, 3), dtype=torch.uint8)
    tokens = torch.randint(2, max(3, model.text_tower.vocabulary), (pairs, length))
    return Batch(pixels, (tokens, torch.ones_like(tokens)), ids).to(device)


def _activations(recipe: Recipe, model: HiVLPModel, batch: Batch, forward: Callable[[Batch], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward one.

    With ``compute.checkpoint_activations``, of all layers their inputs and of the largest layer the rest too.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    within: list[int] = []
    inputs = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(_: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal inputs
        inputs += given[0].nbytes
        within.append(-sum(seen.values()))

    def leave(*_: Any) -> None:
        within[-1] += sum(seen.values())

    layers = tower_layers(model) if recipe.compute.checkpoint_activations else []
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(batch)
    del loss
    for hook in hooks:
        hook.remove()
    return sum(seen.values()) - sum(within) + max(within, default=0) + inputs


def _memory(recipe: Recipe, training: nn.Module, learning: int, kept: float) -> dict[str, float]:
    """GB by part, of a process that has the whole batch."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in training.parameters())
    if recipe.optim.ema or recipe.optim.average:
        weights *= 2
    batch, micro = recipe.optim.batch_size, recipe.compute.micro_batch
    at_once = min(batch, micro or batch)
    dims = sum(level.dim for level in recipe.taught)
    # Vectors of both sides, their gradients and the codes of candidates; some blocks of scores for each level.
    block = min(batch * batch, BLOCK_SCORES[torch.cuda.is_available()])
    loss = 2 * batch * dims * 4 * 3 + 4 * 4 * block * len(recipe.taught)
    parts = {"weights": weights, "gradients": 4 * learning, "moments": 8 * learning,
             "activations": kept * at_once, "loss": loss}  # fmt: skip
    rounded = {name: round(value / 1e9, 3) for name, value in parts.items()}
    return {**rounded, "total": round(sum(parts.values()) / 1e9, 3)}


def _flops_of_scores(recipe: Recipe) -> float:
    """FLOPs of the objective's score matrices of a whole batch: each direction forward and twice backward."""
    return 2 * 3 * 2 * float(recipe.optim.batch_size) ** 2 * sum(level.dim for level in recipe.taught)


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
