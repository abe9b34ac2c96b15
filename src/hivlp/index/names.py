"""How a person spells the name of a file, and how it is stored."""

from __future__ import annotations

import unicodedata


def composed(value: object) -> object:
    """Text in composed Unicode (NFC); anything else as it is.

    Some systems spell é as one character and some as two; people see one letter, and type what their keyboard gives.
    """
    if isinstance(value, str) and not value.isascii():
        return unicodedata.normalize("NFC", value)
    return value
