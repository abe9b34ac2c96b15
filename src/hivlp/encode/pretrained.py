""":class:`HiVLP`, a loaded model by its name, folder or hub id."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hivlp.encode.onnx import OnnxEncoder
from hivlp.encode.session import providers
from hivlp.errors import ModelError
from hivlp.formats.model_files import ModelFiles
from hivlp.formats.own import open_own
from hivlp.hub.names import ModelName, parse_name

MODEL_FILES = ("*.json", "*.onnx", "text.bin", "image.bin", "*.safetensors", "README.md")


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
    def from_pretrained(cls, name: str | Path, *, device: str = "cpu") -> HiVLP:
        """Load a model: fetched at its first use, converted at its first use where it has no graphs.

        Args:
            name: ``hivlp-mini``; a short name that ``hivlp models`` lists; a hub id such as ``owner/name``; or a folder
                in any of :data:`hivlp.formats.registry.FORMATS`. ``NAME@REVISION`` names a branch, tag or commit of the
                hub, ``NAME:int8`` and ``NAME:float16`` the precision of the weights.
            device: where the graphs run, one of :data:`hivlp.encode.session.DEVICES`.

        Raises:
            ModelError: if there is no such model, it cannot be fetched, or its folder is incomplete.
            MissingExtraError: if a library is missing that fetches or converts it.
        """
        providers(device)  # what is not there is said before a gigabyte is fetched
        files, source = _locate(parse_name(name))
        model = cls(files, device=device)
        model.source = source
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the model's files into ``folder``.

        Raises:
            ModelError: if it runs graphs of another library in place, whose folder can be copied as it is.
        """
        own = self.files.image.parent
        if self.files.outputs:
            raise ModelError(f"{self.name} runs from {own} as it is: copy that folder")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for pattern in MODEL_FILES:
            for file in own.glob(pattern):
                shutil.copyfile(file, target / file.name)


def _locate(name: ModelName) -> tuple[ModelFiles, str]:
    """A model's files, and how to load the same ones again."""
    ending = f":{name.precision}" if name.precision else ""
    if name.folder is not None:
        shipped = name.folder.parent.name == "assets"
        source = name.label if shipped else str(name.folder.resolve())
        if shipped and not name.precision:  # who asks the shipped model should not wait for what reads all others
            return open_own(name.folder), source
        from hivlp.formats.registry import open_folder

        return open_folder(name.folder, str(name.folder), name.precision), source + ending
    from hivlp.hub.fetch import fetch_model

    fetched = fetch_model(name)
    files = fetched.format.open(fetched.folder, name.label, name.precision)
    return files, f"{name.hub_id}@{fetched.revision}{ending}"


def resolve_folder(name: str | Path, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a model: one on disk, the one that ships with the package, or one from the Hugging Face hub.

    Args:
        name: of the model.
        patterns: of what is fetched from the hub; ``.bin`` weights only where there are no safetensors.

    Raises:
        ModelError: if there is no such model.
    """
    known = parse_name(name)
    if known.folder is not None:
        return known.folder
    from hivlp.hub.fetch import fetch_files

    return fetch_files(known, patterns)
