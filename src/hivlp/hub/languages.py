"""Languages that a model reads, and the hint to a query that is in another one."""

from __future__ import annotations

import re
import unicodedata

from hivlp.hub.names import SHIPPED
from hivlp.hub.table import MODELS

ENGLISH = "English"
# Words without content that English lacks. One of the first is enough; of the second, which are in names ("Rio de
# Janeiro", "van Gogh") or mean something in English, two different ones.
_FOREIGN = re.compile(
    r"ein|eine|einem|einen|einer|und|mit|auf|neben|zwei|une|avec|dans|deux|aux|una|unas|unos|nella|sulla|sul|uma|een|"
    r"het|twee|och|på|två|bir|iki"
)
_SHARED = re.compile(
    r"la|le|les|el|los|las|il|lo|der|die|das|dem|den|de|del|della|di|da|do|du|van|von|un|en|est|et|des|sur|sous|y|con|"
    r"dos|em|com|op|met|med|ett|na|due|im|zum|zur"
)
_ENGLISH = re.compile(r"an?|the|of|on|in|at|with|and|is|are|to|for|from|by|near|under|over|two|his|her|its")
_COMMON = ("MICRO", "FEMININE", "MASCULINE")  # µ, ª and º are letters to Unicode, and no foreign ones
_WORD = re.compile(r"[^\W\d_]+")


def languages_of(model: str) -> str:
    """What the curated table says of a model's languages; empty for a model that is not in it.

    Args:
        model: short name or hub id, with revision and precision or without.
    """
    name = model.partition("@")[0].partition(":")[0]
    if name == SHIPPED:
        return ENGLISH
    return next((entry.languages for short, entry in MODELS.items() if name in (short, entry.hub_id)), "")


def foreign(text: str, languages: str) -> str:
    """What in a text is none of a model's languages; empty if nothing is, or nobody can tell.

    Letters tell most: a model of English reads Latin ones, a model of Chinese Han characters. Of Latin letters, words
    such as articles and prepositions tell; a single noun may be of any language.

    Args:
        text: a query.
        languages: as the table has them.
    """
    if languages == ENGLISH:
        if not text.isascii() and (strange := _letters(text, "LATIN")):
            return strange
        words = _WORD.findall(text.lower())
        if any(map(_ENGLISH.fullmatch, words)):
            return ""
        told = [word for word in words if _FOREIGN.fullmatch(word)]
        shared = [word for word in dict.fromkeys(words) if _SHARED.fullmatch(word)]
        return " ".join(told or (shared if len(shared) > 1 else []))
    if languages == "Chinese" and text.isascii() and _WORD.search(text):
        return text.strip()
    return ""


def readers(languages: str) -> list[str]:
    """Short names of the table's models that read more than these languages."""
    return [short for short, entry in MODELS.items() if entry.languages not in (ENGLISH, languages)]


def _letters(text: str, script: str) -> str:
    """The words of a text with letters outside a script."""
    found = [word for word in text.split() if any(_outside(letter, script) for letter in word)]
    return " ".join(found)


def _outside(letter: str, script: str) -> bool:
    return letter.isalpha() and not unicodedata.name(letter, script).startswith(
        (script, "MICRO", "FEMININE", "MASCULINE")
    )
