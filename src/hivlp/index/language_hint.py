"""The hint to a query that the index's model cannot read."""

from __future__ import annotations

import logging
import unicodedata

from hivlp.encode.base import Encoder
from hivlp.hub.languages import foreign, languages_of, readers

logger = logging.getLogger(__name__)


class LanguageHint:
    """A look at queries that says once, as a warning of this module's logger, that a model cannot read one.

    A query is unreadable if its letters or words are none of the languages that the curated table names for the model,
    or if the tokenizer has no token for one of its words.
    """

    def __init__(self) -> None:
        self._given = False

    def look(self, model: Encoder, texts: list[str]) -> None:
        """Log the hint at the first text that the model cannot read."""
        if self._given:
            return
        languages = languages_of(getattr(model, "source", "") or model.name)
        for text in texts:
            strange = foreign(text, languages) or _unknown(model, text)
            if strange:
                self._given = True
                reads = f"reads {languages}" if languages else "has no tokens for it"
                names = ", ".join(readers(languages)[:4])
                logger.warning(
                    "%s %s, so %.40r means little to it; of `hivlp models`, %s read other languages",
                    model.name, reads, strange, names,
                )  # fmt: skip
                return


def _unknown(model: Encoder, text: str) -> str:
    """The words with letters for which the tokenizer has no token; of ASCII it has all."""
    unknown = None if text.isascii() else getattr(model, "unknown_words", None)
    if unknown is None:
        return ""
    words: list[str] = unknown(text)
    return " ".join(word for word in words if any(unicodedata.category(letter)[0] == "L" for letter in word))
