"""Times of fusion models: a pass for each pair, and a re-ranking with picture tokens that were kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hivlp.bench.paper.systems import ALBEF, CANDIDATES, LEAST_SAVED, METER, UNITER
from hivlp.bench.paper.towers import CAPTIONS, Published, flops
from hivlp.bench.report import median_ms, milliseconds


def pair_times(systems: Published) -> dict[str, tuple[float, int, float]]:
    """Milliseconds of a pair, pairs measured, and gigaflops of one, by fusion model."""
    calls: tuple[tuple[str, int, Callable[[int], Any]], ...] = (
        (UNITER, 32, lambda count: systems.uniter([CAPTIONS[0]] * count, systems.regions(count))),
        (METER, 1, lambda count: systems.meter([CAPTIONS[0]] * count, torch.randn(count, 3, 384, 384))),
    )
    found = {}
    for name, count, call in calls:
        gflop = round(flops(partial(call, 1)) / 1e9, 2)
        found[name] = (median_ms(call, [count] * 2) / count, count, gflop)
        systems.drop()
    return found


def reranking(systems: Published, pictures: int = 1) -> dict[str, Any]:
    """Milliseconds of re-ranking :data:`CANDIDATES` for one text by ALBEF, with and without their tokens at hand.

    With tokens at hand ALBEF is the fastest of the fusion models that see pixels: a pair passes six layers, where BLIP
    has twelve, METER and BridgeTower twice six, and ViLT, which keeps patches alone, twelve over all patches.

    Args:
        systems: published ones.
        pictures: how many are encoded to learn how long one takes.
    """
    model = systems.albef()
    tokens, mask = systems.ids([CAPTIONS[0]])
    seen = model.encode_image(torch.randn(1, 3, 384, 384))
    encode = median_ms(lambda count: model.encode_image(torch.randn(count, 3, 384, 384)), [pictures] * 2) / pictures

    def fuse(count: int) -> None:
        text = model.encode_text(tokens, mask)
        for _ in range(0, count, 25):
            model.fuse(text.expand(25, -1, -1), mask.expand(25, -1), seen.expand(25, -1, -1))

    fuse(25)
    kept = milliseconds(lambda: fuse(CANDIDATES))
    without = kept + CANDIDATES * encode
    systems.drop()
    return {
        "model": ALBEF, "candidates": CANDIDATES, "aim": LEAST_SAVED, "pictures": pictures,
        "without_ms": round(without, 1), "kept_ms": round(kept, 1), "ratio": round(without / kept, 2),
        "item_bytes": 2 * seen.shape[1] * seen.shape[2],
    }  # fmt: skip
