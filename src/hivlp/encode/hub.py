"""Model lookup by name (shipped, folder, Hugging Face hub), and :class:`HiVLP`, the loaded model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from hivlp.encode.onnx import OnnxEncoder
from hivlp.errors import ArgumentError, MissingExtraError, ModelError

SHIPPED = "hivlp-mini"
MODEL_FILES = ("*.json", "*.onnx", "text.bin", "*.safetensors", "README.md")


def resolve_folder(name: str | Path, files: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a model: one on disk, the one that ships with the package, or one from the Hugging Face hub.

    Args:
        name: of the model.
        files: patterns of what is fetched from the hub.

    Raises:
        ModelError: if there is no such model.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ArgumentError(f"a model is given by its name or folder, not by {type(name).__name__}")
    path = Path(name)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for names that no folder can have)
        return path
    if str(name) == SHIPPED:
        shipped = Path(str(resources.files("hivlp"))) / "assets" / SHIPPED
        if shipped.is_dir():
            return shipped
        raise ModelError(f"this installation lacks the {SHIPPED} model; reinstall hivlp")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        return download(str(name), files)
    raise ModelError(f"no model {str(name)!r}: give {SHIPPED}, a model folder, or a hub id such as owner/name")


def download(hub_id: str, patterns: Sequence[str]) -> Path:
    """The named files of a hub repository, from its cache if they are there.

    Raises:
        MissingExtraError: if ``huggingface_hub`` is not installed.
        ModelError: if the hub has no such model or cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"loading {hub_id} from the hub", "hub") from error
    try:
        # Only files that are asked for: a hub repository may also hold pickles and code.
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {hub_id!r}, and there is no such folder") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{hub_id} cannot be fetched from the hub: {str(error).splitlines()[0]}") from error


class HiVLP(OnnxEncoder):
    """A ready model: pictures and texts in, vectors at every level out.

    Examples:
        >>> model = HiVLP.from_pretrained("hivlp-mini")
        >>> [(level.name, level.dim) for level in model.levels]
        [('coarse', 64), ('fine', 768)]
        >>> vectors = model.encode_text(["a red car", "a sleeping cat"])
        >>> vectors.coarse.shape, vectors.fine.shape
        ((2, 64), (2, 768))
    """

    @classmethod
    def from_pretrained(cls, name: str | Path) -> HiVLP:
        """Load ``hivlp-mini``, a model folder, or a model from the hub.

        Raises:
            ModelError: if there is no such model or its folder is incomplete.
        """
        return cls(resolve_folder(name))

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the model's files into ``folder``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for pattern in MODEL_FILES:
            for file in self.folder.glob(pattern):
                shutil.copyfile(file, target / file.name)
