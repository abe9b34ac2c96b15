"""A coarse level learnt from the finest one alone: texts and pictures, but no pairs.

A few thousand pairs teach a coarse level by heart what they hold, and it forgets what the towers knew of everything
else. The finest level is a better teacher, because it can be asked about any text:

* the coarse image vector is the finest one in fewer dimensions, those on which the scores of texts depend;
* the coarse text head learns to say from an earlier layer what the finest text vector says in these dimensions, and to
  rank pictures as the finest level ranks them (:func:`hivlp.objective.ranking_distillation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.data.stamps import comparable, held_out_comparable
from hivlp.errors import ModelError
from hivlp.levels import Level
from hivlp.model.heads import LinearHead, MLPHead, ProjectionHead
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.objective import ranking_distillation
from hivlp.train.features import text_features
from hivlp.train.recipe import Recipe, SelfDistillation
from hivlp.train.wordnet import read_nouns, sentences

RIDGE = 0.001  # relative to the mean squared feature
WARMUP = 50


@dataclass(frozen=True)
class DistillationData:
    """What the finest level is asked about.

    Attributes:
        texts: layer -> (M, width) features.
        weights: (M,) how often each text is drawn, up to a factor.
        pictures: (N, D) vectors of the finest level.
    """

    texts: Features
    weights: Tensor
    pictures: Tensor


def distil(
    model: HiVLPModel, tokenizer: Tokenizer, captions: Features, views: Sequence[Features], recipe: Recipe
) -> None:
    """Teach every coarser level, by captions, by WordNet's nouns and glosses, and by pictures.

    Texts that equal a caption of the stamps' test or validation part are left out.

    Args:
        model: on the CPU, in evaluation mode.
        tokenizer: of the text tower, padding included.
        captions: layer -> (M, width), the features of the training set's captions.
        views: layer -> (N, width), the features of its pictures, in one or more views.
        recipe: with ``self_distillation``.

    Raises:
        ModelError: if the heads do not allow it.
        DataError: if WordNet is not installed.
    """
    config = recipe.self_distillation or SelfDistillation()
    texts = captions
    weights = torch.ones(len(next(iter(captions.values()))))
    if config.texts:
        held_out = held_out_comparable()
        more = [text for text in sentences(read_nouns(), recipe.seed) if comparable(text) not in held_out]
        order = np.random.default_rng(recipe.seed).permutation(len(more))
        more = [more[number] for number in order[: config.texts]]
        features = text_features(model, tokenizer, more)
        texts = {layer: torch.cat([captions[layer], features[layer]]) for layer in captions}
        others = torch.full((len(more),), (1 - config.captions) / len(more))
        weights = torch.cat([weights * config.captions / len(weights), others])
    with torch.no_grad():
        pictures = torch.cat([model.project_image(view)[model.config.levels[-1].name] for view in views])
    for level in model.config.levels[:-1]:
        distil_level(model, level, DistillationData(texts, weights, pictures), recipe)


def distil_level(model: HiVLPModel, level: Level, data: DistillationData, recipe: Recipe) -> None:
    """Fit a coarser level's heads to the finest level, which stays as it is.

    The text head starts from ridge regression and goes on with AdamW.

    Args:
        model: on the CPU, in evaluation mode.
        level: has a projection head for pictures, and a linear or MLP head for texts.
        data: what the teacher is asked about.
        recipe: gives the seed, the teacher's temperature, and how long to learn.

    Raises:
        ModelError: if the heads do not allow it.
    """
    image_head, text_head = model.image_heads[level.name], model.text_heads[level.name]
    if not isinstance(image_head, ProjectionHead) or not isinstance(text_head, (LinearHead, MLPHead)):
        raise ModelError(f"level {level.name}: needs a projection head for pictures, a linear or MLP head for texts")
    finest = model.config.levels[-1]
    with torch.no_grad():
        teacher = model.text_heads[finest.name](data.texts[finest.text_layer])
        directions = score_directions(teacher, data.weights, data.pictures, level.dim)
        image_head.project.weight.copy_(directions.T)
        features = data.texts[level.text_layer]
        mean, deviation = features.mean(0), features.std()
        features = (features - mean) / deviation
        weight, bias = ridge(features, teacher @ directions, RIDGE, data.weights)
        text_head.project.weight.copy_(weight)
        text_head.project.bias.copy_(bias)
        if isinstance(text_head, MLPHead):
            nn.init.zeros_(text_head.out.weight)
            nn.init.zeros_(text_head.out.bias)
    _learn(text_head, features, teacher, image_head, data, recipe)
    with torch.no_grad():  # the head will see features as the tower gives them
        for layer in (text_head.project, text_head.hidden) if isinstance(text_head, MLPHead) else (text_head.project,):
            layer.weight.div_(deviation)
            layer.bias.sub_(layer.weight @ mean)


def score_directions(texts: Tensor, weights: Tensor, pictures: Tensor, count: int) -> Tensor:
    """Orthonormal directions of pictures on which the scores of texts depend most.

    The singular value decomposition of all scores ``texts @ pictures.T`` without forming it, from second moments
    (uncentred: vectors are compared by their angle to the origin). Where texts and pictures spread differently this
    keeps more of a ranking than either's own principal directions; LeanVec-OOD (Tepper et al., 2024) builds on the same
    observation.

    Args:
        texts: (M, D).
        weights: (M,) how much each text counts.
        pictures: (N, D).
        count: how many directions.

    Returns:
        (D, count).
    """
    text_moment = (texts * (weights / weights.sum())[:, None]).T @ texts
    values, vectors = torch.linalg.eigh(pictures.T @ pictures / len(pictures))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    leading = torch.linalg.eigh(root @ text_moment @ root).eigenvectors.flip(1)[:, :count]
    basis: Tensor = torch.linalg.qr(text_moment @ root @ leading).Q
    return basis


def _learn(
    head: nn.Module,
    features: Tensor,
    teacher: Tensor,
    image_head: ProjectionHead,
    data: DistillationData,
    recipe: Recipe,
) -> None:
    """One minus the cosine to the teacher's projection, plus ranking distillation over pictures, by AdamW."""
    config = recipe.self_distillation or SelfDistillation()
    log_scale = nn.Parameter(-torch.tensor(recipe.objective.temperature).log())
    optimizer = torch.optim.AdamW([*head.parameters(), log_scale], lr=config.lr, weight_decay=config.weight_decay)
    with torch.no_grad():
        scale = log_scale.exp()
        coarse_pictures = image_head(data.pictures)
        aim = image_head(teacher)
    upto = data.weights.double().cumsum(0).numpy()
    rng = np.random.default_rng(recipe.seed)
    for step in tqdm(range(config.steps), desc="self-distillation", unit="step"):
        factor = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        drawn = np.searchsorted(upto, rng.random(config.batch_size) * upto[-1], side="right")
        rows = torch.from_numpy(drawn.clip(max=len(teacher) - 1))
        seen = torch.from_numpy(rng.integers(len(coarse_pictures), size=config.batch_size))
        text = head(features[rows])
        student = log_scale.exp() * text @ coarse_pictures[seen].T
        ranking = ranking_distillation(student, scale * teacher[rows] @ data.pictures[seen].T)
        loss = (1 - (text * aim[rows]).sum(1)).mean() + ranking
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
