"""Fine-tuning of UNITER, METER or LightningDOT from top to bottom."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.errors import DataError, HivlpError, RecipeError
from hivlp.files.scratch import write_whole
from hivlp.systems.fusion.texts import Tokens
from hivlp.train.finetune.procedures import Examples, Procedure, procedure_of
from hivlp.train.finetune.recipe import FinetuneOptim, FinetuneRecipe
from hivlp.train.log import step_of
from hivlp.train.recipe.check import check_folder
from hivlp.train.state import checkpoint
from hivlp.train.state.cache import weights_digest
from hivlp.train.state.origin import Origin

BEST, WEIGHTS = "best.safetensors", "model.safetensors"
LONGEST = 512


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned system.

    Attributes:
        model: its folder; of UNITER and METER one that ``hivlp search --rerank`` takes.
        average_recall: mean of R@1, R@5 and R@10 in both directions on the validation part's first pictures, of the
            weights that were kept, in percent.
        best_step: whose weights they are.
        steps: of the run.
        seconds: that this process worked.
    """

    model: Path
    average_recall: float
    best_step: int
    steps: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        return asdict(self) | {"model": str(self.model)}


def finetune(recipe: FinetuneRecipe, out: Path, *, resume: bool = False) -> FinetuneResult:
    """Run a recipe; every random choice is a function of the seed and the step.

    Args:
        recipe: what to do.
        out: the folder to write; ``out/run`` holds the checkpoint, the best weights and ``metrics.jsonl``.
        resume: go on from the last checkpoint of the same recipe and data.

    Raises:
        HivlpError: if data or weights are missing or do not fit, or the loss is no number.
    """
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    procedure = procedure_of(recipe)
    training = _examples(recipe, "train")
    validation = Examples.of(load_pairs(recipe.data, recipe.validation)[: recipe.validate_limit])
    run = out / "run"
    check_folder(out, resume=resume)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = procedure.network.to(device)
    optim = recipe.optim
    optimizer = torch.optim.AdamW(groups_of(network, optim), betas=optim.betas, eps=optim.eps)
    read = hashlib.sha256(json.dumps([[pair.id for pair in training.pictures], training.captions]).encode()).hexdigest()
    settings = json.loads(json.dumps(asdict(recipe) | {"read": read}))
    origin = Origin(settings, weights_digest(network), recipe.tokenizer, {})
    modules: dict[str, nn.Module] = {"network": network}
    first, kept = checkpoint.load(run / checkpoint.FOLDER, origin, modules, optimizer) if resume else (0, {})
    best, best_step = float(kept.get("best", -1.0)), int(kept.get("best_step", 0))
    log = run / "metrics.jsonl"
    before = [line for line in (log.read_text("utf-8").splitlines() if log.is_file() else ()) if step_of(line) < first]
    log.write_text("".join(f"{line}\n" for line in before), encoding="utf-8")
    for step in tqdm(range(first, optim.steps), initial=first, total=optim.steps, desc="finetune", disable=None):
        rng = np.random.default_rng([recipe.seed, 1, step])
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        network.train()
        factor = schedule(step, optim)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = procedure.loss(training, rows_of(recipe, len(training.captions), step), rng)
        if not bool(loss.detach().isfinite()):
            raise HivlpError(f"step {step}: the loss is {float(loss.detach())}: try a lower optim.lr or optim.clip")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), optim.clip or math.inf)
        optimizer.step()
        done = step + 1
        line: dict[str, Any] = {"step": step, "loss": float(loss.detach())}
        if done % recipe.validate_every == 0 or done == optim.steps:
            line["recall"] = recall = average_recall(procedure, validation)
            if recall > best:
                best, best_step = recall, done
                _save(network, run / BEST)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if done % recipe.checkpoint_every == 0 or done == optim.steps:
            more = {"best": best, "best_step": best_step}
            checkpoint.save(run / checkpoint.FOLDER, origin, done, modules, optimizer, more)
    network.load_state_dict(load_file(run / BEST))
    return _publish(recipe, procedure, out, FinetuneResult(out, round(best, 2), best_step, optim.steps, 0.0), started)


def _examples(recipe: FinetuneRecipe, split: str) -> Examples:
    """The training part; of UNITER without captions that are too long."""
    pairs: Sequence[Pair] = load_pairs(recipe.data, split)
    if recipe.system == "uniter":
        tokens = Tokens(Path(recipe.tokenizer), LONGEST)
        fitting = [[text for text in pair.captions if len(tokens([text])[0]) <= recipe.max_tokens] for pair in pairs]
        pairs = [replace(pair, captions=tuple(texts)) for pair, texts in zip(pairs, fitting, strict=True) if texts]
    if len(pairs) < 2:
        raise DataError(f"{recipe.data} has {len(pairs)} pictures to train on: at least 2 are needed")
    found = Examples.of(pairs)
    if recipe.optim.batch_size > len(found.captions):
        raise RecipeError(f"optim.batch_size is {recipe.optim.batch_size}, more than {len(found.captions)} captions")
    return found


def groups_of(network: nn.Module, optim: FinetuneOptim) -> list[dict[str, Any]]:
    """AdamW groups by peak learning rate and weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = name.endswith("bias") or any(word in name for word in optim.undecayed)
        factor = next((by for word, by in optim.faster.items() if word in name), 1.0)
        groups.setdefault((optim.lr * factor, 0.0 if spared else optim.weight_decay), []).append(parameter)
    return [{"params": own, "peak": lr, "lr": lr, "weight_decay": decay} for (lr, decay), own in groups.items()]


def schedule(step: int, optim: FinetuneOptim) -> float:
    """Share of the peak learning rate: linear warm-up, then linear to zero."""
    warmup = round(optim.warmup * optim.steps)
    if step < warmup:
        return (step + 1) / warmup
    return (optim.steps - step) / max(1, optim.steps - warmup)


def rows_of(recipe: FinetuneRecipe, count: int, step: int) -> NDArray[np.int64]:
    """A step's captions: pass after pass over all of them, each in an order of its own."""
    places = step * recipe.optim.batch_size + np.arange(recipe.optim.batch_size)
    return np.array([_order(recipe.seed, int(place) // count, count)[int(place) % count] for place in places])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


@torch.no_grad()
def average_recall(procedure: Procedure, examples: Examples) -> float:
    """Mean of R@1, R@5 and R@10 over every pair, in both directions, in percent; ties count against."""
    procedure.network.eval()
    scores = procedure.scores(examples.pictures, examples.captions).float().cpu().numpy()
    own = examples.owner[None, :] == np.arange(len(examples.pictures))[:, None]
    right = scores[examples.owner, np.arange(scores.shape[1])]
    to_image = (scores >= right).sum(0)
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    to_text = ((scores >= best) & ~own).sum(1) + 1
    found = [100 * float((ranks <= k).mean()) for ranks in (to_image, to_text) for k in (1, 5, 10)]
    return sum(found) / len(found)


def _publish(
    recipe: FinetuneRecipe, procedure: Procedure, out: Path, result: FinetuneResult, started: float
) -> FinetuneResult:
    """Write weights, ``config.json``, tokenizer and ``metrics.json``."""
    _save(procedure.network, out / WEIGHTS)
    config: dict[str, Any] = {"model_type": recipe.system, "checkpoint": WEIGHTS}
    if recipe.regions is not None:
        config["regions"] = str(Path(recipe.regions).resolve())
    if recipe.system == "meter":
        config["image_size"] = cast(Any, procedure.network).config.size
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "vocab.txt"):
        if (source := Path(recipe.tokenizer) / name).is_file():
            shutil.copyfile(source, out / name)
    result = replace(result, seconds=round(time.perf_counter() - started, 1))
    (out / "metrics.json").write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    return result


def _save(network: nn.Module, path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_whole(path, lambda place: save_file(state, place))
