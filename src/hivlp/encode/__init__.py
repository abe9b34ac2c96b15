"""Pictures and texts to level vectors."""

from hivlp.encode.base import Encoder, Picture
from hivlp.encode.hub import HiVLP, resolve_folder

__all__ = ["Encoder", "HiVLP", "Picture", "resolve_folder"]
