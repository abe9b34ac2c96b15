"""The formats, in the order in which they are looked for, and which of them a folder or repository is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hivlp.errors import ModelError
from hivlp.formats.format import Format, listing
from hivlp.formats.model_files import ModelFiles
from hivlp.formats.onnx_folders import OnnxFoldersFormat
from hivlp.formats.onnx_towers import OnnxTowersFormat
from hivlp.formats.open_clip import OpenClipFormat
from hivlp.formats.own import OwnFormat, is_own, open_own
from hivlp.formats.sentence_transformers import SentenceTransformersFormat
from hivlp.formats.transformers import TransformersFormat

FORMATS: tuple[Format, ...] = (
    OwnFormat(),
    OnnxFoldersFormat(),
    OnnxTowersFormat(),
    SentenceTransformersFormat(),
    TransformersFormat(),
    OpenClipFormat(),
)
"""Ready graphs first, which need no torch; a repository may hold several formats."""


def choose(names: Sequence[str], precision: str, source: str) -> tuple[Format, list[str]]:
    """The format of a folder or repository, and the files that it needs.

    Args:
        names: of the files that are there.
        precision: that is asked for; empty for the best that is there.
        source: what a person calls the model.

    Raises:
        ModelError: if no format is recognised, in one line with the nearest thing that works.
    """
    refused: ModelError | None = None
    for known in FORMATS:
        try:
            files = known.wanted(names, precision)
        except ModelError as error:  # such as ready graphs in float32 alone: weights beside them may be converted
            refused = refused or error
            continue
        if files:
            return known, files
    if refused is not None:
        raise ModelError(f"{source}: {refused}") from refused
    raise ModelError(f"{source} is no model that hivlp knows: {_nearest(names)}")


def open_folder(folder: Path, source: str, precision: str = "") -> ModelFiles:
    """The files of a model in a folder, converted first where that is needed.

    Args:
        folder: in any of :data:`FORMATS`.
        source: what a person calls the model.
        precision: of :data:`hivlp.formats.model_files.PRECISIONS`; empty for the best that is there.

    Raises:
        ModelError: if it is no model that hivlp can use.
        MissingExtraError: if a library is missing that converts it.
    """
    if is_own(folder):  # incomplete ones too, so that what is missing can be said
        if precision:
            raise ModelError(f"{source} has its graphs in one precision: leave out :{precision}")
        return open_own(folder)
    found, _ = choose(listing(folder), precision, source)
    found.check(folder, source)
    return found.open(folder, source, precision)


def _nearest(names: Sequence[str]) -> str:
    """What a folder is, and what would work instead."""
    known = set(names)
    if any(name.endswith(".gguf") for name in names):
        return "GGUF files are not read; take the repository that they were made of"
    if any(name.endswith((".h5", ".msgpack")) for name in names):
        return "it has weights of TensorFlow or Flax alone; take a repository with model.safetensors"
    if "config.json" in known and any(name.endswith(".onnx") for name in names):
        return "it has ONNX files, but not onnx/text_model.onnx with onnx/vision_model.onnx, nor textual/ with visual/"
    if any(name.endswith((".pt", ".pth", ".ckpt")) for name in names):
        return "pickled checkpoints are never opened; take a repository with safetensors, such as clip-b32"
    if "config.json" in known:
        return "there is a config.json, but neither weights (model.safetensors, pytorch_model.bin) nor graphs"
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return "there are weights, but no config.json nor open_clip_config.json that says of what"
    return ("there is no config.json with weights, no open_clip_config.json, and no ready ONNX graphs; `hivlp "
            "models` names models that work")  # fmt: skip
