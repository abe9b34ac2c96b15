"""Princeton WordNet from Debian's ``wordnet-base`` (the format of ``wndb(5)``)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hivlp.errors import DataError

FOLDER = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
_ADJECTIVE_MARK = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand


@dataclass(frozen=True)
class Synset:
    """One sense: its words, the offsets of the senses it is a kind of, and its definition."""

    words: tuple[str, ...]
    kinds: tuple[str, ...]
    gloss: str


def wordnet_folder() -> Path:
    """The environment's ``HIVLP_WORDNET``, or Debian's place."""
    return Path(os.environ.get("HIVLP_WORDNET") or FOLDER)


def require_wordnet() -> None:
    """Find out whether WordNet is installed.

    Raises:
        DataError: if it is not.
    """
    if not (wordnet_folder() / "data.noun").is_file():
        raise DataError(f"WordNet is not at {wordnet_folder()}: apt-get install wordnet-base")


def read_synsets(part: str = "noun", folder: Path | None = None) -> dict[str, Synset]:
    """The senses of one part of speech by their offset in its file.

    Args:
        part: one of :data:`PARTS`.
        folder: that holds ``data.noun`` and the others; default :func:`wordnet_folder`.

    Raises:
        DataError: if it is not there.
    """
    path = (folder or wordnet_folder()) / f"data.{part}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"WordNet is not at {path.parent}: apt-get install wordnet-base") from error
    synsets = {}
    for line in lines:
        if line.startswith("  "):  # the licence, which comes first
            continue
        head, _, gloss = line.partition("|")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(_ADJECTIVE_MARK.sub("", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        at = 5 + 2 * count
        pointers = [fields[start : start + 4] for start in range(at, at + 4 * int(fields[at - 1]), 4)]
        kinds = tuple(offset for symbol, offset, _, _ in pointers if symbol in ("@", "@i"))
        synsets[fields[0]] = Synset(words, kinds, gloss.split(";")[0].strip())
    return synsets
