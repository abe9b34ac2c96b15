"""A coarse level learnt from the finest one alone: no pairs, only texts.

A few thousand pairs teach a coarse level by heart what they hold, and it forgets what the towers knew of everything
else. The finest level is a better teacher, because it can be asked about any text:

* the coarse image vector is the finest one in fewer dimensions, the principal directions of the finest text vectors;
* the coarse text head learns to say from an earlier layer what the finest text vector says in those directions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.data.stamps import comparable, held_out_comparable
from hivlp.errors import ModelError
from hivlp.levels import Level
from hivlp.model.heads import LinearHead, MLPHead, ProjectionHead
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.train.features import text_features
from hivlp.train.recipe import SelfDistillation
from hivlp.train.wordnet import read_nouns, sentences

RIDGE = 0.001  # relative to the mean squared feature
WARMUP = 50


def distil(model: HiVLPModel, tokenizer: Tokenizer, captions: Features, config: SelfDistillation, seed: int) -> None:
    """Teach every coarser level, by the captions of a training set and by WordNet's nouns and glosses.

    Texts that equal a caption of the stamps' test or validation part are left out.

    Args:
        model: on the CPU, in evaluation mode.
        tokenizer: of the text tower, padding included.
        captions: layer -> (M, width), the features of the captions.
        config: how long to learn, and from what.
        seed: of every draw.

    Raises:
        ModelError: if the heads do not allow it.
        DataError: if WordNet is not installed.
    """
    texts = captions
    weights = torch.ones(len(next(iter(captions.values()))))
    if config.texts:
        held_out = held_out_comparable()
        more = [text for text in sentences(read_nouns(), seed) if comparable(text) not in held_out]
        order = np.random.default_rng(seed).permutation(len(more))
        more = [more[number] for number in order[: config.texts]]
        features = text_features(model, tokenizer, more)
        texts = {layer: torch.cat([captions[layer], features[layer]]) for layer in captions}
        others = torch.full((len(more),), (1 - config.captions) / len(more))
        weights = torch.cat([weights * config.captions / len(weights), others])
    for level in model.config.levels[:-1]:
        distil_level(model, level, texts, weights, config, seed)


def distil_level(
    model: HiVLPModel, level: Level, texts: Features, weights: Tensor, config: SelfDistillation, seed: int
) -> None:
    """Fit a coarser level's heads to the finest level, which stays as it is.

    The text head starts from ridge regression and goes on with AdamW on one minus the cosine.

    Args:
        model: on the CPU, in evaluation mode.
        level: has a projection head for pictures, and a linear or MLP head for texts.
        texts: layer -> (M, width), of any texts.
        weights: (M,) how often each text is drawn, up to a factor.
        config: how long to learn.
        seed: of the draw.

    Raises:
        ModelError: if the heads do not allow it.
    """
    image_head, text_head = model.image_heads[level.name], model.text_heads[level.name]
    if not isinstance(image_head, ProjectionHead) or not isinstance(text_head, (LinearHead, MLPHead)):
        raise ModelError(f"level {level.name}: needs a projection head for pictures, a linear or MLP head for texts")
    finest = model.config.levels[-1]
    with torch.no_grad():
        target = model.text_heads[finest.name](texts[finest.text_layer])
        # Uncentred: vectors are compared by their angle to the origin.
        scatter = (target * weights[:, None]).T @ target
        directions = torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, : level.dim]
        image_head.project.weight.copy_(directions.T)
        target = target @ directions
        features = texts[level.text_layer]
        mean, deviation = features.mean(0), features.std()
        features = (features - mean) / deviation
        weight, bias = ridge(features, target, RIDGE, weights)
        text_head.project.weight.copy_(weight)
        text_head.project.bias.copy_(bias)
        if isinstance(text_head, MLPHead):
            nn.init.zeros_(text_head.out.weight)
            nn.init.zeros_(text_head.out.bias)
    _learn(text_head, features, F.normalize(target, dim=-1), weights, config, seed)
    with torch.no_grad():  # the head will see features as the tower gives them
        for layer in (text_head.project, text_head.hidden) if isinstance(text_head, MLPHead) else (text_head.project,):
            layer.weight.div_(deviation)
            layer.bias.sub_(layer.weight @ mean)


def _learn(
    head: nn.Module, features: Tensor, target: Tensor, weights: Tensor, config: SelfDistillation, seed: int
) -> None:
    """AdamW with a short warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    upto = weights.double().cumsum(0).numpy()
    rng = np.random.default_rng(seed)
    for step in tqdm(range(config.steps), desc="self-distillation", unit="step"):
        factor = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        drawn = np.searchsorted(upto, rng.random(config.batch_size) * upto[-1], side="right")
        rows = torch.from_numpy(drawn.clip(max=len(target) - 1))
        loss = (1 - (head(features[rows]) * target[rows]).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ridge(inputs: Tensor, outputs: Tensor, strength: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least squares with an intercept: ``weight`` (out, in) and ``bias`` (out,) of the linear map inputs -> outputs.

    Args:
        inputs: (N, in).
        outputs: (N, out).
        strength: penalty relative to the mean squared (centred) input.
        weights: (N,) how much each row counts; equally by default.
    """
    share = torch.full((len(inputs), 1), 1 / len(inputs)) if weights is None else (weights / weights.sum())[:, None]
    mean_in, mean_out = (share * inputs).sum(0), (share * outputs).sum(0)
    centred = inputs - mean_in
    gram = (share * centred).T @ centred
    gram += strength * gram.diagonal().mean() * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(gram, (share * centred).T @ (outputs - mean_out)).T
    return weight.contiguous(), mean_out - weight @ mean_in
