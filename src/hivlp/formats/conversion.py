"""Conversion of a torch model to ONNX graphs, once: into a folder of the cache, keyed by what it was made of."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hivlp.config import TOKENIZER, HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.data.pictures import load_pixels
from hivlp.data.texts import TextTokenizer
from hivlp.errors import MissingExtraError
from hivlp.files.digests import cache_folder, sha256_of
from hivlp.files.scratch import scratch_folder
from hivlp.formats.format import checked_config
from hivlp.formats.model_files import ModelFiles
from hivlp.formats.own import ORIGIN, open_own
from hivlp.levels import ONLY_LEVEL, Level

if TYPE_CHECKING:
    from torch import Tensor

    from hivlp.export.precision import Samples

SAMPLES = 48
"""Pictures, and captions, that graphs in another precision are checked on."""
RECIPE = 1
"""How graphs are made; another number where the same weights give other vectors."""


@dataclass(frozen=True)
class Towers:
    """A dual encoder in torch, as another library built it.

    Attributes:
        image: (B, 3, S, S) float, normalised -> (B, dim) float; where pictures come in patches, (B, N, values) float,
            the (B, N) mask of those that are there, and (B, 2) rows and columns.
        text: (B, T) int64 ids and mask -> (B, dim) float.
        modules: that hold the weights.
        picture: how pictures are prepared.
        words: how texts are prepared.
    """

    image: Callable[..., Tensor]
    text: Callable[[Tensor, Tensor], Tensor]
    modules: Sequence[Any]
    picture: PictureConfig
    words: TextConfig


def converted(
    family: str,
    source: str,
    files: Sequence[Path],
    precision: str,
    build: Callable[[Path], Towers],
) -> ModelFiles:
    """The graphs of a model, made now or before.

    Args:
        family: of formats, for the configuration.
        source: what a person calls the model.
        files: what it is made of; their content is its identity.
        precision: of the graphs' weights.
        build: reads the model; writes its ``tokenizer.json`` to the path that it is given.

    Raises:
        MissingExtraError: if torch or ``onnx`` is not installed.
        ModelError: if it cannot be read, or its graphs would not be good enough.
    """
    precision = precision or "float32"
    digest = hashlib.sha256(json.dumps([RECIPE, family, precision]).encode())
    for path in files:
        digest.update(sha256_of(path))
    key = digest.hexdigest()
    target = cache_folder() / "models" / key
    if not (target / "config.json").is_file():
        from tqdm import tqdm  # now, as it is slow to import

        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            scratch_folder(target) as scratch,
            tqdm(total=1, desc=f"{source} to ONNX, once", unit="model", leave=False, disable=None) as bar,
        ):
            made = scratch / "model"
            made.mkdir()
            _convert(family, source, precision, build, made, key)
            bar.update()
            if not (target / "config.json").is_file():  # another process may have been faster
                shutil.rmtree(target, ignore_errors=True)
                made.replace(target)
    files_made = open_own(target)
    return replace(files_made, config=replace(files_made.config, name=source))


def _convert(family: str, source: str, precision: str, build: Callable[[Path], Towers], folder: Path, key: str) -> None:
    """Write a hivlp model folder."""
    try:
        from hivlp.export.graphs import export_towers
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{source} has weights, not graphs; to convert them, hivlp", "train") from error
    towers = build(folder / TOKENIZER)
    tower = TowerConfig("converted", {"format": family, "precision": precision})
    # Checked before memory is asked for; how long the vectors are, the graphs will tell.
    config = checked_config(
        lambda: HiVLPConfig(source, (Level(ONLY_LEVEL, 1, 1, 1),), tower, tower, towers.picture, towers.words), source
    )
    samples = None if precision == "float32" else shipped_samples(towers, folder / TOKENIZER)
    dim, agreement = export_towers(
        towers.image, towers.text, towers.modules, towers.picture, towers.words, folder, precision, samples
    )
    checked = None if agreement is None else asdict(agreement)
    about = {"sha256": key, "precision": precision, "agreement_with_float32": checked}
    (folder / ORIGIN).write_text(json.dumps(about, indent=1), encoding="utf-8")
    config = replace(config, levels=(Level(ONLY_LEVEL, dim, 1, 1),))
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")


def shipped_samples(towers: Towers, tokenizer: Path) -> Samples:
    """Pictures that ship with the package and their captions, prepared for a model."""
    from hivlp.export.precision import Samples

    folder, shown = _shipped()
    pixels = np.stack([load_pixels(folder / each["file"], towers.picture) for each in shown])
    ids, mask = TextTokenizer(tokenizer, towers.words)([each["caption"] for each in shown])
    return Samples(pixels, ids, mask)


def shipped_captions() -> list[str]:
    """Captions of the pictures that ship with the package."""
    return [each["caption"] for each in _shipped()[1]]


def _shipped() -> tuple[Path, list[dict[str, str]]]:
    """The pictures' folder, and file and caption of some of them, spread over all."""
    folder = Path(str(resources.files("hivlp"))) / "assets" / "pictures"
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return folder, [json.loads(line) for line in lines[:: max(1, len(lines) // SAMPLES)][:SAMPLES]]
