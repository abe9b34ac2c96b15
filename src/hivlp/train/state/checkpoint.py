"""Checkpoints in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hivlp.errors import HivlpError, RecipeError
from hivlp.files.reading import reason
from hivlp.files.scratch import write_whole
from hivlp.train.state.origin import Origin
from hivlp.train.state.shard import shared_like, whole_state, whole_tensor

FOLDER, FILE = "checkpoint", "checkpoint.safetensors"
UNREADABLE = "train into a new folder, or without --resume"
# Of safetensors, JSON, and of torch where names or shapes are not the run's.
DAMAGE = (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError)


def save(
    folder: Path | None,
    origin: Origin,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    more: dict[str, Any],
) -> None:
    """Write parameters, optimizer moments, the step and ``more``, in one file that replaces the last one at once.

    With sharded weights each process must call this; one without a folder only gives what it has.

    Raises:
        HivlpError: if it cannot be written; the last one is still there.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for name, tensor in whole_state(module).items():
            tensors[f"{prefix}.{name}"] = tensor.contiguous().clone()
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = whole_tensor(torch.as_tensor(value)).clone()
    if folder is None:
        return
    about = {"hivlp": json.dumps({"step": step, "origin": origin.about(), "more": more})}
    try:
        write_whole(folder / FILE, lambda place: save_file(tensors, place, metadata=about))
    except (OSError, SafetensorError) as error:  # a full disk is either
        raise HivlpError(
            f"the checkpoint of step {step} cannot be written: {reason(error)}; the one before is whole: make "
            "room, and go on with --resume"
        ) from error


def load(
    folder: Path, origin: Origin, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Restore what :func:`save` wrote and return its step and ``more``; 0 and nothing if there is no checkpoint yet.

    Raises:
        RecipeError: if the checkpoint is damaged, or was begun with another recipe, data or first weights.
    """
    path = folder / FILE
    if not path.is_file():
        return 0, {}
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["hivlp"])
        step, begun, more = int(about["step"]), dict(about["origin"]), dict(about["more"])
        if step < 0:
            raise ValueError("a negative step")
        changes = origin.changes(begun, folder.parent)
    except DAMAGE as error:
        raise RecipeError(f"{path} cannot be read: {UNREADABLE}") from error
    if changes:
        raise RecipeError(
            f"{folder} was begun by another recipe or other data: {changes}; "
            "undo that, or train into a new folder without --resume"
        )
    try:
        _restore(load_file(path), modules, optimizer)
    except DAMAGE as error:
        raise RecipeError(f"{path} does not hold what this run would have written: {UNREADABLE}") from error
    return step, more


def _restore(tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    for prefix, module in modules.items():
        start = f"{prefix}."
        here = module.state_dict()
        module.load_state_dict(
            {
                name[len(start) :]: shared_like(value, here[name[len(start) :]])
                for name, value in tensors.items()
                if name.startswith(start)
            }
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = shared_like(value, parameters[int(index)])
    whole = optimizer.state_dict()
    whole["state"] = moments
    optimizer.load_state_dict(whole)
