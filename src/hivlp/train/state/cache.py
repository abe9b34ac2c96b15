"""A cache of tensors in safetensors files, each with a key over everything that it was computed from."""

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


def read_cache(path: Path, key: str) -> dict[str, Tensor] | None:
    """Tensors that :func:`write_cache` wrote under this key; None if the file is missing, damaged or of another key."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def write_cache(path: Path, key: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors and their key, in place of the file's earlier content."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda place: save_file(whole, place, metadata={"key": key}))


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 over a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
