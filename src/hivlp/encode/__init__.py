"""Pictures and texts to level vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hivlp.encode.base import Encoder, Picture

if TYPE_CHECKING:
    from hivlp.encode.pretrained import HiVLP, resolve_folder

__all__ = ["Encoder", "HiVLP", "Picture", "resolve_folder"]


def __getattr__(name: str) -> Any:
    """Import on first use: an index is searched by vectors without ONNX Runtime and a tokenizer."""
    if name in ("HiVLP", "resolve_folder"):
        from hivlp.encode import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
