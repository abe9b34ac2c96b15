"""Pictures and texts to level vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.encode.base import Encoder, Picture, check_encoder

if TYPE_CHECKING:
    from hivlp.encode.pretrained import HiVLP, resolve_folder

__all__ = ["Encoder", "HiVLP", "Picture", "as_encoder", "resolve_folder"]


def as_encoder(model: Encoder | str | Path) -> Encoder:
    """A loaded model; one that is given by its name or folder is loaded now.

    Raises:
        ModelError: if there is no such model.
        ArgumentError: if it is no model.
    """
    if isinstance(model, (str, Path)):
        from hivlp.encode.pretrained import HiVLP

        return HiVLP.from_pretrained(model)
    check_encoder(model)
    return model


def __getattr__(name: str) -> Any:
    """Import on first use: an index is searched by vectors without ONNX Runtime and a tokenizer."""
    if name in ("HiVLP", "resolve_folder"):
        from hivlp.encode import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
