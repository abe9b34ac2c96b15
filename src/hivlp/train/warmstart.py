"""A model that retrieves before it has seen a single image-text pair.

All it takes is an image classifier, the names of its classes, and a sentence encoder:

* the finest image head is ConSE (Norouzi et al., 2014, eq. 3): the class names' text vectors, weighted by the
  classifier's softmax; its anchor adds what WordNet says of each class;
* a coarser level is the same in fewer dimensions, the principal directions of the text vectors; and where its text
  side reads an earlier layer, ridge regression makes that layer say what the last one says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from hivlp.errors import ModelError
from hivlp.model.heads import (
    AnchoredPrototypeHead,
    AnchoredResidualHead,
    LinearHead,
    MLPHead,
    PrototypeHead,
    ResidualHead,
)
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.train.backbones import class_names
from hivlp.train.wordnet import class_texts, read_nouns

# Inverse temperatures on the classifier's logits, chosen on validation: where training starts, and of the anchor.
SHARPNESS, ANCHOR_SHARPNESS = 0.5, 0.75
RIDGE = 0.01  # relative to the mean squared feature


@torch.no_grad()
def warm_start(model: HiVLPModel, tokenizer: Tokenizer, texts: Features) -> None:
    """Set every head as the module describes.

    Args:
        model: its image heads must be prototype heads, its finest text head a residual one (anchored or not).
        tokenizer: of the text tower, padding included.
        texts: layer -> (M, width), of any texts.

    Raises:
        ModelError: if the model's heads do not allow it.
    """
    names = class_names()
    sentences = model.text_features(*_tokens(tokenizer, [f"A {name}." for name in names]))
    last = model.text_tower.depth
    everything = {layer: torch.cat([texts[layer], sentences[layer]]) for layer in model.text_layers}
    target = F.normalize(everything[last], dim=-1)
    values = F.normalize(sentences[last], dim=-1)
    # Uncentred: vectors are compared by their angle to the origin.
    directions = torch.linalg.eigh(target.T @ target).eigenvectors.flip(1)
    for level in model.config.levels:
        image_head, text_head = model.image_heads[level.name], model.text_heads[level.name]
        basis = torch.eye(values.shape[1])
        if isinstance(image_head, AnchoredPrototypeHead) and isinstance(text_head, AnchoredResidualHead):
            image_head.anchor.copy_(_class_vectors(model, tokenizer, names))
            image_head.anchor_sharpness.fill_(ANCHOR_SHARPNESS)
            image_head = image_head.trained
        elif isinstance(text_head, (LinearHead, MLPHead)):
            basis = directions[:, : level.dim]
            weight, bias = ridge(everything[level.text_layer], target @ basis, RIDGE)
            text_head.project.weight.copy_(weight)
            text_head.project.bias.copy_(bias)
            if isinstance(text_head, MLPHead):
                text_head.out.weight.zero_()
                text_head.out.bias.zero_()
        elif not isinstance(text_head, ResidualHead):
            raise ModelError(f"level {level.name}: no warm start for a {type(text_head).__name__}")
        if not isinstance(image_head, PrototypeHead) or image_head.values.shape != (len(names), basis.shape[1]):
            raise ModelError(f"level {level.name}: a warm start needs a prototype head of the text head's size")
        image_head.project.weight.zero_()
        image_head.project.bias.zero_()
        image_head.values.copy_(values @ basis)
        image_head.sharpness.fill_(SHARPNESS)


def _class_vectors(model: HiVLPModel, tokenizer: Tokenizer, names: list[str]) -> Tensor:
    """(classes, D) unit vectors: the mean of what the text tower makes of each class's texts."""

    def embed(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 128):
            features = model.text_features(*_tokens(tokenizer, texts[start : start + 128]))
            parts.append(F.normalize(features[model.text_tower.depth], dim=-1))
        return torch.cat(parts)

    texts = class_texts(names, read_nouns(), embed)
    vectors = embed([text for triple in texts for text in triple]).view(len(names), 3, -1)
    return F.normalize(vectors.mean(1), dim=-1)


def ridge(inputs: Tensor, outputs: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Least squares with an intercept: ``weight`` (out, in) and ``bias`` (out,) of the linear map inputs -> outputs.

    Args:
        inputs: (N, in).
        outputs: (N, out).
        strength: penalty relative to the mean squared (centred) input.
    """
    mean_in, mean_out = inputs.mean(0), outputs.mean(0)
    centred = inputs - mean_in
    penalty = strength * centred.pow(2).mean() * len(inputs)
    gram = centred.T @ centred + penalty * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(gram, centred.T @ (outputs - mean_out)).T
    return weight.contiguous(), mean_out - weight @ mean_in


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    encodings = tokenizer.encode_batch(texts)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])
