"""Checks of a recipe before anything is decoded or trained.

Keys, types and ranges are checked as a recipe is built (:mod:`hivlp.typed`); here, what its parts ask of each other, of
the data and of what is installed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hivlp.config import HiVLPConfig, TowerConfig
from hivlp.data.load import load_pairs
from hivlp.data.pairs import SPLITS, Pair
from hivlp.encode import resolve_folder
from hivlp.errors import DataError, HivlpError, ModelError, RecipeError
from hivlp.files.reading import one_line
from hivlp.hub.names import SHIPPED, parse_name
from hivlp.model.heads import HEADS
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Tower
from hivlp.model.towers import DUAL_ENCODER, IMAGE_TOWERS, TEXT_TOWERS, BertTextTower, tokenizer_path
from hivlp.objective import HierarchicalObjective
from hivlp.plugins import Registry
from hivlp.train.distillation.self_distillation import TextSource, more_texts
from hivlp.train.inputs.batch import steps_of_epoch
from hivlp.train.recipe.schema import Recipe, split_of
from hivlp.train.weights import RANDOM, TowerWeights, WarmStart, tower_weights, warm_start
from hivlp.typed import build, choices, shown

logger = logging.getLogger(__name__)
LARGEST = 4096  # side of a picture
MOST, MOST_LAYERS = 1 << 24, 1000  # of whole numbers among a tower's options
MOST_PARAMETERS = 10**11


def check_recipe(recipe: Recipe) -> HiVLPModel:
    """The recipe's model, without any weights, if the parts of the recipe fit each other.

    Raises:
        RecipeError: naming the keys, what was given, and what would do.
    """
    _check_name(recipe)
    _check_towers(recipe)
    _check_weights(recipe, "image", recipe.image_tower, IMAGE_TOWERS)
    _check_weights(recipe, "text", recipe.text_tower, TEXT_TOWERS)
    model = _check_model(recipe)
    _check_inputs(recipe, model)
    _check_learning(recipe, model)
    if recipe.stream is None and not recipe.train:
        raise RecipeError("train names no data: give a list of {source: …}, or a stream")
    if recipe.stream is not None and recipe.train:
        raise RecipeError("train and stream: give the data as one of the two")
    if recipe.stream is not None and (not recipe.optim.tower_lr or recipe.limit is not None):
        raise RecipeError("stream goes without limit, and with towers that learn: set optim.tower_lr")
    if recipe.validation is None:
        for key, wants in (("quantize", recipe.quantize), ("watch.every", recipe.watch.every)):
            if wants:
                never = "quantize: false" if key == "quantize" else "watch: {every: 0}"
                raise RecipeError(f"{key} needs a validation set: name one with the key validation, or set {never}")
    if recipe.test is not None and recipe.test == recipe.validation:
        raise RecipeError(
            f"validation and test are both {recipe.test}: what is chosen by a set cannot be measured on it"
        )
    return model


def check_data(recipe: Recipe, processes: int = 1) -> list[tuple[Pair, int]]:
    """The training pairs (none of a stream), each with how often an epoch visits it, if all that is named is there.

    Args:
        recipe: that :func:`check_recipe` found sound.
        processes: that share a batch.

    Raises:
        RecipeError: naming the key whose data, package or folder is missing, or does not go with another.
    """
    pairs = [
        (pair, source.repeat)
        for number, source in enumerate(recipe.train)
        for pair in _pairs(f"train[{number}].source", source.source, "train")
    ]
    pairs = [(pair, repeat) for pair, repeat in pairs if pair.captions][: recipe.limit]
    count = pairs_of_epoch(recipe, pairs)
    if recipe.stream is not None and recipe.stream.lanes % processes:
        raise RecipeError(f"stream.lanes is {recipe.stream.lanes}, no multiple of the {processes} processes")
    if recipe.stream is not None and recipe.stream.lanes > recipe.optim.batch_size:
        raise RecipeError(f"stream.lanes is {recipe.stream.lanes}, more than the pairs of a batch")
    if recipe.optim.batch_size > count:
        raise RecipeError(f"optim.batch_size is {recipe.optim.batch_size}, more than the {count} pairs of an epoch")
    steps = steps_of_epoch(count, recipe.optim.batch_size)
    if count // steps < max(2, processes):
        raise RecipeError(
            f"optim.batch_size is {recipe.optim.batch_size}: batches of {count // steps} pairs cannot be shared by "
            f"{processes} processes"
            if processes > 1
            else f"optim.batch_size is {recipe.optim.batch_size}: a pair by itself has nothing to be told from"
        )
    steps *= recipe.optim.epochs
    if recipe.optim.tower_lr and recipe.optim.tower_delay >= steps:
        raise RecipeError(f"optim.tower_delay is {recipe.optim.tower_delay}: the towers never learn in {steps} steps")
    if recipe.watch.every > steps:
        raise RecipeError(f"watch.every is {recipe.watch.every}, but the run has {steps} steps")
    if recipe.optim.warmup_steps >= steps:
        logger.warning("optim.warmup_steps is %d: in %d steps no peak is reached", recipe.optim.warmup_steps, steps)
    named = {"validation": recipe.validation, "test": recipe.test}
    seen = {key: _held_out(key, source) for key, source in named.items() if source is not None}
    learned = {_picture(pair) for pair, _ in pairs}
    if shared := len(learned & seen.get("test", set())):
        raise RecipeError(f"test: {shared} of its pictures are trained on")
    if shared := len(seen.get("validation", set()) & seen.get("test", set())):
        raise RecipeError(f"test: {shared} of its pictures are in the validation set too, by which is chosen")
    if shared := len(learned & seen.get("validation", set())):
        logger.warning("validation: %d of its pictures are trained on; its recalls say nothing of others", shared)
    _check_installed(recipe)
    return pairs


def pairs_of_epoch(recipe: Recipe, pairs: Sequence[tuple[Pair, int]]) -> int:
    """How many pairs an epoch visits: those of :func:`check_data`, or what a stream calls an epoch."""
    return sum(repeat for _, repeat in pairs) if recipe.stream is None else recipe.stream.epoch


def check_folder(out: Path, *, resume: bool) -> None:
    """Whether a run may be written to a folder.

    Raises:
        RecipeError: if it holds another, cannot be written, or is none.
    """
    run = out / "run"
    for path in (out, run):
        if path.exists() and not path.is_dir():
            raise RecipeError(f"{path} is a file: choose another folder with -o")
    if run.exists() and not resume:
        raise RecipeError(f"{run} exists: add --resume to go on with it, or choose another folder with -o")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{run} cannot be made: {error.strerror}") from error


def _check_name(recipe: Recipe) -> None:
    if not recipe.name.strip() or set(recipe.name) & set("/\\\0") or recipe.name in (".", ".."):
        raise RecipeError(f"name must be a name that a folder may have, not {shown(recipe.name)}")


def _check_towers(recipe: Recipe) -> None:
    names = [level.name for level in recipe.levels]
    for side, known in (("image_tower", IMAGE_TOWERS), ("text_tower", TEXT_TOWERS)):
        tower, kinds = getattr(recipe, side), [*known.names(), DUAL_ENCODER]
        if tower.kind not in kinds:
            raise RecipeError(f"{side}.kind is {shown(tower.kind)}{choices(tower.kind, kinds)}")
        for level, head in tower.heads.items():
            if level not in names:
                raise RecipeError(f"{side}.heads names no level: {level}{choices(level, names)}")
            if HEADS.get(head) is None:
                raise RecipeError(f"{side}.heads.{level} is {shown(head)}{choices(head, HEADS.names())}")
            if getattr(HEADS.get(head), "reads_classes", False) and not getattr(known.get(tower.kind), "classes", 0):
                raise RecipeError(f"{side}.heads.{level}: a {head} head reads the classes of an image classifier")
        options = getattr(known.get(tower.kind), "options", None)
        if options is not None:
            build(options, tower.options, f"{side}.options")
        elif side == "text_tower" and tower.kind == recipe.image_tower.kind == DUAL_ENCODER:
            if tower.options and tower.options != recipe.image_tower.options:
                raise RecipeError("text_tower.options: a dual_encoder's are those of image_tower, or none")
        elif tower.kind in ("bert", "transformers", DUAL_ENCODER):
            _check_transformers(f"{side}.options", tower.kind, tower.options)
    if (recipe.image_tower.kind == DUAL_ENCODER) != (recipe.text_tower.kind == DUAL_ENCODER):
        raise RecipeError("image_tower.kind and text_tower.kind: a dual_encoder is both or none")


def _check_transformers(where: str, kind: str, options: Mapping[str, Any]) -> None:
    """Options are those of the ``transformers`` configuration, which itself takes anything."""
    from transformers import AutoConfig

    if kind == "bert":
        _check_like(where, options, AutoConfig.for_model("bert").to_dict())
        return
    model_type = str(options.get("model_type"))
    try:
        known = AutoConfig.for_model(model_type).to_dict()
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{where}.model_type is {shown(model_type)}, which transformers does not know") from error
    _check_like(where, options, {**known, "model_type": model_type, "pool": "mean"})


def _check_like(where: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    from transformers.activations import ACT2FN

    for key, value in options.items():
        place = f"{where}.{key}"
        if key not in known:
            raise RecipeError(f"unknown key {place}{choices(key, known)}")
        usual = known[key]
        if key in ("hidden_act", "hidden_activation") and value not in ACT2FN:
            raise RecipeError(f"{place} is {shown(value)}{choices(value, ACT2FN)}")
        if isinstance(usual, dict) and isinstance(value, Mapping):
            _check_like(place, value, usual) if usual else None
        elif isinstance(usual, bool):
            if not isinstance(value, bool):
                raise RecipeError(f"{place} must be true or false, not {shown(value)}")
        elif isinstance(usual, int | float):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RecipeError(f"{place} must be a number, not {shown(value)}")
            if isinstance(usual, int) and not isinstance(value, int):
                raise RecipeError(f"{place} must be a whole number, not {shown(value)}")
            share = key.endswith(("_prob", "_dropout", "dropout"))
            if share and not 0 <= value < 1:
                raise RecipeError(f"{place} must be at least 0 and below 1, not {shown(value)}")
            if isinstance(usual, int) and usual > 0 and value < 1 and not key.endswith("_id"):
                raise RecipeError(f"{place} must be at least 1, not {shown(value)}")
            most = MOST_LAYERS if "layers" in key else MOST
            if value > most:  # which would take for ever to build, though it has no weights yet
                raise RecipeError(f"{place} must be at most {most}, not {shown(value)}")
        elif isinstance(usual, str) and not isinstance(value, str):
            raise RecipeError(f"{place} must be a word, not {shown(value)}")
        elif isinstance(usual, dict):
            raise RecipeError(f"{place} must be a mapping, not {shown(value)}")


def _check_model(recipe: Recipe) -> HiVLPModel:
    """The recipe's model without any weights."""
    for level in recipe.levels:
        if level.dim > 65_536:
            raise RecipeError(f"levels: {level.name}.dim must be at most 65536, not {level.dim}")
    try:
        config = HiVLPConfig(
            recipe.name, recipe.levels, recipe.image_tower, recipe.text_tower, recipe.picture, recipe.text
        )
        with torch.device("meta"):
            model = HiVLPModel(config)
    except (HivlpError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise RecipeError(f"levels, image_tower, text_tower: {one_line(error, 300)}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise RecipeError(f"levels, image_tower, text_tower: {parameters} parameters, at most {MOST_PARAMETERS}")
    return model


def _check_inputs(recipe: Recipe, model: HiVLPModel) -> None:
    size, text = recipe.picture.size, recipe.text
    if not 1 <= size <= LARGEST:
        raise RecipeError(f"picture.size must be at least 1 and at most {LARGEST}, not {size}")
    if not all(0 < value < 1e6 for value in recipe.picture.std):
        raise RecipeError(f"picture.std must be above 0, not {list(recipe.picture.std)}")
    for level in recipe.levels:
        try:
            model.image_tower.check_size(size, level.image_layer)
        except ValueError as error:
            raise RecipeError(f"picture.size is {size}: level {level.name} wants {error}") from error
    try:
        with torch.no_grad():
            model.eval().image_features(torch.zeros(1, size, size, 3, dtype=torch.uint8, device="meta"))
    except (ValueError, RuntimeError, TypeError) as error:
        raise RecipeError(f"picture.size is {size}, which the image tower does not take: {error}") from error
    weights = tower_weights(recipe, "text")
    positions = model.text_tower.positions if weights is None else weights.positions
    if not 3 <= text.max_tokens <= positions:
        raise RecipeError(
            f"text.max_tokens must be at least 3 and at most {positions}, the positions of the text tower, "
            f"not {text.max_tokens}"
        )
    if not 0 <= text.pad_id < model.text_tower.vocabulary:
        raise RecipeError(
            f"text.pad_id must be at least 0 and below the {model.text_tower.vocabulary} words of the text tower"
        )


def _check_learning(recipe: Recipe, model: HiVLPModel) -> None:
    optim, distilled = recipe.optim, recipe.self_distillation
    frozen = optim.tower_lr == 0
    if distilled is not None and not frozen:
        raise RecipeError("self_distillation works on frozen towers: set optim.tower_lr to 0")
    if distilled is not None and not (distilled.texts or distilled.captions):
        raise RecipeError("self_distillation: texts and captions are both 0, so there is nothing to learn from")
    if recipe.pretext.masked_language:
        if frozen:
            raise RecipeError("pretext.masked_language needs a text tower that learns: set optim.tower_lr")
        if not isinstance(model.text_tower, BertTextTower):
            raise RecipeError("pretext.masked_language needs a bert text tower")
    for side, tower in (("image", model.image_tower), ("text", model.text_tower)):
        if optim.freeze.get(side, 0) > tower.depth:
            raise RecipeError(f"optim.freeze.{side} is {optim.freeze[side]}, of a tower of {tower.depth} layers")
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.image_tower.modules())
    if recipe.compute.micro_batch and normalised and not frozen and not optim.freeze_batchnorm:
        raise RecipeError(
            "compute.micro_batch splits a batch, which batch statistics do not survive: set optim.freeze_batchnorm"
        )
    finest = recipe.levels[-1].name
    heads = recipe.image_tower.heads.get(finest, "linear"), recipe.text_tower.heads.get(finest, "linear")
    if recipe.init.warm_start and heads not in (known := warm_start().heads):
        wanted = " or ".join(f"{image} and {text}" for image, text in known)
        raise RecipeError(
            f"init.warm_start needs image and text heads of level {finest} that are {wanted}, not {' and '.join(heads)}"
        )
    names = tuple(level.name for level in recipe.taught)
    for key in ("contrastive", "codes"):
        for level in getattr(recipe.objective, key):
            if level not in names:
                why = "" if distilled is None else " (self_distillation teaches the others)"
                raise RecipeError(
                    f"objective.{key} names no level that is trained{why}: {level}{choices(level, names)}"
                )
    if not HierarchicalObjective(names, recipe.objective).terms and not recipe.pretext.matching:
        raise RecipeError("objective: every term has the weight 0, so there is nothing to learn")
    if recipe.objective.hard_negatives and len(names) < 2:
        raise RecipeError("objective.hard_negatives needs two levels: the coarsest one picks them for the others")


def _check_weights(recipe: Recipe, side: str, tower: TowerConfig, towers: Registry[type[Tower]]) -> None:
    """Whether the weights that ``init`` names are those of the tower."""
    weights = tower_weights(recipe, side)
    if weights is None:
        return
    options = getattr(towers.get(tower.kind), "options", None)
    given = {**({} if options is None else asdict(build(options, {}))), **tower.options, "kind": tower.kind}
    for key, value in weights.fits.items():
        if given.get(key) != value:
            name, place = getattr(recipe.init, side), key if key == "kind" else f"options.{key}"
            raise RecipeError(f"init.{side}: {name} has the weights of {place}: {value}, not {shown(given.get(key))}")


def _check_installed(recipe: Recipe) -> None:
    """Whether packages, texts and the tokenizer are there."""
    needed: dict[str, TowerWeights | WarmStart | TextSource | None] = {
        "init.image": tower_weights(recipe, "image"),
        "init.text": tower_weights(recipe, "text"),
        "init.warm_start": warm_start() if recipe.init.warm_start else None,
    }
    if recipe.self_distillation is not None and recipe.self_distillation.texts:
        needed["self_distillation.texts"] = more_texts()
    for key, what in needed.items():
        try:
            if what is not None:
                what.require()
        except HivlpError as error:
            raise RecipeError(f"{key}: {error}") from error
    for key in ("image", "text", "model"):
        place = getattr(recipe.init, key)
        if place is not None and place != RANDOM and needed.get(f"init.{key}") is None:
            _check_place(key, place)
    if needed["init.text"] is None and (recipe.init.tokenizer is not None or recipe.init.text_place == RANDOM):
        _check_tokenizer(recipe, recipe.init.tokenizer or SHIPPED)


def _check_place(key: str, place: str) -> None:
    """Whether starting weights are here, or may be on the hub, where they are looked for when the run begins."""
    try:
        if not Path(place).exists() and (place.startswith(("/", ".", "~")) or parse_name(place).folder is not None):
            raise ModelError(f"{place} does not exist")
    except ModelError as error:
        raise RecipeError(f"init.{key}: {error}") from error


def _check_tokenizer(recipe: Recipe, name: str) -> None:
    from tokenizers import Tokenizer

    try:
        if not Path(name).exists() and parse_name(name).folder is None:
            return  # on the hub
        path = tokenizer_path(resolve_folder(name))
        tokenizer = Tokenizer.from_file(str(path))
    except ModelError as error:
        raise RecipeError(f"init.tokenizer: {error}") from error
    except Exception as error:  # what the tokenizers library raises is a plain Exception
        raise RecipeError(f"init.tokenizer: {path} cannot be read: {error}") from error
    model = _check_model(recipe)
    known = max(tokenizer.get_vocab().values(), default=0) + 1
    if known > (words := model.text_tower.vocabulary):
        raise RecipeError(f"init.tokenizer: {name} has {known} words, the text tower {words}")
    if recipe.pretext.masked_language and tokenizer.token_to_id("[MASK]") is None:
        raise RecipeError(f"pretext.masked_language needs a tokenizer with [MASK]; {name} has none")


def _held_out(key: str, source: str) -> set[object]:
    """The pictures of a set."""
    name, split = split_of(source)
    last = source.rpartition(":")[2]
    try:
        return {_picture(pair) for pair in _pairs(key, name, split)}
    except RecipeError as error:
        if split is None and ":" in source and not Path(source).exists() and not last.isdigit():
            raise RecipeError(f"{key} is {source}: no split {last}{choices(last, SPLITS)}") from error
        raise


def _pairs(key: str, source: str, split: str | None) -> list[Pair]:
    try:
        return load_pairs(source, split)
    except DataError as error:
        raise RecipeError(f"{key}: {error}") from error
    except OSError as error:
        raise RecipeError(f"{key}: {source} cannot be read: {error}") from error


def _picture(pair: Pair) -> object:
    """What tells one picture from another without reading it."""
    if isinstance(pair.picture, Path):
        return pair.picture.resolve()
    return pair.picture
