"""Sharded weights, gradients and moments (FSDP2), for models that no single device can hold.

Each process keeps its share of every parameter, gradient and moment; a layer is put together while it computes
(Zhao et al., 2023; here PyTorch's ``fully_shard``). What leaves training is whole again: checkpoints are those of any
other run, and a run may be resumed with another number of processes, sharded or not. Checkpointed activations go by the
same layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from hivlp.model.hivlp_model import HiVLPModel


def shard(whole: nn.Module, model: HiVLPModel, device: torch.device) -> None:
    """Share the parameters of a module over all processes, in place.

    Args:
        whole: the module whose forward pass is a step's.
        model: the model in it, whose towers are put together layer by layer.
        device: of this process.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in tower_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(whole, mesh=mesh)


def tower_layers(model: HiVLPModel) -> list[nn.Module]:
    """The layers of both towers, each once, and none that is within another."""
    found: list[nn.Module] = []
    done: set[int] = set()
    for tower in (model.image_tower, model.text_tower):
        for layers in (module for module in tower.modules() if isinstance(module, nn.ModuleList)):
            for layer in layers:
                if id(layer) not in done:  # two towers may be one network
                    found.append(layer)
                    done |= {id(module) for module in layer.modules()}
    return found


def checkpoint_activations(model: HiVLPModel) -> None:
    """Let every layer of the towers keep its input alone, and compute the rest again in the backward pass."""
    for layer in tower_layers(model):
        layer.forward = partial(checkpointed, layer.forward, use_reentrant=False)


def whole_tensor(value: Tensor) -> Tensor:
    """The value of all processes; each must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of whole tensors; each process must call this."""
    return {name: whole_tensor(value) for name, value in module.state_dict().items()}


def shared_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole value, where ``like`` is shared; each process must call this."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def whole_copy(model: HiVLPModel, device: torch.device) -> HiVLPModel:
    """The model with all its weights; each process must call this."""
    copy = HiVLPModel(model.config)
    copy.load_state_dict(whole_state(model))
    return copy.to(device)


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor | None:
    """Scale gradients so that their norm, over all processes and shares, is at most ``largest``; gives that norm."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    shared = [parameter for parameter in found if isinstance(parameter, DTensor)]
    own = [parameter for parameter in found if not isinstance(parameter, DTensor)]
    norms = [
        whole_tensor(nn.utils.get_total_norm([parameter.grad for parameter in kind if parameter.grad is not None]))
        for kind in (shared, own)
        if kind
    ]
    if norms:
        total: Tensor = torch.stack(norms).norm()
        nn.utils.clip_grads_with_norm_(shared, largest, total)
        nn.utils.clip_grads_with_norm_(own, largest, total)
        return total
    return None
