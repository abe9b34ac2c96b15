"""Building the engine of an index, and measuring on its own data what each setting finds and costs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import Engine, Setting, native
from hivlp.ann.ann_index import ROUTER_QUERIES
from hivlp.ann.arrays import Arrays, read_array
from hivlp.ann.bounds import Bounds
from hivlp.ann.manifest import read_manifest
from hivlp.errors import IndexFolderError, QueryError
from hivlp.files import npy
from hivlp.files.scratch import standing
from hivlp.levels import Vectors
from hivlp.search.ann_scan import HEAD
from hivlp.search.likeness import SAMPLED, Likeness, learn, make_probes
from hivlp.search.operating_points import FOLDER, Point, Tuned, sample
from hivlp.search.scan import ExhaustiveScanner, Rows
from hivlp.store.codec import Stored

if TYPE_CHECKING:
    from hivlp.index.index import Index

QUERIES = "queries.npy"
K = 10
DEFAULT_RECALL = 0.99
LEAST_ROWS = 1000  # below this, reading everything is as fast
LEAST_DIMS = 16  # likewise; an engine has no fewer
HELD_OUT = 400  # queries that settings are measured with, if there are three times as many
MOST_HELD_OUT = 1000  # or a tenth of them: the better a recall is known, the faster a setting that is sure to reach it
MOST_QUERIES = 20_000  # that are learnt from; of a large index, one for so many rows, as there are more lists to teach
ROWS_A_QUERY = 100
ENCODED = 6_000  # texts that are encoded to learn from, at most
GROWTH = 1.1  # from how many times the rows on the engine takes in what was added
RELEARN = 2.0  # from how many times the rows on it learns anew
CONFIDENCE = 1.645  # standard errors: one-sided 95%
TIMED = 200
PROBES = 60  # queries of each other kind that settings are measured with, or half as many of them in a large index
MANY_ROWS = 2_000_000
Progress = Callable[[str, int, int], None]


def tune(
    index: Index,
    queries: Path | Sequence[str] | Vectors | None = None,
    *,
    recall: float = DEFAULT_RECALL,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The job behind :meth:`hivlp.index.Index.tune`."""
    tell: Progress = on_progress or (lambda what, done, total: None)
    if not 0 < recall <= 1:
        raise QueryError(f"recall must be above 0 and at most 1, not {recall}")
    if native.load() is None:
        raise IndexFolderError("the kernels are not compiled here: install a C compiler, then hivlp again")
    started = time.perf_counter()
    with index._store.writer():
        vectors, alive, generation = _fine(index)
        if len(vectors) < LEAST_ROWS:
            raise IndexFolderError(
                f"{index.path} has {len(vectors)} items: below {LEAST_ROWS} all are read, and there is nothing to tune"
            )
        if vectors.shape[1] < LEAST_DIMS:
            raise IndexFolderError(
                f"{index.path} has vectors of {vectors.shape[1]} dims: all are read, as fast as can be"
            )
        asked, source = _queries(index, queries, vectors, tell)
        most = max(MOST_QUERIES, min(ROUTER_QUERIES, len(vectors) // ROWS_A_QUERY))
        asked = asked[np.random.default_rng(0).permutation(len(asked))[:most]]
        held_out, known = _split(asked)
        engine = Engine.build(vectors, queries=known, on_progress=tell)
        bounds = Bounds.build(engine, known, tell)
        tuned = _measure(engine, alive, held_out, recall, source, generation, len(vectors), tell)
        _store(index, engine, bounds, tuned, asked)
    return _report(index, engine, bounds, tuned, time.perf_counter() - started)


def refresh(index: Index, on_progress: Progress | None = None) -> bool:
    """Let an index's engine take in what was added since, if that is a tenth or more, or if rows were renumbered.

    One that is damaged or of an earlier format is built again.

    Returns:
        whether it did.
    """
    tuned = Tuned.load(index.path, older=True)
    if tuned is None or native.load() is None:
        return False
    tell: Progress = on_progress or (lambda what, done, total: None)
    with index._store.writer():
        vectors, alive, generation = _fine(index)
        arrays = _arrays(index.path)
        grown = len(vectors) >= GROWTH * tuned.rows or len(vectors) < tuned.rows
        stale = grown or generation != tuned.generation or arrays is None
        if not stale or len(vectors) < LEAST_ROWS:
            return False
        asked = _remembered(index.path, vectors.shape[1])
        if asked is None:
            return False
        held_out, known = _split(asked)
        learnt = tuned.learnt_rows
        if arrays is None or len(vectors) >= RELEARN * learnt:
            engine, learnt = Engine.build(vectors, queries=known, on_progress=tell), len(vectors)
        else:
            engine = Engine.extend(arrays, vectors, on_progress=tell)
        bounds = Bounds.build(engine, known, tell)
        again = _measure(engine, alive, held_out, tuned.recall, tuned.queries, generation, learnt, tell)
        _store(index, engine, bounds, again, asked)
    return True


def _arrays(folder: Path) -> Arrays | None:
    try:
        return Arrays.load(standing(folder / FOLDER))
    except IndexFolderError:
        return None


def _remembered(folder: Path, width: int) -> Vectors | None:
    """(m, width) the queries that an engine was tuned with; None if they are not there as they were written."""
    engine = standing(folder / FOLDER)
    try:
        asked = read_array(engine, QUERIES, read_manifest(engine, older=True))[1]
        if asked.ndim != 2 or asked.shape[1] != width or len(asked) < 2 or asked.dtype != np.float16:
            return None
        return _unit(asked.astype(np.float32))
    except (IndexFolderError, QueryError):
        return None


def _split(asked: Vectors) -> tuple[Vectors, Vectors]:
    """The queries that settings are measured with, and those to learn from."""
    held_out = max(1, min(HELD_OUT, len(asked) // 3), min(MOST_HELD_OUT, len(asked) // 10))
    return asked[:held_out], asked[held_out:]


def _fine(index: Index) -> tuple[Stored, NDArray[np.bool_] | None, int]:
    with index._store.reading() as reader:
        vectors = np.asarray(reader.vectors()[-1])
        if vectors.dtype != np.float16:
            raise IndexFolderError(f"{index.path} is of an old format: `hivlp compact` it first")
        return vectors, reader.alive(), reader.state.generation


def _queries(
    index: Index, given: Path | Sequence[str] | Vectors | None, vectors: Stored, tell: Progress
) -> tuple[Vectors, str]:
    """(m, dim) unit vectors to learn and to measure with, and where they are from."""
    if isinstance(given, Path) and given.suffix == ".npy":
        try:
            given = np.array(npy.parse(npy.map_file(given)))
        except (OSError, ValueError, MemoryError) as error:
            raise QueryError(f"{given} cannot be read: {error}") from error
    if isinstance(given, Path):
        try:
            given = [line for line in given.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise QueryError(f"{given} cannot be read: {error}") from error
    width = vectors.shape[1]
    if isinstance(given, np.ndarray):
        if given.ndim != 2 or given.shape[1] != width or len(given) < 2 or given.dtype.kind != "f":
            raise QueryError(f"queries must be (2 or more, {width}) floats, not {given.shape} {given.dtype}")
        return _unit(np.asarray(given, np.float32)), "given vectors"
    if given is not None:
        if len(given) < 2:
            raise QueryError("tuning needs at least two queries")
        return _encode(index, list(given)[:MOST_QUERIES], tell), "given texts"
    if index._model is not None:
        with index._store.reading() as reader:
            captions = reader.captions(ENCODED)
        if len(captions) >= ENCODED // 4:
            return _encode(index, captions, tell), "the captions of the index"
        words = _vocabulary(index._model)
        if words:
            return _encode(index, captions + words[: ENCODED - len(captions)], tell), "words of the model's vocabulary"
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(vectors), min(len(vectors), ENCODED), replace=False))
    return _unit(np.asarray(vectors[chosen], np.float32)), "the items themselves"


def _vocabulary(model: Any) -> list[str]:
    """Words, and pairs of words, of a model's tokenizer: what its text side can say without knowing the pictures."""
    if not hasattr(model, "vocabulary"):
        return []
    known = model.vocabulary()
    # As word pieces spell whole words: as they are, or with a mark in front (▁ or Ġ) or behind (</w>).
    marked = any(re.match("[▁Ġ]|.+</w>$", piece) for piece in known)
    pattern = re.compile(r"(?:[▁Ġ]([a-z]{3,14})|([a-z]{3,14})</w>)$" if marked else r"([a-z]{3,14})()$")
    words = sorted({match[1] or match[2] for piece in known if (match := pattern.match(piece))})
    rng = np.random.default_rng(0)
    rng.shuffle(words)
    pairs = [f"{first} {second}" for first, second in zip(words, reversed(words), strict=True)]
    return [text for both in zip(words, pairs, strict=True) for text in both]


def _encode(index: Index, texts: list[str], tell: Progress) -> Vectors:
    parts = []
    for start in range(0, len(texts), 256):
        parts += [query[-1] for query in index._encode_many(texts[start : start + 256], None)]
        tell("queries", min(start + 256, len(texts)), len(texts))
    return np.stack(parts)


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise QueryError("a query vector is zero or not finite")
    unit: Vectors = vectors / norms
    return unit


def _measure(
    engine: Engine,
    alive: NDArray[np.bool_] | None,
    asked: Vectors,
    recall: float,
    source: str,
    generation: int,
    learnt_rows: int,
    tell: Progress,
) -> Tuned:
    tell("truth", 0, 1)
    answers = ExhaustiveScanner(engine.fine).top_many(asked, K, alive)
    tell("truth", 1, 1)
    bits = None if alive is None else np.packbits(alive, bitorder="little")
    points: list[Point] = []
    settings = list(dict.fromkeys(replace(each, last=engine.least_last(each, HEAD)) for each in engine.settings()))
    for number, setting in enumerate(settings):
        shares = _found(engine, asked, answers, setting, bits)
        spread = float(shares.std(ddof=1)) if len(shares) > 1 else 1.0
        # Where all are found the spread says nothing; the rule of three does.
        error = max(CONFIDENCE * spread / len(shares) ** 0.5, 0.3 / len(shares))
        p50, p99 = _times(engine, asked, setting, bits)
        points.append(Point(setting, float(shares.mean()), float(shares.mean()) - error, p50, p99))
        tell("settings", number + 1, len(settings))
    best = tuple(frontier(points))
    ladder = tuple(dict.fromkeys([*(point.setting for point in best), engine.thorough(HEAD)]))
    likeness = _likeness(engine, alive, asked, answers, ladder, bits, tell)
    return Tuned(generation, len(engine.fine), learnt_rows, source, recall, best, ladder, likeness)


def _likeness(
    engine: Engine,
    alive: NDArray[np.bool_] | None,
    asked: Vectors,
    answers: Sequence[tuple[Rows, Vectors]],
    ladder: Sequence[Setting],
    bits: NDArray[np.uint8] | None,
    tell: Progress,
) -> Likeness:
    """What the settings find for queries of other kinds than the sample's."""
    rng = np.random.default_rng(0)
    rows = np.arange(len(engine.fine)) if alive is None else np.flatnonzero(alive)
    some = np.sort(rng.choice(rows, min(len(rows), SAMPLED), replace=False))
    items = np.asarray(engine.fine[some], np.float32)
    probes = make_probes(asked, items, PROBES if len(rows) <= MANY_ROWS else PROBES // 2)
    tell("other queries", 0, len(ladder) + 1)
    truth = ExhaustiveScanner(engine.fine).top_many(probes.queries, K, alive)
    found = []
    for number, setting in enumerate(ladder):
        tell("other queries", number + 1, len(ladder) + 1)
        found.append(_found(engine, probes.queries, truth, setting, bits))
    tell("other queries", len(ladder) + 1, len(ladder) + 1)
    best, best_of_probes = (np.stack([_ten(scores) for _, scores in each]) for each in (answers, truth))
    return learn(asked, best, probes, best_of_probes, found, items, len(rows))


def _ten(scores: Vectors) -> Vectors:
    return np.pad(scores, (0, K - len(scores)), constant_values=-np.inf)


def _found(
    engine: Engine,
    asked: Vectors,
    truth: Sequence[tuple[Rows, Vectors]],
    setting: Setting,
    bits: NDArray[np.uint8] | None,
) -> NDArray[np.float64]:
    """(queries,) the share of each one's exact ten best that a setting finds."""
    rows = engine.search(asked, HEAD, setting, allowed=bits)[0][:, :K]
    return np.array(
        [
            len({*best.tolist()} & {*found}) / max(1, len(best))
            for (best, _), found in zip(truth, rows.tolist(), strict=True)
        ]
    )


def _times(engine: Engine, asked: Vectors, setting: Setting, bits: NDArray[np.uint8] | None) -> tuple[float, float]:
    times = []
    for number in range(TIMED):
        query = asked[number % len(asked)][None]
        start = time.perf_counter()
        engine.search(query, HEAD, setting, allowed=bits)
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times)), float(np.quantile(times, 0.99))


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those than which no other finds as much in less time, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.p50_ms, -each.recall)):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best


def _store(index: Index, engine: Engine, bounds: Bounds | None, tuned: Tuned, asked: Vectors) -> None:
    extra = {QUERIES: asked.astype(np.float16), **({} if bounds is None else bounds.files())}
    try:
        tuned = replace(tuned, sample=sample(engine.fine))
        engine.save(index.path / FOLDER, tuned.to_json(), extra)
    except OSError as error:
        raise IndexFolderError(f"{index.path / FOLDER} cannot be written: {error.strerror}") from error


def _report(index: Index, engine: Engine, bounds: Bounds | None, tuned: Tuned, seconds: float) -> dict[str, Any]:
    chosen = tuned.setting(tuned.recall)
    held = engine.bytes_per_vector + (0 if bounds is None else bounds.bytes_per_vector)
    known = {name: value for name, value in tuned.to_json().items() if name != "sample"}
    return {
        "index": str(index.path),
        **known,
        "chosen": next((point.to_json() for point in tuned.frontier if point.setting == chosen), None),
        "lists": engine.lists,
        "dims": engine.dims,
        "bytes_per_vector": round(held, 1),
        "memory_mb": round(held * len(engine.fine) / 1e6, 1),
        "seconds": round(seconds, 1),
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Recall over time of the frontier, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = report["frontier"]
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    times = [point["p50_ms"] for point in points]
    axes.fill_between(
        times, [p["at_least"] for p in points], [p["recall"] for p in points], alpha=0.2, label="95% sure"
    )
    axes.plot(times, [point["recall"] for point in points], marker="o", label="measured")
    axes.axhline(report["recall"], linestyle=":", color="grey", label=f"asked for: {report['recall']}")
    axes.set(
        xscale="log",
        xlabel="milliseconds a search (median, one thread)",
        ylabel=f"recall@{K}",
        title=f"{report['rows']:,} items",
    )
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def format_text(report: dict[str, Any]) -> str:
    """The frontier as a table for people."""
    lines = [f"{'recall':>8} {'at least':>9} {'p50 ms':>8} {'p99 ms':>8}   lists margin slack last"]
    for point in report["frontier"]:
        mark = "  <- chosen" if point == report["chosen"] else ""
        lines.append(
            f"{point['recall']:8.4f} {point['at_least']:9.4f} {point['p50_ms']:8.3f} {point['p99_ms']:8.3f}"
            f"   {point['lists']:5} {point['margin'] or '':>6} {point['slack']:5} {point['last']:4}{mark}"
        )
    if report["chosen"] is None:
        lines.append(f"no setting is known to reach {report['recall']}: such searches read everything")
    lines.append(
        f"{report['rows']:,} items, {report['lists']} lists, {report['bytes_per_vector']} bytes a vector "
        f"({report['memory_mb']} MB); queries: {report['queries']}; {report['seconds']} s"
    )
    return "\n".join(lines)
