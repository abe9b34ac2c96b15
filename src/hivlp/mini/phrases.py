"""WordNet's nouns and glosses as texts for self-distillation, without the captions of held-out stamps."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from hivlp.mini.stamps import comparable, held_out_comparable
from hivlp.mini.wordnet import Synset, read_synsets, require_wordnet
from hivlp.train.distillation.self_distillation import TextSource

GLOSS_CHARACTERS = 80
_COMMON = re.compile(r"[a-z][a-z '-]{2,30}")
_FORMS = ("{}", "a {}", "the {}", "A {}.")


def read_phrases(seed: int) -> list[str]:
    """What somebody may look for: no caption of the stamps' test or validation part.

    Args:
        seed: of the choice of articles.

    Raises:
        DataError: if WordNet is not installed.
    """
    held_out = held_out_comparable()
    return [text for text in sentences(read_synsets(), seed) if comparable(text) not in held_out]


def sentences(nouns: Mapping[str, Synset], seed: int) -> list[str]:
    """Every common noun, with or without an article, and every short gloss.

    Args:
        nouns: from :func:`hivlp.mini.wordnet.read_synsets`.
        seed: of the choice of the article.
    """
    words = sorted({word for synset in nouns.values() for word in synset.words if _COMMON.fullmatch(word)})
    forms = np.random.default_rng(seed).integers(len(_FORMS), size=len(words))
    phrases = [_FORMS[form].format(word) for word, form in zip(words, forms, strict=True)]
    return phrases + sorted({synset.gloss for synset in nouns.values() if len(synset.gloss) < GLOSS_CHARACTERS})


TEXTS = TextSource(require_wordnet, read_phrases)
