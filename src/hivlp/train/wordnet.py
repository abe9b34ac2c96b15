"""What WordNet says of a classifier's classes: their kinds and their glosses.

A class name such as *tench* is a rare word to a sentence encoder; "tench, cyprinid, cypriniform fish" is not. Princeton
WordNet is read from Debian's ``wordnet-base``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hivlp.errors import DataError

FOLDER = Path("/usr/share/wordnet")
SENSES = 8  # per name; WordNet lists the frequent ones first
KINDS = 2
GLOSS_CHARACTERS = 80
_COMMON = re.compile(r"[a-z][a-z '-]{2,30}")
_FORMS = ("{}", "a {}", "the {}", "A {}.")


@dataclass(frozen=True)
class Synset:
    """One sense: its words, the offsets of the senses it is a kind of, and its definition."""

    words: tuple[str, ...]
    kinds: tuple[str, ...]
    gloss: str


def read_nouns(folder: Path | None = None) -> dict[str, Synset]:
    """WordNet's nouns by offset (the format of ``wndb(5)``).

    Args:
        folder: holds ``data.noun``; default the environment's ``HIVLP_WORDNET``, or Debian's place.

    Raises:
        DataError: if it is not there.
    """
    path = (folder or Path(os.environ.get("HIVLP_WORDNET", FOLDER))) / "data.noun"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"WordNet is not at {path.parent}: apt-get install wordnet-base") from error
    nouns = {}
    for line in lines:
        if line.startswith("  "):  # the licence, which comes first
            continue
        head, _, gloss = line.partition("|")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        at = 5 + 2 * count
        pointers = [fields[start : start + 4] for start in range(at, at + 4 * int(fields[at - 1]), 4)]
        kinds = tuple(offset for symbol, offset, _, _ in pointers if symbol in ("@", "@i"))
        nouns[fields[0]] = Synset(words, kinds, gloss.split(";")[0].strip())
    return nouns


def sentences(nouns: dict[str, Synset], seed: int) -> list[str]:
    """What somebody may look for: every common noun, with or without an article, and every short gloss.

    Args:
        nouns: from :func:`read_nouns`.
        seed: of the choice of the article.
    """
    words = sorted({word for synset in nouns.values() for word in synset.words if _COMMON.fullmatch(word)})
    forms = np.random.default_rng(seed).integers(len(_FORMS), size=len(words))
    phrases = [_FORMS[form].format(word) for word, form in zip(words, forms, strict=True)]
    return phrases + sorted({synset.gloss for synset in nouns.values() if len(synset.gloss) < GLOSS_CHARACTERS})


def class_texts(
    names: Sequence[str], nouns: dict[str, Synset], embed: Callable[[list[str]], Tensor]
) -> list[list[str]]:
    """Three ways to put each class: its name, the name with its kinds, the name with its gloss.

    Of a name's senses the one is taken whose words and gloss are closest to the name in the encoder's own space: the
    curated names ("crane bird", "construction crane") say which is meant.

    Args:
        names: of the classes.
        nouns: from :func:`read_nouns`.
        embed: texts to (N, D) unit vectors.

    Returns:
        For each name three texts; the name itself where WordNet does not know it.
    """
    by_word: dict[str, list[str]] = {}
    for offset, synset in nouns.items():
        for word in synset.words:
            by_word.setdefault(word.lower(), []).append(offset)
    candidates = [_senses(name, by_word) for name in names]
    flat = [nouns[offset] for offsets in candidates for offset in offsets]
    described = embed([f"{', '.join(synset.words[:3])}: {synset.gloss}" for synset in flat])
    wanted = embed(list(names))
    texts, start = [], 0
    for number, (name, offsets) in enumerate(zip(names, candidates, strict=True)):
        if not offsets:
            texts.append([name] * 3)
            continue
        scores = described[start : start + len(offsets)] @ wanted[number]
        start += len(offsets)
        synset = nouns[offsets[int(torch.argmax(scores))]]
        texts.append([name, ", ".join([name, *_kinds(synset, nouns)]), f"{name}: {synset.gloss}"])
    return texts


def _senses(name: str, by_word: dict[str, list[str]]) -> list[str]:
    """Offsets of the senses that a class name may mean; those of its last word if the whole is unknown."""
    plain = re.sub(r"\(.*?\)", "", name.lower()).strip()
    found: list[str] = []
    for part in [plain, *(part.strip() for part in re.split(r" or |/|,", plain))]:
        found += by_word.get(part, []) + by_word.get(part.replace(" ", "-"), [])
        if part.endswith("s"):
            found += by_word.get(part[:-1], [])
    found = found or by_word.get(plain.split()[-1], [])
    return list(dict.fromkeys(found))[:SENSES]


def _kinds(synset: Synset, nouns: dict[str, Synset]) -> list[str]:
    kinds: list[str] = []
    while synset.kinds and len(kinds) < KINDS:
        synset = nouns[synset.kinds[0]]
        kinds.append(synset.words[0])
    return kinds
