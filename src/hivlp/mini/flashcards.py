"""Art4Apps' flash cards as Debian packages them (pysiogame): some 580 drawings, each with the word that it stands for.

Training data only: a card whose word is the caption of a held-out stamp, or which shows its drawing, is left out.
"""

from __future__ import annotations

import os
from pathlib import Path

from hivlp.data.pairs import Pair
from hivlp.data.readers.reader import Reader
from hivlp.errors import DataError
from hivlp.mini.stamps import FAMILY, comparable, held_out_comparable, without_held_out_pictures

DEFAULT_ROOT = Path("/usr/share/games/pysiogame/res/images/art4apps")


def read_flashcards(root: Path | None = None) -> list[Pair]:
    """Read the cards, ordered by path; all of them are ``train``.

    Args:
        root: the folder of the cards, one folder a theme; by default the environment's ``HIVLP_FLASHCARDS``, or where
            Debian puts it.

    Raises:
        DataError: if they are not installed.
    """
    root = root or Path(os.environ.get("HIVLP_FLASHCARDS") or DEFAULT_ROOT)
    if not root.is_dir():
        raise DataError(f"no flash cards at {root}: apt-get install pysiogame, or set HIVLP_FLASHCARDS")
    held_out = held_out_comparable()
    words = [(path, path.stem.replace("_", " ")) for path in sorted(root.glob("*/*.jpg"))]
    pairs = [
        Pair(path.relative_to(root).as_posix(), path, (word,))
        for path, word in words
        if comparable(word) not in held_out
    ]
    return without_held_out_pictures(pairs)


READER = Reader(lambda _: read_flashcards(), family=FAMILY)
