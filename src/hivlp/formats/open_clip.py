"""open_clip folders (``open_clip_config.json``), MobileCLIP2 and PE-Core among them, through open_clip itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.errors import MissingExtraError, ModelError
from hivlp.files.reading import one_line, read_json
from hivlp.formats import open_clip_settings, preparation
from hivlp.formats.conversion import Towers, converted
from hivlp.formats.format import listing, present
from hivlp.formats.model_files import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
"""As open_clip prefers them."""


class OpenClipFormat:
    """A folder that open_clip's ``push_to_hf_hub`` wrote."""

    name, torch = "open_clip", True

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """See :meth:`Format.wanted`."""
        weights = present(WEIGHTS, names)[:1]
        return present([CONFIG, *preparation.FILES, *weights], names) if CONFIG in names and weights else []

    def check(self, folder: Path, source: str) -> None:
        """See :meth:`Format.check`."""
        _settings(folder, source)

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """See :meth:`Format.open`."""
        files = [folder / name for name in self.wanted(listing(folder), precision)]
        return converted(self.name, source, files, precision, lambda tokenizer: _towers(folder, source, tokenizer))


def _settings(folder: Path, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and its preparation's."""
    settings = read_json(folder / CONFIG, ModelError)
    model, prepare = settings.get("model_cfg"), settings.get("preprocess_cfg") or {}
    if not isinstance(model, dict) or not isinstance(model.get("text_cfg"), dict) or not isinstance(prepare, dict):
        raise ModelError(f"{source}: {CONFIG} has no model_cfg with a text_cfg")
    return model, prepare


def _towers(folder: Path, source: str, tokenizer: Path) -> Towers:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{source} is an open_clip model; to convert it, hivlp", "open_clip") from error
    settings, prepare = _settings(folder, source)
    try:
        # Weights-only loading is open_clip's default, and torch's.
        network = open_clip.create_model(f"local-dir:{folder}", weights_only=True).float().eval()
    except Exception as error:  # of files, of safetensors, of timm, of torch
        raise ModelError(f"{source} cannot be loaded: {one_line(error, 300)}") from error
    words = settings["text_cfg"]
    if (folder / preparation.TOKENIZER).is_file() or words.get("hf_tokenizer_name"):
        preparation.write_tokenizer(folder, source, tokenizer)
    else:
        write_clip_tokenizer(tokenizer)
    cut = open_clip_settings.reads_own_length(words)
    return Towers(
        image=network.encode_image,
        text=lambda ids, mask: _encode_at_own_length(network, ids) if cut else network.encode_text(ids),
        modules=[network],
        picture=open_clip_settings.picture_config(prepare, settings["vision_cfg"].get("image_size"), source),
        words=open_clip_settings.text_config(words, folder, tokenizer, source, cut=cut),
    )


def _encode_at_own_length(network: Any, ids: Tensor) -> Tensor:
    """Text embeddings as ``encode_text``, which wants its full context length, gives them: (B, T) ids -> (B, dim).

    Each token sees only those before it, and the vector is read at the end of the text, so what would follow changes
    nothing.
    """
    tower = getattr(network, "text", network)
    length = ids.shape[1]
    hidden = tower.token_embedding(ids) + tower.positional_embedding[:length]
    hidden = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length]))
    pooled = hidden.gather(1, ids.argmax(1)[:, None, None].expand(-1, -1, hidden.shape[2]))[:, 0]
    projection = tower.text_projection
    embedding: Tensor = projection(pooled) if callable(projection) else pooled @ projection
    return embedding


def write_clip_tokenizer(out: Path) -> None:
    """CLIP's own tokenizer, of the words and merges that open_clip brings along."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    known = SimpleTokenizer()
    start, end = known.sot_token_id, known.eot_token_id
    merges = sorted(known.bpe_ranks, key=known.bpe_ranks.__getitem__)
    tokenizer = Tokenizer(models.BPE(known.encoder, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    marks = {known.decoder[number]: number for number in (start, end)}
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    first, last = marks
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=list(marks.items())
    )
    tokenizer.save(str(out))
