"""Warm start by ConSE: a model that retrieves before it has seen an image-text pair.

All it takes is an image classifier, the names of its classes, and a sentence encoder: the finest image head is ConSE
(Norouzi et al., 2014, eq. 3), the class names' text vectors weighted by the classifier's softmax, and its anchor adds
what WordNet says of each class: *tench* is a rare word to a sentence encoder, "tench, cyprinid, cypriniform fish" is
not. Coarser levels come from the finest (:mod:`hivlp.train.distillation.self_distillation`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hivlp.data.texts import TextTokenizer
from hivlp.errors import ModelError
from hivlp.mini.backbones import CLASS_NAMES, class_names, require
from hivlp.mini.heads import AnchoredPrototypeHead, AnchoredResidualHead, PrototypeHead
from hivlp.mini.wordnet import Synset, read_synsets, require_wordnet
from hivlp.model.heads import ResidualHead
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.train.inputs.features import text_features
from hivlp.train.weights import WarmStart

# Inverse temperatures on the classifier's logits, chosen on validation: where training starts, and of the anchor.
SHARPNESS, ANCHOR_SHARPNESS = 0.5, 0.75
SENSES = 8  # per name; WordNet lists the frequent ones first
KINDS = 2


@torch.no_grad()
def warm_start(model: HiVLPModel, tokenizer: TextTokenizer) -> None:
    """Set the finest level's heads as the module describes.

    Args:
        model: its finest level has a prototype head for pictures and a residual one for texts, both anchored or not.
        tokenizer: of the text tower.

    Raises:
        ModelError: if the model's heads do not allow it.
    """

    def embed(texts: list[str]) -> Tensor:
        return F.normalize(text_features(model, tokenizer, texts)[model.text_tower.depth], dim=-1)

    names = class_names()
    finest = model.config.levels[-1].name
    image_head, text_head = model.image_heads[finest], model.text_heads[finest]
    if isinstance(image_head, AnchoredPrototypeHead) and isinstance(text_head, AnchoredResidualHead):
        texts = class_texts(names, read_synsets(), embed)
        vectors = embed([text for triple in texts for text in triple]).view(len(names), 3, -1)
        image_head.anchor.copy_(F.normalize(vectors.mean(1), dim=-1))
        image_head.anchor_sharpness.fill_(ANCHOR_SHARPNESS)
        text_head.classes.copy_(image_head.anchor)
        image_head, text_head = image_head.trained, text_head.trained
    if not isinstance(image_head, PrototypeHead) or not isinstance(text_head, ResidualHead):
        raise ModelError(f"level {finest}: a warm start needs a prototype head for pictures, a residual one for texts")
    image_head.project.weight.zero_()
    image_head.project.bias.zero_()
    image_head.values.copy_(embed([f"A {name}." for name in names]))
    image_head.sharpness.fill_(SHARPNESS)


def class_texts(
    names: Sequence[str], nouns: Mapping[str, Synset], embed: Callable[[list[str]], Tensor]
) -> list[list[str]]:
    """Three ways to put each class: its name, the name with its kinds, the name with its gloss.

    Of a name's senses the one is taken whose words and gloss are closest to the name in the encoder's own space: the
    curated names ("crane bird", "construction crane") say which is meant.

    Args:
        names: of the classes.
        nouns: from :func:`hivlp.mini.wordnet.read_synsets`.
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


def _kinds(synset: Synset, nouns: Mapping[str, Synset]) -> list[str]:
    kinds: list[str] = []
    while synset.kinds and len(kinds) < KINDS:
        synset = nouns[synset.kinds[0]]
        kinds.append(synset.words[0])
    return kinds


def _require() -> None:
    require(CLASS_NAMES)
    require_wordnet()


WARM_START = WarmStart((("prototype", "residual"), ("anchored_prototype", "anchored_residual")), _require, warm_start)
