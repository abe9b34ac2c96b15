"""From a trained model to the folder that people use: graphs, int8 where it is harmless, recalls, a card."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.config import HiVLPConfig
from hivlp.data.pairs import load_pairs
from hivlp.errors import HivlpError
from hivlp.evaluate.recall import evaluate
from hivlp.export.graphs import export
from hivlp.train.recipe import Recipe, RecipeError, split_of

logger = logging.getLogger(__name__)
QUANTIZATION_LOSS = 0.5


def publish(
    recipe: Recipe, out: Path, calibration: NDArray[np.uint8], facts: dict[str, Any], started: float
) -> dict[str, Any]:
    """Write graphs, ``metrics.json`` and the card for a saved model, and measure what was written.

    Args:
        recipe: what was done.
        out: the model folder.
        calibration: (N, S, S, 3) pictures on which int8 ranges are set.
        facts: further entries of the metrics.
        started: when the run began, by ``time.perf_counter``.
    """
    export(out)
    quantized = quantize_where_harmless(recipe, out, calibration) if recipe.quantize else {}
    metrics = measure(recipe, out, ("validation", "test"))
    metrics |= {"seconds": round(time.perf_counter() - started, 1), **facts, "quantization": quantized}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_card(recipe, out, metrics)
    return metrics


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
            metrics[split] = evaluate(load_pairs(*split_of(source)), model, shortlist=recipe.shortlist).to_json()
    return metrics


def write_card(recipe: Recipe, folder: Path, metrics: dict[str, Any]) -> None:
    """The model's README."""
    from hivlp.export.card import model_card

    try:
        text = model_card(HiVLPConfig.load(folder), metrics, recipe.notes)
    except HivlpError as error:
        raise RecipeError(f"the model was written, its card was not: {error}") from error
    (folder / "README.md").write_text(text, encoding="utf-8")
