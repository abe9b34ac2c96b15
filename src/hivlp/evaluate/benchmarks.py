"""Benchmarks of image-text retrieval by their protocols: Flickr30k, COCO 5K and 1K, CxC, ECCV Caption, SugarCrepe.

COCO's "1K" is the mean over five folds of the 5,000 test pictures, 1,000 consecutive ones each, in which a fold's
captions compete with each other alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.data.benchmarks.positives import Positives, cxc_positives, find_cxc, find_eccv, read_cxc, read_eccv
from hivlp.data.benchmarks.retrieval import RetrievalSet
from hivlp.data.benchmarks.sugarcrepe import read_sugarcrepe
from hivlp.data.pairs import Pair
from hivlp.encode.base import Encoder
from hivlp.errors import DataError
from hivlp.evaluate.encoded import Encoded, encode_pairs
from hivlp.evaluate.evaluation import scores_of
from hivlp.evaluate.positives import PositiveSet, agreement
from hivlp.evaluate.reranked import Reranking
from hivlp.evaluate.results import Evaluation, Scores
from hivlp.evaluate.trec import write_trec
from hivlp.levels import DEFAULT_SHORTLIST

PROTOCOLS = {"flickr30k": ("1k",), "coco": ("5k", "1k")}
"""Protocols of each benchmark, the usual one first."""
FOLDS = 5


@dataclass(frozen=True)
class BenchmarkEvaluation(Evaluation):
    """Recalls of a model on a benchmark; over folds, ``scores`` are the means.

    Attributes:
        benchmark: its name.
        split: that was asked.
        protocol: ``5k`` or ``1k``.
        complete: whether pictures and captions are as many as were published; a number of fewer is not the benchmark's.
        published: how many those are; ``captions`` may be None, not published.
        folds: the scores of each fold; empty where the protocol has none.
        further: what was asked beyond recall: ``cxc``, ``eccv``.
    """

    benchmark: str
    split: str
    protocol: str
    complete: bool
    published: Mapping[str, int | None]
    folds: Sequence[Scores] = ()
    further: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As :meth:`Evaluation.to_json`, with the attributes above; ``spread`` is the standard deviation over folds."""
        names = ("benchmark", "split", "protocol", "complete", "published")
        data = {**{name: getattr(self, name) for name in names}, **super().to_json(), **self.further}
        if self.folds:
            each = [scores.to_json() for scores in self.folds]
            data |= {"folds": each, "spread": _over([_recalls(one) for one in each], statistics.stdev)}
        return data


def evaluate_benchmark(
    data: RetrievalSet,
    model: Encoder,
    *,
    protocol: str | None = None,
    shortlist: int = DEFAULT_SHORTLIST,
    rerank: Reranking | None = None,
    trec: Path | None = None,
    progress: bool = True,
) -> BenchmarkEvaluation:
    """Recalls of a model by a benchmark's protocol.

    With COCO's 5K protocol, CxC and ECCV Caption are measured too where their files lie in the benchmark's folder.

    Args:
        data: one split of a benchmark.
        model: the encoder.
        protocol: of :data:`PROTOCOLS`; None for the usual one.
        shortlist: candidates that each coarser level hands on.
        rerank: a fusion model that orders the last candidates again.
        trec: a folder for the cascade's run files and qrels (:func:`hivlp.evaluate.trec.write_trec`); not with folds.
        progress: show a bar on stderr.

    Raises:
        DataError: if the benchmark has no such protocol, nothing can be read, or the folder cannot be written.
    """
    name = data.benchmark.name
    known = PROTOCOLS[name]
    protocol = protocol or known[0]
    if protocol not in known:
        raise DataError(f"{name} has no protocol {protocol!r:.40}: choose from {', '.join(known)}")
    encoded = encode_pairs(data.pairs, model, progress=progress)
    folded = name == "coco" and protocol == "1k"
    if trec is not None:
        if folded:
            raise DataError("a run file holds one ranking of all pictures, the 1k protocol five: ask for 5k")
        write_trec(trec, encoded, shortlist, model.name)
    if folded:
        parts = [scores_of(each, shortlist, rerank, progress=progress) for each in folds(data, encoded)]
        scores, further = Scores.mean(parts), {}
    else:
        parts, further = [], _further(data, encoded, shortlist) if name == "coco" else {}
        scores = scores_of(encoded, shortlist, rerank, progress=progress)
    pictures, captions = data.benchmark.counts[data.split]
    skipped = encoded.skipped + data.absent
    return BenchmarkEvaluation(
        model.name, len(encoded.pairs), len(encoded.owner), skipped, scores, name, data.split, protocol,
        data.complete and not skipped, {"images": pictures, "captions": captions}, parts, further,
    )  # fmt: skip


def folds(data: RetrievalSet, encoded: Encoded) -> list[Encoded]:
    """Five folds of consecutive pictures; a missing one keeps its place, so that folds stay the published.

    Args:
        data: one split of a benchmark.
        encoded: its pictures and captions.

    Raises:
        DataError: if a fold is empty.
    """
    place = {pair.id: number for pair, number in zip(data.pairs, data.places, strict=True)}
    fold = np.array([FOLDS * place[pair.id] // data.total for pair in encoded.pairs])
    found = []
    for number in range(FOLDS):
        images = np.flatnonzero(fold == number)
        if not len(images):
            raise DataError(f"fold {number + 1} of {FOLDS} holds no picture: the 1k protocol needs all of them")
        found.append(encoded.some(images))
    return found


def _further(data: RetrievalSet, encoded: Encoded, shortlist: int) -> dict[str, Any]:
    """``cxc`` and ``eccv``, where their files are there and the captions have ids."""
    numbers = {pair.id: number for number, pair in enumerate(data.pairs)}
    kept = [numbers[pair.id] for pair in encoded.pairs]
    images = [data.picture_ids[number] for number in kept]
    captions = [each for number in kept for each in data.caption_ids[number]]
    if data.split != "test" or len(captions) != len(encoded.owner):
        return {}
    found: dict[str, Any] = {}
    if (cxc := find_cxc(data.root)) is not None:
        ratings = read_cxc(cxc)
        own = Positives(
            {caption: frozenset([images[owner]]) for caption, owner in zip(captions, encoded.owner, strict=True)},
            {data.picture_ids[number]: frozenset(data.caption_ids[number]) for number in kept},
        )
        rows = PositiveSet(cxc_positives(ratings, own), images, captions)
        found["cxc"] = rows.metrics(encoded.images, encoded.texts, shortlist)
        found["cxc"]["spearman"] = agreement(ratings, images, captions, encoded.images, encoded.texts)
    if (eccv := find_eccv(data.root)) is not None:
        rows = PositiveSet(read_eccv(eccv), images, captions)
        found["eccv"] = rows.metrics(encoded.images, encoded.texts, shortlist)
    return found


@dataclass(frozen=True)
class CompositionEvaluation:
    """Shares of a benchmark's cases in which the right caption fits the picture better than the wrong one.

    Attributes:
        model: its name.
        kinds: way in which captions are wrong -> cases, how many could not be read, and percent right at each level.
    """

    model: str
    kinds: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """``kinds``, and ``mean`` over them by level."""
        levels = next(iter(self.kinds.values()))["levels"]
        mean = {
            name: round(statistics.fmean(kind["levels"][name] for kind in self.kinds.values()), 2) for name in levels
        }
        return {"benchmark": "sugarcrepe", "model": self.model, "kinds": dict(self.kinds), "mean": mean}


def evaluate_sugarcrepe(root: Path, model: Encoder, *, progress: bool = True) -> CompositionEvaluation:
    """Accuracy on SugarCrepe's hard negatives; a tie counts as wrong, as in the published code.

    Args:
        root: see :func:`hivlp.data.benchmarks.sugarcrepe.read_sugarcrepe`.
        model: the encoder.
        progress: show a bar on stderr.

    Raises:
        DataError: if a file or all pictures of a kind are missing.
    """
    kinds: dict[str, dict[str, Any]] = {}
    for kind, cases in read_sugarcrepe(root).items():
        pairs = [Pair(case.name, case.picture, (case.caption, case.negative)) for case in cases]
        encoded = encode_pairs(pairs, model, progress=progress)
        levels = {}
        for name, vectors in encoded.images.items():
            right, wrong = (np.einsum("ij,ij->i", vectors, encoded.texts[name][part::2]) for part in (0, 1))
            levels[name] = round(float(100 * (right > wrong).mean()), 2)
        kinds[kind] = {"cases": len(encoded.pairs), "skipped": encoded.skipped, "levels": levels}
    return CompositionEvaluation(model.name, kinds)


def _recalls(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Levels and cascade without what is no recall."""
    aside = ("shortlist", "retained", "stage", "pairs", "seconds")
    parts = {name: scores[name] for name in ("cascade", "reranked") if name in scores}
    bare = {name: {key: value for key, value in part.items() if key not in aside} for name, part in parts.items()}
    return {"levels": scores["levels"], **bare}


def _over(parts: Sequence[Any], statistic: Callable[[Sequence[float]], float]) -> Any:
    """A statistic of each number of equal trees."""
    if isinstance(parts[0], Mapping):
        return {key: _over([part[key] for part in parts], statistic) for key in parts[0]}
    return round(statistic(parts), 2)
