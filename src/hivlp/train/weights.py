"""The weights that a run starts from: random ones, or those of a package that registers them (``hivlp.weights``).

``init: {image: NAME, text: NAME, warm_start: true}`` in a recipe asks for the entries ``image.NAME``, ``text.NAME`` and
``warm_start``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from hivlp.config import HiVLPConfig
from hivlp.encode import resolve_folder
from hivlp.encode.text import TextTokenizer
from hivlp.errors import ModelError
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import tokenizer_path
from hivlp.plugins import Registry
from hivlp.train.recipe.schema import Recipe

RANDOM = "random"


@dataclass(frozen=True)
class ImageWeights:
    """Weights of an image tower that has been trained already.

    Attributes:
        fits: ``kind`` and options of the towers that they belong to.
        require: raises a :class:`ModelError` if they are not installed.
        state: the tower's state dict.
    """

    fits: Mapping[str, object]
    require: Callable[[], None]
    state: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class TextWeights:
    """Weights of a text tower that has been trained already, and its tokenizer.

    Attributes:
        fits: ``kind`` and options of the towers that they belong to.
        require: raises a :class:`ModelError` if they are not installed.
        positions: tokens of the longest text.
        prepare: writes the tokenizer to a path; from that and the longest text of the recipe, in tokens, it gives
            options that replace the recipe's, and the tower's state dict.
    """

    fits: Mapping[str, object]
    require: Callable[[], None]
    positions: int
    prepare: Callable[[Path, int], tuple[dict[str, int], dict[str, Tensor]]]


@dataclass(frozen=True)
class WarmStart:
    """First weights of the finest level's heads, with which a model retrieves before it has seen a pair.

    Attributes:
        heads: the pairs of kinds, of pictures and of texts, for which there are such weights.
        require: raises a :class:`HivlpError` if what they are made of is not installed.
        apply: sets them.
    """

    heads: tuple[tuple[str, str], ...]
    require: Callable[[], None]
    apply: Callable[[HiVLPModel, TextTokenizer], None]


WEIGHTS: Registry[ImageWeights | TextWeights | WarmStart] = Registry("hivlp.weights", {})


def image_weights(name: str) -> ImageWeights | None:
    """What ``init.image`` names; None for random weights and unknown names."""
    found = WEIGHTS.get(f"image.{name}")
    return found if isinstance(found, ImageWeights) else None


def text_weights(name: str) -> TextWeights | None:
    """What ``init.text`` names; None for random weights and unknown names."""
    found = WEIGHTS.get(f"text.{name}")
    return found if isinstance(found, TextWeights) else None


def warm_start() -> WarmStart:
    """What ``init.warm_start`` asks for.

    Raises:
        ModelError: if no installed package has it.
    """
    found = WEIGHTS.get("warm_start")
    if not isinstance(found, WarmStart):
        raise ModelError("no installed package registers a warm start")
    return found


def known_weights(side: str) -> list[str]:
    """Words that ``init.image`` or ``init.text`` may be."""
    return [RANDOM, *(name.removeprefix(f"{side}.") for name in WEIGHTS.names() if name.startswith(f"{side}."))]


def build_model(recipe: Recipe, run: Path) -> tuple[HiVLPModel, TextTokenizer, Path]:
    """The recipe's model with its initial weights, and its tokenizer, as an object and as a file in ``run``."""
    path, text_tower, state = run / "tokenizer.json", recipe.text_tower, None
    if (texts := text_weights(recipe.init.text)) is not None:
        options, state = texts.prepare(path, recipe.text.max_tokens)
        text_tower = replace(text_tower, options={**text_tower.options, **options})
    else:
        shutil.copyfile(tokenizer_path(resolve_folder(recipe.init.tokenizer)), path)
    model = HiVLPModel(
        HiVLPConfig(recipe.name, recipe.levels, recipe.image_tower, text_tower, recipe.picture, recipe.text)
    )
    if (images := image_weights(recipe.init.image)) is not None:
        _load(model.image_tower, images.state(), "image")
    if state is not None:
        _load(model.text_tower, state, "text")
    return model, TextTokenizer(path, recipe.text), path


def _load(tower: nn.Module, state: dict[str, Tensor], side: str) -> None:
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"init.{side}: the weights do not fit {side}_tower.options: {reason}") from error
