"""Collectives over training processes: all-gather of vectors, sums of gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 without ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def counts(rows: int, device: torch.device) -> list[int]:
    """Rows that each process holds."""
    if processes() == 1:
        return [rows]
    sizes = torch.zeros(processes(), dtype=torch.int64, device=device)
    sizes[dist.get_rank()] = rows
    dist.all_reduce(sizes)
    return [int(size) for size in sizes]


def gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """(ΣB, …) the rows of every process in the order of their ranks, without gradients.

    Args:
        rows: (B, …) of this process.
        sizes: what :func:`counts` said.
    """
    if len(sizes) == 1:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def total(tensors: list[Tensor]) -> None:
    """Sum each tensor over the processes, in place; one message for all of them."""
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def own_rows(sizes: list[int]) -> slice:
    """Where this process's rows are among those of all."""
    rank = dist.get_rank() if len(sizes) > 1 else 0
    first = sum(sizes[:rank])
    return slice(first, first + sizes[rank])
