"""What early layers save when pictures are indexed lazily, and whether the completed index is that of an eager run."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hivlp.bench.report import Report, measured
from hivlp.bench.scenes import scenes_recipe, train_on_scenes
from hivlp.config import TowerConfig
from hivlp.data.load import load_pairs
from hivlp.encode import as_encoder
from hivlp.index import Index
from hivlp.levels import Level
from hivlp.model.vit import VisionTransformer, VitOptions
from hivlp.train.recipe.schema import Recipe

COARSE, FINE = Level("coarse", 64, 3, 1), Level("fine", 256, 9, 2)
CHANNELS, STRIDES = (48,) * 3 + (96,) * 3 + (192,) * 3, (2, 1, 1) * 3
"""Nine layers of about the same cost, so that the third one is at a third of the FLOPs, as in a vision transformer."""
SHORTLIST, K = 200, 10
PRODUCT_QUERIES = 5
"""Queries that a wholly pending index answers; each computes a shortlist of pictures."""


def lazy_recipe(scenes: int, epochs: int) -> Recipe:
    """A model of rendered scenes whose coarse level reads a third of the image tower's depth."""
    recipe = scenes_recipe(scenes, epochs, levels=(COARSE, FINE))
    tower = TowerConfig("convnet", {"channels": list(CHANNELS), "strides": list(STRIDES)}, {COARSE.name: "mlp"})
    optim = replace(recipe.optim, tower_gradient={COARSE.name: 1.0})
    return replace(recipe, image_tower=tower, optim=optim)


@dataclass(frozen=True, kw_only=True)
class LazyReport(Report):
    """Times, recalls and FLOPs; see :func:`run`."""

    pictures: int
    eager_s: float
    first_searchable_s: float
    completed_s: float
    first_searchable_share: float
    recall: dict[str, float]
    recall_kept: float
    same_hits: bool
    equal: bool
    flops: dict[str, Any]

    def to_text(self) -> str:
        """Lines for the terminal."""
        vit = self.flops["vit_b16"]
        return "\n".join(
            [
                f"{self.pictures} pictures of rendered scenes, held-out combinations",
                f"indexed at once {self.eager_s:.1f} s; lazily: searchable {self.first_searchable_s:.1f} s "
                f"({self.first_searchable_share:.2f} of it), complete {self.completed_s:.1f} s",
                f"R@{K} of the full index {self.recall['full']:.1f}, within a budget of {SHORTLIST} pictures "
                f"{self.recall['filled']:.1f} ({100 * self.recall_kept:.1f}% kept), "
                f"by the coarse level alone {self.recall['coarse']:.1f}",
                f"hits of a pending index as those of that cascade: {'yes' if self.same_hits else 'NO'}; "
                f"completed index equal to the last bit: {'yes' if self.equal else 'NO'}",
                f"a ViT-B/16 at layer 4 of 12: {vit['early']:.3g} of {vit['full']:.3g} GFLOPs ({vit['share']:.2f})",
                f"{self.seconds:.0f} s",
            ]
        )


SIZES = {"small": (6_000, 6, 1000), "full": (40_000, 8, 4000)}
"""Scenes to train on, epochs, and pictures that are indexed."""


def run(size: str = "small", recipe: Recipe | None = None, pictures: int | None = None) -> LazyReport:
    """Train a small model on rendered scenes, then index pictures of held-out combinations at once and lazily.

    Args:
        size: ``small``, or ``full``: more scenes to train on and to index.
        recipe: of the model, :func:`lazy_recipe` if not given.
        pictures: that are indexed, at most; default by ``size``.

    Returns:
        ``first_searchable_share``: time until all pictures are searchable, of the time to index them at once;
        ``recall_kept``: R@10 of the captions after filling a shortlist of 200, of that of the full index, and
        ``same_hits``: whether a wholly pending index gives those very hits; ``equal``: whether the completed index's
        rows and records are the eager one's; ``flops``: of a ViT-B/16 up to layer 4, and of all 12.
    """
    started = time.perf_counter()
    scenes, epochs, most = SIZES[size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_on_scenes(recipe or lazy_recipe(scenes, epochs), folder / "model")
        encoder = as_encoder(folder / "model")
        most = pictures or most
        pairs = list(load_pairs(f"scenes:{most * 8}", "test"))[:most]
        (folder / "pictures").mkdir()
        for pair in pairs:
            (folder / "pictures" / f"{pair.id}.png").write_bytes(pair.read())
        texts = [pair.captions[0] for pair in pairs]
        encoder.encode_pixels(np.zeros((1, *encoder.picture.shape), np.uint8), levels=[encoder.levels[0].name])
        eager, lazy = (Index.create(folder / kind, model=encoder) for kind in ("eager", "lazy"))
        eager_s = eager.add(folder / "pictures", workers=1).seconds
        first_s = lazy.add(folder / "pictures", lazy=True, workers=1).seconds
        queries = encoder.encode_text(texts)
        full = _hits(eager, queries, exact=True)
        filled = _hits(eager, queries, shortlist=SHORTLIST)
        pending = lazy.search_many(vectors=queries, k=K, fill=0)
        same, filling = True, 0.0
        for number in range(PRODUCT_QUERIES):
            again = lazy  # which is then completed in another order, and by other batches, than the eager one was made
            if number:
                again = Index.create(folder / f"again{number}", model=encoder)
                again.add(folder / "pictures", lazy=True, workers=1)
            vector = {level: rows[number] for level, rows in queries.items()}
            found = again.search(vector=vector, k=K, shortlist=SHORTLIST, fill_seconds=3600)
            same &= [hit.id for hit in found] == filled[number]
            filling += found.timings_ms["fill"] / 1000 if again is lazy else 0
        done_s = first_s + filling + lazy.complete(workers=1).seconds
        recall = {
            "full": _recall(full),
            "filled": _recall(filled),
            "coarse": _recall([[hit.id for hit in result] for result in pending]),
        }
        equal = _content(eager) == _content(lazy)
        eager.close()
        lazy.close()
    kept = recall["filled"] / recall["full"] if recall["full"] else 0.0
    return LazyReport(
        pictures=len(pairs),
        eager_s=round(eager_s, 2),
        first_searchable_s=round(first_s, 2),
        completed_s=round(done_s, 2),
        first_searchable_share=round(first_s / eager_s, 3),
        recall={name: round(value, 2) for name, value in recall.items()},
        recall_kept=round(kept, 4),
        same_hits=same,
        equal=equal,
        flops={"vit_b16": _vit_flops(4)},
        failures=[] if equal and same else ["a lazily made index is not the one that is made at once"],
        **measured(started, "torch", "onnxruntime"),
    )


def _hits(index: Index, queries: Any, **options: Any) -> list[list[int]]:
    """Ids of the first hits of each query."""
    return [[hit.id for hit in result] for result in index.search_many(vectors=queries, k=K, **options)]


def _recall(hits: Sequence[Sequence[int]]) -> float:
    """Per cent of the queries whose own picture is among the hits; picture n, in the order of its name, has id n."""
    return 100 * float(np.mean([number in found for number, found in enumerate(hits, start=1)]))


def _content(index: Index) -> str:
    """Digest of an index's rows and records, but for the times at which files were looked at."""
    digest = hashlib.sha256()
    with index.store.reading() as reader:
        rows = reader.live()[:, 0]
        for file in reader.files():
            digest.update(np.array(file.map(reader.state.rows)[rows]).tobytes())
        for item in reader.all_items():
            digest.update(repr(item._replace(path=Path(item.path).name, stamp=item.stamp._replace(checked=0))).encode())
    return digest.hexdigest()


def _vit_flops(layer: int) -> dict[str, float]:
    """GFLOPs of a ViT-B/16 on one picture, up to a layer and in full."""
    with torch.device("meta"):
        tower, picture = VisionTransformer(VitOptions()), torch.zeros(1, 3, 224, 224)
    found = {}
    for name, last in (("early", layer), ("full", tower.depth)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower.eval()(picture, (last,))
        found[name] = counter.get_total_flops() / 1e9
    return {
        **{name: round(value, 3) for name, value in found.items()},
        "share": round(found["early"] / found["full"], 4),
    }
