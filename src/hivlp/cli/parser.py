"""The verbs and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hivlp
from hivlp.cli.bench import BENCHES, run_bench
from hivlp.cli.doctor import run_doctor
from hivlp.cli.index import (
    run_compact,
    run_index,
    run_info,
    run_merge,
    run_relocate,
    run_remove,
    run_repair,
    run_tune,
    run_watch,
)
from hivlp.cli.models import DEFAULT_MODEL, run_models
from hivlp.cli.output import UsageError
from hivlp.cli.search import run_demo, run_search
from hivlp.cli.serve import run_serve
from hivlp.cli.training import run_adapt, run_evaluate, run_export, run_train
from hivlp.levels import DEFAULT_SHORTLIST

# As hivlp.coarse.METHODS, which is slow to import.
FITS = ("distill", "pca", "lean", "prefix")


def _path(text: str) -> Path:
    return Path(_name(text))


def _name(text: str) -> str:
    # Path("") is the current folder, which nobody means.
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


MODEL = "short name (see `hivlp models`), hub id or folder"
# As hivlp.encode.session.DEVICES, which is slow to import.
DEVICES = ("cpu", "cuda", "coreml", "openvino", "directml")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, help="where the model runs (default: cpu)")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most a million, not {text}")
    return value


def _place(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


# What argparse calls them when a value is none.
_path.__name__, _name.__name__, _count.__name__ = "path", "name", "whole number"
_seconds.__name__, _place.__name__ = "number of seconds", "LAT,LON,KM"


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and where to read on."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was given.

        Raises:
            UsageError: always.
        """
        raise UsageError(self.prog.removeprefix("hivlp").strip(), f"{message}; see `{self.prog} --help`")


class _VerbParser(_Parser):
    """A verb's parser. Its options may stand anywhere, as between INDEX and TEXT, where argparse's own may not."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ``parse_known_intermixed_args``, which comes back here for its parts; after ``--`` nothing is mixed."""
        if self._mixing or args is None or "--" in args:
            return super().parse_known_args(args, namespace)
        if "--near" in args[:-1]:  # what argparse takes for an option south of the equator
            at = args.index("--near")
            args = [*args[:at], f"--near={args[at + 1]}", *args[at + 2 :]]
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    parser = _Parser(prog="hivlp", description=hivlp.__doc__)
    parser.add_argument("--version", action="version", version=f"hivlp {hivlp.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(run=run)
        return sub

    sub = verb("demo", run_demo, "Index the pictures that ship with hivlp, search them, and write a page.")
    sub.add_argument("-o", "--out", type=_path, default=Path("hivlp-demo"), help="folder for the page and its index")
    sub.add_argument("--model", type=_name, default=DEFAULT_MODEL)

    sub = verb("index", run_index, "Add pictures or vectors to an index; run again to add only what is new or changed.")
    sub.add_argument("paths", type=_path, nargs="*", metavar="PATH", help="pictures or folders of pictures")
    sub.add_argument("-o", "--out", type=_path, required=True, metavar="INDEX", help="index folder")
    sub.add_argument("--model", type=_name, help=f"{MODEL} (default: the index's own, or {DEFAULT_MODEL})")
    _add_device(sub)
    sub.add_argument(
        "--vectors",
        choices=("float16", "float32", "int8"),
        help="how a new index stores its fine level (default: float16; int8 takes half of that)",
    )
    _add_library_options(sub)
    sub.add_argument("--reread", action="store_true", help="read dates, places, keywords of unchanged files once more")
    sub.add_argument(
        "--lazy",
        action="store_true",
        help="make all pictures searchable by the model's early layers first, then compute the finer levels",
    )
    sub.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME:TYPE",
        help="a key of the metadata that --where names like a column: int, float, str or bool; may be given again",
    )
    given = sub.add_argument_group("vectors that you have already")
    given.add_argument("--embeddings", type=_path, metavar="SOURCE", help=".npy, parquet, or a clip-retrieval folder")
    given.add_argument("--column", metavar="NAME", help="of parquet that holds the vectors (default: embedding)")
    given.add_argument(
        "--queries",
        type=_path,
        metavar="FILE",
        help="vectors to fit to, as they will be asked for (default: text_emb beside img_emb, or the items)",
    )
    given.add_argument("--dims", type=_count, help="of the coarse level (default 64)")
    given.add_argument(
        "--fit", choices=(*FITS, "none"), help="how it is made (default: distill), or none: for an index to be tuned"
    )

    sub = verb("watch", run_watch, "Keep an index in step with folders of pictures, until interrupted.")
    sub.add_argument("paths", type=_path, nargs="+", metavar="DIR", help="folders of pictures")
    sub.add_argument("-o", "--out", type=_path, required=True, metavar="INDEX", help="index folder")
    sub.add_argument("--model", type=_name, help=f"{MODEL} (default: the index's own, or {DEFAULT_MODEL})")
    _add_device(sub)
    _add_library_options(sub)
    sub.set_defaults(vectors=None)
    sub.add_argument(
        "--every",
        type=_seconds,
        metavar="SECONDS",
        help="look at everything so often, instead of being told of changes",
    )

    sub = verb("relocate", run_relocate, "Tell an index that a folder of pictures has moved as a whole.")
    sub.add_argument("index", type=_path, metavar="INDEX")
    sub.add_argument("old", type=_path, metavar="OLD", help="the folder's path as the index knows it")
    sub.add_argument("new", type=_path, metavar="NEW", help="its path now")

    sub = verb("search", run_search, "Find pictures by a text, a picture, or an item of the index.")
    sub.add_argument("index", type=_path, metavar="INDEX|URL", help="index folder, or the address of a service")
    sub.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="what to look for, in words; with signs that stand alone, several at once: a dog + beach.jpg - snow",
    )
    sub.add_argument("--image", type=_path, metavar="FILE", help="look for pictures like this one")
    sub.add_argument("--like", type=_name, metavar="ID|PATH", help="look for pictures like this item")
    sub.add_argument(
        "--queries",
        metavar="FILE",
        help="look for each line of this text file (- for standard input); with --json, one JSON object a line",
    )
    sub.add_argument("--vector", type=_path, metavar="FILE.npy", help="look for a vector (an index of embeddings)")
    sub.add_argument("-k", type=int, help="how many hits (default 10; with --cut 200)")
    sub.add_argument("--shortlist", type=int, metavar="N", help="candidates that the coarse level hands on")
    sub.add_argument("--exact", action="store_true", help="rank everything by the fine level")
    sub.add_argument("--recall", type=float, metavar="R", help="of the exact ten best, to find at least (see tune)")
    sub.add_argument("--explain", action="store_true", help="say which plan was chosen, why, and what was carried out")
    sub.add_argument(
        "--where", metavar="SQL", help="only items for which this holds: id, path, caption, metadata, fields"
    )
    sub.add_argument("--offset", type=int, default=0, metavar="N", help="skip the first N hits")
    sub.add_argument("--threshold", type=float, metavar="X", help="drop hits whose fine score is below X")
    sub.add_argument("--fill", type=int, metavar="N", help="pending pictures that are completed first (default 200)")
    sub.add_argument("--fill-seconds", type=float, metavar="S", help="after which no other one is begun (default 2)")
    sub.add_argument(
        "--group",
        type=float,
        nargs="?",
        const=True,
        metavar="COSINE",
        help="list equal pictures below one hit, or pictures whose fine vectors are as close as COSINE (such as 0.95)",
    )
    sub.add_argument(
        "--no-fold", action="store_false", dest="fold", help="show equal files as a hit each, not as one and a number"
    )
    _add_photo_options(sub)
    sub.add_argument("--model", type=_name, help=f"{MODEL} (default: the index's own)")
    _add_device(sub)
    _add_rerank(sub)

    sub = verb("doctor", run_doctor, "Say what is wrong with an installation, and with indexes.")
    sub.add_argument("indexes", type=_path, nargs="*", metavar="INDEX")

    _add_serve(verb("serve", run_serve, "Serve indexes over HTTP, with a page to search them; until interrupted."))

    sub = verb("tune", run_tune, "Make searches of a large index fast, and measure on it what they find.")
    sub.add_argument("index", type=_path, metavar="INDEX")
    sub.add_argument(
        "--queries",
        type=_path,
        metavar="FILE",
        help="what people ask: a text a line, or vectors (.npy); default: captions, words, or the items",
    )
    sub.add_argument("--recall", type=float, metavar="R", help="of the exact ten best, to find at least (default 0.99)")
    sub.add_argument("--plot", type=_path, metavar="FILE.png", help="where to draw recall over time")
    sub.add_argument("--model", type=_name, help=f"{MODEL} (default: the index's own)")

    sub = verb("remove", run_remove, "Remove items from an index; the pictures themselves stay.")
    sub.add_argument("index", type=_path, metavar="INDEX")
    sub.add_argument(
        "items", type=_name, nargs="+", metavar="ID|PATH", help="a number is an id; a path of digits is written ./3"
    )
    only = sub.add_mutually_exclusive_group()
    only.add_argument("--id", action="store_true", help="all of them are ids")
    only.add_argument("--path", action="store_true", help="all of them are paths")

    sub = verb("info", run_info, "What an index holds.")
    sub.add_argument("index", type=_path, metavar="INDEX")
    sub.add_argument("--verify", action="store_true", help="check every vector and record; exit 1 if one is damaged")

    sub = verb("repair", run_repair, "Save what can be saved of a damaged index.")
    sub.add_argument("index", type=_path, metavar="INDEX")
    sub.add_argument("--model", type=_name, help="to encode pictures again with (default: the index's own)")

    sub = verb("compact", run_compact, "Give back the space of removed and replaced items.")
    sub.add_argument("index", type=_path, metavar="INDEX")

    sub = verb("merge", run_merge, "Add the items of one index to another of the same model.")
    sub.add_argument("index", type=_path, metavar="INDEX", help="the index that grows")
    sub.add_argument("other", type=_path, metavar="OTHER", help="the index that is read")

    sub = verb("evaluate", run_evaluate, "Recall of a model on pictures with captions.")
    sub.add_argument(
        "data",
        type=_name,
        metavar="DATA",
        help="flickr30k, coco or sugarcrepe (see --root); stamps, or a folder, parquet, webdataset, captions or "
        "Karpathy file",
    )
    sub.add_argument("--model", type=_name, default=DEFAULT_MODEL, help=f"{MODEL} (default: {DEFAULT_MODEL})")
    _add_device(sub)
    sub.add_argument(
        "--root", type=_path, metavar="DIR", help="folder of a benchmark as published (default: a folder of its name)"
    )
    sub.add_argument(
        "--protocol", choices=("5k", "1k"), help="coco: all test pictures (default), or the mean of five folds of 1,000"
    )
    sub.add_argument("--split", help="default: test where the data has splits, otherwise everything")
    sub.add_argument("--shortlist", type=int, default=DEFAULT_SHORTLIST, metavar="N", help="default 200, as search")
    sub.add_argument("--trec", type=_path, metavar="DIR", help="write the cascade's TREC run files and qrels there")
    _add_rerank(sub)

    verb("models", run_models, "Models that have short names: where they are from, their licence, size and recall.")

    sub = verb("train", run_train, "Train a model from a recipe.")
    sub.add_argument("recipe", type=_path, metavar="RECIPE.yaml")
    sub.add_argument("-o", "--out", type=_path, help="model folder (default: runs/NAME)")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    sub.add_argument("--plan", action="store_true", help="check it, measure ten of its steps, and stop")
    sub.add_argument("--tiny", action="store_true", help="the recipe's tiny variant, which takes seconds")

    sub = verb("adapt", run_adapt, "Give a trained model a coarse level; its own embedding stays as it is.")
    sub.add_argument(
        "model", type=_name, metavar="MODEL", help="a CLIP or SigLIP folder or hub id, or a hivlp model with weights"
    )
    sub.add_argument(
        "data", type=_name, metavar="DATA", help="pairs as for evaluate, a folder of pictures, or a .txt of texts"
    )
    sub.add_argument("-o", "--out", type=_path, required=True, metavar="DIR", help="model folder to write")
    sub.add_argument("--dims", type=_count, default=64, help="of the coarse level (default 64)")
    sub.add_argument("--code", choices=["float", "int8", "binary"], default="int8", help="how it will be stored")
    sub.add_argument(
        "--text-layer", type=_count, metavar="N", help="of the text tower that it reads (default: the last)"
    )
    sub.add_argument("--steps", type=int, default=1500, help="of learning; 0 for the closed form (default 1500)")
    sub.add_argument("--split", help="part to learn from (default: train, where there is one)")
    sub.add_argument("--limit", type=_count, metavar="N", help="learn from so many pictures and texts at most")
    sub.add_argument(
        "--shortlist", type=int, default=DEFAULT_SHORTLIST, metavar="N", help="of the recalls at the end (default 200)"
    )

    sub = verb("export", run_export, "Write a model's ONNX graphs, so that it can index and search.")
    sub.add_argument(
        "model", type=_name, metavar="MODEL", help="a trained model's folder, or a CLIP or SigLIP folder or hub id"
    )
    sub.add_argument("-o", "--out", type=_path, metavar="DIR", help="where to write a CLIP or SigLIP model")
    sub.add_argument(
        "--precision", choices=["float32", "int8"], default="float32", help="of the text graph's products (default "
        "float32): int8 is three times as fast, and refused where its vectors differ (cosine below 0.99)",
    )  # fmt: skip

    sub = verb("bench", run_bench, "Measure speed, recall or safety, much of it beside other libraries.")
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    names = "\n".join(f"  {name:10} {what}" for name, what in BENCHES.items())
    sub.epilog = f"what NAME may be:\n{names}"
    sub.add_argument("name", choices=list(BENCHES), metavar="NAME", help="what is measured, see below")
    sub.add_argument("--pictures", type=_count, metavar="N", help="index: how many (default 400)")
    sub.add_argument("--rounds", type=_count, metavar="N", help="crash: how many (default 500)")
    sub.add_argument("--cases", type=_count, metavar="N", help="fuzz: how many (default 2000)")
    sub.add_argument("--vectors", type=_path, metavar="FILE.npy", help="threads: items instead of WordNet's words")
    sub.add_argument("--queries", type=_path, metavar="FILE.npy", help="threads: what is asked of these items")
    sub.add_argument(
        "--size",
        choices=["small", "full", "real"],
        help="small (minutes, default); models, objective, hierarchy, paper, recall, ann: full (hours); stream: full, "
        "products, serve: real (half an hour)",
    )
    sub.add_argument(
        "--plot",
        type=_path,
        metavar="FILE.png",
        help="objective, hierarchy, paper, ann, products: where to draw the rows",
    )
    sub.add_argument("--sentences", type=_count, metavar="N", help="ann, full: how many (default, and most, a million)")
    sub.add_argument("--fresh", action="store_true", default=None, help="hierarchy; ann, full: measure everything anew")
    sub.add_argument("--seeds", type=_count, metavar="N", help="hierarchy: runs of each way (default 3)")
    sub.add_argument(
        "--data", action="append", type=_name, metavar="DATA", help="recall: further pairs, as for evaluate; repeatable"
    )
    sub.add_argument(
        "--root", type=_path, metavar="DIR", help="recall: folder with flickr30k/ and coco/ as published (default: .)"
    )
    sub.add_argument(
        "--published", type=_path, metavar="FILE.csv", help="recall: open_clip's openclip_retrieval_results.csv"
    )
    _add_rerank(sub)
    sub.add_argument("--model", action="append", type=_name, help=f"default: {DEFAULT_MODEL}; repeatable with recall")
    return parser


def _add_serve(sub: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    sub.add_argument("indexes", type=_path, nargs="+", metavar="INDEX", help="index folders; the first is the default")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    sub.add_argument("--port", type=int, default=8000, help="default 8000; 0 for a free one")
    sub.add_argument("--token-file", type=_path, metavar="FILE", help="with the token to ask for (or HIVLP_TOKEN)")
    sub.add_argument("--insecure", action="store_true", help="let other machines ask without a token")
    sub.add_argument("--root", type=_path, action="append", default=[], metavar="DIR",
                     help="pictures beneath it may be shown and indexed; may be given again")  # fmt: skip
    sub.add_argument("--watch", type=_path, action="append", default=[], metavar="DIR",
                     help="keep the first index in step with this folder; may be given again")  # fmt: skip
    sub.add_argument("--read-only", action="store_true", help="refuse whatever changes an index")
    sub.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                     help="a name that this service is called by, beside localhost")  # fmt: skip
    sub.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN",
                     help="another page that may use it, such as https://photos.example")  # fmt: skip
    sub.add_argument("--allow-urls", action="store_true", help="fetch pictures that are given as public addresses")
    sub.add_argument("--upload-mb", type=_count, default=32, metavar="N", help="of one picture (default 32)")
    sub.add_argument("--threads", type=_count, metavar="N", help="that search (default: one a core, 8 at most)")
    sub.add_argument("--queue", type=_count, default=256, metavar="N", help="searches that may wait (default 256)")
    sub.add_argument("--seconds", type=_seconds, default=30.0, metavar="S", help="for a request (default 30)")


def _add_library_options(sub: argparse.ArgumentParser) -> None:
    """What `index` and `watch` take of a photo library."""
    sub.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="files or folders to pass over, such as 'raw/'"
    )
    sub.add_argument("--prune", action="store_true", help="remove items whose files are gone or excluded now")
    sub.add_argument(
        "--relative",
        action="store_true",
        help="make a new index with paths relative to the folder that it lies in: the two can move together",
    )


def _add_photo_options(sub: argparse.ArgumentParser) -> None:
    """What `search` takes for photos."""
    words = sub.add_argument_group("only photos that are known to be")
    words.add_argument("--after", metavar="DATE", help="taken then or later: 2020, 2020-06 or 2020-06-01")
    words.add_argument("--before", metavar="DATE", help="taken before then")
    words.add_argument("--camera", metavar="NAME", help="by a camera whose name has this in it")
    words.add_argument("--lens", metavar="NAME", help="through a lens whose name has this in it")
    words.add_argument("--near", type=_place, metavar="LAT,LON,KM", help="within so many km of a place")
    words.add_argument("--folder", type=_name, metavar="NAME", help="in this folder, or in one of this name")
    words.add_argument("--format", metavar="KIND", help="jpeg, heic, raw, … or a suffix")
    words.add_argument("--rating", type=int, metavar="STARS", help="rated so, or better")
    words.add_argument("--keyword", action="append", default=[], dest="keywords", metavar="WORD", help="tagged so")
    words.add_argument("--orientation", choices=("landscape", "portrait", "square"))
    pages = sub.add_argument_group("what is shown")
    pages.add_argument(
        "--order",
        choices=("score", "newest", "oldest"),
        help="of the 1,000 best, or with --cut of those above it (default: score)",
    )
    pages.add_argument("--cut", action="store_true", help="end where scores fall off")
    pages.add_argument("--next", action="store_true", help="go on with the last search: what was not shown yet")
    pages.add_argument("--missing", action="store_true", help="show pictures whose files are gone, too")
    pages.add_argument("--open", action="store_true", help="write a page of thumbnails, and open it")
    pages.add_argument("--page", type=_name, metavar="FILE.html", help="where to write the page of thumbnails")
    pages.add_argument(
        "--show",
        nargs="?",
        const="auto",
        choices=("auto", "kitty", "iterm", "sixel", "blocks"),
        help="show thumbnails in the terminal",
    )
    pages.add_argument("--paths", action="store_true", help="print paths alone, a line each")
    pages.add_argument("--print0", action="store_true", help="print paths alone, a NUL behind each")


def _add_rerank(sub: argparse.ArgumentParser) -> None:
    """The options of a fusion model."""
    sub.add_argument(
        "--rerank", type=_path, metavar="MODEL", help="folder of a fusion model (uniter, meter, vilt, albef, blip, "
        "bridgetower) that orders the last candidates again",
    )  # fmt: skip
    sub.add_argument("--rerank-depth", type=_count, metavar="N", help="candidates it is given (default: as published)")
    sub.add_argument("--rerank-keep", type=_path, metavar="DIR", help="folder to keep what it makes of a picture")
