"""The recipe's model with its initial weights: random, from a place (:mod:`hivlp.train.starting`) or from a package.

``init: {image: NAME, text: NAME, warm_start: true}`` in a recipe asks for the entries ``image.NAME``, ``text.NAME`` and
``warm_start`` that a package registers under ``hivlp.weights``.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from hivlp.config import HiVLPConfig
from hivlp.data.texts import TextTokenizer
from hivlp.encode import resolve_folder
from hivlp.errors import ModelError, RecipeError
from hivlp.files.reading import one_line
from hivlp.files.scratch import write_whole
from hivlp.hub.names import SHIPPED
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import tokenizer_path
from hivlp.plugins import Registry
from hivlp.train.recipe.schema import Recipe
from hivlp.train.starting import Loaded, is_place, load_tower, load_whole, starting_tokenizer
from hivlp.typed import choices, shown

RANDOM = "random"
logger = logging.getLogger(__name__)


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
    """What a package registers for ``init.image`` or ``init.text``; None for random weights and those of a place.

    Raises:
        RecipeError: if no installed package registers the name.
    """
    name = getattr(recipe.init, side)
    found = WEIGHTS.get(f"{side}.{name}")
    if isinstance(found, TowerWeights) or name == RANDOM or is_place(name):
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
    """The recipe's model with its initial weights, and its tokenizer, as an object and as a file in ``run``.

    What was loaded from which place, and what was not, is logged and written to ``starting.json`` in ``run``.

    Raises:
        ModelError: if weights, vocabulary and towers do not fit.
    """
    path, towers, states = run / "tokenizer.json", {}, {}
    for side, tower in (("image", recipe.image_tower), ("text", recipe.text_tower)):
        options: Mapping[str, int] = {}
        if (weights := tower_weights(recipe, side)) is not None:
            options, states[side] = weights.prepare(path, recipe.text.max_tokens)
        towers[side] = replace(tower, options={**tower.options, **options})
    if "text" not in states:
        _write_tokenizer(recipe, path)
    config = HiVLPConfig(recipe.name, recipe.levels, towers["image"], towers["text"], recipe.picture, recipe.text)
    model = HiVLPModel(config)
    loaded: list[Loaded] = []
    for side, network in (("image", model.image_tower), ("text", model.text_tower)):
        name = getattr(recipe.init, side)
        try:
            if side in states:
                network.load_state_dict(states[side])
            elif name != RANDOM:
                loaded.append(load_tower(network, side, name))
        except RuntimeError as error:
            raise ModelError(f"init.{side}: the weights do not fit {side}_tower.options: {one_line(error)}") from error
    if recipe.init.model is not None:
        loaded.append(load_whole(model, recipe.init.model))
    for each in loaded:
        logger.info("%s", each)
    if loaded:
        text = json.dumps([asdict(each) for each in loaded], indent=2) + "\n"
        write_whole(run / "starting.json", lambda place: place.write_text(text, encoding="utf-8"))
    tokenizer = TextTokenizer(path, recipe.text)
    known, words = tokenizer.backend.get_vocab_size(), model.text_tower.vocabulary
    if known > words:
        raise ModelError(f"init.tokenizer: the tokenizer has {known:,} words, the text tower {words:,}")
    return model, tokenizer, path


def _write_tokenizer(recipe: Recipe, path: Path) -> None:
    """The tokenizer that the recipe names, or that of the text tower's starting weights, or hivlp-mini's."""
    place = recipe.init.tokenizer or recipe.init.text_place
    if place == RANDOM or not starting_tokenizer(place, path):
        shutil.copyfile(tokenizer_path(resolve_folder(recipe.init.tokenizer or SHIPPED)), path)
