"""Published checkpoints: tensors by their published names, from safetensors or from torch files without unpickling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from hivlp.errors import ModelError
from hivlp.files.reading import one_line, printable

System = TypeVar("System", bound=nn.Module)
State = dict[str, Tensor]
"""Tensors by name."""


def read_checkpoint(path: Path, *inside: str) -> State:
    """The tensors of a checkpoint.

    Nothing is unpickled: ``.safetensors`` is read as such, any other file by ``torch.load(weights_only=True)``.

    Args:
        path: of the file.
        inside: keys under which the tensors may lie, such as ``state_dict``; the first that is there counts.

    Raises:
        ModelError: if the file is missing, holds anything but tensors and plain values, or is damaged.
    """
    if not path.is_file():
        raise ModelError(f"{printable(path)} is not a file")
    found = read_tensors(path, *inside)
    if not found:
        raise ModelError(f"{printable(path)} holds no tensors by name")
    return found


def read_tensors(path: Path, *inside: str) -> State:
    """The tensors that a file holds by name, perhaps none; see :func:`read_checkpoint`.

    Raises:
        ModelError: if it holds anything but tensors and plain values, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of safetensors, zip, pickle
        raise ModelError(
            f"{printable(path)} cannot be read without unpickling ({one_line(error, 120)}): "
            "where you trust it, save its tensors alone as safetensors"
        ) from error
    held = next((held[key] for key in inside if isinstance(held, dict) and isinstance(held.get(key), dict)), held)
    named = held.items() if isinstance(held, dict) else ()
    found = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    for name, value in found.items():
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise ModelError(f"{printable(path)}: {name:.200} has more values than the file holds")
    return found


def renamed(state: Mapping[str, Tensor], change: Callable[[str], str]) -> State:
    """Tensors under other names.

    Raises:
        ModelError: if two get the same name.
    """
    found = {change(name): value for name, value in state.items()}
    if len(found) < len(state):
        raise ModelError("the checkpoint has the same tensor under two names")
    return found


def modern(name: str) -> str:
    """A name with ``gamma`` and ``beta``, as BERT's first port spelled them, as ``weight`` and ``bias``."""
    return re.sub(r"\.(gamma|beta)$", lambda found: {"gamma": ".weight", "beta": ".bias"}[found[1]], name)


def build(
    make: Callable[[], System],
    state: Mapping[str, Tensor],
    path: Path,
    left_over: str = r"(?!)",
    adapt: Callable[[State], Mapping[str, Tensor]] | None = None,
) -> System:
    """A module with the tensors of a checkpoint, in float32 and eval mode; all of them must be there, none unknown.

    Names and shapes are compared before anything of the module's size is allocated: a damaged file may speak of any.

    Args:
        make: of the module, at the size that the checkpoint seems to have.
        state: tensors by the module's names.
        path: of the checkpoint, for the error.
        left_over: pattern of names that the module has no use for.
        adapt: gives the tensors anew, such as positions of another size, from the module's own ones (without values).

    Raises:
        ModelError: naming the first tensor that is missing, unknown, or of another shape.
    """
    try:
        with torch.device("meta"):
            wanted = make().state_dict()
        state = state if adapt is None else adapt(wanted)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:  # heads that divide no width
        raise ModelError(f"{printable(path)} has sizes that do not fit together: {one_line(error, 120)}") from error
    pattern = re.compile(left_over)
    given = {name: value for name, value in state.items() if name in wanted or not pattern.match(name)}
    for names, what in ((wanted.keys() - given.keys(), "lacks"), (given.keys() - wanted.keys(), "has unknown")):
        if names:
            raise ModelError(f"{printable(path)} {what} {len(names)} tensors, the first of them {min(names):.200}")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise ModelError(f"{printable(path)}: {name} is {tuple(value.shape)}, not {tuple(wanted[name].shape)}")
    module = make()
    module.load_state_dict({name: value.float() for name, value in given.items()})
    return module.eval()


def width_of(state: Mapping[str, Tensor], name: str, path: Path) -> tuple[int, int]:
    """The shape of a matrix that tells a model's size.

    Raises:
        ModelError: if the checkpoint has none of this name.
    """
    if name not in state or state[name].ndim != 2 or not state[name].numel():
        raise ModelError(f"{printable(path)} has no matrix {name}: it is not a checkpoint of this system")
    rows, columns = state[name].shape
    return rows, columns


def patch_of(state: Mapping[str, Tensor], name: str, path: Path) -> int:
    """The side of the patches that a convolution of a vision tower reads.

    Raises:
        ModelError: if it is no convolution.
    """
    kernel = state[name]
    if kernel.ndim != 4 or not kernel.numel():
        raise ModelError(f"{printable(path)}: {name} is {tuple(kernel.shape)}, no convolution")
    return int(kernel.shape[-1])


def count_layers(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers a pattern's group tells apart among the names."""
    found = re.compile(pattern)
    return len({match[1] for name in state if (match := found.match(name))})


def parameter_count(module: nn.Module) -> int:
    """Numbers that a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
