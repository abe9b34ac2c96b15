"""The command line: thin verbs over the library.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure with a one-line reason, 2 wrong usage.
Heavy modules are imported inside the verb that needs them, so that ``hivlp --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hivlp
from hivlp.errors import HivlpError, MissingExtraError

if TYPE_CHECKING:
    from hivlp.encode import HiVLP
    from hivlp.index import AddReport, Index, SearchResult

DEFAULT_MODEL = "hivlp-mini"
# As hivlp.fit.METHODS, which is slow to import.
FITS = ("distill", "pca", "lean", "prefix")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    # Pillow warns of odd tags in pictures that it then reads well enough; what it cannot read is reported by name.
    warnings.filterwarnings("ignore", module="PIL")
    logging.basicConfig(level=logging.WARNING, format="hivlp: %(message)s", stream=sys.stderr)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except HivlpError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what was reported is stored", code=130)
    except BrokenPipeError:
        # The reader of our output (such as `head`) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name in (
            "torch",
            "transformers",
            "accelerate",
            "safetensors",
            "yaml",
            "onnx",
            "tensorboard",
            "matplotlib",
        ):
            return _fail(str(MissingExtraError(f"`hivlp {arguments.verb}`", "train")))
        raise
    except (OSError, sqlite3.Error) as error:
        return _fail(str(error))


def _fail(message: str, code: int = 1) -> int:
    # One line whatever a path in it may contain, and printable whatever the terminal's encoding.
    line = " ".join(message.split())
    sys.stderr.write(f"hivlp: error: {line.encode('utf-8', 'backslashreplace').decode('utf-8')}\n")
    return code


def _usage(verb: str, message: str) -> int:
    sys.stderr.write(f"hivlp {verb}: error: {message}\n")
    return 2


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    parser = argparse.ArgumentParser(prog="hivlp", description=hivlp.__doc__)
    parser.add_argument("--version", action="version", version=f"hivlp {hivlp.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(run=run)
        return sub

    sub = verb("demo", run_demo, "Index the pictures that ship with hivlp, search them, and write a page.")
    sub.add_argument("-o", "--out", type=Path, default=Path("hivlp-demo"), help="folder for the page and its index")
    sub.add_argument("--model", default=DEFAULT_MODEL)

    sub = verb("index", run_index, "Add pictures or vectors to an index; run again to add only what is new or changed.")
    sub.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="pictures or folders of pictures")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="INDEX", help="index folder")
    sub.add_argument("--model", help=f"model name or folder (default: the index's own, or {DEFAULT_MODEL})")
    given = sub.add_argument_group("vectors that you have already")
    given.add_argument("--embeddings", type=Path, metavar="SOURCE", help=".npy, parquet, or a clip-retrieval folder")
    given.add_argument("--column", metavar="NAME", help="of parquet that holds the vectors (default: embedding)")
    given.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="vectors to fit to, as they will be asked for (default: text_emb beside img_emb, or the items)",
    )
    given.add_argument("--dims", type=int, help="of the coarse level (default 64)")
    given.add_argument("--fit", choices=FITS, help="how it is made (default: distill)")

    sub = verb("search", run_search, "Find pictures by a text, a picture, or an item of the index.")
    sub.add_argument("index", type=Path, metavar="INDEX")
    sub.add_argument("text", nargs="?", metavar="TEXT", help="what to look for, in words")
    sub.add_argument("--image", type=Path, metavar="FILE", help="look for pictures like this one")
    sub.add_argument("--like", type=int, metavar="ID", help="look for pictures like this item")
    sub.add_argument(
        "--queries",
        metavar="FILE",
        help="look for each line of this text file (- for standard input); with --json, one JSON object a line",
    )
    sub.add_argument("--vector", type=Path, metavar="FILE.npy", help="look for a vector (an index of embeddings)")
    sub.add_argument("-k", type=int, default=10, help="how many hits (default 10)")
    sub.add_argument("--shortlist", type=int, metavar="N", help="candidates that the coarse level hands on")
    sub.add_argument("--exact", action="store_true", help="rank everything by the fine level")
    sub.add_argument("--recall", type=float, metavar="R", help="of the exact ten best, to find at least (see tune)")
    sub.add_argument("--where", metavar="SQL", help="only items for which this holds: id, path, caption, metadata")
    sub.add_argument("--offset", type=int, default=0, metavar="N", help="skip the first N hits")
    sub.add_argument("--threshold", type=float, metavar="X", help="drop hits whose fine score is below X")
    sub.add_argument(
        "--group",
        type=float,
        nargs="?",
        const=True,
        default=False,
        metavar="COSINE",
        help="show equal pictures as one hit, or pictures whose fine vectors are as close as COSINE (such as 0.95)",
    )
    sub.add_argument("--model", help="model name or folder (default: the index's own)")

    sub = verb("tune", run_tune, "Make searches of a large index fast, and measure on it what they find.")
    sub.add_argument("index", type=Path, metavar="INDEX")
    sub.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="what people ask: a text a line, or vectors (.npy); default: captions, words, or the items themselves",
    )
    sub.add_argument("--recall", type=float, metavar="R", help="of the exact ten best, to find at least (default 0.99)")
    sub.add_argument("--plot", type=Path, metavar="FILE.png", help="where to draw recall over time")
    sub.add_argument("--model", help="model name or folder (default: the index's own)")

    sub = verb("remove", run_remove, "Remove items from an index; the pictures themselves stay.")
    sub.add_argument("index", type=Path, metavar="INDEX")
    sub.add_argument("items", nargs="+", metavar="ID|PATH")

    sub = verb("info", run_info, "What an index holds.")
    sub.add_argument("index", type=Path, metavar="INDEX")
    sub.add_argument("--verify", action="store_true", help="check every vector and record; exit 1 if one is damaged")

    sub = verb("repair", run_repair, "Save what can be saved of a damaged index.")
    sub.add_argument("index", type=Path, metavar="INDEX")
    sub.add_argument("--model", help="to encode pictures again with (default: the index's own)")

    sub = verb("compact", run_compact, "Give back the space of removed and replaced items.")
    sub.add_argument("index", type=Path, metavar="INDEX")

    sub = verb("merge", run_merge, "Add the items of one index to another of the same model.")
    sub.add_argument("index", type=Path, metavar="INDEX", help="the index that grows")
    sub.add_argument("other", type=Path, metavar="OTHER", help="the index that is read")

    sub = verb("evaluate", run_evaluate, "Recall of a model on pictures with captions.")
    sub.add_argument("data", metavar="DATA", help="stamps, or a folder, parquet, webdataset, captions or Karpathy file")
    sub.add_argument("--model", default=DEFAULT_MODEL)
    sub.add_argument("--split", help="default: test where the data has splits, otherwise everything")
    sub.add_argument("--shortlist", type=int, default=20, metavar="N")

    sub = verb("train", run_train, "Train a model from a recipe.")
    sub.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    sub.add_argument("-o", "--out", type=Path, help="model folder (default: runs/NAME)")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")

    sub = verb("adapt", run_adapt, "Give a trained model a coarse level; its own embedding stays as it is.")
    sub.add_argument("model", metavar="MODEL", help="a CLIP or SigLIP folder or hub id, or a hivlp model with weights")
    sub.add_argument("data", metavar="DATA", help="pairs as for evaluate, a folder of pictures, or a .txt of texts")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="model folder to write")
    sub.add_argument("--dims", type=int, default=64, help="of the coarse level (default 64)")
    sub.add_argument("--code", choices=["float", "int8", "binary"], default="int8", help="how it will be stored")
    sub.add_argument("--text-layer", type=int, metavar="N", help="of the text tower that it reads (default: the last)")
    sub.add_argument("--steps", type=int, default=1500, help="of learning; 0 for the closed form (default 1500)")
    sub.add_argument("--split", help="part to learn from (default: train, where there is one)")
    sub.add_argument("--limit", type=int, metavar="N", help="learn from so many pictures and texts at most")
    sub.add_argument("--shortlist", type=int, default=20, metavar="N", help="for the recalls measured at the end")

    sub = verb("export", run_export, "Write a model's ONNX graphs (float32), so that it can index and search.")
    sub.add_argument("model", metavar="MODEL", help="a trained model's folder, or a CLIP or SigLIP folder or hub id")
    sub.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to write a CLIP or SigLIP model")

    sub = verb("bench", run_bench, "Measure: " + "; ".join(f"{name}, {what}" for name, what in BENCHES.items()) + ".")
    sub.add_argument("name", choices=list(BENCHES))
    sub.add_argument("--pictures", type=int, default=400, metavar="N", help="index: how many (default 400)")
    sub.add_argument("--rounds", type=int, default=500, metavar="N", help="crash: how many (default 500)")
    sub.add_argument("--size", choices=["small", "full"], default="small", help="objective, ann: minutes or hours")
    sub.add_argument("--plot", type=Path, metavar="FILE.png", help="objective, ann: where to draw the rows")
    sub.add_argument("--model", default=DEFAULT_MODEL)
    return parser


def run_demo(arguments: argparse.Namespace) -> int:
    """``hivlp demo``."""
    from hivlp import demo

    result = demo.run_demo(arguments.out, _model(arguments.model))
    _print(arguments, result.to_json, lambda: demo.format_text(result))
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """``hivlp index``: exit 1 only if nothing could be done; broken pictures are part of the result."""
    from tqdm import tqdm

    fitting = [name for name in ("column", "queries", "dims", "fit") if getattr(arguments, name) is not None]
    if bool(arguments.paths) == (arguments.embeddings is not None):
        return _usage("index", "give either PATH or --embeddings SOURCE")
    if fitting and arguments.embeddings is None:
        return _usage("index", f"--{fitting[0]} goes with --embeddings")
    if arguments.embeddings is not None:
        return _index_embeddings(arguments)
    for path in arguments.paths:
        if not path.exists():
            raise HivlpError(f"{path} does not exist")
    with _open_or_create(arguments.out, arguments.model) as index, tqdm(desc="pictures", unit="", disable=None) as bar:
        report = index.add(*arguments.paths, on_progress=lambda done: bar.update(done.seen - bar.n))
        _take_in(index)
    _print(arguments, report.to_json, lambda: _added(report, arguments.out))
    return 0


def _index_embeddings(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from hivlp.index import Index
    from hivlp.index.from_embeddings import index_embeddings

    with _progress("fit") as follow, tqdm(desc="vectors", unit="", disable=None) as bar:
        report = index_embeddings(
            arguments.out,
            arguments.embeddings,
            column=arguments.column,
            queries=arguments.queries,
            dims=arguments.dims,
            method=arguments.fit or "distill",
            model=_model(arguments.model) if arguments.model else None,
            model_source=arguments.model,
            on_fit=follow,
            on_progress=lambda done: bar.update(done.seen - bar.n),
        )
    with Index.open(arguments.out) as index:
        _take_in(index)

    def text() -> str:
        lines = [_added(report.added, arguments.out)]
        if report.fit is not None:
            fit = report.fit.to_json()
            recalls = ", ".join(f"{name} {100 * value:.2f}%" for name, value in fit["recall@10"].items())
            judged = f"; recall@10 in a shortlist of {fit['shortlist']}: {recalls}" if recalls else ""
            lines.append(f"coarse level of {fit['dims']} dims by {fit['method']} ({fit['seconds']:.1f} s){judged}")
        return "\n".join(lines)

    _print(arguments, report.to_json, text)
    return 0


def _added(report: AddReport, out: Path) -> str:
    lines = [f"failed: {failure.path}: {failure.error}" for failure in report.failed]
    lines.append(
        f"{report.added} added, {report.updated} updated, {report.skipped} skipped, "
        f"{len(report.failed)} failed; {report.items} items in {out} ({report.seconds:.1f} s)"
    )
    return "\n".join(lines)


def run_search(arguments: argparse.Namespace) -> int:
    """``hivlp search``."""
    given = [name for name in ("text", "image", "like", "queries", "vector") if getattr(arguments, name) is not None]
    if len(given) != 1:
        return _usage("search", "give exactly one of TEXT, --image FILE, --like ID, --queries FILE, --vector FILE.npy")
    from hivlp.index import Index

    names = ("k", "shortlist", "exact", "where", "offset", "threshold", "group", "recall")
    options = {name: getattr(arguments, name) for name in names}
    queries = None if arguments.queries is None else _lines(arguments.queries)
    with Index.open(arguments.index) as index:
        vector = None
        if arguments.vector is not None:
            vector = {index.levels[-1].name: _load_vector(arguments.vector)}
        elif arguments.like is None:
            index.attach(_index_model(index, arguments.model))
        if queries is None:
            result = index.search(arguments.text, image=arguments.image, like=arguments.like, vector=vector, **options)
            _print(arguments, result.to_json, lambda: str(result))
            return 0
        results = index.search_many(queries, **options)
    for query, result in zip(queries, results, strict=True):
        _print(arguments, partial(_with_query, query, result), partial("{}\n{}\n".format, query, result))
    return 0


def _with_query(query: str, result: SearchResult) -> dict[str, Any]:
    return {"query": query, **result.to_json()}


def _lines(name: str) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise HivlpError(f"{name} is not a text file in UTF-8: {error}") from error
    except OSError as error:
        raise HivlpError(f"{name} cannot be read: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]


def run_tune(arguments: argparse.Namespace) -> int:
    """``hivlp tune``."""
    from hivlp.index import Index, tuning

    if arguments.plot is not None:
        import matplotlib  # noqa: F401 (missing, it is said before the work and not after it)
    recall = tuning.DEFAULT_RECALL if arguments.recall is None else arguments.recall
    with Index.open(arguments.index) as index:
        vectors = arguments.queries is not None and arguments.queries.suffix == ".npy"
        if not vectors and (arguments.model or index.model_source):
            index.attach(_index_model(index, arguments.model))
        with _stages() as follow:
            report = index.tune(arguments.queries, recall=recall, on_progress=follow)
    if arguments.plot is not None:
        tuning.plot(report, arguments.plot)
    _print(arguments, lambda: report, lambda: tuning.format_text(report))
    return 0


def _take_in(index: Index) -> None:
    """Let the engine of a tuned index know what has changed."""
    from hivlp.index import tuning

    with _stages() as follow:
        tuning.refresh(index, follow)


def run_remove(arguments: argparse.Namespace) -> int:
    """``hivlp remove``."""
    from hivlp.index import Index

    wanted = [int(item) if item.isdecimal() else item for item in arguments.items]
    with Index.open(arguments.index) as index:
        removed = index.remove(wanted)
        items = len(index)
    _print(arguments, lambda: {"removed": removed, "items": items}, lambda: f"{removed} removed; {items} items left")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """``hivlp info``."""
    from hivlp.index import Index

    if arguments.verify:
        from hivlp.index.verify import verify

        report = verify(arguments.index)
        _print(arguments, report.to_json, lambda: str(report))
        return 0 if report.ok else _fail(report.summary())
    with Index.open(arguments.index) as index:
        info = index.info()
    _print(arguments, lambda: info, lambda: "\n".join(f"{name}: {value}" for name, value in info.items()))
    return 0


def run_repair(arguments: argparse.Namespace) -> int:
    """``hivlp repair``: exit 1 only if the index cannot be used; what is not repaired is part of the result."""
    from hivlp.errors import DamagedIndexError
    from hivlp.index import Index
    from hivlp.index.repair import beyond_repair

    try:
        index = Index.open(arguments.index)
    except DamagedIndexError as error:
        raise DamagedIndexError(beyond_repair(str(error))) from error
    with index, _progress("vectors") as follow:
        try:
            index.attach(_index_model(index, arguments.model))
        except HivlpError as error:
            if arguments.model is not None:
                raise
            sys.stderr.write(f"hivlp: pictures will not be encoded again: {error}\n")
        report = index.repair(follow)
    _print(arguments, report.to_json, lambda: str(report))
    return 0


def run_compact(arguments: argparse.Namespace) -> int:
    """``hivlp compact``."""
    from hivlp.index import Index

    with Index.open(arguments.index) as index:
        with _progress("vectors") as follow:
            freed = index.compact(follow)
        _take_in(index)
        items = len(index)
    _print(arguments, lambda: {"freed": freed, "items": items}, lambda: f"{freed} rows freed; {items} items")
    return 0


def run_merge(arguments: argparse.Namespace) -> int:
    """``hivlp merge``."""
    from hivlp.index import Index

    with Index.open(arguments.index) as index:
        with _progress("items") as follow:
            merged = index.merge(arguments.other, follow)
        _take_in(index)
        items = len(index)
    _print(arguments, lambda: {"added": merged, "items": items}, lambda: f"{merged} added; {items} items")
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """``hivlp evaluate``."""
    from hivlp.data.pairs import load_pairs
    from hivlp.evaluate import evaluate

    if arguments.shortlist < 1:
        raise HivlpError("--shortlist must be at least 1")
    pairs = load_pairs(arguments.data, arguments.split)
    if arguments.split is None and any(pair.split == "test" for pair in pairs):
        pairs = [pair for pair in pairs if pair.split == "test"]
    result = evaluate(pairs, _model(arguments.model), shortlist=arguments.shortlist)
    _print(arguments, lambda: result, lambda: _recall_table(result))
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    """``hivlp train``."""
    from hivlp.train.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    out = arguments.out or Path("runs") / recipe.name
    from hivlp.train.job import train

    metrics = train(recipe, out, resume=arguments.resume)

    if metrics is None:  # one of several processes, and not the one that speaks for them
        return 0

    def text() -> str:
        tables = [f"{split}\n{_recall_table(metrics[split])}" for split in ("validation", "test") if split in metrics]
        return "\n".join([*tables, f"model written to {out} ({metrics['seconds']:.0f} s)"])

    _print(arguments, lambda: {"model": str(out), **metrics}, text)
    return 0


def run_adapt(arguments: argparse.Namespace) -> int:
    """``hivlp adapt``."""
    from hivlp.train.adapt import AdaptConfig, adapt

    names = ("dims", "code", "text_layer", "steps", "split", "limit", "shortlist")
    config = AdaptConfig(**{name: getattr(arguments, name) for name in names})
    result = adapt(arguments.model, arguments.data, arguments.out, config)

    def text() -> str:
        parts = ("validation", "test", "train")
        tables = [f"{part}\n{_recall_table(result[part])}" for part in parts if part in result]
        learned = f"learned from {result['pictures']} pictures and {result['texts']} texts"
        return "\n".join([*tables, f"{learned}; model written to {arguments.out} ({result['seconds']:.0f} s)"])

    _print(arguments, lambda: result, text)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """``hivlp export``."""
    from hivlp.encode import HiVLP
    from hivlp.export import export
    from hivlp.model.pretrained import import_dual_encoder, is_transformers_folder

    folder = Path(arguments.model)
    if not folder.is_dir() or is_transformers_folder(folder):
        if arguments.out is None:
            raise HivlpError(f"{arguments.model} is not a hivlp model folder; to import it, say where to with -o DIR")
        import_dual_encoder(arguments.model, arguments.out)
        folder = arguments.out
    export(folder)
    model = HiVLP.from_pretrained(folder)
    levels = {level.name: level.dim for level in model.levels}
    result = {"model": str(folder), "levels": levels, "fingerprint": model.fingerprint}
    _print(arguments, lambda: result, lambda: f"image.onnx and text.onnx written to {folder}")
    return 0


BENCHES = {
    "index": "pictures a second, and where the time goes",
    "objective": "what each way of making a coarse level keeps of its fine level's first hits",
    "hierarchy": "what a second level costs the finest one",
    "training": "memory and speed of the objective beside a plain one",
    "exit": "what a coarse level from an early layer saves",
    "crash": "whether an index survives kills and failing disks",
    "ann": "the engine's speed and recall beside other libraries'",
}


def run_bench(arguments: argparse.Namespace) -> int:
    """``hivlp bench``."""
    result: dict[str, Any]
    match arguments.name:
        case "index":
            from hivlp.bench import indexing

            result, text = indexing.run(_model(arguments.model), arguments.pictures), indexing.format_text
        case "objective":
            from hivlp.bench import objective

            result, text = objective.run(arguments.size, _model(arguments.model), arguments.plot), objective.format_text
        case "hierarchy":
            from hivlp.bench import hierarchy

            result, text = hierarchy.run(), hierarchy.format_text
        case "training":
            from hivlp.bench import training

            result, text = training.run(), training.format_text
        case "exit":
            from hivlp.bench import early_exit

            result, text = early_exit.run(_model(arguments.model)), early_exit.format_text
        case "crash":
            from hivlp.bench import crash

            result, text = crash.run(arguments.rounds), crash.format_text
        case "ann":
            from hivlp.bench.ann import run as ann

            result, text = ann.run(arguments.size, _model(arguments.model), arguments.plot), ann.format_text
    _print(arguments, lambda: result, lambda: text(result))
    return _fail(f"{len(result['failures'])} failures") if result.get("failures") else 0


def _model(name: str | Path) -> HiVLP:
    from hivlp.encode import HiVLP

    return HiVLP.from_pretrained(name)


def _open_or_create(path: Path, model: str | None) -> Index:
    from hivlp.index import Index

    if Index.exists(path):
        index = Index.open(path)
        index.attach(_index_model(index, model))
        return index
    return Index.create(path, model=_model(model or DEFAULT_MODEL), source=str(model or DEFAULT_MODEL))


def _load_vector(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise HivlpError(f"{path} is not a readable .npy file: {error}") from error


def _index_model(index: Index, model: str | None) -> HiVLP:
    if not (model or index.model_source):
        raise HivlpError(
            f"{index.path} was made of embeddings alone: search by --vector or --like, or name their model with --model"
        )
    return _model(model or index.model_source)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal for a job of several parts; gives what to call with the part, how much, and of how much."""
    from tqdm import tqdm

    with tqdm(unit="", disable=None, leave=False) as bar:
        at: tuple[str, int] = ("", 0)

        def follow(what: str, done: int, total: int) -> None:
            nonlocal at
            if what != at[0]:
                bar.reset(total)
                bar.set_description(what)
                at = (what, 0)
            bar.update(done - at[1])
            at = (what, done)

        yield follow


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; gives what to call with how much is done, and of how much."""
    from tqdm import tqdm

    with tqdm(desc=what, unit="", disable=None, leave=False) as bar:

        def follow(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield follow


def _print(arguments: argparse.Namespace, data: Callable[[], Any], text: Callable[[], str]) -> None:
    output = json.dumps(data(), ensure_ascii=False) if arguments.json else text()
    # A file name may hold bytes that are no text; they are shown escaped instead of failing.
    sys.stdout.buffer.write(output.encode("utf-8", "backslashreplace") + b"\n")


def _recall_table(result: dict[str, Any]) -> str:
    rows = [*result["levels"].items(), (f"cascade ({result['cascade']['shortlist']})", result["cascade"])]
    lines = [
        f"{result['images']} pictures, {result['captions']} captions",
        f"{'':16}text→image          image→text       AR",
    ]
    for name, row in rows:
        cells = [" ".join(f"{value:5.1f}" for value in row[d].values()) for d in ("text_to_image", "image_to_text")]
        lines.append(f"{name:14}{cells[0]}   {cells[1]}  {row['AR']:5.1f}")
    retained = result["cascade"]["retained"]["text_to_image"]["R@10"]
    lines.append(f"the cascade keeps {100 * retained:.1f}% of the finest level's text→image R@10")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
