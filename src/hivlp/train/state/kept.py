"""Tensors that cost much to compute, in files that say what they were computed from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hivlp.files.scratch import write_whole


def key_of(**parts: Any) -> str:
    """One digest of everything that a result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def read_kept(path: Path, key: str) -> dict[str, Tensor] | None:
    """What :func:`write_kept` wrote for the same key; None if there is nothing, something else, or half of it."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def write_kept(path: Path, key: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors in place of what the file held."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda place: save_file(whole, place, metadata={"key": key}))


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 over a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
