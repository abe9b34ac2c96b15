"""A recipe: everything that a training run depends on, in one YAML file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hivlp.config import PictureConfig, TextConfig, TowerConfig
from hivlp.errors import HivlpError
from hivlp.levels import Level
from hivlp.objective import ObjectiveConfig


class RecipeError(HivlpError):
    """A recipe is missing, malformed or contradicts itself."""


@dataclass(frozen=True)
class Source:
    """One data set: what :func:`hivlp.data.pairs.load_pairs` understands, and how often an epoch goes through it."""

    source: str
    repeat: int = 1


@dataclass(frozen=True)
class Augment:
    """Views of a picture and of a caption.

    Attributes:
        views: random views of each picture that are made when the towers are frozen (and their features kept).
        zoom: smallest and largest side of a random crop as a share of the picture; above 1 adds a white border.
        colour: strength of the colour and brightness jitter, 0 for none.
        folders: also train on the caption followed by the names of the folders that hold the picture.
    """

    views: int = 4
    zoom: tuple[float, float] = (0.6, 1.15)
    colour: float = 0.4
    folders: bool = True


@dataclass(frozen=True)
class Optim:
    """AdamW with linear warm-up and a cosine to zero.

    Attributes:
        epochs: passes through the data.
        batch_size: pairs in one step.
        lr: peak learning rate of the image heads.
        text_lr: peak learning rate of the text heads.
        prototype_lr: peak learning rate of a prototype head's values and sharpness.
        tower_lr: peak learning rate of the towers; 0 freezes them, and their features are computed once.
        weight_decay: decoupled weight decay of the heads.
        warmup_steps: steps to the peak.
        feature_dropout: level name -> share of the image features hidden from its head in each step.
        checkpoint_every: steps between checkpoints, beside the one after each epoch.
    """

    epochs: int = 20
    batch_size: int = 512
    lr: float = 3e-4
    text_lr: float = 3e-4
    prototype_lr: float = 3e-5
    tower_lr: float = 0.0
    weight_decay: float = 0.1
    warmup_steps: int = 20
    feature_dropout: Mapping[str, float] = field(default_factory=dict)
    checkpoint_every: int = 1000


@dataclass(frozen=True)
class SelfDistillation:
    """How the coarser levels learn from the finished finest one (:mod:`hivlp.train.selfdistill`).

    Attributes:
        texts: how many of WordNet's nouns and glosses to learn from, beside the training set's captions.
        captions: share of the captions among the texts of a step.
        steps: of AdamW, with a short linear warm-up and a cosine to zero.
        batch_size: texts in one step, and as many pictures that they rank.
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
    """

    texts: int = 40_000
    captions: float = 0.5
    steps: int = 1500
    batch_size: int = 384
    lr: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.captions <= 1:
            raise ValueError(f"captions must be a share between 0 and 1, not {self.captions}")


@dataclass(frozen=True)
class Init:
    """Where the weights come from.

    Attributes:
        image: ``random``, or ``registry`` for the EfficientNet-Lite2 package.
        text: ``random``, or ``registry`` for the all-MiniLM-L6-v2 package.
        warm_start: give the finest level's prototype head the image tower's ImageNet classes and their names' text
            embeddings.
        tokenizer: model folder that gives the tokenizer when the text tower is random.
    """

    image: str = "random"
    text: str = "random"
    warm_start: bool = False
    tokenizer: str = "hivlp-mini"


@dataclass(frozen=True)
class Recipe:
    """A training run. With ``self_distillation`` only the finest level learns from the pairs."""

    name: str
    levels: tuple[Level, ...]
    image_tower: TowerConfig
    text_tower: TowerConfig
    train: tuple[Source, ...]
    validation: str | None = None
    test: str | None = None
    picture: PictureConfig = field(default_factory=PictureConfig)
    text: TextConfig = field(default_factory=TextConfig)
    init: Init = Init()
    augment: Augment = Augment()
    optim: Optim = Optim()
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    self_distillation: SelfDistillation | None = None
    seed: int = 0
    shortlist: int = 20
    limit: int | None = None
    quantize: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash of the recipe; a run is resumed only by the recipe that began it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


T = TypeVar("T")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: naming the file and the key that is wrong.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} does not hold a mapping")
    try:
        return _build(Recipe, data, "")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A dataclass from parsed YAML, nested dataclasses included, with unknown and missing keys named."""
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise RecipeError(f"unknown key {where}{key}; known: {', '.join(sorted(names))}")
    try:
        return cls(**{key: _value(hints[key], value, f"{where}{key}.") for key, value in data.items()})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where or 'recipe'}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if value is None:
        return None
    if get_origin(hint) is UnionType:
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"{where[:-1]} must be a mapping")
        return _build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list):
        inner = get_args(hint)[0]
        return tuple(_value(inner, item, f"{where[:-1]}[{i}].") for i, item in enumerate(value))
    return value
