"""Training logs: ``metrics.jsonl``, trackers, and a plot of losses and recalls."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from accelerate import Accelerator

from hivlp.errors import HivlpError
from hivlp.files.reading import reason
from hivlp.train.recipe.schema import Recipe

FILE = "metrics.jsonl"


class MetricLog:
    """``metrics.jsonl`` (one line a step, and one for each measurement on validation) and the recipe's trackers."""

    def __init__(self, run: Path, first: int, accelerator: Accelerator, recipe: Recipe) -> None:
        self._accelerator = accelerator
        self._file = None
        if accelerator.is_main_process:
            path = run / FILE
            # Steps after the checkpoint will be taken again; their lines go.
            kept = [row for row in _rows(path) if row["step"] < first]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        options = {"tensorboard": {"purge_step": first}} if "tensorboard" in recipe.compute.trackers else {}
        accelerator.init_trackers(recipe.name, init_kwargs=options)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line, and send its numbers to the trackers.

        Raises:
            HivlpError: if the disk is full.
        """
        if self._file is not None:
            try:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
            except OSError as error:
                raise HivlpError(
                    f"{FILE} cannot be written: {reason(error)}; make room, and go on from the last checkpoint with "
                    "--resume"
                ) from error
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Close the file; the trackers end with the accelerator."""
        if self._file is not None:
            self._file.close()


def draw_curves(run: Path, out: Path, name: str) -> None:
    """A PNG of every term of the loss, and of the validation recalls by level, over the steps."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = _rows(run / FILE)
    losses = [row for row in rows if "loss" in row]
    recalls = [row for row in rows if "recalls" in row]
    figure, axes = pyplot.subplots(1, 2 if recalls else 1, figsize=(12 if recalls else 7, 4.5), squeeze=False)
    left = axes[0, 0]
    terms = [key for key, value in losses[0].items() if (isinstance(value, float) and "/" in key) or key == "loss"]
    window = max(1, len(losses) // 100)
    for term in terms:
        values = [row[term] for row in losses]
        smooth = [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]
        steps = [row["step"] for row in losses]
        left.plot(steps, smooth, label=term, linewidth=2.2 if term == "loss" else 1.3)
    left.set(title=f"{name}: loss", xlabel="step", yscale="log")
    left.legend(fontsize=8)
    if recalls:
        right = axes[0, 1]
        for level in recalls[0]["recalls"]:
            right.plot([row["step"] for row in recalls], [row["recalls"][level] for row in recalls], "o-", label=level)
        right.set(title=f"{name}: mean recall on validation", xlabel="step", ylabel="AR (%)")
        right.legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def step_of(line: str) -> int:
    """The step of a line of a log; of one that a kill or a failing disk has damaged, later than any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return 1 << 62


def _rows(path: Path) -> list[dict[str, Any]]:
    """The intact lines of a log; a kill or a failing disk may have damaged some."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
