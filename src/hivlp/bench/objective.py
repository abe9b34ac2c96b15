"""What each way of making a coarse level keeps of its own fine level's first hits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hivlp.bench.levels import (
    CODES,
    SPLITS,
    Budget,
    Pairs,
    Vectors,
    coded,
    linear_maps,
    ours,
    recall,
    train_heads,
)
from hivlp.bench.report import Report, measured, summary
from hivlp.bench.scenes import scenes_recipe, train_on_scenes
from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.base import Encoder
from hivlp.encode.stream import chunks, encode_stream
from hivlp.evaluate.recall import score
from hivlp.levels import Embeddings
from hivlp.levels import Vectors as Vectors32
from hivlp.mini.wordnet import read_synsets
from hivlp.train.recipe.schema import SelfDistillation

SHARE, TOP = 0.05, 10
OURS = "hivlp"
LEAST_SPREAD = 0.05  # points; three seeds that agree by chance do not make a margin infinite


@dataclass(frozen=True)
class Size:
    """How much of everything, the widths of coarse levels, and for which width and code our way claims to be best."""

    scenes: int
    epochs: int
    nouns: int
    budget: Budget
    seeds: int = 3
    dims: tuple[int, ...] = (16, 32, 64, 128)
    claimed: tuple[tuple[int, str], ...] = ((32, "int8"), (64, "binary"))


SIZES = {
    "small": Size(6_000, 8, 5_000, Budget(200, 200, 384)),
    "full": Size(75_000, 8, 30_000, Budget(400, 400, 512)),
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveReport(Report):
    """What coarse levels keep of their fine level's first hits; see :func:`run`."""

    rows: list[dict[str, Any]]
    margin: dict[str, dict[str, dict[str, Any]]]
    fine_AR: dict[str, dict[str, Any]]
    size: str = ""
    share: float = SHARE
    top: int = TOP
    plot: str | None = None

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = []
        cases = [(dim, code) for dim in dict.fromkeys(row["dims"] for row in self.rows) for code in CODES[1:]]
        for name, margin in self.margin.items():
            lines.append(f"{name}: % of the fine level's first {TOP} kept by a shortlist of {SHARE:.0%} (± over seeds)")
            lines.append(" " * 20 + "".join(f"{f'{dim} {code}':>14s}" for dim, code in cases))
            rows = [row for row in self.rows if row["data"] == name]
            for way in dict.fromkeys(row["method"] for row in rows):
                cells = {(row["dims"], row["code"]): row["both"] for row in rows if row["method"] == way}
                shown = "".join(f"{cells[case]['mean']:8.1f} ±{cells[case]['spread']:4.1f}" for case in cases)
                lines.append(f"{way:20s}{shown}")
            for case in (case for case, gained in margin.items() if gained["claimed"]):
                gain = f"{margin[case]['points']:+.1f} points, {margin[case]['spreads']:+.1f} spreads"
                lines.append(f"{case}: {OURS} is {gain} from the best alternative, {margin[case]['best']}")
            lines.append("")
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def run(size: str, model: Encoder, plot: Path | None = None) -> ObjectiveReport:
    """Compare the ways on stamps with clip-art, on WordNet's nouns with their glosses, and on rendered scenes.

    Everything stands on frozen towers: ``model`` for stamps, clip-art and WordNet (where a gloss stands for a picture),
    and for the scenes a small model that is trained on them first, from random weights. A way is asked with texts and
    pictures of the test part only; the gallery is all of the data, as it is when a level is fitted to a collection that
    is to be searched. The same with the test part alone as the gallery is given too.

    Args:
        size: a name in :data:`SIZES`.
        model: the frozen model.
        plot: where to write a PNG of the rows.
    """
    settings = SIZES[size]
    result = compare(_data(settings, model), settings)
    if plot is not None:
        draw(result.rows, plot)
    return replace(result, size=size, plot=None if plot is None else str(plot))


def compare(data: Iterable[tuple[str, Pairs]], settings: Size) -> ObjectiveReport:
    """Compare the ways on named pairs.

    Returns:
        ``rows``, ``margin`` (ours minus the best alternative, in units of the seeds' spread), and ``fine`` (AR of each
        way's own fine level on the test part).
    """
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    fine: dict[str, dict[str, Any]] = {}
    for name, pairs in data:
        results: dict[tuple[str, int, str], list[list[float]]] = {}
        fine_levels: dict[str, list[float]] = {}
        for seed in tqdm(range(settings.seeds), desc=f"{name}: seeds", disable=None):
            for way, own_fine, levels in _ways(pairs, settings, seed):
                fine_levels.setdefault(way, []).append(_average_recall(pairs, own_fine))
                for (dim, code), coarse in levels.items():
                    results.setdefault((way, dim, code), []).append(_measure(pairs, own_fine, coarse, code))
        rows += [_row(name, way, dim, code, seeds) for (way, dim, code), seeds in results.items()]
        fine[name] = {way: summary(values) for way, values in fine_levels.items()}
    margin = margins(rows, settings.claimed)
    return ObjectiveReport(rows=rows, margin=margin, fine_AR=fine, **measured(started, "torch", "numpy"))


Levels = dict[tuple[int, str], Vectors]


def _ways(pairs: Pairs, settings: Size, seed: int) -> Iterator[tuple[str, Vectors, Levels]]:
    """Each way's name, its own fine level, and its coarse ones by width and code."""
    budget, dims, train = settings.budget, settings.dims, pairs.rows["train"]
    everything = torch.arange(len(pairs.images))

    def best(own_fine: Vectors, code: str) -> Callable[[Vectors], float]:
        return lambda coarse: sum(recall(own_fine, coarse, code, pairs.rows["val"], everything, SHARE, TOP))

    def every_code(own_fine: Vectors, by_dim: Mapping[int, Vectors]) -> Levels:
        return {(dim, code): coded(by_dim[dim], train, code, best(own_fine, code)) for dim in dims for code in CODES}

    for name, nested in (("MRL prefixes", True), ("separate heads", False)):
        together = train_heads(pairs, (*dims, budget.dim), budget, seed, nested=nested)
        yield name, together[budget.dim], every_code(together[budget.dim], together)
    fine = train_heads(pairs, (budget.dim,), budget, seed, nested=False)[budget.dim]
    maps = {dim: linear_maps(fine, train, dim, seed) for dim in dims}
    for way in maps[dims[0]]:
        yield way, fine, every_code(fine, {dim: fine.mapped(*maps[dim][way]) for dim in dims})
    levels: Levels = {}
    for dim in dims:
        for code in ("int8", "binary"):
            fitting = SelfDistillation(
                steps=budget.coarse_steps,
                batch_size=min(budget.batch, len(train)),
                lr=3e-3,
                shortlist=1.0,
                shortlist_size=SHARE,
                cosine=0.0,
                learn_projections=True,
                code=code,
            )
            levels[dim, code] = ours(fine, train, dim, fitting, seed)
        levels[dim, "float"] = levels[dim, "int8"]
    yield OURS, fine, levels


def _measure(pairs: Pairs, fine: Vectors, coarse: Vectors, code: str) -> list[float]:
    """Text→image and image→text among everything, then both among the test part alone."""
    asked, everything = pairs.rows["test"], torch.arange(len(pairs.images))
    return [
        *recall(fine, coarse, code, asked, everything, SHARE, TOP),
        *recall(fine, coarse, code, asked, asked, SHARE, TOP),
    ]


def _average_recall(pairs: Pairs, fine: Vectors) -> float:
    """AR of a fine level on the test part."""
    test = fine.rows(pairs.rows["test"])
    images, texts = (Embeddings({"fine": side.numpy()}) for side in (test.images, test.texts))
    return score(images, texts, np.arange(len(test.images)), 20).levels["fine"].average


def _row(data: str, way: str, dim: int, code: str, seeds: Sequence[Sequence[float]]) -> dict[str, Any]:
    columns = list(zip(*seeds, strict=True))
    whole, alone = ([(one + other) / 2 for one, other in zip(*columns[i : i + 2], strict=True)] for i in (0, 2))
    return {
        "data": data,
        "method": way,
        "dims": dim,
        "code": code,
        "text_to_image": summary(columns[0]),
        "image_to_text": summary(columns[1]),
        "both": summary(whole),
        "test_gallery": {
            "text_to_image": summary(columns[2]),
            "image_to_text": summary(columns[3]),
            "both": summary(alone),
        },
    }


def margins(
    rows: Sequence[Mapping[str, Any]], claimed: Sequence[tuple[int, str]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Ours minus the best alternative, mean of both directions, by data set, width and code.

    Returns:
        data -> ``"32 int8"`` -> ``best`` (alternative), ``points``, and ``spreads``: the points in units of the larger
        of the two standard deviations over the seeds.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for mine in (row for row in rows if row["method"] == OURS):
        same = [row for row in rows if all(row[key] == mine[key] for key in ("data", "dims", "code"))]
        best = max((row for row in same if row["method"] != OURS), key=lambda row: float(row["both"]["mean"]))
        points = mine["both"]["mean"] - best["both"]["mean"]
        spread = max(mine["both"]["spread"], best["both"]["spread"], LEAST_SPREAD)
        result.setdefault(mine["data"], {})[f"{mine['dims']} {mine['code']}"] = {
            "best": best["method"],
            "points": round(points, 2),
            "spreads": round(points / spread, 2),
            "claimed": (mine["dims"], mine["code"]) in claimed,
        }
    return result


def _data(settings: Size, model: Encoder) -> Iterator[tuple[str, Pairs]]:
    """Stamps with clip-art, nouns with glosses, and scenes, each as the vectors of a model that stays as it is."""
    pairs = load_pairs("stamps") + load_pairs("openclipart")
    splits = {split: [pair for pair in pairs if pair.split == split] for split in SPLITS}
    yield "stamps+openclipart", encode_pairs(splits, model)
    yield "wordnet", encode_glosses(settings.nouns, model)
    with tempfile.TemporaryDirectory() as folder:
        source = f"scenes:{settings.scenes}"
        out = Path(folder) / "model"
        train_on_scenes(scenes_recipe(settings.scenes, settings.epochs), out)
        trained = HiVLP.from_pretrained(out)
        yield "scenes", encode_pairs({split: load_pairs(source, split) for split in SPLITS}, trained)


def encode_pairs(splits: Mapping[str, Sequence[Pair]], model: Encoder) -> Pairs:
    """Finest vectors of every readable picture and its first caption."""
    images: list[Vectors32] = []
    captions: list[str] = []
    rows: dict[str, torch.Tensor] = {}
    for split, pairs in splits.items():
        first = len(captions)
        with tqdm(total=len(pairs), desc=f"encode {split}", unit=" pictures", disable=None) as bar:
            for batch in encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture)):
                images.append(batch.embeddings.fine)
                captions += [pair.captions[0] for pair in batch.jobs]
                bar.update(len(batch.jobs) + len(batch.failures))
        rows[split] = torch.arange(first, len(captions))
    numbers: dict[str, int] = {}
    ids = torch.tensor([numbers.setdefault(caption.casefold(), len(numbers)) for caption in captions])
    texts = model.encode_text(captions).fine
    return Pairs(torch.from_numpy(np.concatenate(images)), torch.from_numpy(texts), ids, rows)


def encode_glosses(count: int, model: Encoder) -> Pairs:
    """Finest vectors of so many of WordNet's glosses, in the place of pictures, and of the nouns that they explain.

    A noun occurs once; of ten, seven are to train on, one to choose by and two to test with.
    """
    pairs: dict[str, str] = {}
    nouns = list(read_synsets().values())
    for number in np.random.default_rng(0).permutation(len(nouns)):
        pairs.setdefault(nouns[number].words[0].casefold(), nouns[number].gloss)
        if len(pairs) == count:
            break
    sides = []
    for texts, what in ((list(pairs.values()), "glosses"), (list(pairs), "nouns")):
        bar = tqdm(list(chunks(texts, 500)), desc=f"encode {what}", disable=None)
        parts = [model.encode_text(part).fine for part in bar]
        sides.append(torch.from_numpy(np.concatenate(parts)))
    edges = [0, round(0.7 * len(pairs)), round(0.8 * len(pairs)), len(pairs)]
    rows = {split: torch.arange(*edges[i : i + 2]) for i, split in enumerate(SPLITS)}
    return Pairs(sides[0], sides[1], torch.arange(len(pairs)), rows)


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """A PNG: one panel for each data set and code, recall over dims, one line for each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data, dims = (list(dict.fromkeys(row[key] for row in rows)) for key in ("data", "dims"))
    figure, axes = pyplot.subplots(len(data), len(CODES), figsize=(13, 4 * len(data)), squeeze=False, sharex=True)
    for line, name in enumerate(data):
        for column, code in enumerate(CODES):
            axis = axes[line, column]
            for way in dict.fromkeys(row["method"] for row in rows):
                chosen = [row for row in rows if (row["data"], row["method"], row["code"]) == (name, way, code)]
                values, spread = ([row["both"][key] for row in chosen] for key in ("mean", "spread"))
                style = {"linewidth": 2.6, "color": "black", "zorder": 3} if way == OURS else {"linewidth": 1.3}
                axis.errorbar([row["dims"] for row in chosen], values, spread, marker="o", label=way, **style)
            axis.set_xscale("log", base=2)
            axis.set(title=f"{name}, {code}", xticks=dims, xticklabels=dims)
            axis.grid(alpha=0.3)
        axes[line, 0].set_ylabel(f"% of the fine level's first {TOP}\nin a shortlist of {SHARE:.0%}")
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("dims")
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)
