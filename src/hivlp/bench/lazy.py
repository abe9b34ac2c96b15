"""What early layers save when pictures are indexed lazily, and whether the completed index is that of an eager run."""

from __future__ import annotations

import hashlib
import itertools
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
from hivlp.config import TOKENIZER, HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.encode import as_encoder
from hivlp.encode.base import Encoder
from hivlp.export.graphs import export
from hivlp.index import Index
from hivlp.levels import Level
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.vit import VisionTransformer, VitOptions
from hivlp.train.recipe.schema import Recipe

COARSE, FINE = Level("coarse", 64, 3, 1), Level("fine", 256, 9, 2)
CHANNELS, STRIDES = (24,) * 3 + (48,) * 3 + (96,) * 3, (2, 1, 1) * 3
"""Nine layers of about the same cost, so that the third one is at a third of the FLOPs, as in a vision transformer."""
SHORTLIST, K = 200, 10
EARLY = 4
"""Layer of a ViT-B/16 at a third of its depth."""
PRODUCT_QUERIES = 5
"""Queries that a wholly pending index answers; each computes a shortlist of pictures."""


def lazy_recipe(scenes: int, epochs: int) -> Recipe:
    """A model of rendered scenes whose coarse level reads a third of the image tower's depth."""
    recipe = scenes_recipe(scenes, epochs, levels=(COARSE, FINE))
    tower = TowerConfig("convnet", {"channels": list(CHANNELS), "strides": list(STRIDES)}, {COARSE.name: "mlp"})
    optim = replace(recipe.optim, batch_size=64, warmup_steps=50, tower_gradient={COARSE.name: 1.0})
    return replace(recipe, image_tower=tower, optim=optim)


def base_config() -> HiVLPConfig:
    """A ViT-B/16 whose coarse level reads layer 4 of 12, beside a text tower that nothing is asked of."""
    text = scenes_recipe(1, 1).text_tower
    levels = (Level("coarse", 64, EARLY, 1), Level("fine", 512, 12, 2))
    return HiVLPConfig("vit-b16", levels, TowerConfig("vit"), text, PictureConfig(224, "crop"), TextConfig(24))


@dataclass(frozen=True)
class Times:
    """Seconds of one thread's processor time to index pictures.

    Attributes:
        pictures: how many.
        eager: at once.
        searchable: lazily, until all are searchable.
        completed: lazily, until the index is complete.
        share: ``searchable`` of ``eager``.
    """

    pictures: int
    eager: float
    searchable: float
    completed: float
    share: float

    @classmethod
    def of(cls, pictures: int, eager: float, searchable: float, completed: float) -> Times:
        """Rounded, with the share."""
        share = round(searchable / eager, 3)
        return cls(pictures, round(eager, 3), round(searchable, 3), round(completed, 3), share)

    def __str__(self) -> str:
        return (
            f"{self.pictures} pictures at once {self.eager:.2f} s; lazily: searchable {self.searchable:.2f} s "
            f"({self.share:.2f} of it), complete {self.completed:.2f} s"
        )


@dataclass(frozen=True, kw_only=True)
class LazyReport(Report):
    """Times, recalls and FLOPs; see :func:`run`."""

    first_searchable_share: float
    times: dict[str, Times]
    recall: dict[str, float]
    recall_kept: float
    same_hits: bool
    equal: bool
    flops: dict[str, float]

    def to_text(self) -> str:
        """Lines for the terminal."""
        recall, flops = self.recall, self.flops
        return "\n".join(
            [
                *(f"{name}: {times}" for name, times in self.times.items()),
                f"R@{K} of the full index {recall['full']:.1f}, within a budget of {SHORTLIST} pictures "
                f"{recall['filled']:.1f} ({100 * self.recall_kept:.1f}% kept), "
                f"by the coarse level alone {recall['coarse']:.1f}",
                f"hits of a pending index as those of that cascade: {'yes' if self.same_hits else 'NO'}; "
                f"completed index equal to the last bit: {'yes' if self.equal else 'NO'}",
                f"FLOPs of a ViT-B/16 up to layer {EARLY} of 12: {flops['early']:.3g} of {flops['full']:.3g} billion "
                f"({flops['share']:.3f})",
                f"{self.seconds:.0f} s",
            ]
        )


SIZES = {"small": (6_000, 5, 800, 12), "full": (40_000, 8, 4000, 200)}
"""Scenes to train on, epochs, scenes that are indexed, and pictures for the ViT-B/16."""


def run(size: str = "small", recipe: Recipe | None = None, base: HiVLPConfig | None = None) -> LazyReport:
    """Train a small model on rendered scenes, then index pictures of held-out combinations at once and lazily.

    A model that small is done with a scene about as soon as it is decoded. So the times are also those of a ViT-B/16
    with random weights, on the pictures that ship with hivlp.

    Args:
        size: ``small``, or ``full``: more scenes to train on, and more pictures.
        recipe: of the model, :func:`lazy_recipe` if not given.
        base: of the model that times are of, :func:`base_config` if not given.

    Returns:
        ``first_searchable_share``: time until all pictures are searchable, of the time to index them at once, of a
        ViT-B/16; ``recall_kept``: R@10 of the captions after filling a shortlist of 200, of that of the full index,
        and ``same_hits``: whether a wholly pending index gives those very hits; ``equal``: whether the completed
        index's rows and records are the eager one's; ``flops``: of a ViT-B/16 up to layer 4, and of all 12.
    """
    started = time.perf_counter()
    scenes, epochs, most, few = SIZES[size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = train_on_scenes(recipe or lazy_recipe(scenes, epochs), folder / "model").model
        pairs = list(load_pairs(f"scenes:{scenes}", "test"))[:most]
        found = _scenes(folder / "scenes", small, pairs)
        shapes = _base_model(base or base_config(), small, folder / "base")
        pictures = itertools.islice(itertools.cycle(load_pairs("demo")), few)
        times = _times(folder / "photos", as_encoder(shapes), [pair.read() for pair in pictures])[0]
    recall, same, equal = found["recall"], found["same"], found["equal"]
    return LazyReport(
        first_searchable_share=times.share,
        times={"ViT-B/16, pictures of the package": times, "nine convolutions, scenes": found["times"]},
        recall={name: round(value, 2) for name, value in recall.items()},
        recall_kept=round(recall["filled"] / recall["full"], 4) if recall["full"] else 0.0,
        same_hits=same,
        equal=equal,
        flops=vit_flops(EARLY),
        failures=[] if equal and same else ["a lazily made index is not the one that is made at once"],
        **measured(started, "torch", "onnxruntime"),
    )


def _scenes(folder: Path, model: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Times, recalls, and whether hits and the completed index are those of an eager one, of a trained model."""
    encoder = as_encoder(model)
    times, eager, lazy = _times(folder, encoder, [pair.read() for pair in pairs], complete=False)
    queries = encoder.encode_text([pair.captions[0] for pair in pairs])
    filled = _hits(eager, queries, shortlist=SHORTLIST)
    recall = {
        "full": _recall(_hits(eager, queries, exact=True)),
        "filled": _recall(filled),
        "coarse": _recall(_hits(lazy, queries, fill=0)),
    }
    same, before = True, time.process_time()
    for number in range(PRODUCT_QUERIES):
        again = lazy  # which is then completed in another order, and by other batches, than the eager one was made
        if number:
            again = Index.create(folder / f"again{number}", model=encoder)
            again.add(folder / "pictures", lazy=True, workers=1)
        vector = {level: rows[number] for level, rows in queries.items()}
        found = again.search(vector=vector, k=K, shortlist=SHORTLIST, fill_seconds=3600)
        same &= [hit.id for hit in found] == filled[number]
        if again is lazy:
            lazy.complete(workers=1)
            spent = time.process_time() - before
    times = Times.of(times.pictures, times.eager, times.searchable, times.searchable + spent)
    return {"times": times, "recall": recall, "same": same, "equal": _content(eager) == _content(lazy)}


def _times(
    folder: Path, encoder: Encoder, contents: Sequence[bytes], *, complete: bool = True
) -> tuple[Times, Index, Index]:
    """Times to index pictures at once and lazily, and both indexes."""
    (folder / "pictures").mkdir(parents=True)
    for number, content in enumerate(contents):
        # Bytes behind a picture's end make each a content of its own.
        (folder / "pictures" / f"{number:06}.img.png").write_bytes(content + number.to_bytes(4))
    encoder.encode_pixels(np.zeros((1, *encoder.picture.shape), np.uint8), levels=[encoder.levels[0].name])
    spent = []
    indexes = [Index.create(folder / kind, model=encoder) for kind in ("eager", "lazy")]
    for index, lazy in zip(indexes, (False, True), strict=True):
        before = time.process_time()
        index.add(folder / "pictures", lazy=lazy, workers=1)
        spent.append(time.process_time() - before)
    before = time.process_time()
    if complete:
        indexes[1].complete(workers=1)
    times = Times.of(len(contents), spent[0], spent[1], spent[1] + time.process_time() - before)
    return times, indexes[0], indexes[1]


def _base_model(config: HiVLPConfig, small: Path, folder: Path) -> Path:
    """A model folder of a configuration with random weights, and the small model's tokenizer."""
    torch.manual_seed(0)
    HiVLPModel(config).save_pretrained(folder, small / TOKENIZER)
    export(folder)
    return folder


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


def vit_flops(layer: int) -> dict[str, float]:
    """Billions of FLOPs of a ViT-B/16 on one picture, up to a layer and in full."""
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
