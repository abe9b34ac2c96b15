"""``hivlp bench stream``: start, memory, speed and resumption of a training run on millions of pairs in shards."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hivlp.bench.report import Report, measured
from hivlp.bench.stream.job import Job, losses
from hivlp.bench.stream.loading import loader_speed, waiting_share
from hivlp.bench.stream.shards import write_shards
from hivlp.encode import resolve_folder
from hivlp.encode.stream import default_workers
from hivlp.files.digests import cache_folder
from hivlp.model.towers import tokenizer_path

PAIRS = {"small": 20_000, "full": 2_000_000}
FEW = 10_000
SHARDS = 200
TINY, PHOTO = (48, 48), (500, 375)  # pixels
KILLS, STEPS = 10, 60
SLICES, SLICE = 16, 2.5  # seconds for which one of two jobs runs while the other one is stopped


@dataclass(frozen=True, kw_only=True)
class StreamReport(Report):
    """How training on a stream fares; see :func:`run`."""

    pairs: int
    shards_mb: int
    folder: str
    start_s: float
    rss_mb: float
    pairs_per_second: dict[str, float]
    relative_speed: float
    spread: float
    kills: int
    steps: int
    resume_equal: bool
    loader_pairs_per_second: dict[str, float]
    loader_ratio: float
    waiting_share: float

    def to_text(self) -> str:
        """Lines for the terminal."""
        speeds = ", ".join(f"{value:.0f} on {name}" for name, value in self.pairs_per_second.items())
        loader = ", ".join(f"{name} {value:.0f}" for name, value in self.loader_pairs_per_second.items())
        return "\n".join([
            f"{self.pairs:,} pairs in {self.shards_mb:,} MB of shards (in {self.folder}; may be deleted)",
            f"start to first step   {self.start_s:.1f} s",
            f"memory of a process   {self.rss_mb:.0f} MB at most",
            f"pairs a second        {speeds}: {self.relative_speed:.3f} ± {self.spread:.3f}",
            f"killed {self.kills} times       losses of {self.steps} steps "
            + ("equal" if self.resume_equal else "NOT equal"),
            f"loader, pairs/s       {loader}: {self.loader_ratio:.2f}",
            f"ViT-S/16 waits        {100 * self.waiting_share:.1f}% of the time",
        ])  # fmt: skip


def run(size: str = "small") -> StreamReport:
    """Train on generated shards, in processes of their own, and watch them.

    Returns:
        ``start_s``: from the command to its first finished step. ``rss_mb``: the largest process, model included.
        ``relative_speed``: steps a second beside the same job on 10,000 pairs, which took turns with it (median over
        turns, and ``spread``, half of what the middle half of them spans). ``resume_equal``: whether a run that was
        killed ten times at random steps and resumed has the very losses of one that was not. ``loader_ratio``: decoded,
        cropped to 224 and tokenised pairs a second, beside the same workers in a bare loop. ``waiting_share``: of the
        time, in which a ViT-S/16 waits for its batch.
    """
    started, pairs = time.perf_counter(), PAIRS[size]
    cache = cache_folder() / "bench" / "stream"
    many = write_shards(cache / f"{pairs}", pairs, SHARDS, TINY)
    few = write_shards(cache / f"{FEW}", FEW, SHARDS // 10, TINY)
    photos = write_shards(cache / "photos", 2048, 16, PHOTO)
    failures = []
    with tempfile.TemporaryDirectory(prefix="hivlp-stream-") as folder:
        work = Path(folder)
        recipes = {name: write_recipe(work / f"{name}.yaml", shards) for name, shards in (("many", many), ("few", few))}
        start_s, rss, ratio, spread, speeds = _speed(recipes["many"], recipes["few"], work, pairs)
        equal = _resumed(write_recipe(work / "resumed.yaml", many, STEPS), work)
        if not equal:
            failures.append("a run that was killed and resumed has other losses than one that was not")
    workers = default_workers()
    tokenizer = tokenizer_path(resolve_folder("hivlp-mini"))
    loader, bare = loader_speed(photos, tokenizer, workers)
    waiting = waiting_share(photos, tokenizer, workers)
    return StreamReport(
        pairs=pairs,
        shards_mb=sum(path.stat().st_size for path in cache.rglob("*.tar")) >> 20,
        folder=str(cache),
        start_s=round(start_s, 1),
        rss_mb=round(rss / 2**20),
        pairs_per_second=speeds,
        relative_speed=round(ratio, 3),
        spread=round(spread, 3),
        kills=KILLS,
        steps=STEPS,
        resume_equal=equal,
        loader_pairs_per_second={"loader": round(loader, 1), "bare loop": round(bare, 1)},
        loader_ratio=round(loader / bare, 3),
        waiting_share=round(waiting, 4),
        failures=failures,
        **measured(started, "torch", "pillow"),
    )


def write_recipe(path: Path, shards: Path, steps: int = 50_000, batch: int = 64) -> Path:
    """A small dual encoder that is trained on a stream; YAML in JSON's words."""
    options = {
        "vocab_size": 30522, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 128, "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    recipe = {
        "name": "stream",
        "levels": [
            {"name": "coarse", "dim": 16, "image_layer": 4, "text_layer": 1},
            {"name": "fine", "dim": 64, "image_layer": 4, "text_layer": 2},
        ],
        "image_tower": {"kind": "convnet", "options": {"channels": [16, 32, 48, 64], "grid": 4}},
        "text_tower": {"kind": "bert", "options": options},
        "picture": {"size": 64},
        "text": {"max_tokens": 24},
        "stream": {"sources": [{"source": str(shards)}], "epoch": steps * batch, "lanes": 16},
        "optim": {"epochs": 1, "batch_size": batch, "tower_lr": 1e-3, "checkpoint_every": 5},
        "compute": {"trackers": []},
        "quantize": False,
    }
    path.write_text(json.dumps(recipe))
    return path


def _speed(many: Path, few: Path, work: Path, pairs: int) -> tuple[float, float, float, float, dict[str, float]]:
    """Seconds to the first step, bytes at most, and the ratio of speeds with its spread and parts."""
    jobs = []
    try:
        for recipe in (many, few):
            jobs.append(Job(recipe, work / f"{recipe.stem}-speed"))
            first = jobs[-1].wait_for(1)
            if len(jobs) == 1:
                start_s = first
            jobs[-1].wait_for(20)  # caches, workers ahead
            jobs[-1].pause()
        rates: list[list[float]] = [[], []]
        for _ in tqdm(range(SLICES), "speed", unit="turn", disable=None):
            for job, found in zip(jobs, rates, strict=True):
                with job.running():
                    # From the end of a step to the end of a step; what was made ahead is taken first.
                    before, begun = job.steps() + 3, job.wait_for(job.steps() + 3)
                    time.sleep(SLICE)
                    after = job.steps() + 1
                    found.append((after - before) / (job.wait_for(after) - begun))
        with jobs[0].running():
            jobs[0].wait_for(jobs[0].steps() + 1)
        ratios = sorted(a / b for a, b in zip(*rates, strict=True))
        batch = json.loads(many.read_text())["optim"]["batch_size"]
        speeds = {
            f"{count:,} pairs": round(batch * statistics.median(found), 1)
            for count, found in zip((pairs, FEW), rates, strict=True)
        }
        quarter = len(ratios) // 4
        spread = (ratios[-1 - quarter] - ratios[quarter]) / 2
        return start_s, jobs[0].peak, statistics.median(ratios), spread, speeds
    finally:
        for job in jobs:
            job.kill()


def _resumed(recipe: Path, work: Path) -> bool:
    """Whether a run that is killed at random steps and resumed repeats the losses of one that is left alone."""
    whole = Job(recipe, work / "whole")
    try:
        whole.finished()
        rng = random.Random(0)
        stops = sorted(rng.sample(range(1, STEPS), KILLS))
        for number, stop in enumerate(tqdm([*stops, STEPS], "kills", unit="kill", disable=None)):
            job = Job(recipe, work / "killed", resume=number > 0)
            try:
                job.wait_for(stop) if stop < STEPS else job.finished()
            finally:
                job.kill()
    finally:
        whole.kill()
    return losses(work / "whole") == losses(work / "killed") and len(losses(work / "whole")) == STEPS
