"""``hivlp train``: the training job from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from hivlp.data.contents import content_hash
from hivlp.errors import HivlpError, RecipeError
from hivlp.files.reading import one_line
from hivlp.model.batchnorm import share_statistics
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.objective import HierarchicalObjective
from hivlp.train.distillation.self_distillation import distil
from hivlp.train.inputs.batch import Batches, Reads, steps_of_epoch
from hivlp.train.inputs.corpus import CorpusBatches, Inputs
from hivlp.train.inputs.features import build_corpus, frozen_image_features, token_features
from hivlp.train.inputs.held_out import HeldOut, rows_apart
from hivlp.train.inputs.stream import StreamBatches
from hivlp.train.log import MetricLog, draw_curves
from hivlp.train.pretext import Matching, TrainingModel
from hivlp.train.publish import TrainResult, publish
from hivlp.train.recipe.check import check_data, check_folder, check_recipe
from hivlp.train.recipe.schema import Recipe
from hivlp.train.schedule import parameter_groups, set_learning_rates
from hivlp.train.state import checkpoint
from hivlp.train.state.cache import weights_digest
from hivlp.train.state.origin import Origin
from hivlp.train.state.shard import checkpoint_activations, clip_gradients, shard, whole_copy
from hivlp.train.step import FAILED, Losses, backward
from hivlp.train.watch import Best, Validation, keep_best, load_best
from hivlp.train.weights import build_model, warm_start

logger = logging.getLogger(__name__)


def train(recipe: Recipe, out: Path, *, resume: bool = False) -> TrainResult | None:
    """Run a recipe and leave a model folder with graphs, card and metrics.

    Every random choice is a function of the seed and the step, so a resumed run repeats the uninterrupted one exactly,
    and several processes (``torchrun``, ``accelerate launch``) share each batch of the run that one would do.

    Args:
        recipe: what to do.
        out: the model folder to write; ``out/run`` holds checkpoints, caches, ``metrics.jsonl`` and tracker logs.
        resume: go on from the last checkpoint of the same recipe, the same pictures and captions, and the same weights
            to start from, with any number of processes.

    Returns:
        What was measured; None from every process but the first.

    Raises:
        HivlpError: if the recipe cannot be carried out, data or backbones are missing, the folder holds another run, or
            a loss or gradient is no number.
    """
    groups: list[Any] = []
    result = _train(recipe, out, resume, groups)
    # Only now, when everything else that holds it is gone: the group of processes waits for its threads, and these for
    # Python's lock to let go of their tensors. Its own object does not keep that lock meanwhile; that of the gradients'
    # reducer does, and would wait for ever now and then (torch 2.13, Gloo).
    groups.clear()
    return result


def _train(recipe: Recipe, out: Path, resume: bool, groups: list[Any]) -> TrainResult | None:
    """:func:`train`, which leaves the group of processes, if there is one, in ``groups``."""
    started = time.perf_counter()
    run = out / "run"
    accelerator = start(recipe, run)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        groups.append(torch.distributed.group.WORLD)
    main = accelerator.is_main_process
    check_recipe(recipe)
    pairs = check_data(recipe, accelerator.num_processes)
    if main:
        check_folder(out, resume=resume)
    accelerator.wait_for_everyone()
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)

    # Model and data. What is kept in the run's folder is made by the first process and read by the others.
    apart = broadcast_object_list([rows_apart(recipe, pairs) if main else None])[0]
    pairs = [pairs[row] for row in apart]
    held_out = HeldOut.of(recipe) if recipe.stream is not None else None
    frozen = recipe.optim.tower_lr == 0
    with accelerator.main_process_first():
        model, tokenizer, tokenizer_file = build_model(recipe, run)
        weights = weights_digest(model)
        inputs = None
        if recipe.stream is None:
            corpus = build_corpus(pairs, recipe.picture, tokenizer, recipe.augment, run, checked=not main)
            inputs = Inputs(corpus)
            if frozen:
                model.eval()
                inputs.views = frozen_image_features(model, corpus, recipe.augment, recipe.seed, run)
                inputs.texts = token_features(model, corpus.ids, corpus.mask)
            reader: Batches = CorpusBatches(recipe, inputs, accelerator)
        else:
            reader = StreamBatches(recipe, tokenizer_file, accelerator, run, held_out)
    if broadcast_object_list([reader.contents.digest])[0] != reader.contents.digest:
        raise RecipeError(f"process {accelerator.process_index} reads other pictures or captions than the first one")
    if recipe.init.warm_start:
        warm_start().apply(model, tokenizer)
    objective = HierarchicalObjective([level.name for level in recipe.taught], recipe.objective)
    validation = Validation(recipe, tokenizer) if recipe.watch.every and main else None
    data: dict[str, Reads] = {"training": reader.contents}
    if validation is not None:
        data["validation"] = validation.contents
    if held_out is not None and main:
        data["held-out"] = held_out.contents
    origin = Origin(recipe.settings(), weights, content_hash(tokenizer_file.read_bytes()), data)

    # Optimise.
    training = TrainingModel(model, recipe, tokenizer.backend)
    reader.words = training.words
    matching = Matching(recipe.levels[-1].dim) if recipe.pretext.matching else None
    losses = Losses(objective, matching, recipe)
    tasks = nn.ModuleDict({name: task for name, task in (("words", training.words), ("matching", matching)) if task})
    average = averaged(model, recipe)
    if recipe.compute.checkpoint_activations:
        checkpoint_activations(model)
    if accelerator.num_processes > 1:
        share_statistics(model)
    sharded = recipe.compute.shard and accelerator.num_processes > 1
    if sharded:
        shard(training.to(accelerator.device), model, accelerator.device)
        if average is not None:
            average.to(accelerator.device)
            shard(average, cast(HiVLPModel, average.module), accelerator.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, objective, tasks, recipe))
    for loss in (objective, matching):
        if loss is not None:
            loss.to(accelerator.device)
    if sharded:
        wrapped = accelerator.prepare_model(training, evaluation_mode=True)  # precision alone: no replica to keep equal
    else:
        wrapped = accelerator.prepare(torch.compile(training) if recipe.compute.compile else training)
    optimizer = accelerator.prepare(optimizer)
    modules: dict[str, nn.Module] = {"model": model, "objective": objective, "tasks": tasks}
    if average is not None:
        modules["average"] = average.to(accelerator.device)
    epoch_steps = steps_of_epoch(reader.epoch, recipe.optim.batch_size)
    steps = epoch_steps * recipe.optim.epochs
    best = Best()
    first, kept = checkpoint.load(run / checkpoint.FOLDER, origin, modules, optimizer) if resume else (0, {})
    objective.keep_bounds()
    if main and not first:
        origin.save(run)
    if kept:
        best = Best.of(kept)
        reader.go_on(kept.get("reader", {}))
    log = MetricLog(run, first, accelerator, recipe)
    set_training(model, recipe)
    progress = tqdm(total=steps, initial=first, desc="train", unit="step", disable=None if main else True)
    patience = recipe.watch.patience
    for step, share in reader.batches(first, steps):
        if patience and best.since >= patience:
            break
        batch = share.to(accelerator.device)
        torch.manual_seed(recipe.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index)
        set_learning_rates(optimizer, recipe, step, steps)
        optimizer.zero_grad()
        terms = backward(wrapped, losses, batch, recipe, accelerator)
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        clip = clip_gradients if sharded else accelerator.clip_grad_norm_
        norm = clip(learning, recipe.optim.clip or math.inf)
        if norm is not None and not math.isfinite(norm) and accelerator.scaler is None:  # which passes over such steps
            raise HivlpError(f"step {step}: the gradient is not finite, {FAILED}")
        optimizer.step()
        objective.keep_bounds()
        if average is not None and step >= steps - (round(recipe.optim.average * steps) or steps):
            average.update_parameters(model)
        done = step + 1
        scales = dict(zip(objective.levels, objective.scales().tolist(), strict=True))
        log.write(step, {**{name: float(term.detach()) for name, term in terms.items()}, "scales": scales})
        if recipe.watch.every and (done % recipe.watch.every == 0 or done == steps):
            seen = model if average is None or not average.n_averaged else cast(HiVLPModel, average.module)
            if sharded:
                seen = whole_copy(seen, accelerator.device)
            if validation is not None:
                recalls = validation.recalls(seen, objective.levels, accelerator.device)
                keep_best(best, recalls["cascade"], done, seen, run / BEST if patience else None)
                named = {f"recall/{level}": value for level, value in recalls.items()}
                log.write(step, {"recalls": recalls, **named})
                progress.set_postfix({"AR": f"{recalls['cascade']:.1f}"})
            best = broadcast_object_list([best])[0]
        progress.update()
        if done % epoch_steps == 0 or done % recipe.optim.checkpoint_every == 0 or done == steps:
            where = run / checkpoint.FOLDER if main else None
            more = {**asdict(best), "reader": reader.state()}
            if main or sharded:
                checkpoint.save(where, origin, done, modules, optimizer, more)
    progress.close()
    log.close()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if sharded:
        model = whole_copy(model, torch.device("cpu"))
    accelerator.end_training()
    if not main:
        return None
    model = model.cpu().eval()
    if patience and (run / BEST).is_file():
        load_best(model, run / BEST)
    if (
        recipe.self_distillation is not None
        and inputs is not None
        and inputs.texts is not None
        and inputs.views is not None
    ):
        distil(model, tokenizer, inputs.texts, inputs.views, recipe)

    # Write the model folder, then measure what was written.
    model.save_pretrained(out, tokenizer_file)
    draw_curves(run, out / "curves.png", recipe.name)
    seen_pairs = reader.epoch if inputs is None else len(inputs.corpus)
    return publish(recipe, out, reader.pictures(128), seen_pairs, best.step if patience else None, started)


BEST = "best.safetensors"


def start(recipe: Recipe, run: Path) -> Accelerator:
    """The accelerator: devices and processes as ``torchrun`` or ``accelerate launch`` set them up.

    Raises:
        RecipeError: if a tracker is not installed, or precision and device do not fit.
    """
    # Accelerate keeps the first precision for as long as the process lives; a notebook may train twice.
    getattr(AcceleratorState, "_reset_state")()  # noqa: B009  (its one way to forget, though not public)
    try:
        return Accelerator(
            mixed_precision=recipe.compute.precision,
            cpu=not torch.cuda.is_available(),
            log_with=list(recipe.compute.trackers) or None,
            project_dir=run,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise RecipeError(f"compute: {one_line(error)}") from error


def set_training(model: HiVLPModel, recipe: Recipe) -> None:
    """Training mode for what learns; frozen towers and batch statistics stay as they are."""
    model.train(recipe.optim.tower_lr > 0)
    if recipe.optim.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def averaged(model: HiVLPModel, recipe: Recipe) -> AveragedModel | None:
    """The average of the weights that a recipe asks for: exponential, or equal over the last steps; None for none."""
    if recipe.optim.ema:
        decayed: Callable[..., None] = get_ema_multi_avg_fn(recipe.optim.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(model, multi_avg_fn=decayed)
    return AveragedModel(model) if recipe.optim.average else None
