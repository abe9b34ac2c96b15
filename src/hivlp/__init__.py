"""Coarse-to-fine image-text retrieval: a short vector scans everything, a long one decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Embeddings",
    "HiVLP",
    "HivlpError",
    "Index",
    "Level",
    "ServiceError",
    "__version__",
]

if TYPE_CHECKING:
    from hivlp.encode.pretrained import HiVLP
    from hivlp.errors import HivlpError
    from hivlp.index import Index
    from hivlp.levels import Embeddings, Level
    from hivlp.serve.answers import ServiceError
    from hivlp.serve.client import AsyncClient, Client

_HOMES = {
    "AsyncClient": "hivlp.serve.client",
    "Client": "hivlp.serve.client",
    "Embeddings": "hivlp.levels",
    "HiVLP": "hivlp.encode.pretrained",
    "HivlpError": "hivlp.errors",
    "Index": "hivlp.index",
    "Level": "hivlp.levels",
    "ServiceError": "hivlp.serve.answers",
}


def __dir__() -> list[str]:
    """The public names, those that nobody has used yet, too."""
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations"})


def __getattr__(name: str) -> Any:
    """Import on first use: `hivlp --help` should not wait for ONNX Runtime."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
