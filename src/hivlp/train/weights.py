"""Initial weights: random, or those that a package registers (``hivlp.weights``).

``init: {image: NAME, text: NAME, warm_start: true}`` in a recipe asks for the entries ``image.NAME``, ``text.NAME`` and
``warm_start``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hivlp.config import HiVLPConfig
from hivlp.data.texts import TextTokenizer
from hivlp.encode import resolve_folder
from hivlp.errors import ModelError, RecipeError
from hivlp.files.reading import one_line
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import tokenizer_path
from hivlp.plugins import Registry
from hivlp.train.recipe.schema import Recipe
from hivlp.typed import choices, shown

RANDOM = "random"


@dataclass(frozen=True)
class TowerWeights:
    """Weights of a tower that has been trained already, and a text tower's tokenizer.

    Attributes:
        fits: ``kind`` and options of the towers that they belong to.
        require: raises a :class:`ModelError` if they are not installed.
        prepare: given where a text tower's tokenizer is to be written and how many tokens a text may have, options
            that take the place of the recipe's, and the tower's state dict.
        positions: tokens of the longest text; 0 for pictures.
    """

    fits: Mapping[str, object]
    require: Callable[[], object]
    prepare: Callable[[Path, int], tuple[Mapping[str, int], dict[str, Tensor]]]
    positions: int = 0


@dataclass(frozen=True)
class WarmStart:
    """First weights of the finest level's heads, with which a model retrieves before it has seen a pair.

    Attributes:
        heads: the pairs of kinds, of pictures and of texts, for which there are such weights.
        require: raises a :class:`HivlpError` if what they are made of is not installed.
        apply: sets them.
    """

    heads: tuple[tuple[str, str], ...]
    require: Callable[[], object]
    apply: Callable[[HiVLPModel, TextTokenizer], None]


WEIGHTS: Registry[TowerWeights | WarmStart] = Registry("hivlp.weights", {})


def tower_weights(recipe: Recipe, side: str) -> TowerWeights | None:
    """What ``init.image`` or ``init.text`` names; None for random weights.

    Raises:
        RecipeError: if no installed package registers the name.
    """
    name = getattr(recipe.init, side)
    found = WEIGHTS.get(f"{side}.{name}")
    if isinstance(found, TowerWeights) or name == RANDOM:
        return found if isinstance(found, TowerWeights) else None
    known = [other.removeprefix(f"{side}.") for other in WEIGHTS.names() if other.startswith(f"{side}.")]
    raise RecipeError(f"init.{side} is {shown(name)}{choices(name, [RANDOM, *known])}")


def warm_start() -> WarmStart:
    """What ``init.warm_start`` asks for.

    Raises:
        RecipeError: if no installed package registers it.
    """
    found = WEIGHTS.get("warm_start")
    if not isinstance(found, WarmStart):
        raise RecipeError("init.warm_start: no installed package has one")
    return found


def build_model(recipe: Recipe, run: Path) -> tuple[HiVLPModel, TextTokenizer, Path]:
    """The recipe's model with its initial weights, and its tokenizer, as an object and as a file in ``run``."""
    path, towers, states = run / "tokenizer.json", {}, {}
    for side, tower in (("image", recipe.image_tower), ("text", recipe.text_tower)):
        options: Mapping[str, int] = {}
        if (weights := tower_weights(recipe, side)) is not None:
            options, states[side] = weights.prepare(path, recipe.text.max_tokens)
        towers[side] = replace(tower, options={**tower.options, **options})
    if "text" not in states:
        shutil.copyfile(tokenizer_path(resolve_folder(recipe.init.tokenizer)), path)
    config = HiVLPConfig(recipe.name, recipe.levels, towers["image"], towers["text"], recipe.picture, recipe.text)
    model = HiVLPModel(config)
    for side, state in states.items():
        try:
            (model.image_tower if side == "image" else model.text_tower).load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"init.{side}: the weights do not fit {side}_tower.options: {one_line(error)}") from error
    return model, TextTokenizer(path, recipe.text), path
