"""The training job, top to bottom."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.config import HiVLPConfig
from hivlp.data.pairs import Pair, load_pairs
from hivlp.encode import resolve_folder
from hivlp.errors import HivlpError
from hivlp.evaluate import evaluate
from hivlp.export import export
from hivlp.model.heads import PrototypeHead
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.model.towers import tokenizer_path
from hivlp.objective import HierarchicalObjective
from hivlp.train import backbones, checkpoint
from hivlp.train.augment import random_view
from hivlp.train.features import Corpus, build_corpus, frozen_image_features, frozen_text_features
from hivlp.train.recipe import Recipe, RecipeError
from hivlp.train.selfdistill import distil
from hivlp.train.warmstart import warm_start

logger = logging.getLogger(__name__)
QUANTIZATION_LOSS = 0.5


@dataclass
class Inputs:
    """What a step draws its batch from; the features are there when the towers are frozen."""

    corpus: Corpus
    views: list[Features] | None
    texts: Features | None


def train(recipe: Recipe, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Run a recipe and leave a model folder with graphs, card and metrics.

    Every random choice is a function of the seed and the step, so a resumed run repeats the uninterrupted one exactly.

    Args:
        recipe: what to do.
        out: the model folder to write; ``out/run`` holds checkpoints, caches, ``metrics.jsonl`` and TensorBoard logs.
        resume: go on from the last checkpoint of the same recipe.

    Returns:
        The validation metrics (and test metrics, if the recipe names a test set) with timings.

    Raises:
        HivlpError: if data or backbones are missing, or the folder holds another run.
    """
    started = time.perf_counter()
    run = out / "run"
    if run.exists() and not resume:
        raise RecipeError(f"{run} exists: add --resume to go on with it, or choose another folder with -o")
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)

    # Model and data.
    model, tokenizer, tokenizer_file = build_model(recipe, run)
    pairs = [(pair, source.repeat) for source in recipe.train for pair in load_pairs(source.source, "train")]
    pairs = [(pair, repeat) for pair, repeat in pairs if pair.captions][: recipe.limit]
    corpus = build_corpus(pairs, recipe.picture, tokenizer, recipe.augment, run)
    inputs = Inputs(corpus, None, None)
    frozen = recipe.optim.tower_lr == 0
    if frozen:
        model.eval()
        inputs.views = frozen_image_features(model, corpus, recipe.augment, recipe.seed, run)
        inputs.texts = frozen_text_features(model, corpus)
    if recipe.init.warm_start:
        warm_start(model, tokenizer)
    if recipe.self_distillation is not None and not frozen:
        raise RecipeError("self_distillation works on frozen towers: set optim.tower_lr to 0")
    learning = recipe.levels if recipe.self_distillation is None else recipe.levels[-1:]
    objective = HierarchicalObjective(tuple(level.name for level in learning), recipe.objective)

    # Optimise.
    optimizer = torch.optim.AdamW(parameter_groups(model, objective, recipe))
    modules: dict[str, nn.Module] = {"model": model, "objective": objective}
    epoch_steps = math.ceil(int(corpus.repeat.sum()) / recipe.optim.batch_size)
    steps = epoch_steps * recipe.optim.epochs
    first = checkpoint.load(run / checkpoint.FOLDER, recipe, modules, optimizer) if resume else 0
    log = MetricLog(run, first)
    model.train(not frozen)
    progress = tqdm(total=steps, initial=first, desc="train", unit="step")
    for step, rows in batches(corpus, recipe, epoch_steps, first, steps):
        rng = np.random.default_rng([recipe.seed, 1, step])
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        set_learning_rates(optimizer, recipe, step, steps)
        image, text = forward(model, inputs, recipe, rows, rng)
        same = torch.from_numpy(corpus.caption_ids[rows])
        terms = objective(image, text, same[:, None] == same[None, :])
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        log.write(step, {name: float(term.detach()) for name, term in terms.items()}, objective)
        progress.update()
        done = step + 1
        if done % epoch_steps == 0 or done % recipe.optim.checkpoint_every == 0 or done == steps:
            checkpoint.save(run / checkpoint.FOLDER, recipe, done, modules, optimizer)
    progress.close()
    log.close()
    model.eval()
    if recipe.self_distillation is not None and inputs.texts is not None and inputs.views is not None:
        distil(model, tokenizer, inputs.texts, inputs.views, recipe)

    # Write the model folder, then measure what was written.
    model.save_pretrained(out, tokenizer_file)
    calibration = corpus.pixels[np.random.default_rng(recipe.seed).permutation(len(corpus))[:128]]
    export(out)
    quantized: dict[str, float] = {}
    if recipe.quantize:
        quantized = quantize_where_harmless(recipe, out, calibration)
    metrics = measure(recipe, out, ("validation", "test"))
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    metrics["pairs"] = len(corpus)
    metrics["quantization"] = quantized
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_card(recipe, out, metrics)
    return metrics


def build_model(recipe: Recipe, run: Path) -> tuple[HiVLPModel, Tokenizer, Path]:
    """The recipe's model with its initial weights, and its tokenizer, padded and truncated as the model wants."""
    path, text_tower, text_state = run / "tokenizer.json", recipe.text_tower, None
    if recipe.init.text == "registry":
        kept = backbones.slim_vocabulary(tokenizer_path(backbones.minilm_folder()), path)
        positions = recipe.text.max_tokens
        sizes = {"vocab_size": len(kept), "max_position_embeddings": positions}
        text_tower = replace(text_tower, options={**text_tower.options, **sizes})
        text_state = backbones.minilm_state(kept, positions)
    else:
        shutil.copyfile(tokenizer_path(resolve_folder(recipe.init.tokenizer)), path)
    model = HiVLPModel(
        HiVLPConfig(recipe.name, recipe.levels, recipe.image_tower, text_tower, recipe.picture, recipe.text)
    )
    if recipe.init.image == "registry":
        model.image_tower.load_state_dict(backbones.efficientnet_state())
    if text_state is not None:
        model.text_tower.load_state_dict(text_state)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(recipe.text.max_tokens)
    tokenizer.enable_padding(pad_id=recipe.text.pad_id)
    return model, tokenizer, path


def parameter_groups(model: HiVLPModel, objective: HierarchicalObjective, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups with their peak learning rates: the heads of the objective's levels, and towers that learn too."""
    optim = recipe.optim
    prototypes: list[nn.Parameter] = []
    heads = [model.image_heads[level] for level in objective.levels]
    for module in nn.ModuleList(heads).modules():
        if isinstance(module, PrototypeHead):
            prototypes += [module.values, module.sharpness]
    special = {id(parameter) for parameter in prototypes}
    image_heads = [parameter for head in heads for parameter in head.parameters() if id(parameter) not in special]
    text_heads = [parameter for level in objective.levels for parameter in model.text_heads[level].parameters()]
    groups = [
        {"params": image_heads, "peak": optim.lr, "weight_decay": optim.weight_decay},
        {"params": text_heads, "peak": optim.text_lr, "weight_decay": optim.weight_decay},
        {"params": prototypes, "peak": optim.prototype_lr, "weight_decay": 0.0},
        {"params": list(objective.parameters()), "peak": 1e-3, "weight_decay": 0.0},
    ]
    towers = [*model.image_tower.parameters(), *model.text_tower.parameters()]
    for parameter in towers:
        parameter.requires_grad_(optim.tower_lr > 0)
    if optim.tower_lr > 0:
        groups.append({"params": towers, "peak": optim.tower_lr, "weight_decay": 0.0})
    return [{**group, "lr": group["peak"]} for group in groups if group["params"]]


def set_learning_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    """Linear warm-up, then a cosine to zero."""
    factor = min(1.0, (step + 1) / max(1, recipe.optim.warmup_steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def batches(
    corpus: Corpus, recipe: Recipe, epoch_steps: int, first: int, steps: int
) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Steps from ``first`` on, each with its rows; an epoch is one shuffle of the repeated corpus."""
    repeated = np.repeat(np.arange(len(corpus)), corpus.repeat)
    size = recipe.optim.batch_size
    for epoch in range(first // epoch_steps, recipe.optim.epochs):
        order = np.random.default_rng([recipe.seed, 0, epoch]).permutation(repeated)
        for number in range(epoch_steps):
            step = epoch * epoch_steps + number
            if first <= step < steps:
                yield step, order[number * size : (number + 1) * size]


def forward(
    model: HiVLPModel, inputs: Inputs, recipe: Recipe, rows: np.ndarray[Any, Any], rng: np.random.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Level vectors of a random view of each picture and a random variant of each caption."""
    corpus = inputs.corpus
    texts = torch.tensor([corpus.variants[row][rng.integers(len(corpus.variants[row]))] for row in rows])
    if inputs.views is not None and inputs.texts is not None:
        choice = torch.from_numpy(rng.integers(len(inputs.views), size=len(rows)))
        index = torch.from_numpy(rows)
        image = {
            layer: torch.stack([view[layer][index] for view in inputs.views])[choice, torch.arange(len(rows))]
            for layer in model.image_layers
        }
        text = {layer: features[texts] for layer, features in inputs.texts.items()}
    else:
        size = recipe.picture.size
        pixels = np.stack([random_view(corpus.pixels[row], size, recipe.augment, rng) for row in rows])
        image = model.image_features(torch.from_numpy(pixels))
        mask = corpus.mask[texts]
        length = int(mask.sum(1).max())
        text = model.text_features(corpus.ids[texts, :length], mask[:, :length])
    hidden = recipe.optim.feature_dropout
    return model.project_image(image, dropout=hidden), model.project_text(text)


class MetricLog:
    """``metrics.jsonl`` (one line a step) and TensorBoard."""

    def __init__(self, run: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run / "metrics.jsonl"
        # Steps after the checkpoint will be taken again; their lines go.
        kept = path.read_text(encoding="utf-8").splitlines()[:first] if path.exists() else []
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first)

    def write(self, step: int, terms: dict[str, float], objective: HierarchicalObjective) -> None:
        """Append one step."""
        scales = dict(zip(objective.levels, objective.scales().tolist(), strict=True))
        self._file.write(json.dumps({"step": step, **terms, "scales": scales}) + "\n")
        self._file.flush()
        for name, value in terms.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def quantize_where_harmless(recipe: Recipe, folder: Path, calibration: NDArray[np.uint8]) -> dict[str, float]:
    """int8 for each tower, unless mean recall on validation falls by more than ``QUANTIZATION_LOSS`` points.

    Returns:
        AR on validation in float32 and with each tower in int8, whether kept or not.
    """
    if recipe.validation is None:
        raise RecipeError("to quantise, a recipe needs a validation set that shows what it costs")
    best = measure(recipe, folder, ("validation",))["validation"]["cascade"]["AR"]
    seen = {"float32": best}
    chosen: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {"image": {"calibration": calibration}, "text": {"quantize_text": True}}
    for tower, option in options.items():
        tried = {**chosen, **option}
        export(folder, **tried)
        seen[tower] = measure(recipe, folder, ("validation",))["validation"]["cascade"]["AR"]
        if seen[tower] >= best - QUANTIZATION_LOSS:
            chosen = tried
        else:
            lost = best - seen[tower]
            logger.warning("int8 costs the %s tower %.2f points of AR on validation; kept float32", tower, lost)
    export(folder, **chosen)
    return seen


def measure(recipe: Recipe, folder: Path, splits: tuple[str, ...]) -> dict[str, Any]:
    """Recalls of the exported graphs on the recipe's validation and test sets, if it names them."""
    from hivlp.encode import HiVLP

    metrics: dict[str, Any] = {}
    model = HiVLP.from_pretrained(folder)
    for split, source in (("validation", recipe.validation), ("test", recipe.test)):
        if source is not None and split in splits:
            name, _, part = source.partition(":")
            pairs: list[Pair] = load_pairs(name, part or None)
            metrics[split] = evaluate(pairs, model, shortlist=recipe.shortlist)
    return metrics


def write_card(recipe: Recipe, folder: Path, metrics: dict[str, Any]) -> None:
    """The model's README."""
    from hivlp.card import model_card

    try:
        text = model_card(HiVLPConfig.load(folder), metrics, recipe.notes)
    except HivlpError as error:
        raise RecipeError(f"the model was written, its card was not: {error}") from error
    (folder / "README.md").write_text(text, encoding="utf-8")
