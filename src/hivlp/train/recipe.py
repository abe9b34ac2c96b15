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
from hivlp.data.pairs import SPLITS
from hivlp.errors import HivlpError
from hivlp.levels import DEFAULT_SHORTLIST, Level
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
        flip: mirror half of the views; not where left and right are told apart.
        folders: also train on the caption followed by the names of the folders that hold the picture.
    """

    views: int = 4
    zoom: tuple[float, float] = (0.6, 1.15)
    colour: float = 0.4
    flip: bool = True
    folders: bool = False

    @property
    def plain(self) -> bool:
        """Whether every view is the whole picture as it is."""
        return self.zoom == (1.0, 1.0) and not self.flip and not self.colour


@dataclass(frozen=True)
class Optim:
    """AdamW with linear warm-up and a cosine to zero.

    Attributes:
        epochs: passes through the data.
        batch_size: pairs in one step, over all processes together.
        lr: peak learning rate of the image heads.
        text_lr: peak learning rate of the text heads.
        prototype_lr: peak learning rate of a prototype head's values and sharpness.
        tower_lr: peak learning rate of the towers; 0 freezes them, and their features are computed once.
        layer_decay: a tower's layer learns by this factor slower than the one above it (1: all alike).
        freeze: ``image`` and ``text`` -> how many of that tower's first layers stay as they are, their embeddings too.
        tower_delay: steps for which only the heads learn.
        freeze_batchnorm: keep the towers' batch statistics as they are (for small batches and pre-trained towers).
        weight_decay: decoupled weight decay of the heads.
        warmup_steps: steps to the peak.
        clip: largest norm of the gradient; 0 for any.
        ema: decay of an exponential moving average of the weights, which then is what the run gives; 0 for none.
        feature_dropout: level name -> share of the image features hidden from its head in each step.
        tower_gradient: coarser level name -> share of its gradient that goes on from its heads into what they read. Not
            named: none, so that the finest level learns as if it were alone (but for prefixes, which need it whole).
        checkpoint_every: steps between checkpoints, beside the one after each epoch.
    """

    epochs: int = 20
    batch_size: int = 512
    lr: float = 3e-4
    text_lr: float = 3e-4
    prototype_lr: float = 3e-5
    tower_lr: float = 0.0
    layer_decay: float = 1.0
    freeze: Mapping[str, int] = field(default_factory=dict)
    tower_delay: int = 0
    freeze_batchnorm: bool = False
    weight_decay: float = 0.1
    warmup_steps: int = 20
    clip: float = 0.0
    ema: float = 0.0
    feature_dropout: Mapping[str, float] = field(default_factory=dict)
    tower_gradient: Mapping[str, float] = field(default_factory=dict)
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        if unknown := set(self.freeze) - {"image", "text"}:
            raise ValueError(f"freeze knows image and text, not {', '.join(sorted(unknown))}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, not {self.ema}")


@dataclass(frozen=True)
class Compute:
    """How a step is computed; none of it changes what is computed, but for rounding.

    Attributes:
        precision: ``no`` (float32), ``bf16`` or ``fp16``, as accelerate's mixed precision.
        micro_batch: pairs that a process sends through the towers at once; 0 for all of its share. A smaller number
            costs a second forward pass and bounds the towers' memory (GradCache; Gao et al., 2021), while the loss
            still sees the whole batch.
        shard: keep a share of the weights, gradients and moments in each process instead of all in every one (FSDP).
        compile: compile the towers with ``torch.compile``.
        trackers: where metrics go beside ``metrics.jsonl``: ``tensorboard``, ``wandb``, ``trackio`` and others that
            accelerate knows and that are installed.
    """

    precision: str = "no"
    micro_batch: int = 0
    shard: bool = False
    compile: bool = False
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision must be no, bf16 or fp16, not {self.precision!r}")
        if self.shard and (self.compile or self.precision == "fp16"):
            raise ValueError("shard goes with neither compile nor fp16; bf16 is fine")


@dataclass(frozen=True)
class Watch:
    """Recall on the validation set while training.

    Attributes:
        every: steps between measurements; 0 for none.
        patience: stop after so many measurements without a better one, and give the best weights; 0 to go on.
        limit: pictures of the validation set that are looked at.
    """

    every: int = 0
    patience: int = 0
    limit: int = 1000

    def __post_init__(self) -> None:
        if self.patience and not self.every:
            raise ValueError("watch.patience needs watch.every")


@dataclass(frozen=True)
class Pretext:
    """Tasks beside retrieval, for towers that are trained from scratch (:mod:`hivlp.train.pretext`).

    Attributes:
        masked_language: weight of guessing masked words with the picture's help; 0 for none.
        masked_share: of the words.
        matching: weight of telling pairs from look-alikes; 0 for none.
    """

    masked_language: float = 0.0
    masked_share: float = 0.15
    matching: float = 0.0


@dataclass(frozen=True)
class SelfDistillation:
    """How the coarser levels learn from the finished finest one (:mod:`hivlp.train.fit`).

    Attributes:
        texts: how many of WordNet's nouns and glosses to learn from, beside the training set's captions.
        captions: share of the captions among the texts of a step.
        steps: of AdamW, with a short linear warm-up and a cosine to zero; 0 leaves the closed form.
        batch_size: texts in one step, and pictures.
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        temperature: of the finest level's rankings that are to be learned.
        distillation: weight of :class:`~hivlp.objective.terms.RankingDistillation`.
        shortlist: weight of :class:`~hivlp.objective.terms.ShortlistLoss`.
        shortlist_size: of the batch, as a share.
        cosine: weight of one minus the cosine to where the closed form aims, for heads that read an earlier layer.
        learn_projections: whether heads that read the finest vector learn too, or stay as the closed form has them.
        neighbours: draw half of a step's texts and pictures among those that the finest level holds close.
        code: how the level will be stored: ``float``, ``int8`` or ``binary``.
    """

    texts: int = 40_000
    captions: float = 0.5
    steps: int = 1500
    batch_size: int = 384
    lr: float = 1e-3
    weight_decay: float = 0.01
    temperature: float = 0.05
    distillation: float = 1.0
    shortlist: float = 0.0
    shortlist_size: float = 0.05
    cosine: float = 1.0
    learn_projections: bool = False
    neighbours: bool = False
    code: str = "float"

    def __post_init__(self) -> None:
        if not 0 <= self.captions <= 1:
            raise ValueError(f"captions must be a share between 0 and 1, not {self.captions}")
        if self.code not in ("float", "int8", "binary"):
            raise ValueError(f"code must be float, int8 or binary, not {self.code!r}")


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
    optim: Optim = field(default_factory=Optim)
    compute: Compute = Compute()
    watch: Watch = Watch()
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pretext: Pretext = Pretext()
    self_distillation: SelfDistillation | None = None
    seed: int = 0
    shortlist: int = DEFAULT_SHORTLIST
    limit: int | None = None
    quantize: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        for option, known in (("feature_dropout", names), ("tower_gradient", names[:-1])):
            if unknown := set(getattr(self.optim, option)) - set(known):
                raise ValueError(f"optim.{option}: no level {', '.join(sorted(unknown))} among {', '.join(known)}")

    def digest(self) -> str:
        """Hash of the recipe but for how it is computed; a run is resumed only by the recipe that began it."""
        content = dataclasses.asdict(self)
        del content["compute"]
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def split_of(source: str) -> tuple[str, str | None]:
    """A data set and the split that a recipe asks for, as in ``stamps:val`` or ``scenes:1000:test``."""
    name, _, split = source.rpartition(":")
    return (name, split) if name and split in SPLITS else (source, None)


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
