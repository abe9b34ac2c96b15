"""The ablation of the hierarchy: towers and levels from random weights, on hard rendered scenes.

Two levels against one, a coarse level whose loss trains the towers against one that leaves them alone, an early one
against a late one, and distillation against none; equal towers, data, steps and seeds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from hivlp.bench.report import Report, machine, measured, summary
from hivlp.bench.scenes import LATE, hard_recipe, train_on_scenes
from hivlp.data.load import load_pairs
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.stream import encode_stream
from hivlp.evaluate.results import Evaluation
from hivlp.files.digests import cache_folder
from hivlp.files.scratch import write_whole
from hivlp.mini.scenes import FACTS, Scene
from hivlp.train.recipe.schema import Recipe, split_of

SIZES = {"small": (6_000, 8), "full": (20_000, 5)}
"""Scenes, all splits together, and epochs."""
ALONE, OURS, APART = "one level", "early coarse level", "early, towers apart"
LEVELS = ("fine", "coarse", "cascade")
COLUMNS = (*LEVELS, "text_to_image", "image_to_text", "kept")


def recipes(scenes: int, epochs: int) -> dict[str, Recipe]:
    """Runs by name: one level; ours, whose coarse level trains the towers too; and three whose coarse level does not.

    These three have the same fine level, that of one level, so that nothing but their coarse levels differs.
    """
    ours = hard_recipe(scenes, epochs)
    apart = replace(ours, optim=replace(ours.optim, tower_gradient={}))
    return {
        ALONE: hard_recipe(scenes, epochs, coarse=None),
        OURS: ours,
        APART: apart,
        "late, towers apart": replace(apart, levels=(LATE, *apart.levels[1:])),
        "apart, no distillation": replace(apart, objective=replace(apart.objective, distillation=0.0)),
    }


@dataclass(frozen=True, kw_only=True)
class HierarchyReport(Report):
    """Recalls of models with one level and with two.

    Attributes:
        rows: one for each way, with its name ``way`` and its number of runs ``seeds``. ``validation`` and ``test`` hold
            the AR of ``fine`` and ``coarse`` level and ``cascade``, the cascade's R@1 (``text_to_image``,
            ``image_to_text``), and ``kept``, its R@10 in percent of the fine level's; ``twins`` is
            :func:`told_from_twins` on the test set. Each figure is in percent, as ``mean`` and ``spread``, the standard
            deviation, over runs.
        chosen: the way with the best cascade on validation.
        gain: the fine AR on the test set of our two levels less that of one level, in ``points`` and in ``spreads``,
            units of the larger deviation; empty if one of the two is not there.
        ceiling: R@1 on the test set of who misses one fact of each scene, see :func:`ceiling`.
        plot: the PNG that was written.
    """

    rows: list[dict[str, Any]]
    chosen: str | None
    gain: dict[str, float | None]
    ceiling: dict[str, float]
    plot: str | None = None

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = []
        for split in ("validation", "test"):
            heads = ("fine AR", "coarse AR", "cascade AR", "R@1 T→I", "R@1 I→T", "kept R@10")
            lines.append(f"{split:26s}{'seeds':>6s}" + "".join(f"{head:>14s}" for head in heads))
            for row in self.rows:
                cells = (row[split].get(key) for key in COLUMNS)
                shown = (f"{cell['mean']:8.1f} ±{cell['spread']:4.1f}" if cell else f"{'':14s}" for cell in cells)
                lines.append(f"{row['way']:26s}{row['seeds']:6d}{''.join(shown)}")
        lines.append("told from its twin" + " " * 14 + "".join(f"{fact:>14s}" for fact in FACTS))
        for row in self.rows:
            cells = (row["twins"].get(fact) for fact in FACTS)
            shown = (f"{cell['mean']:8.1f} ±{cell['spread']:4.1f}" if cell else f"{'':14s}" for cell in cells)
            lines.append(f"{row['way']:32s}{''.join(shown)}")
        missing = (f"{self.ceiling[fact]:8.1f}{'':6s}" for fact in FACTS)
        lines.append(f"{'R@1 at most, without that fact':32s}{''.join(missing)}")
        if self.chosen is not None:
            lines.append(f"validation chooses: {self.chosen}")
        if self.gain:
            spreads = "" if self.gain["spreads"] is None else f" ({self.gain['spreads']:+.1f} spreads)"
            lines.append(f"a second level gains the fine one {self.gain['points']:+.1f} points of AR{spreads}")
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def run(
    size: str = "small",
    seeds: int = 3,
    plot: Path | None = None,
    *,
    fresh: bool = False,
    ways: Mapping[str, Recipe] | None = None,
) -> HierarchyReport:
    """Train each way from random weights on hard scenes, and measure combinations that training never showed.

    Finished runs are kept in the cache, and one that was killed goes on from its last checkpoint: the same call again
    continues. All ways of one seed are run before the next seed.

    Args:
        size: a name in :data:`SIZES`.
        seeds: runs of each way.
        plot: where to write a PNG of the rows.
        fresh: train all again.
        ways: recipes by name, :func:`recipes` of the size if not given.

    Returns:
        What was found, with the ways in the order of ``ways``.
    """
    started = time.perf_counter()
    ways = ways or recipes(*SIZES[size])
    found: dict[str, list[dict[str, dict[str, float]]]] = {way: [] for way in ways}
    with tqdm(total=seeds * len(ways), desc="runs", disable=None) as bar:
        for seed in range(seeds):
            for way, recipe in ways.items():
                found[way].append(kept_run(replace(recipe, seed=seed), fresh=fresh))
                bar.update()
    rows = [row(way, runs) for way, runs in found.items()]
    two = [each for each in rows if each["way"] != ALONE]
    best = max(two, key=lambda each: float(each["validation"]["cascade"]["mean"]), default=None)
    report = HierarchyReport(
        rows=rows,
        chosen=None if best is None else best["way"],
        gain=gain(rows),
        ceiling=ceiling(str(next(iter(ways.values())).test)),
        plot=None if plot is None else str(plot),
        **measured(started, "torch"),
    )
    if plot is not None:
        draw(rows, plot)
    return report


def kept_run(recipe: Recipe, *, fresh: bool) -> dict[str, dict[str, float]]:
    """Figures of a finished run: read from the cache, or else trained, measured and kept there.

    Returns:
        ``validation`` and ``test`` -> :func:`figures`, ``twins`` -> :func:`told_from_twins` on the test set.
    """
    about = {"recipe": recipe.settings(), "versions": machine("torch")["versions"]}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "bench" / "hierarchy" / key
    kept = folder.with_suffix(".json")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    elif kept.is_file():
        measures: dict[str, dict[str, float]] = json.loads(kept.read_text())
        return measures
    recalls = train_on_scenes(recipe, folder, resume=True).recalls
    measures = {split: figures(recalls[split]) for split in ("validation", "test")}
    measures["twins"] = told_from_twins(HiVLP.from_pretrained(folder), str(recipe.test))
    text = json.dumps(measures)
    write_whole(kept, lambda scratch: scratch.write_text(text))
    shutil.rmtree(folder)
    return measures


def figures(found: Evaluation) -> dict[str, float]:
    """What a row holds of one run on one split, without a coarse level and its cascade where there is none."""
    scores = found.scores
    averages = {name: recalls.average for name, recalls in scores.levels.items()}
    first = {way: getattr(scores.cascade, way)["R@1"] for way in ("text_to_image", "image_to_text")}
    kept = 100 * fmean(each["R@10"] for each in scores.retained.values())
    cascade = {"cascade": scores.cascade.average, **first}
    return {**averages, **cascade, **({"kept": kept} if len(averages) > 1 else {})}


def told_from_twins(model: HiVLP, source: str) -> dict[str, float]:
    """Percent of pictures that are closer to their caption than to that of a twin, by the fact that the twin changes.

    50 is chance; both captions have nearly the same words (:meth:`hivlp.mini.scenes.Scene.twin`).

    Args:
        model: whose finest level is asked.
        source: hard scenes, with their split.
    """
    pairs = load_pairs(*split_of(source))
    told: dict[str, list[bool]] = {fact: [] for fact in FACTS}
    for batch in encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture)):
        scenes = [pair.picture for pair in batch.jobs if isinstance(pair.picture, Scene)]
        right = model.encode_text([scene.caption for scene in scenes]).fine
        own = (batch.embeddings.fine * right).sum(1)
        for fact in FACTS:
            twins = {row: twin for row, scene in enumerate(scenes) if (twin := scene.twin(fact)) is not None}
            if twins:
                wrong = model.encode_text([twin.caption for twin in twins.values()]).fine
                chosen = list(twins)
                told[fact] += (own[chosen] > (batch.embeddings.fine[chosen] * wrong).sum(1)).tolist()
    return {fact: round(100 * fmean(answers), 2) for fact, answers in told.items() if answers}


def row(way: str, runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Mean and spread of each figure over runs of one way."""
    parts = {
        part: {key: summary([each[part][key] for each in runs]) for key in runs[0][part]}
        for part in ("validation", "test", "twins")
    }
    return {"way": way, "seeds": len(runs), **parts}


def gain(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What a second level gains the fine one, if both ways are there."""
    fine = {each["way"]: each["test"]["fine"] for each in rows}
    if not {ALONE, OURS} <= fine.keys():
        return {}
    points = fine[OURS]["mean"] - fine[ALONE]["mean"]
    spread = max(fine[ALONE]["spread"], fine[OURS]["spread"])
    return {"points": round(points, 2), "spreads": round(points / spread, 2) if spread else None}


def ceiling(source: str) -> dict[str, float]:
    """Expected R@1, in percent, of who reads all pictures and captions but for one fact, and guesses among equals.

    Args:
        source: hard scenes, with their split.

    Returns:
        By the fact that is missed, one of :data:`~hivlp.mini.scenes.FACTS`, and ``nothing``.
    """
    scenes = [pair.picture for pair in load_pairs(*split_of(source)) if isinstance(pair.picture, Scene)]
    missed = {"nothing": None, **{fact: fact for fact in FACTS}}
    return {
        name: round(100 * len({scene.meaning(fact) for scene in scenes}) / len(scenes), 2)
        for name, fact in missed.items()
    }


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """A PNG: AR of each level on the test set, and what is told from its twin, by way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.5))
    for axis, part, keys in ((axes[0], "test", LEVELS), (axes[1], "twins", FACTS)):
        for number, each in enumerate(rows):
            cells = [each[part].get(key, {"mean": 0.0, "spread": 0.0}) for key in keys]
            places = [place + (number - len(rows) / 2 + 0.5) * 0.16 for place in range(len(keys))]
            means, spreads = ([cell[key] for cell in cells] for key in ("mean", "spread"))
            axis.bar(places, means, 0.15, yerr=spreads, capsize=2, label=each["way"])
        axis.set_xticks(range(len(keys)), keys)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("AR on unseen combinations, %")
    axes[0].legend(fontsize=8)
    axes[1].set_ylabel("told from the twin's caption, %")
    axes[1].set_ylim(40, 100)
    axes[1].axhline(50, color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)
