"""Times of encoding a query, by system: all of them in turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hivlp.bench.paper.systems import BATCH, CLIP, INT8, LIGHTNINGDOT, SAME, SHIPPED, TO_IMAGE, TO_TEXT
from hivlp.bench.paper.towers import CAPTIONS, Published, flops, int8_tower, same_tower
from hivlp.bench.report import medians_in_turns
from hivlp.data.pictures import Found, find_pictures
from hivlp.encode import HiVLP

ROUNDS = {1: 15, 32: 2}
"""Queries at once -> times that each system encodes so many."""
CHECKED = 400
"""Texts that the int8 graph is checked on."""


@dataclass(frozen=True)
class Encoder:
    """How long a system takes to encode a query.

    Attributes:
        system: its name.
        direction: ``text_to_image`` or ``image_to_text``.
        search: name of the search that takes its vectors.
        times: queries at once -> milliseconds a query; of :data:`BATCH`, 32 at a time.
        gflop: operations of the network, 10⁹; None where they were not counted.
    """

    system: str
    direction: str
    search: str
    times: dict[int, float]
    gflop: float | None = None


def encoders(systems: Published, model: HiVLP, folder: Path) -> tuple[list[Encoder], dict[str, float]]:
    """Times of every system that compares vectors, and how the int8 graph agrees with float32.

    Args:
        systems: published ones.
        model: HiVLP as shipped.
        folder: where exported towers are kept.
    """
    texts = [CAPTIONS[number % len(CAPTIONS)] for number in range(max(ROUNDS))]
    regions, pixels = systems.regions(max(ROUNDS)), torch.randn(max(ROUNDS), 3, 224, 224)
    clip, (ids, mask) = systems.clip(), systems.ids(texts)
    same, int8 = same_tower(folder / "same-tower"), int8_tower(folder / "same-tower", folder / "same-tower-int8")
    picture = _picture()
    calls: dict[tuple[str, str, str], Callable[[int], Any]] = {
        (LIGHTNINGDOT, TO_IMAGE, "flat 768"): lambda count: systems.lightningdot_text(texts[:count]),
        (CLIP, TO_IMAGE, "flat 512"):
            lambda count: clip.get_text_features(input_ids=ids[:count], attention_mask=mask[:count]),
        (SAME, TO_IMAGE, "index"): lambda count: same.encode_text(texts[:count]),
        (INT8, TO_IMAGE, "index"): lambda count: int8.encode_text(texts[:count]),
        (SHIPPED, TO_IMAGE, "index"): lambda count: model.encode_text(texts[:count]),
        (LIGHTNINGDOT, TO_TEXT, "flat 768"): lambda count: systems.lightningdot_picture(
            type(regions)(regions.features[:count], regions.boxes[:count], regions.mask[:count])),
        (CLIP, TO_TEXT, "flat 512"): lambda count: clip.get_image_features(pixel_values=pixels[:count]),
        (SHIPPED, TO_TEXT, "index"): lambda count: model.encode_image([picture] * count),
    }  # fmt: skip
    published = [key for key in calls if key[0] in (LIGHTNINGDOT, CLIP)]
    gflops = {key: round(flops(partial(calls[key], 1)) / 1e9, 2) for key in published}
    gflops |= {key: gflops[LIGHTNINGDOT, TO_IMAGE, "flat 768"] for key in calls if key[0] in (SAME, INT8)}
    times = {
        count: medians_in_turns({key: partial(call, count) for key, call in calls.items()}, rounds)
        for count, rounds in ROUNDS.items()
    }
    found = [Encoder(*key, {1: times[1][key], BATCH: times[32][key] / 32}, gflops.get(key)) for key in calls]
    return found, agreement(same, int8)


def agreement(exact: HiVLP, reduced: HiVLP) -> dict[str, float]:
    """How near the vectors of a graph are to those of the same tower in float32, on :data:`CHECKED` texts.

    Random weights put all texts close together, so that their nearest neighbours hang by little; a trained tower's do
    not.

    Returns:
        Mean ``cosine`` and the ``lowest_cosine`` of a text's two vectors; ``agreement_at_10``, share of the ten texts
        nearest to a text that stay among its ten nearest; ``apart``, mean cosine of two different texts.
    """
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(words, 12)) for _ in range(CHECKED)]
    finest = exact.levels[-1].name
    ours, theirs = (np.asarray(each.encode_text(texts, levels=[finest])[finest]) for each in (exact, reduced))
    cosines = (ours * theirs).sum(1)
    alike = [vectors @ vectors.T for vectors in (ours, theirs)]
    apart = float(alike[0][~np.eye(CHECKED, dtype=bool)].mean())
    for scores in alike:
        np.fill_diagonal(scores, -np.inf)
    nearest = [np.argsort(-scores, axis=1)[:, :10].tolist() for scores in alike]
    kept = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(*nearest, strict=True)])
    return {
        "texts": CHECKED,
        "cosine": round(float(cosines.mean()), 5),
        "lowest_cosine": round(float(cosines.min()), 5),
        "agreement_at_10": round(float(kept), 4),
        "apart": round(apart, 4),
    }


def _picture() -> bytes:
    folder = Path(str(resources.files("hivlp") / "assets" / "pictures"))
    return next(found.path for found in find_pictures([folder]) if isinstance(found, Found)).read_bytes()
