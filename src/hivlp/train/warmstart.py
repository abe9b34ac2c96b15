"""A model that retrieves before it has seen a single image-text pair.

All it takes is an image classifier, the names of its classes, and a sentence encoder:

* the finest image head is ConSE (Norouzi et al., 2014, eq. 3): the class names' text vectors, weighted by the
  classifier's softmax;
* a coarser level is the same in fewer dimensions, the principal directions of the text vectors; and where it reads
  an earlier layer, ridge regression makes that layer say what the last one says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from hivlp.errors import ModelError
from hivlp.model.heads import LinearHead, MLPHead, PrototypeHead, ResidualHead
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import Features
from hivlp.train.backbones import class_names

SHARPNESS = 0.5  # inverse temperature on the classifier's logits; chosen on validation among 0.5, 1
IMAGE_RIDGE, TEXT_RIDGE = 0.1, 0.01  # relative to the mean squared feature


@torch.no_grad()
def warm_start(model: HiVLPModel, tokenizer: Tokenizer, images: Features, texts: Features) -> None:
    """Set every head as the module describes.

    Args:
        model: its image tower must have a ``classifier``, its image heads must be prototype heads.
        tokenizer: of the text tower, padding included.
        images: layer -> (N, width), of any pictures.
        texts: layer -> (M, width), of any texts; their captions need not belong to ``images``.

    Raises:
        ModelError: if the model's towers or heads do not allow it.
    """
    names = [f"A {name}." for name in class_names()]
    classifier = getattr(model.image_tower, "classifier", None)
    if classifier is None or classifier.out_features != len(names):
        raise ModelError("a warm start needs an image tower with an ImageNet classifier")
    last_image, last_text = model.image_tower.depth, model.text_tower.depth
    finest = model.config.levels[-1]
    if (finest.image_layer, finest.text_layer) != (last_image, last_text):
        raise ModelError("a warm start needs a finest level that reads the last layers")
    if not isinstance(model.text_heads[finest.name], ResidualHead):
        raise ModelError("a warm start needs a residual text head at the finest level")

    classes = model.text_features(*_tokens(tokenizer, names))
    everything = {layer: torch.cat([texts[layer], classes[layer]]) for layer in model.text_layers}
    target = F.normalize(everything[last_text], dim=-1)
    values = F.normalize(classes[last_text], dim=-1)
    logits = classifier(images[last_image])
    # Uncentred: vectors are compared by their angle to the origin.
    directions = torch.linalg.eigh(target.T @ target).eigenvectors.flip(1)
    for level in model.config.levels:
        image_head, text_head = model.image_heads[level.name], model.text_heads[level.name]
        if not isinstance(image_head, PrototypeHead) or image_head.keys.out_features != len(names):
            raise ModelError(f"level {level.name}: a warm start needs {len(names)} prototypes in the image head")
        basis = torch.eye(values.shape[1]) if level is finest else directions[:, : level.dim]
        image_head.project.weight.zero_()
        image_head.project.bias.zero_()
        image_head.values.copy_(values @ basis)
        if level.image_layer == last_image:
            weight, bias = classifier.weight, classifier.bias
        else:
            weight, bias = ridge(images[level.image_layer], logits, IMAGE_RIDGE)
        image_head.keys.weight.copy_(SHARPNESS * weight)
        image_head.keys.bias.copy_(SHARPNESS * bias)
        if isinstance(text_head, (LinearHead, MLPHead)):
            weight, bias = ridge(everything[level.text_layer], target @ basis, TEXT_RIDGE)
            text_head.project.weight.copy_(weight)
            text_head.project.bias.copy_(bias)
        if isinstance(text_head, MLPHead):
            text_head.out.weight.zero_()
            text_head.out.bias.zero_()


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
