"""Recipe of a fine-tuning run of UNITER, METER or LightningDOT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hivlp.errors import RecipeError
from hivlp.train.recipe.schema import read_recipe
from hivlp.typed import Between, Checked, Count, Number, Positive, Share, ShareBelowOne, Weight, build


@dataclass(frozen=True)
class FinetuneOptim(Checked):
    """AdamW with linear warm-up and linear decay to zero.

    Attributes:
        steps: of the optimiser.
        batch_size: positive pairs in a step; for UNITER, queries of each direction.
        lr: peak learning rate.
        faster: part of a parameter's name -> by what its learning rate is multiplied.
        betas: decay of the first and the second moment.
        eps: AdamW's.
        weight_decay: of all but biases and parameters whose names contain a word of ``undecayed``.
        undecayed: such words.
        warmup: share of the steps to the peak.
        clip: largest norm of the gradient; 0 for any.
    """

    steps: Count
    batch_size: Count
    lr: Positive
    faster: Mapping[str, Positive] = field(default_factory=dict)
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    eps: Positive = 1e-8
    weight_decay: Weight = 0.01
    undecayed: tuple[str, ...] = ("LayerNorm", "layernorm", "ln_", "norm")
    warmup: Share = 0.1
    clip: Weight = 0.0


@dataclass(frozen=True)
class FinetuneRecipe(Checked):
    """A fine-tuning run, as YAML describes it.

    Attributes:
        name: of the run and its folder.
        system: whose procedure: ``uniter`` (hard negatives), ``meter`` (random texts), ``lightningdot`` (in-batch).
        data: training pairs, as :func:`hivlp.data.load.load_pairs` reads them; the part ``train``.
        validation: the part by whose recall the weights are chosen.
        optim: of the run.
        checkpoint: published weights to start from; None for random ones of ``size``. For LightningDOT a pre-trained
            image tower where ``text_checkpoint`` is given.
        text_checkpoint: LightningDOT's text tower: a folder or hub id of BERT.
        size: of a network with random weights, as the system's configuration names it.
        tokenizer: folder with ``tokenizer.json`` or ``vocab.txt``.
        regions: folder of region features (UNITER, LightningDOT).
        max_tokens: of a text; of UNITER, longer ones are left out of training.
        pool: candidates of a query among which UNITER looks for hard ones.
        negatives: UNITER: hard ones that a query is trained with; METER: random texts beside a picture's own.
        margin: of UNITER's loss.
        validate_every: steps between measurements on the validation part.
        validate_limit: pictures of it, all of whose pairs are scored.
        checkpoint_every: steps between checkpoints.
        precision: ``no`` (float32) or ``bf16``.
        seed: of every random choice.
        notes: for people.
    """

    name: str
    system: Literal["uniter", "meter", "lightningdot"]
    data: str
    optim: FinetuneOptim
    tokenizer: str
    validation: Literal["train", "val", "test"] = "val"
    checkpoint: str | None = None
    text_checkpoint: str | None = None
    size: Mapping[str, Any] = field(default_factory=dict)
    regions: str | None = None
    max_tokens: Count = 60
    pool: Number = 400
    negatives: Number = 0
    margin: Weight = 0.2
    validate_every: Count = 500
    validate_limit: Count = 100
    checkpoint_every: Count = 500
    precision: Literal["no", "bf16"] = "no"
    seed: Annotated[int, Between(0, 2**32)] = 0
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.regions is None) != (self.system == "meter"):
            raise ValueError("regions: UNITER and LightningDOT need a folder of region features, METER takes pixels")
        if self.system != "lightningdot" and not self.negatives:
            raise ValueError(f"negatives must be at least 1 for {self.system}")
        if self.system == "uniter" and self.pool <= self.negatives:
            raise ValueError(f"pool is {self.pool}: hard negatives are looked for among more than {self.negatives}")


def is_finetune(path: Path, *, tiny: bool = False) -> bool:
    """Whether a recipe is one of these: it names a ``system``.

    Raises:
        RecipeError: if it cannot be read.
    """
    return "system" in read_recipe(path, tiny=tiny)


def load_finetune(path: Path, *, tiny: bool = False) -> FinetuneRecipe:
    """Read a recipe, or its tiny variant.

    Raises:
        RecipeError: naming the file, the key that is wrong, what was given and what may stand there.
    """
    try:
        return build(FinetuneRecipe, read_recipe(path, tiny=tiny))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
