"""What a coarse level from an early layer saves when a text is asked: an open question, so measured.

Three ways to use it: scan while the deeper layers are still being computed (overlap); stop where the coarse ranking is
sure of itself (adaptive exit); never run the deeper layers at all. None is worth more than what these layers cost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.bench.report import Report, measured, median_ms
from hivlp.data.load import load_pairs
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.stream import encode_stream
from hivlp.evaluate.recall import level_ranks
from hivlp.levels import Embeddings, Vectors

COLLECTIONS = (10_000, 100_000, 1_000_000)
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CUTOFFS = (1, 10)


@dataclass(frozen=True, kw_only=True)
class ExitReport(Report):
    """What a coarse level from an early layer saves; see :func:`run`."""

    encode_ms: dict[str, float]
    flops: dict[str, dict[str, int]] | None
    scan_ms: dict[str, float]
    overlap_saves_ms: dict[str, float]
    exit: list[dict[str, float | None]]

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"encode a text: {', '.join(f'{name} {value:.2f} ms' for name, value in self.encode_ms.items())}"]
        for side, flops in (self.flops or {}).items():
            lines.append(f"{side}: {', '.join(f'{name} {value / 1e6:.1f} Mflop' for name, value in flops.items())}")
        for count, scan in self.scan_ms.items():
            lines.append(f"scan of {count}: {scan:.2f} ms; overlap saves {self.overlap_saves_ms[count]:.2f} ms")
        lines.append(f"{'stop early':>12s}{'at margin':>12s}{'R@1':>8s}{'R@10':>8s}{'ms saved':>10s}")
        for row in self.exit:
            margin = "" if row["margin"] is None else f"{row['margin']:.3f}"
            recalls = "".join(f"{row[name]:8.1f}" for name in ("R@1", "R@10"))
            lines.append(f"{row['share']:12.0%}{margin:>12s}{recalls}{row['saved_ms']:10.2f}")
        return "\n".join(lines)


def run(model: HiVLP, data: str = "stamps", split: str = "val", queries: int = 200) -> ExitReport:
    """Measure on one thread.

    Args:
        model: with at least two levels.
        data: pairs on which an adaptive exit is judged.
        split: of them.
        queries: how many texts are timed.

    Returns:
        ``encode_ms`` by level (median); ``flops`` of one text and one picture by level, if torch is there;
        ``scan_ms`` of a coarse scan by collection size, and ``overlap_saves_ms`` there; ``exit``: for growing shares of
        queries that stop early, those with the widest margin first, the recalls and the mean milliseconds saved.
    """
    began = time.perf_counter()
    pairs = [pair for pair in load_pairs(data) if pair.split == split]
    texts = [pair.captions[0] for pair in pairs]
    coarse, *_, fine = (level.name for level in model.levels)
    asked = (texts * (queries // len(texts) + 1))[:queries]
    encode = {level: _encode_ms(model, asked, level) for level in tqdm((coarse, fine), desc="encode", disable=None)}
    deeper = max(0.0, encode[fine] - encode[coarse])
    scans = {count: _scan_ms(count, model.levels[0].dim) for count in tqdm(COLLECTIONS, desc="scan", disable=None)}
    images = Embeddings.concatenate(
        [
            batch.embeddings
            for batch in encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture))
        ]
    )
    return ExitReport(
        encode_ms={level: round(value, 3) for level, value in encode.items()},
        flops=_flops(model),
        scan_ms={str(count): round(value, 3) for count, value in scans.items()},
        overlap_saves_ms={str(count): round(min(deeper, value), 3) for count, value in scans.items()},
        exit=adaptive_exit(images, model.encode_text(texts), deeper),
        **measured(began, "onnxruntime", "numpy"),
    )


def adaptive_exit(images: Embeddings, texts: Embeddings, deeper_ms: float) -> list[dict[str, float | None]]:
    """Recalls when the surest queries stop at the coarse level.

    A query is the surer, the further its best coarse score is above its second best.

    Args:
        images: N pictures.
        texts: N texts, text i of picture i.
        deeper_ms: what a query saves that stops.

    Returns:
        For each of ``SHARES``: ``share``, ``margin`` (at which to stop; None if no query does), ``R@1``, ``R@10``, and
        ``saved_ms`` a query.
    """
    own = np.arange(images.count)
    early, _ = level_ranks(texts.coarse, images.coarse, own)
    late, _ = level_ranks(texts.fine, images.fine, own)
    best = np.sort(texts.coarse @ images.coarse.T, axis=1)
    margins: NDArray[np.float32] = best[:, -1] - best[:, -2]
    surest = np.argsort(-margins, kind="stable")
    rows: list[dict[str, float | None]] = []
    for share in SHARES:
        stopped = surest[: round(share * len(surest))]
        ranks = late.copy()
        ranks[stopped] = early[stopped]
        recalls = {f"R@{cutoff}": round(100 * float((ranks < cutoff).mean()), 2) for cutoff in CUTOFFS}
        margin = round(float(margins[stopped[-1]]), 4) if len(stopped) else None
        rows.append({"share": share, "margin": margin, **recalls, "saved_ms": round(share * deeper_ms, 3)})
    return rows


def _encode_ms(model: HiVLP, texts: Sequence[str], level: str) -> float:
    for text in texts[:10]:
        model.encode_text([text], levels=[level])
    return median_ms(lambda text: model.encode_text([text], levels=[level]), texts)


def _scan_ms(count: int, dim: int) -> float:
    rng = np.random.default_rng(0)
    items: Vectors = rng.standard_normal((count, dim), np.float32)
    query: Vectors = rng.standard_normal(dim, np.float32)
    return median_ms(lambda _: np.argpartition(items @ query, count - 200), range(7))


def _flops(model: HiVLP) -> dict[str, dict[str, int]] | None:
    """Floating-point operations of one picture and of a text of twelve tokens up to each level; None without torch."""
    try:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from hivlp.model.hivlp_model import HiVLPModel
    except ModuleNotFoundError:
        return None
    network = HiVLPModel(model.config).eval()
    size = model.picture.size
    pixels, tokens = torch.zeros(1, 3, size, size), torch.ones(1, 12, dtype=torch.int64)
    result: dict[str, dict[str, int]] = {"picture": {}, "text": {}}
    towers = {"picture": (network.image_tower, (pixels,)), "text": (network.text_tower, (tokens, tokens))}
    for level in model.levels:
        for side, (tower, inputs) in towers.items():
            layer = level.image_layer if side == "picture" else level.text_layer
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                tower(*inputs, (layer,))
            result[side][level.name] = counter.get_total_flops()
    return result
