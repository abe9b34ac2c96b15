"""Tokenizers of fusion models: ``tokenizer.json``, or BERT's ``vocab.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from hivlp.config import TextConfig
from hivlp.data.texts import TextTokenizer
from hivlp.errors import ModelError
from hivlp.files.reading import one_line, printable

UNUSED_POSITIONS = 2
"""Rows of RoBERTa's position table before that of a text's first token."""
FEWEST = 3
"""Tokens of a text of one word: its first and last are marks."""


class Tokens:
    """Ids of texts, as one fusion model wants them."""

    def __init__(
        self,
        folder: Path,
        most: int,
        *,
        vocabulary: int | None = None,
        positions: int | None = None,
        lowercase: bool = False,
    ) -> None:
        """Open a model folder's tokenizer.

        Args:
            folder: with ``tokenizer.json`` or ``vocab.txt``.
            most: tokens of a text, at most, its first and last included.
            vocabulary: ids that the model has embeddings of; None if that is not known.
            positions: that the model has embeddings of: no text is longer; None if that is not known.
            lowercase: whether a vocabulary without settings is of lower-case pieces.

        Raises:
            ModelError: if there is none, it cannot be read, or it is not the model's.
        """
        if positions is not None and positions < FEWEST:
            raise ModelError(f"{printable(folder)}: texts of {positions} tokens, the ends included, can say nothing")
        self._tokenizer = self._opened(folder, TextConfig(max_tokens=min(most, positions or most)), lowercase)
        highest = max(self._tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0)
        if vocabulary is not None and highest >= vocabulary:
            raise ModelError(
                f"{printable(folder)}: the tokenizer is of another model: it has ids up to {highest}, "
                f"the weights embeddings of {vocabulary}"
            )

    @staticmethod
    def _opened(folder: Path, config: TextConfig, lowercase: bool) -> TextTokenizer:
        path, words = folder / "tokenizer.json", folder / "vocab.txt"
        if path.is_file():
            return TextTokenizer(path, config)
        if not words.is_file():
            raise ModelError(f"{printable(folder)} has neither tokenizer.json nor vocab.txt")
        try:
            backend = wordpiece(words, lowercase=lowercase)
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"{printable(words)} is no vocabulary of BERT: {one_line(error)}") from error
        return TextTokenizer.of(backend, config)

    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """(T,) int64 ids of each text, without padding."""
        ids, mask = self._tokenizer(texts)
        lengths = mask.sum(1)
        return [torch.from_numpy(row[:length].copy()) for row, length in zip(ids, lengths, strict=True)]


def wordpiece(path: Path, *, lowercase: bool) -> Tokenizer:
    """BERT's tokenizer from its vocabulary, a piece a line.

    Args:
        path: of ``vocab.txt``.
        lowercase: whether texts are lower-cased and accents dropped first.
    """
    tokenizer = Tokenizer(models.WordPiece.from_file(str(path), unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    ends = [(each, tokenizer.token_to_id(each)) for each in ("[CLS]", "[SEP]")]
    if any(number is None for _, number in ends):
        raise ValueError("it has no [CLS] and [SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    return tokenizer
