"""``transformers`` dual encoders: CLIP, SigLIP, SigLIP2, ALIGN, AltCLIP, Chinese-CLIP and MetaCLIP 2.

Weights in safetensors, or in ``.bin`` files, which torch's weights-only loader reads: no pickled code is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.errors import MissingExtraError, ModelError
from hivlp.files.reading import one_line, read_json
from hivlp.formats import preparation
from hivlp.formats.conversion import Towers, converted
from hivlp.formats.format import present
from hivlp.formats.model_files import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = ("clip", "siglip", "siglip2", "align", "altclip", "chinese_clip", "metaclip_2")
"""``model_type`` of the configurations that are known."""
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin",
         "pytorch_model.bin.index.json", *preparation.FILES)  # fmt: skip
"""Patterns of what a checkpoint needs."""
_MASKED_POSITIONS = ("altclip",)


class TransformersFormat:
    """A folder with ``config.json`` and the weights of a ``transformers`` model."""

    name, torch = "transformers", True

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """See :meth:`Format.wanted`: safetensors where there are any, else ``.bin``."""
        weights = weight_files(names)
        known = weights and "config.json" in names
        return present(["config.json", *preparation.FILES, *weights], names) if known else []

    def check(self, folder: Path, source: str) -> None:
        """See :meth:`Format.check`."""
        family(folder, source)
        preparation.picture_settings(folder, source)

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """See :meth:`Format.open`."""
        return open_checkpoint(folder, source, precision, self.name)


def open_checkpoint(folder: Path, source: str, precision: str, format_name: str) -> ModelFiles:
    """The graphs of a ``transformers`` checkpoint.

    Raises:
        ModelError: if it is none that hivlp can use.
        MissingExtraError: if ``transformers`` is not installed.
    """
    kind = family(folder, source)
    names = [path.name for path in folder.iterdir()]
    files = [folder / name for name in present(["config.json", *preparation.FILES, *weight_files(names)], names)]
    return converted(format_name, source, files, precision, lambda tokenizer: _towers(folder, source, kind, tokenizer))


def weight_files(names: Sequence[str]) -> list[str]:
    """The files of weights that are read, of those that are there."""
    known = set(names)
    for whole in (SAFE, PICKLED):
        if whole in known:
            return [whole]
        if f"{whole}.index.json" in known:
            stem, suffix = whole.rsplit(".", 1)
            return [f"{whole}.index.json", *(n for n in names if n.startswith(f"{stem}-") and n.endswith(suffix))]
    return []


def family(folder: Path, source: str) -> str:
    """``model_type`` of a checkpoint.

    Raises:
        ModelError: if hivlp does not know it, naming what it knows.
    """
    kind = read_json(folder / "config.json", ModelError).get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{source} is a {kind} model; hivlp reads {', '.join(FAMILIES)}: `hivlp models` names some")
    return str(kind)


def load_network(folder: Path, source: Path | str) -> Any:
    """A checkpoint as the torch module of its own class, in float32.

    Raises:
        MissingExtraError: if ``transformers`` is not installed.
        ModelError: if it cannot be loaded, or lacks weights.
    """
    try:
        from transformers import AutoModel
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{source} has weights, not graphs; to convert them, hivlp", "train") from error
    safe = weight_files([path.name for path in folder.iterdir()])[:1] not in ([PICKLED], [f"{PICKLED}.index.json"])
    try:
        network, found = AutoModel.from_pretrained(
            folder, use_safetensors=safe, weights_only=True, output_loading_info=True, trust_remote_code=False,
            attn_implementation="eager",
        )  # fmt: skip
    except Exception as error:  # of files, of safetensors, of torch
        raise ModelError(f"{source} cannot be loaded: {one_line(error, 300)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"{source} lacks {len(missing)} of its weights, the first of them {missing[0]}")
    return network.float().eval()


def _towers(folder: Path, source: str, kind: str, tokenizer: Path) -> Towers:
    network = load_network(folder, source)
    text = network.config.text_config
    side = int(network.config.vision_config.image_size) if kind not in ("align", "siglip2") else None
    positions = int(text.max_position_embeddings)
    if kind in _MASKED_POSITIONS:  # as RoBERTa's, which are counted from beyond the padding's own
        positions -= int(text.pad_token_id) + 1
    preparation.write_tokenizer(folder, source, tokenizer)

    def image(pixels: Tensor, mask: Tensor | None = None, grid: Tensor | None = None) -> Tensor:
        patches = {} if mask is None else {"pixel_attention_mask": mask, "spatial_shapes": grid}
        return _pooled(network.get_image_features(pixel_values=pixels, **patches))

    return Towers(
        image=image,
        # SigLIP was trained with its padding visible and takes no mask.
        text=lambda ids, mask: _pooled(
            network.get_text_features(input_ids=ids, attention_mask=None if kind.startswith("siglip") else mask)
        ),
        modules=[network],
        picture=preparation.picture_config(folder, source, side),
        words=preparation.text_config(folder, source, tokenizer, kind, positions),
    )


def _pooled(output: Any) -> Tensor:
    """The embedding; ``transformers`` 5 gives it in an object."""
    pooled: Tensor = getattr(output, "pooler_output", output)
    return pooled


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder holds a ``transformers`` model rather than one of ours."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
