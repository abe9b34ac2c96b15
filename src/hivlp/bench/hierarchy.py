"""What a second level costs the finest one, when both are trained through the towers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hivlp.bench.report import Report, measured, summary
from hivlp.bench.scenes import COARSE, FINE, scenes_recipe, train_on_scenes
from hivlp.objective import ObjectiveConfig
from hivlp.train.recipe.schema import Recipe

SCENES, EPOCHS = 8000, 8
ALONE, OURS = "one level", "two levels, hivlp"


def recipes(scenes: int = SCENES, epochs: int = EPOCHS) -> dict[str, Recipe]:
    """Runs with equal towers, data, steps and seed, which differ in levels and in what reaches the towers."""
    two = scenes_recipe(scenes, epochs, levels=(COARSE, FINE), test=f"scenes:{scenes}:test")
    through = replace(two.optim, tower_gradient={COARSE.name: 1.0})
    plain = ObjectiveConfig(temperature=two.objective.temperature, distillation=0.0)
    return {
        ALONE: replace(two, levels=(FINE,)),
        OURS: two,
        "two levels, both train the towers": replace(two, optim=through),
        "the same without distillation": replace(two, optim=through, objective=plain),
    }


@dataclass(frozen=True, kw_only=True)
class HierarchyReport(Report):
    """Recalls of models with one level and with two; see :func:`run`."""

    rows: list[dict[str, Any]]
    cost: dict[str, float | None]

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{'AR on scenes':36s}{'fine':>14s}{'coarse':>14s}{'cascade':>14s}"]
        for row in self.rows:
            cells = (row.get(key) for key in ("fine", "coarse", "cascade"))
            shown = (f"{cell['mean']:8.1f} ±{cell['spread']:4.1f}" if cell else f"{'':14s}" for cell in cells)
            lines.append(f"{row['way']:36s}{''.join(shown)}")
        cost = self.cost
        spreads = "" if cost["spreads"] is None else f" ({cost['spreads']:+.1f} spreads)"
        lines.append(f"a second level costs the fine one {cost['points']:+.1f} points{spreads}")
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def run(seeds: int = 3, ways: Mapping[str, Recipe] | None = None) -> HierarchyReport:
    """Train each way from random weights on rendered scenes, and measure combinations that training never showed.

    Args:
        seeds: runs of each way.
        ways: recipes by name, :func:`recipes` if not given.

    Returns:
        ``rows``: for each way the AR of its fine and coarse level and of the cascade (mean and standard deviation over
        the seeds); ``cost``: the fine AR of one level less that of our two, in points and in units of the larger
        deviation.
    """
    started = time.perf_counter()
    ways = ways or recipes()
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tqdm(total=seeds * len(ways), desc="runs", disable=None) as bar:
        for seed in range(seeds):
            for way, recipe in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    test = train_on_scenes(replace(recipe, seed=seed), Path(folder) / "model").recalls["test"]
                levels = {name: recalls.average for name, recalls in test.scores.levels.items()}
                seen[way].append({**levels, "cascade": test.scores.cascade.average})
                bar.update()
    found = {way: {key: summary([run[key] for run in runs]) for key in runs[0]} for way, runs in seen.items()}
    alone, ours = found[ALONE]["fine"], found[OURS]["fine"]
    points = alone["mean"] - ours["mean"]
    spread = max(alone["spread"], ours["spread"])
    return HierarchyReport(
        rows=[{"way": way, **recalls} for way, recalls in found.items()],
        cost={"points": round(points, 2), "spreads": round(points / spread, 2) if spread else None},
        **measured(started, "torch"),
    )
