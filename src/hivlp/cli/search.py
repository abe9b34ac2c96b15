"""The verbs that look for pictures."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.cli.last_search import recall, remember
from hivlp.cli.models import early_model, index_model, load_fusion, load_model
from hivlp.cli.output import UsageError, print_result
from hivlp.cli.service import VECTOR_LIMIT, search_service, service_url
from hivlp.errors import HivlpError

if TYPE_CHECKING:
    from hivlp.index import Found, Index, Mix, PhotoFilter, SearchResult

LONGEST_ID = 40
"""Characters from which on digits are a name, not an id."""
WORDS = ("after", "before", "camera", "lens", "near", "folder", "format", "rating", "keywords", "orientation")
"""Options that are words of a photo filter."""
QUERIES = ("text", "image", "like", "queries", "vector")
KEPT = (*QUERIES, *WORDS, "k", "shortlist", "exact", "where", "threshold", "group", "fold", "recall", "order", "cut",
        "missing", "model")  # fmt: skip
"""Arguments that the next page of a search takes over."""


def run_demo(arguments: argparse.Namespace) -> int:
    """``hivlp demo``."""
    from hivlp import demo

    result = demo.run_demo(arguments.out, load_model(arguments.model))
    print_result(arguments, result.to_json, lambda: demo.format_text(result))
    return 0


def run_search(arguments: argparse.Namespace) -> int:
    """``hivlp search``."""
    seen: list[int] = []
    if arguments.next and service_url(arguments.index) is None:
        if _asked(arguments):
            raise UsageError("search", "--next goes on with the last search: it takes no query of its own")
        kept, seen = recall(arguments.index)
        vars(arguments).update({name: value for name, value in kept.items() if name in KEPT})
    given = _asked(arguments)
    filtered = any(getattr(arguments, name) for name in WORDS) or arguments.where is not None
    if len(given) > 1 or not (given or filtered or arguments.order):
        queries = "TEXT, --image FILE, --like ID|PATH, --queries FILE, --vector FILE.npy"
        raise UsageError("search", f"give exactly one of {queries}, or something to filter by")
    if arguments.model is not None and given and given[0] in ("like", "vector"):
        raise UsageError("search", f"--model goes with what it encodes, not with --{given[0]}")
    if arguments.exact and arguments.shortlist is not None:
        raise UsageError("search", "--exact ranks everything: it cannot be given with --shortlist")
    if arguments.rerank is not None and given not in (["text"], ["queries"]):
        raise UsageError("search", "a fusion model compares texts with pictures: --rerank goes with TEXT or --queries")
    if (url := service_url(arguments.index)) is not None:
        return search_service(arguments, url)
    if arguments.queries is not None:
        return _search_many(arguments)
    with ThreadPoolExecutor(2) as beside:
        return _search_one(arguments, seen, beside)


def _search_one(arguments: argparse.Namespace, seen: list[int], beside: ThreadPoolExecutor) -> int:
    model = early_model(arguments) if arguments.text else None
    # ONNX Runtime opens its graph while the modules of an index are imported.
    opened = None if model is None else beside.submit(model.encode_text, ".")
    from hivlp.index import Index, find

    options = {name: getattr(arguments, name) for name in ("shortlist", "exact", "threshold", "recall")}
    options |= {"rerank": load_fusion(arguments), "rerank_depth": arguments.rerank_depth, **_budget(arguments)}
    with Index.open(arguments.index) as index:
        beside.submit(index.snapshot)  # while the model is loaded; the search says what is wrong with it
        query, how = _query(arguments, index)
        if query is not None or how.get("image") is not None:
            if opened is not None:
                wait([opened])
            index.attach(model or index_model(index, arguments.model, arguments.device))
        found = find(
            index,
            query,
            photo_filter=_filter(arguments),
            where=arguments.where,
            k=arguments.k,
            offset=arguments.offset,
            order=arguments.order or "score",
            cut=arguments.cut,
            seen=seen,
            missing=arguments.missing,
            group=_group(arguments, index),
            **options,
            **how,
        )
    # What was shown, and what is the same, does not come again.
    shown = [item.id for hit in found.result for item in (hit, *(hit.duplicates or ()))]
    remember(arguments.index, {name: getattr(arguments, name) for name in KEPT}, [*seen, *shown, *found.gone])
    _show(arguments, found)
    return 0


def _asked(arguments: argparse.Namespace) -> list[str]:
    return [name for name in QUERIES if getattr(arguments, name) not in (None, [])]


def _query(arguments: argparse.Namespace, index: Index) -> tuple[str | Mix | None, dict[str, Any]]:
    """What is looked for, as a query or as an option of a search."""
    from hivlp.index.mixing import parse_mix
    from hivlp.store.names import existing

    if arguments.text:
        return parse_mix(arguments.text), {}
    if arguments.vector is not None:
        return None, {"vector": {index.levels[-1].name: _load_vector(arguments.vector)}}
    if arguments.like is not None:
        # Some characters are digits, and no numbers, such as ².
        is_id = arguments.like.isdecimal() and len(arguments.like) < LONGEST_ID
        item: int | str = int(arguments.like) if is_id else arguments.like
        if isinstance(item, str) and not index.named(item) and os.path.isfile(existing(item)):  # noqa: PTH113 (a name may be too long)
            # A picture that the index does not hold is as good.
            return None, {"image": existing(item)}
        return None, {"like": item}
    return None, {} if arguments.image is None else {"image": Path(arguments.image)}


def _filter(arguments: argparse.Namespace) -> PhotoFilter | None:
    from hivlp.index import PhotoFilter

    words = {name: getattr(arguments, name) for name in WORDS}
    return PhotoFilter(**{**words, "keywords": tuple(words["keywords"])}) if any(words.values()) else None


def _budget(arguments: argparse.Namespace) -> dict[str, float]:
    """What a search may spend on pending pictures, as far as it is given."""
    return {name: value for name in ("fill", "fill_seconds") if (value := getattr(arguments, name)) is not None}


def _group(arguments: argparse.Namespace, index: Index) -> bool | float:
    """How hits are folded: equal files by themselves, unless somebody says otherwise."""
    if arguments.group is not None:
        return float(arguments.group) if arguments.group is not True else True
    return bool(arguments.fold) and index.maps is None


def _search_many(arguments: argparse.Namespace) -> int:
    from hivlp.index import Index
    from hivlp.index.photo_filter import joined

    names = ("shortlist", "exact", "offset", "threshold", "recall", "missing")
    options = {name: getattr(arguments, name) for name in names}
    options |= {"rerank": load_fusion(arguments), "rerank_depth": arguments.rerank_depth, **_budget(arguments)}
    options["k"] = 10 if arguments.k is None else arguments.k
    photo_filter = _filter(arguments)
    options["where"] = joined(None if photo_filter is None else photo_filter.where, arguments.where)
    queries = _lines(arguments.queries)
    with Index.open(arguments.index) as index:
        index.attach(index_model(index, arguments.model, arguments.device))
        results = index.search_many(queries, **options, group=False if arguments.group is None else arguments.group)
    for query, result in zip(queries, results, strict=True):
        data = partial(_to_json, result, arguments, query=query)
        print_result(arguments, data, lambda: f"{query}\n{_to_text(result, arguments)}\n")  # noqa: B023  (used now)
    return 0


def _show(arguments: argparse.Namespace, found: Found) -> None:
    """Print what was found, in the way that was asked for."""
    if arguments.page is not None or arguments.open:
        _write_page(arguments, found)
    if arguments.paths or arguments.print0:
        end = b"\0" if arguments.print0 else b"\n"
        sys.stdout.buffer.write(b"".join(os.fsencode(hit.path) + end for hit in found.result))
    elif arguments.show is not None:
        _show_pictures(arguments, found)
    else:
        data = partial(found.to_json, explain=arguments.explain)
        print_result(arguments, data, lambda: _found_text(found, arguments))
    if found.gone and not found.hint:
        sys.stderr.write(
            f"hivlp: {len(found.gone)} hits are not shown, as their files are gone; --missing shows them\n"
        )
    if found.hint:
        sys.stderr.write(f"hivlp: {found.hint.encode('utf-8', 'backslashreplace').decode()}\n")


def _title(arguments: argparse.Namespace) -> str:
    """A search in words, for a page's title."""
    asked = " ".join(arguments.text or ()) or next(
        (f"like {value}" for name in QUERIES[1:] if (value := getattr(arguments, name)) is not None), "all pictures"
    )
    words = [f"{name} {getattr(arguments, name)}" for name in WORDS if getattr(arguments, name)]
    return ", ".join([asked, *words])


def _write_page(arguments: argparse.Namespace, found: Found) -> None:
    from hivlp.cli.thumbnails import search_page
    from hivlp.files.digests import cache_folder

    place = Path(arguments.page) if arguments.page is not None else cache_folder() / "search.html"
    text = search_page(_title(arguments), found.result)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise HivlpError(f"{place} cannot be written: {error.strerror}") from error
    if arguments.open:
        opened = webbrowser.open(place.absolute().as_uri())
        sys.stderr.write(f"hivlp: {'opened' if opened else 'no browser opens'} {place}\n")


def _show_pictures(arguments: argparse.Namespace, found: Found) -> None:
    from hivlp.cli.thumbnails import PROTOCOLS, TERMINAL_PIXELS, protocol
    from hivlp.search.html import thumbnail

    name = protocol(os.environ) if arguments.show == "auto" else arguments.show
    for hit in found.result:
        image = thumbnail(hit.path, TERMINAL_PIXELS) if arguments.show != "auto" or sys.stdout.isatty() else None
        shown = "" if image is None else PROTOCOLS[name](image)
        sys.stdout.buffer.write(f"{shown}{_line(hit)}\n".encode("utf-8", "backslashreplace"))


def _found_text(found: Found, arguments: argparse.Namespace) -> str:
    """What people see of a search; equal files as a number, unless they asked to group."""
    if arguments.group is not None or not found.result.plan:
        result = found.result
        text = str(result) if result.plan else "\n".join([*map(_line, result)] or ["nothing found"])
    else:
        bare = [hit._replace(duplicates=None) for hit in found.result]
        text = str(type(found.result)(bare, found.result.timings_ms, found.result.plan))
        lines = text.split("\n")
        lines[: len(bare)] = map(_line, found.result)
        text = "\n".join(lines)
    if found.cut is not None:
        text += f"\ncut where scores fall below {found.cut:.3f}"
    return f"{text}\n{found.result.explain()}" if arguments.explain else text


def _line(hit: Any) -> str:
    """One hit on one line."""
    scores = " ".join(f"{name} {value:.3f}" for name, value in hit.scores.items())
    caption, taken = f"  {hit.caption}" if hit.caption else "", hit.metadata.get("taken")
    day = f"  {taken[:10]}" if isinstance(taken, str) else ""
    same = f"  +{len(hit.duplicates)} the same" if hit.duplicates else ""
    return f"{hit.rank:3}  [{hit.id}] {hit.path!r}{caption}{day}{f'  ({scores})' if scores else ''}{same}"


def _to_json(result: SearchResult, arguments: argparse.Namespace, **query: str) -> dict[str, Any]:
    return {**query, **result.to_json(explain=arguments.explain)}


def _to_text(result: SearchResult, arguments: argparse.Namespace) -> str:
    return f"{result}\n{result.explain()}" if arguments.explain else str(result)


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


def _load_vector(path: Path) -> Any:
    from hivlp.files.npy import read_npy

    return read_npy(Path(path), kinds="fiu", limit=VECTOR_LIMIT, error=HivlpError)
