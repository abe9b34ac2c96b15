"""A recipe: everything that a training run depends on, in one YAML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hivlp.config import PictureConfig, TextConfig, TowerConfig
from hivlp.data.pairs import SPLITS
from hivlp.errors import RecipeError
from hivlp.levels import DEFAULT_SHORTLIST, Level, check_levels
from hivlp.objective import ObjectiveConfig
from hivlp.train.recipe.plain_yaml import read_yaml
from hivlp.typed import (
    Between,
    Checked,
    Code,
    Count,
    Number,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
    Weight,
    build,
    choices,
)

Betas = tuple[ShareBelowOne, ShareBelowOne]


@dataclass(frozen=True)
class Source(Checked):
    """One data set: what :func:`hivlp.data.load.load_pairs` understands, and how often an epoch goes through it."""

    source: str
    repeat: Count = 1


@dataclass(frozen=True)
class StreamSource(Checked):
    """Shards of one data set in a stream.

    Attributes:
        source: tars (webdataset) or parquet files, as a folder or as paths or URLs with braces and globs:
            ``cc3m/{00000..00331}.tar``, ``s3://bucket/sbu/*.parquet``; or Karpathy's JSON, a table or a folder of
            pictures, all of which is listed once.
        weight: how many of the pairs are from here, relative to those of the other sources.
        split: that is read.
    """

    source: str
    weight: Positive = 1.0
    split: Literal["train", "val", "test"] = "train"


@dataclass(frozen=True)
class Stream(Checked):
    """Training data that is read in order, from shards, while training goes on (:mod:`hivlp.train.inputs.stream`).

    Attributes:
        sources: that are mixed by their weights.
        epoch: pairs that count as one pass: a stream has no end.
        lanes: sequences that the shards are dealt out to. What a step sees depends on their number, and not on that of
            processes (of which it must be a multiple) and workers.
        shuffle: pairs that are shuffled at a time, by all lanes together; their encoded pictures are in memory.
        smallest: pixels of a picture's shorter side below which it is passed over.
    """

    sources: tuple[StreamSource, ...]
    epoch: Count
    lanes: Count = 16
    shuffle: Count = 4096
    smallest: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("sources names no data: give a list of {source: …}")


@dataclass(frozen=True)
class Augment(Checked):
    """Views of a picture and of a caption.

    Attributes:
        views: random views of each picture that are made when the towers are frozen (and their features kept).
        zoom: smallest and largest side of a random crop as a share of the picture; above 1 adds a white border.
        colour: strength of the colour and brightness jitter, 0 for none.
        flip: mirror half of the views; not where left and right are told apart.
        folders: also train on the caption followed by the names of the folders that hold the picture.
    """

    views: Number = 4
    zoom: tuple[Annotated[float, Between(0.01, 4)], Annotated[float, Between(0.01, 4)]] = (0.6, 1.15)
    colour: Share = 0.4
    flip: bool = True
    folders: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom goes from small to large, not from {self.zoom[0]:g} to {self.zoom[1]:g}")

    @property
    def plain(self) -> bool:
        """Whether every view is the whole picture as it is."""
        return self.zoom == (1.0, 1.0) and not self.flip and not self.colour


@dataclass(frozen=True)
class Optim(Checked):
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
        objective_lr: peak learning rate of the objective's own parameters: temperatures, biases, weights of levels.
        weight_decay: decoupled weight decay of the heads' matrices; that of their vectors (biases, gains of norms,
            temperatures) is none, as in CLIP.
        tower_weight_decay: of the towers' matrices.
        decay_vectors: decay the heads' and towers' vectors too.
        betas: AdamW's decay of the first and the second moment, of heads, pretext tasks and the objective.
        tower_betas: of the towers; default as ``betas``.
        eps: AdamW's, of all.
        warmup_steps: steps to the peak.
        clip: largest norm of the gradient; 0 for any.
        ema: decay of an exponential moving average of the weights, which then is what the run gives; 0 for none.
        average: the last share of the steps whose weights are averaged equally, which then is what the run gives
            (stochastic weight averaging; Izmailov et al., 2018); 0 for none.
        feature_dropout: level name -> share of the image features hidden from its head in each step.
        tower_gradient: coarser level name -> share of its gradient that goes on from its heads into what they read. Not
            named: none, so that the finest level learns as if it were alone (but for prefixes, which need it whole).
        checkpoint_every: steps between checkpoints, beside the one after each epoch.
    """

    epochs: Count = 20
    batch_size: Count = 512
    lr: Weight = 3e-4
    text_lr: Weight = 3e-4
    prototype_lr: Weight = 3e-5
    tower_lr: Weight = 0.0
    layer_decay: PositiveShare = 1.0
    freeze: Mapping[str, Number] = field(default_factory=dict)
    tower_delay: Number = 0
    freeze_batchnorm: bool = False
    objective_lr: Weight = 1e-3
    weight_decay: Weight = 0.1
    tower_weight_decay: Weight = 0.0
    decay_vectors: bool = False
    betas: Betas = (0.9, 0.999)
    tower_betas: Betas | None = None
    eps: Positive = 1e-8
    warmup_steps: Number = 20
    clip: Weight = 0.0
    ema: ShareBelowOne = 0.0
    average: Share = 0.0
    feature_dropout: Mapping[str, ShareBelowOne] = field(default_factory=dict)
    tower_gradient: Mapping[str, Share] = field(default_factory=dict)
    checkpoint_every: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.freeze:
            if name not in ("image", "text"):
                raise ValueError(f"freeze: no tower {name}{choices(name, ('image', 'text'))}")
        if self.ema and self.average:
            raise ValueError("ema and average are two averages of the weights: choose one")


@dataclass(frozen=True)
class Compute(Checked):
    """How a step is computed: results differ by rounding and by the units that dropout hides, not otherwise.

    Negatives of every loss (those of ``matching`` too), equal captions and masked words are those of the whole batch,
    however many processes and micro-batches it is shared out to; only the units that dropout hides are drawn by each.

    Attributes:
        precision: ``no`` (float32), ``bf16`` or ``fp16``, as accelerate's mixed precision.
        micro_batch: pairs that a process sends through the towers at once; 0 for all of its share. A smaller number
            costs a second forward pass and bounds the towers' memory (GradCache; Gao et al., 2021), while the loss
            still sees the whole batch.
        shard: keep a share of the weights, gradients and moments in each process instead of all in every one (FSDP).
        checkpoint_activations: keep of each tower layer its input alone, and compute the rest again in the backward
            pass: a third more time for a fraction of the memory (Chen et al., 2016).
        compile: compile the towers with ``torch.compile``.
        workers: that decode, crop and tokenise ahead in each process: processes for a stream, else threads; 0 for none;
            default: as many as there are cores.
        patience: seconds for which a shard that cannot be reached is tried again.
        trackers: where metrics go beside ``metrics.jsonl``: ``tensorboard``, ``wandb``, ``trackio`` and others that
            accelerate knows and that are installed.
    """

    precision: Literal["no", "bf16", "fp16"] = "no"
    micro_batch: Number = 0
    shard: bool = False
    checkpoint_activations: bool = False
    compile: bool = False
    workers: Number | None = None
    patience: Weight = 60.0
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard and (self.compile or self.precision == "fp16"):
            raise ValueError("shard goes with neither compile nor fp16; bf16 is fine")


@dataclass(frozen=True)
class Watch(Checked):
    """Recall on the validation set while training.

    Attributes:
        every: steps between measurements; 0 for none.
        patience: stop after so many measurements without a better one, and give the best weights; 0 to go on.
        limit: pictures of the validation set that are looked at.
    """

    every: Number = 0
    patience: Number = 0
    limit: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience and not self.every:
            raise ValueError("patience needs every: how many steps lie between measurements")


@dataclass(frozen=True)
class Pretext(Checked):
    """Tasks beside retrieval, for towers that are trained from scratch (:mod:`hivlp.train.pretext`).

    Attributes:
        masked_language: weight of guessing masked words with the picture's help; 0 for none.
        masked_share: of the words.
        matching: weight of telling pairs from look-alikes; 0 for none.
    """

    masked_language: Weight = 0.0
    masked_share: PositiveShare = 0.15
    matching: Weight = 0.0


@dataclass(frozen=True)
class SelfDistillation(Checked):
    """How the coarser levels learn from the finished finest one (:mod:`hivlp.train.distillation.level`).

    Attributes:
        texts: how many of WordNet's nouns and glosses to learn from, beside the training set's captions.
        captions: share of the captions among the texts of a step.
        steps: of AdamW, with a short linear warm-up and a cosine to zero; 0 leaves the closed form.
        batch_size: texts in one step, and pictures.
        lr: peak learning rate.
        weight_decay: decoupled weight decay of the heads' matrices.
        betas: AdamW's decay of the first and the second moment.
        temperature: of the finest level's rankings that are to be learned.
        distillation: weight of :class:`~hivlp.objective.terms.RankingDistillation`.
        shortlist: weight of :class:`~hivlp.objective.terms.ShortlistLoss`.
        shortlist_size: of the batch, as a share.
        cosine: weight of one minus the cosine to where the closed form aims, for heads that read an earlier layer.
        learn_projections: whether heads that read the finest vector learn too, or stay as the closed form has them.
        neighbours: draw half of a step's texts and pictures among those that the finest level holds close.
        code: how the level will be stored: ``float``, ``int8`` or ``binary``.
    """

    texts: Number = 40_000
    captions: Share = 0.5
    steps: Number = 1500
    batch_size: Count = 384
    lr: Weight = 1e-3
    weight_decay: Weight = 0.01
    betas: Betas = (0.9, 0.999)
    temperature: Positive = 0.05
    distillation: Weight = 1.0
    shortlist: Weight = 0.0
    shortlist_size: PositiveShare = 0.05
    cosine: Weight = 1.0
    learn_projections: bool = False
    neighbours: bool = False
    code: Code = "float"


@dataclass(frozen=True)
class Init(Checked):
    """Where the weights come from.

    Attributes:
        image: ``random``; a folder, a file, a hub id or an earlier run (:mod:`hivlp.train.starting`); or a name that a
            package registers (:mod:`hivlp.train.weights`): ``registry`` for the package of EfficientNet-Lite2.
        text: the same; ``registry`` for the package of all-MiniLM-L6-v2.
        model: both towers and heads at once, from an earlier run, or for a dual encoder from its checkpoint.
        warm_start: give the finest level's prototype head the image tower's ImageNet classes and their names' text
            embeddings.
        tokenizer: model folder that gives the tokenizer; default: the text tower's starting weights, or hivlp-mini
            where it has none.
    """

    image: str = "random"
    text: str = "random"
    model: str | None = None
    warm_start: bool = False
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and (self.image, self.text) != ("random", "random"):
            raise ValueError("model fills both towers: leave out image and text")

    @property
    def text_place(self) -> str:
        """What names the text tower's starting weights."""
        return self.model or self.text


@dataclass(frozen=True)
class Recipe(Checked):
    """A training run, as YAML describes it; with ``self_distillation`` only the finest level learns from pairs."""

    name: str
    levels: tuple[Level, ...]
    image_tower: TowerConfig
    text_tower: TowerConfig
    train: tuple[Source, ...] = ()
    stream: Stream | None = None
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
    seed: Annotated[int, Between(0, 2**32)] = 0
    shortlist: Count = DEFAULT_SHORTLIST
    limit: Count | None = None
    quantize: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_levels(self.levels)
        except ValueError as error:
            raise ValueError(f"levels: {error}") from error
        names = [level.name for level in self.levels]
        for option, known in (("feature_dropout", names), ("tower_gradient", names[:-1])):
            if unknown := set(getattr(self.optim, option)) - set(known):
                raise ValueError(f"optim.{option}: no level {', '.join(sorted(unknown))} among {', '.join(known)}")

    @property
    def taught(self) -> tuple[Level, ...]:
        """The levels that learn from the pairs: all of them, or with ``self_distillation`` the finest alone."""
        return self.levels if self.self_distillation is None else self.levels[-1:]

    def settings(self) -> dict[str, Any]:
        """The recipe as plain JSON data without ``compute``: a run is resumed only with equal settings."""
        content = dataclasses.asdict(self)
        del content["compute"]
        plain: dict[str, Any] = json.loads(json.dumps(content, sort_keys=True, default=str))
        return plain


def split_of(source: str) -> tuple[str, str | None]:
    """A data set and the split that a recipe asks for, as in ``stamps:val`` or ``scenes:1000:test``."""
    name, _, split = source.rpartition(":")
    return (name, split) if name and split in SPLITS else (source, None)


def load_recipe(path: Path, *, tiny: bool = False) -> Recipe:
    """Read a recipe; whether its parts fit each other and the data is asked by :mod:`hivlp.train.recipe.check`.

    Args:
        path: of the YAML.
        tiny: take its tiny variant: what its section ``tiny`` says in place of the rest, key by key.

    Raises:
        RecipeError: naming the file, the key that is wrong, what was given and what may stand there.
    """
    try:
        return build(Recipe, read_recipe(path, tiny=tiny))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def read_recipe(path: Path, *, tiny: bool = False) -> dict[str, Any]:
    """A recipe's YAML as plain data, without its section ``tiny`` or with that in place.

    Raises:
        RecipeError: if it cannot be read, or has no such section.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path} does not hold a mapping")
    small = data.pop("tiny", None)
    if not tiny:
        return data
    if not isinstance(small, dict):
        raise RecipeError(f"{path} has no section tiny")
    return _in_place(data, small)


def _in_place(data: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with some of its values replaced; those of mappings within, key by key."""
    merged = dict(data)
    for key, value in small.items():
        before = merged.get(key)
        merged[key] = _in_place(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
