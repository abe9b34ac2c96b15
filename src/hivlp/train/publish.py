"""The published model folder: ONNX graphs, int8 where recall allows it, measured recalls, and the card."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.config import HiVLPConfig
from hivlp.data.load import load_pairs
from hivlp.errors import HivlpError, RecipeError
from hivlp.evaluate.evaluation import evaluate
from hivlp.evaluate.results import Evaluation
from hivlp.export.graphs import export
from hivlp.train.inputs.augment import plain_view
from hivlp.train.recipe.schema import Recipe, split_of

logger = logging.getLogger(__name__)
QUANTIZATION_LOSS = 0.5


@dataclass(frozen=True)
class TrainResult:
    """A trained model folder, and what was measured of it.

    Attributes:
        model: the folder.
        recalls: ``validation`` and ``test``, if the recipe names them -> what
            :func:`hivlp.evaluate.evaluation.evaluate` found.
        seconds: of the whole run, as far as this process did it.
        pairs: readable ones, which were trained on.
        best_step: whose weights they are, if the run was stopped by its validation; else None.
        quantization: AR on validation, in percent, in ``float32`` and with the ``image`` and the ``text`` tower in
            int8, whether that was kept or not; empty if it was not tried.
    """

    model: Path
    recalls: Mapping[str, Evaluation]
    seconds: float
    pairs: int
    best_step: int | None
    quantization: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """What ``metrics.json`` holds and, with the model's folder, ``hivlp train --json`` prints."""
        best = {} if self.best_step is None else {"best_step": self.best_step}
        run = {"seconds": self.seconds, "pairs": self.pairs, **best, "quantization": dict(self.quantization)}
        return {**{name: found.to_json() for name, found in self.recalls.items()}, **run}


def publish(
    recipe: Recipe, out: Path, calibration: NDArray[np.uint8], pairs: int, best_step: int | None, started: float
) -> TrainResult:
    """Write graphs, ``metrics.json`` and the card for a saved model, and measure what was written.

    Args:
        recipe: what was done.
        out: the model folder.
        calibration: (N, S, S, 3) uint8 pictures on which int8 ranges are set.
        pairs: that were trained on.
        best_step: see :class:`TrainResult`.
        started: when the run began, by ``time.perf_counter``, in seconds.
    """
    export(out)
    quantized = quantize_where_harmless(recipe, out, calibration) if recipe.quantize else {}
    recalls = measure(recipe, out, ("validation", "test"))
    seconds = round(time.perf_counter() - started, 1)
    result = TrainResult(out, recalls, seconds, pairs, best_step, quantized)
    (out / "metrics.json").write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    write_card(recipe, out, {name: found.to_json() for name, found in recalls.items()})
    return result


def quantize_where_harmless(recipe: Recipe, folder: Path, calibration: NDArray[np.uint8]) -> dict[str, float]:
    """int8 for each tower, unless mean recall on validation falls by more than ``QUANTIZATION_LOSS`` points.

    Returns:
        AR on validation in float32 and with each tower in int8, whether kept or not.
    """
    if recipe.validation is None:
        raise RecipeError("to quantise, a recipe needs a validation set that shows what it costs")
    best = measure(recipe, folder, ("validation",))["validation"].scores.cascade.average
    seen = {"float32": best}
    chosen: dict[str, Any] = {}
    views = np.stack([plain_view(pixels, recipe.picture.size) for pixels in calibration])
    options: dict[str, dict[str, Any]] = {"image": {"calibration": views}, "text": {"quantize_text": True}}
    for tower, option in options.items():
        tried = {**chosen, **option}
        export(folder, **tried)
        seen[tower] = measure(recipe, folder, ("validation",))["validation"].scores.cascade.average
        if seen[tower] >= best - QUANTIZATION_LOSS:
            chosen = tried
        else:
            lost = best - seen[tower]
            logger.warning("int8 costs the %s tower %.2f points of AR on validation; kept float32", tower, lost)
    export(folder, **chosen)
    return seen


def measure(recipe: Recipe, folder: Path, splits: tuple[str, ...]) -> dict[str, Evaluation]:
    """Recalls of the exported graphs on the recipe's validation and test sets, if it names them."""
    from hivlp.encode import HiVLP

    metrics: dict[str, Evaluation] = {}
    model = HiVLP.from_pretrained(folder)
    for split, source in (("validation", recipe.validation), ("test", recipe.test)):
        if source is not None and split in splits:
            metrics[split] = evaluate(load_pairs(*split_of(source)), model, shortlist=recipe.shortlist)
    return metrics


def write_card(recipe: Recipe, folder: Path, recalls: Mapping[str, Any]) -> None:
    """The model's README."""
    from hivlp.export.card import model_card

    try:
        text = model_card(HiVLPConfig.load(folder), recalls, recipe.notes)
    except HivlpError as error:
        raise RecipeError(f"the model was written, its card was not: {error}") from error
    (folder / "README.md").write_text(text, encoding="utf-8")
