"""Recall of models on every data set at hand: each level, cascade, approximate index, fusion model.

Stamps and rendered scenes are always measured, each by itself and together as one collection, which is more than a
shortlist holds; openclipart, Flickr30k and COCO (5K, and 1K by its five folds) where they are installed or their files
are, and any other pairs that are named. Both directions are searched: texts ask an index of pictures, pictures ask one
of texts. The approximate index is made as a user makes one, with the finest level and the default recall: tuned without
queries, so by words of the model's vocabulary; by vectors alone, without the model; and with queries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.recall.published import PUBLISHED, PublishedRow, read_open_clip
from hivlp.bench.report import Report, measured
from hivlp.data.benchmarks.retrieval import BENCHMARKS, RetrievalSet, read_benchmark
from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.data.readers.karpathy import is_file
from hivlp.encode.base import Encoder
from hivlp.errors import DataError
from hivlp.evaluate.benchmarks import folds
from hivlp.evaluate.encoded import Encoded, encode_pairs
from hivlp.evaluate.evaluation import scores_of
from hivlp.evaluate.recall import own_captions
from hivlp.evaluate.reranked import Reranking
from hivlp.evaluate.results import DIRECTIONS, Recalls
from hivlp.index import Index
from hivlp.index.tuning.jobs import LEAST_ROWS
from hivlp.index.tuning.queries import ENCODED, vocabulary
from hivlp.levels import DEFAULT_SHORTLIST, Vectors

ALL_STAMPS = "stamps, all"
"""The training part too: what the cascade retains counts there, recall does not."""
ALWAYS = {"small": ("stamps", ALL_STAMPS, "scenes:8000"), "full": ("stamps", ALL_STAMPS, "scenes:80000")}
"""Test parts, but for :data:`ALL_STAMPS`; of scenes, that is a sixth."""
INSTALLED = ("openclipart",)
"""Packages that may be installed."""
FOLDED = "coco 1k"
"""Means over the five folds of COCO's test pictures."""
TOGETHER = "stamps and scenes"
"""The sets of :data:`ALWAYS` as one collection."""
LEARNT_FROM = (ALL_STAMPS, TOGETHER, *INSTALLED)
"""Sets of which hivlp-mini has seen a part in training."""
LEAST_CASCADE, LEAST_APPROXIMATE = 0.995, 0.99
"""Shares of the finest level's AR that the cascade and the approximate index are to keep."""
SEEN = 50
"""Hits that are looked at, so that what ties with the tenth is counted."""


@dataclass(frozen=True)
class RecallRow:
    """One way of searching on one data set.

    Attributes:
        dataset: its name.
        model: its name, or the system's where it was published.
        way: a level's name, ``cascade``, ``approximate index``, ``re-ranked``; of published rows how it was trained.
        kind: ``measured`` or ``published``.
        text_to_image: R@1, R@5, R@10 in percent; None where not published.
        image_to_text: likewise.
        AR: mean of the six.
        rsum: their sum; None where not published.
        retained: share of the finest level's AR; None where that is not the question.
        spread: standard deviation over COCO's five folds of each recall and of AR; None where there are no folds.
        note: what a careful reader wants to know, with the source of a published row.
    """

    dataset: str
    model: str
    way: str
    kind: str
    text_to_image: dict[str, float] | None
    image_to_text: dict[str, float] | None
    AR: float
    rsum: float | None
    retained: float | None = None
    note: str = ""
    spread: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RecallReport(Report):
    """Rows by data set; see :func:`run`.

    Attributes:
        rows: see :class:`RecallRow`; measured ones first, then published ones of the benchmarks.
        datasets: name -> pictures, captions, skipped, and whether it is the whole published benchmark.
        absent: benchmarks that are not here, with what to download.
        short: what keeps less of the finest level than it is to.
        shortlist: of the cascade.
    """

    rows: list[dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    absent: list[str]
    short: list[str]
    shortlist: int

    def to_text(self) -> str:
        """A table for the terminal."""
        lines = [
            f"{'data':14s}{'model':24s}{'way':26s}{'':10s}{'text→image':19s}{'image→text':19s}{'AR':>6s}{'kept':>8s}"
        ]
        for row in self.rows:
            cells = "".join(
                f"{'not published' if side is None else ' '.join(f'{value:5.1f}' for value in side.values()):19s}"
                for side in (row["text_to_image"], row["image_to_text"])
            )
            kept = "" if row["retained"] is None else f"{100 * row['retained']:7.2f}%"
            about = f"{row['dataset']:14.13s}{row['model']:24.23s}{row['way']:26.25s}{row['kind']:10s}"
            spread = "" if row["spread"] is None else f" ± {row['spread']['AR']:.1f}"
            lines.append(f"{about}{cells}{row['AR']:6.1f}{kept:>8s}{spread}")
        notes = dict.fromkeys(f"{row['model']}, {row['way']}: {row['note']}" for row in self.rows if row["note"])
        lines += [each for each in notes if "open_clip" not in each]
        lines += [f"not here: {each}" for each in self.absent]
        lines += [f"short of the aim: {each}" for each in self.short]
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def run(
    size: str = "small",
    model: Sequence[Encoder] = (),
    data: Sequence[str] = (),
    root: Path | None = None,
    published: Path | None = None,
    rerank: Reranking | None = None,
) -> RecallReport:
    """Measure.

    Args:
        size: ``small``, five minutes; ``full``, ten times as many scenes. Other data sets are measured whole.
        model: the models, each by itself.
        data: further pairs, as :func:`hivlp.data.load.load_pairs` takes them; of splits, ``test`` is measured.
        root: folder with ``flickr30k/`` and ``coco/`` as published (default: the current one).
        published: open_clip's table of retrieval, whose rows are added.
        rerank: a fusion model that orders the cascade's last candidates again.

    Raises:
        DataError: if a data set or the table cannot be read.
    """
    started = time.perf_counter()
    theirs = [*PUBLISHED, *([] if published is None else read_open_clip(published))]
    rows: list[RecallRow] = []
    datasets: dict[str, dict[str, Any]] = {}
    benchmarks, absent = _benchmarks(root or Path())
    found: dict[str, Sequence[Pair]] = {name: each.pairs for name, each in benchmarks.items()}
    for name in (*ALWAYS[size], *INSTALLED, *data):
        try:
            found[name] = load_pairs("stamps") if name == ALL_STAMPS else _pairs(name)
        except DataError as error:
            if name not in INSTALLED:
                raise
            absent.append(str(error))
    for each in model:
        always, words = [], words_of(each)
        for name, pairs in found.items():
            encoded = encode_pairs(pairs, each)
            datasets[name] = _about(encoded, benchmarks.get(name))
            rows += measure(name, each.name, encoded, rerank, words)
            if name == "coco" and (folded := _of_folds(benchmarks[name], each.name, encoded, rerank, words)):
                datasets[FOLDED] = datasets[name]
                rows += folded
            if name in ALWAYS[size] and name != "stamps":  # which are among all stamps
                always.append(encoded)
        if len(always) > 1:
            whole = Encoded.together(always)
            datasets[TOGETHER] = _about(whole)
            rows += measure(TOGETHER, each.name, whole, rerank, words)
    rows += [_published(row) for row in theirs]
    return RecallReport(
        rows=[asdict(row) for row in rows], datasets=datasets, absent=absent, short=shortfalls(rows),
        shortlist=DEFAULT_SHORTLIST, **measured(started, "onnxruntime", "numpy"),
    )  # fmt: skip


def words_of(model: Encoder) -> Vectors | None:
    """(m, dim) vectors of the words that an index with this model is tuned with; None if it does not tell its words."""
    words = vocabulary(model)[:ENCODED]
    return model.encode_text(words).fine if words else None


def measure(
    dataset: str, model: str, encoded: Encoded, rerank: Reranking | None = None, words: Vectors | None = None
) -> list[RecallRow]:
    """Rows of one model on one data set: each level, the cascade, the approximate index, and the fusion model if any.

    Args:
        dataset: its name.
        model: its name.
        encoded: pictures and captions.
        rerank: a fusion model that orders the cascade's last candidates again.
        words: see :func:`words_of`.
    """
    scores = scores_of(encoded, DEFAULT_SHORTLIST, rerank)
    fine = list(scores.levels.values())[-1]

    def row(way: str, recalls: Recalls, kept: bool = True, note: str = "") -> RecallRow:
        note = "; ".join(filter(None, [note, "the model may have learnt from these" if dataset in LEARNT_FROM else ""]))
        share = round(recalls.average / fine.average, 4) if kept and fine.average else None
        return RecallRow(dataset, model, way, "measured", dict(recalls.text_to_image), dict(recalls.image_to_text),
                         recalls.average, recalls.rsum, share, note)  # fmt: skip

    rows = [row(f"level {name}", recalls, recalls is not fine) for name, recalls in scores.levels.items()]
    everything = "" if len(encoded.pairs) > DEFAULT_SHORTLIST else (
        f"the shortlist of {DEFAULT_SHORTLIST} holds all pictures: nothing can be lost"
    )  # fmt: skip
    rows.append(row(f"cascade ({DEFAULT_SHORTLIST})", scores.cascade, note=everything))
    small = min(len(encoded.pairs), len(encoded.owner)) < LEAST_ROWS
    untuned = f"below {LEAST_ROWS} items nothing is tuned: every vector is read" if small else ""
    if small:
        rows.append(row("approximate index", approximate(encoded), note=untuned))
    else:
        if words is not None:
            rows.append(row("approximate index", approximate(encoded, words),
                            note="tuned without queries, by words of the model's vocabulary"))  # fmt: skip
        rows.append(row("approximate index, vectors alone", approximate(encoded),
                        note="tuned without queries and without the model, by the items"))  # fmt: skip
        rows.append(row("approximate index, tuned with queries", approximate(encoded, with_queries=True),
                        note="each half of the queries asks an index that was tuned with the other half"))  # fmt: skip
    if scores.reranked is not None:
        after = scores.reranked
        rows.append(row(f"re-ranked by {after.stage['model']}", after.recalls, False,
                        f"{after.stage['rule']}, {after.stage['keep']} candidates"))  # fmt: skip
    return rows


def approximate(encoded: Encoded, words: Vectors | None = None, *, with_queries: bool = False) -> Recalls:
    """Recalls of searches of an approximate index over the finest level, in both directions.

    Args:
        encoded: pictures and captions.
        words: (m, dim) that it is tuned with; None for what it finds itself.
        with_queries: whether it is tuned with queries instead, each half of them asking what the other half has tuned.
    """
    images, texts = encoded.images.fine, encoded.texts.fine
    sides = (
        (images, texts, encoded.owner[:, None]),
        (texts, images, own_captions(encoded.owner, len(images))),
    )
    found = []
    for items, queries, own in sides:
        ranks = np.empty(len(queries), np.int64)
        for half in (slice(0, None, 2), slice(1, None, 2)) if with_queries else (slice(None),):
            others = np.delete(queries, half, axis=0) if with_queries else words
            ranks[half] = approximate_ranks(items, queries[half], own[half], others)
        found.append(ranks)
    return Recalls.of_ranks(*found)


def approximate_ranks(
    items: Vectors, queries: Vectors, own: NDArray[np.int64], tuning: Vectors | None = None
) -> NDArray[np.int64]:
    """(Q,) rank from 0 of each query's best own item in an approximate search; the number of items if not found.

    Args:
        items: (N, dim) float32.
        queries: (Q, dim) float32.
        own: (Q, C) items that belong to each query, padded with -1; a tie with another counts against them.
        tuning: (T, dim) float32 queries that the index is tuned with; None for what it finds itself.
    """
    with Index.from_vectors(items, fit="none") as index:
        if len(items) >= LEAST_ROWS:
            index.tune(tuning)
        level = index.levels[-1].name
        answers = index.search_many(vectors={level: queries}, k=min(SEEN, len(items)))
        ranks = np.full(len(own), len(items), np.int64)
        for number, hits in enumerate(answers):
            rows = np.array([hit.id - 1 for hit in hits], np.int64)
            scores = np.array([hit.scores[level] for hit in hits])
            right = np.isin(rows, own[number])
            if right.any():
                ranks[number] = np.count_nonzero(scores[~right] >= scores[right].max())
    return ranks


def shortfalls(rows: Sequence[RecallRow]) -> list[str]:
    """Sentences on what keeps less of the finest level's AR than it is to."""
    bars = {"cascade": LEAST_CASCADE, "approximate": LEAST_APPROXIMATE}
    return [
        f"{row.dataset}, {row.model}: {row.way} keeps {100 * row.retained:.2f}% of AR, below {100 * least:g}%"
        for row in rows
        for word, least in bars.items()
        if row.way.startswith(word) and row.retained is not None and row.retained < least
    ]


def _about(encoded: Encoded, data: RetrievalSet | None = None) -> dict[str, Any]:
    """Counts of a data set, and of a benchmark whether it is all that was published."""
    counts = {"images": len(encoded.pairs), "captions": len(encoded.owner), "skipped": encoded.skipped}
    return counts if data is None else counts | {"complete": data.complete and not encoded.skipped}


def _of_folds(
    data: RetrievalSet, model: str, encoded: Encoded, rerank: Reranking | None, words: Vectors | None
) -> list[RecallRow]:
    """Rows of COCO's 1K protocol, means over its folds; none where the pictures here leave a fold empty."""
    try:
        parts = folds(data, encoded)
    except DataError:
        return []
    measured_folds = (measure(FOLDED, model, part, rerank, words) for part in parts)
    return [mean_row(of_way) for of_way in zip(*measured_folds, strict=True)]


def mean_row(parts: Sequence[RecallRow]) -> RecallRow:
    """The mean of one way of searching over folds, with the spread.

    Args:
        parts: a row a fold.
    """
    recalls = [Recalls(part.text_to_image or {}, part.image_to_text or {}) for part in parts]
    mean = Recalls.mean(recalls)
    kept = [part.retained for part in parts if part.retained is not None]
    sides = {side: [getattr(each, side) for each in recalls] for side in DIRECTIONS}
    spread: dict[str, Any] = {
        side: {cutoff: round(stdev(each[cutoff] for each in given), 2) for cutoff in given[0]}
        for side, given in sides.items()
    }
    spread["AR"] = round(stdev(each.average for each in recalls), 2)
    return replace(
        parts[0], text_to_image=dict(mean.text_to_image), image_to_text=dict(mean.image_to_text), AR=mean.average,
        rsum=mean.rsum, retained=round(fmean(kept), 4) if kept else None, spread=spread,
    )  # fmt: skip


def _benchmarks(root: Path) -> tuple[dict[str, RetrievalSet], list[str]]:
    """The benchmarks whose files are here, and what to download for the others."""
    found: dict[str, RetrievalSet] = {}
    absent = []
    for name, benchmark in BENCHMARKS.items():
        places = ("", "karpathy", "annotations")
        folders = [each for each in (root / name, root) if any(is_file(each / at / benchmark.json) for at in places)]
        if not folders:
            absent.append(str(benchmark.missing(root / name, benchmark.json)))
            continue
        found[name] = read_benchmark(name, folders[0])
    return found, absent


def _pairs(name: str) -> Sequence[Pair]:
    pairs = load_pairs(name)
    return pairs.of("test") if any(pair.split == "test" for pair in pairs) else pairs


def _published(row: PublishedRow) -> RecallRow:
    known = row.recalls
    there, back = (None, None) if known is None else (dict(known.text_to_image), dict(known.image_to_text))
    rsum = None if known is None else known.rsum
    note = "; ".join(filter(None, [row.source, row.note]))
    return RecallRow(row.dataset, row.model, row.how, "published", there, back, row.average, rsum, None, note)
