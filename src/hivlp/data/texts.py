"""The tokenizer of a model, as training, adaptation, evaluation and search use it."""

from __future__ import annotations

import html
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hivlp.config import TextConfig
from hivlp.errors import ModelError

# A tokenizer cuts long texts only after it has split them; of longer ones, no more than so many characters are read.
LONGEST = 1 << 16
UNKNOWN = ("[UNK]", "<unk>")
"""What tokenizers call a piece of text for which they have no token."""
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


class TextTokenizer:
    """A tokenizer that prepares texts as one model wants them."""

    def __init__(self, path: Path, config: TextConfig) -> None:
        """Open a ``tokenizer.json``.

        Raises:
            ModelError: if it cannot be read.
        """
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"{path} cannot be read as a tokenizer: {str(error).splitlines()[0]}") from error
        self._set_up(backend, config)

    @classmethod
    def of(cls, backend: Tokenizer, config: TextConfig) -> TextTokenizer:
        """A tokenizer that is open already."""
        made = cls.__new__(cls)
        made._set_up(backend, config)
        return made

    def _set_up(self, backend: Tokenizer, config: TextConfig) -> None:
        self.config, self.backend = config, backend
        self.backend.enable_truncation(config.max_tokens, direction=config.truncation_side)
        self.backend.enable_padding(
            direction=config.padding_side,
            pad_id=config.pad_id,
            length=config.max_tokens if config.pad_to_max else None,
        )

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B, T) int64 ids and mask, cut, padded and lower-cased as the model was trained.

        T is the length of the longest text, or the model's ``max_tokens`` where it wants all texts that long.
        """
        cut = slice(LONGEST) if self.config.truncation_side == "right" else slice(-LONGEST, None)
        # A lone surrogate (half of a broken emoji) is not text that a tokenizer accepts.
        clean = [text[cut].encode("utf-8", "replace").decode("utf-8") for text in texts]
        if self.config.clean:
            clean = [_cleaned(text, self.config.clean) for text in clean]
        encodings = self.backend.encode_batch([text.lower() for text in clean] if self.config.lowercase else clean)
        return (
            np.array([encoding.ids for encoding in encodings], np.int64),
            np.array([encoding.attention_mask for encoding in encodings], np.int64),
        )

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text, cut at white space, that hold what the tokenizer has no token for."""
        unknown = {self.backend.token_to_id(token) for token in UNKNOWN} - {None}
        words = text.split() if unknown else []
        return [word for word in words if not unknown.isdisjoint(self([word])[0][0].tolist())]


def _cleaned(text: str, how: str) -> str:
    """A text as open_clip cleans it (:class:`hivlp.config.TextConfig`); what ftfy would mend stays."""
    text = html.unescape(html.unescape(text))
    if how == "canonicalize":
        text = text.translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())
