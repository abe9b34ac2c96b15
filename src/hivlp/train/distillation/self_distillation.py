"""Self-distillation of a trained model: coarser levels learn from the finest, by unpaired texts and pictures.

A few thousand pairs teach a coarse level by heart what they hold, and it forgets what the towers knew of everything
else. The finest level is a better teacher, because it can be asked about any text:

* the coarse image vector is the finest one in fewer dimensions, those on which the scores of texts depend;
* the coarse text head learns to say from an earlier layer what the finest text vector says in these dimensions, and to
  rank pictures as the finest level ranks them (:class:`hivlp.objective.terms.RankingDistillation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hivlp.data.texts import TextTokenizer
from hivlp.errors import ModelError
from hivlp.model.heads import reads_finest
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.plugins import Registry
from hivlp.train.distillation.level import Side, distill_level
from hivlp.train.inputs.features import text_features
from hivlp.train.recipe.schema import Recipe, SelfDistillation


@dataclass(frozen=True)
class TextSource:
    """Texts to learn from beside the captions of the training set, registered under ``hivlp.texts``.

    Attributes:
        require: raises a :class:`HivlpError` if they are not installed.
        read: all of them, whose order may depend on a seed.
    """

    require: Callable[[], object]
    read: Callable[[int], Sequence[str]]


TEXTS: Registry[TextSource] = Registry("hivlp.texts", {})


def more_texts() -> TextSource:
    """The source of ``self_distillation.texts``.

    Raises:
        ModelError: if no installed package has one.
    """
    source = TEXTS.get("wordnet")
    if source is None:
        raise ModelError("no installed package registers the texts of WordNet")
    return source


def distil(
    model: HiVLPModel, tokenizer: TextTokenizer, captions: Features, views: Sequence[Features], recipe: Recipe
) -> None:
    """Teach every coarser level, by captions, by WordNet's nouns and glosses, and by pictures.

    Args:
        model: on the CPU, in evaluation mode.
        tokenizer: of the text tower.
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
        more = more_texts().read(recipe.seed)
        order = np.random.default_rng(recipe.seed).permutation(len(more))
        more = [more[number] for number in order[: config.texts]]
        features = text_features(model, tokenizer, more)
        texts = {layer: torch.cat([captions[layer], features[layer]]) for layer in captions}
        others = torch.full((len(more),), (1 - config.captions) / len(more))
        weights = torch.cat([weights * config.captions / len(weights), others])
    with torch.no_grad():
        pictures = torch.cat([model.project_image(view)[model.config.levels[-1].name] for view in views])
        teacher = model.text_heads[model.config.levels[-1].name](texts[model.config.levels[-1].text_layer])
    images = {layer: torch.cat([view[layer] for view in views]) for layer in views[0]}
    for level in model.config.levels[:-1]:
        image_head, text_head = model.image_heads[level.name], model.text_heads[level.name]
        image_inputs = pictures if reads_finest(image_head) else images[level.image_layer]
        text_inputs = teacher if reads_finest(text_head) else texts[level.text_layer]
        distill_level(
            image_head,
            text_head,
            Side(image_inputs, pictures, torch.ones(len(pictures))),
            Side(text_inputs, teacher, weights),
            config,
            recipe.seed,
        )
