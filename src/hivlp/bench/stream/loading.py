"""The loader alone: pairs a second beside a bare loop of the same workers, and how long a ViT-S/16 waits for it."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator

from hivlp.config import PictureConfig, TextConfig, TowerConfig
from hivlp.data.streams.lane import Dealt, Lane, Position, Source
from hivlp.data.streams.shards import find_shards, in_parts
from hivlp.data.texts import TextTokenizer
from hivlp.levels import Level
from hivlp.train.inputs.prepared import Preparation
from hivlp.train.inputs.stream import StreamBatches
from hivlp.train.recipe.schema import Augment, Compute, Optim, Recipe, Stream, StreamSource

BATCH, STEPS, ROUNDS = 128, 8, 3
WATCHED, WATCHED_BATCH = 5, 32


def recipe_of(folder: Path, workers: int, batch: int) -> Recipe:
    """Pictures cropped to 224, texts of at most 77 tokens."""
    return Recipe(
        name="loader",
        levels=(Level("fine", 8, 1, 1),),
        image_tower=TowerConfig("convnet"),
        text_tower=TowerConfig("bert"),
        stream=Stream((StreamSource(str(folder)),), epoch=1000, lanes=8, shuffle=256),
        picture=PictureConfig(size=224),
        text=TextConfig(max_tokens=77),
        optim=Optim(batch_size=batch),
        compute=Compute(workers=workers),
        quantize=False,
    )


def loader_speed(folder: Path, tokenizer: Path, workers: int) -> tuple[float, float]:
    """Pairs a second of the loader, and of a bare loop in as many processes; best of rounds that take turns."""
    loader = bare = 0.0
    for _ in range(ROUNDS):
        loader = max(loader, _loader(folder, tokenizer, workers))
        bare = max(bare, _bare(folder, tokenizer, workers))
    return loader, bare


def waiting_share(folder: Path, tokenizer: Path, workers: int) -> float:
    """Share of the time that forward and backward passes of a ViT-S/16 wait for their batch, after the first."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    model = ViTModel(ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536))
    waited, computed = 0.0, 0.0
    before = time.perf_counter()
    for step, batch in _batches(folder, tokenizer, workers, WATCHED_BATCH, WATCHED + 1):
        begun = time.perf_counter()
        assert isinstance(batch.image, torch.Tensor)
        model(batch.image.permute(0, 3, 1, 2).float() / 255).pooler_output.square().mean().backward()
        after = time.perf_counter()
        if step:
            waited, computed = waited + begun - before, computed + after - begun
        before = after
    return waited / (waited + computed)


def _batches(folder: Path, tokenizer: Path, workers: int, batch: int, steps: int):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as scratch:
        recipe = recipe_of(folder, workers, batch)
        yield from StreamBatches(recipe, tokenizer, Accelerator(cpu=True), Path(scratch)).batches(0, steps)


def _loader(folder: Path, tokenizer: Path, workers: int) -> float:
    started = 0.0
    skip = 4 * workers  # what was made while nobody asked
    steps = skip + STEPS * workers
    for step, _ in _batches(folder, tokenizer, workers, BATCH, steps):
        if step == skip - 1:
            started = time.perf_counter()
    return BATCH * (steps - skip) / (time.perf_counter() - started)


def _bare(folder: Path, tokenizer: Path, workers: int) -> float:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    barrier = context.Barrier(workers)
    processes = [
        context.Process(target=_loop, args=(folder, tokenizer, BATCH * STEPS, barrier, results)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(found))


def _loop(folder: Path, tokenizer: Path, count: int, barrier, results) -> None:  # type: ignore[no-untyped-def]
    """Decode, crop and tokenise pairs that are in memory already."""
    torch.set_num_threads(1)
    recipe = recipe_of(folder, 1, BATCH)
    source = Source(in_parts(find_shards(str(folder), "train", folder), 1), 1.0, "train", "")
    lane = Lane(Dealt((source,), 1, 256, 0), 0, Position.start(1), lambda _: None)
    taken = [lane.take() for _ in range(256)]
    prepare = Preparation(recipe.picture, Augment(), 0)
    tokenize = TextTokenizer(tokenizer, recipe.text)
    barrier.wait()
    started = time.perf_counter()
    for start in range(0, count, BATCH):
        rows = islice((taken[number % len(taken)] for number in range(start, start + BATCH)), BATCH)
        tokenize([prepare(pair, numbers).text for pair, numbers in rows])
    results.put(count / (time.perf_counter() - started))
