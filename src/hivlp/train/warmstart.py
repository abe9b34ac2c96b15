"""A model that retrieves before it has seen a single image-text pair.

All it takes is an image classifier, the names of its classes, and a sentence encoder: the finest image head is ConSE
(Norouzi et al., 2014, eq. 3), the class names' text vectors weighted by the classifier's softmax, and its anchor adds
what WordNet says of each class. Coarser levels come from the finest (:mod:`hivlp.train.selfdistill`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hivlp.encode.text import TextTokenizer
from hivlp.errors import ModelError
from hivlp.model.heads import AnchoredPrototypeHead, AnchoredResidualHead, PrototypeHead, ResidualHead
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.train.backbones import class_names
from hivlp.train.features import text_features
from hivlp.train.wordnet import class_texts, read_nouns

# Inverse temperatures on the classifier's logits, chosen on validation: where training starts, and of the anchor.
SHARPNESS, ANCHOR_SHARPNESS = 0.5, 0.75


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
        texts = class_texts(names, read_nouns(), embed)
        vectors = embed([text for triple in texts for text in triple]).view(len(names), 3, -1)
        image_head.anchor.copy_(F.normalize(vectors.mean(1), dim=-1))
        image_head.anchor_sharpness.fill_(ANCHOR_SHARPNESS)
        image_head, text_head = image_head.trained, text_head.trained
    if not isinstance(image_head, PrototypeHead) or not isinstance(text_head, ResidualHead):
        raise ModelError(f"level {finest}: a warm start needs a prototype head for pictures, a residual one for texts")
    image_head.project.weight.zero_()
    image_head.project.bias.zero_()
    image_head.values.copy_(embed([f"A {name}." for name in names]))
    image_head.sharpness.fill_(SHARPNESS)
