"""The verbs that look for pictures."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.cli.models import index_model, load_fusion, load_model
from hivlp.cli.output import print_result, usage
from hivlp.errors import HivlpError

if TYPE_CHECKING:
    from hivlp.index import SearchResult

VECTOR_LIMIT = 1 << 24
"""Bytes of a vector to search with."""


def run_demo(arguments: argparse.Namespace) -> int:
    """``hivlp demo``."""
    from hivlp import demo

    result = demo.run_demo(arguments.out, load_model(arguments.model))
    print_result(arguments, result.to_json, lambda: demo.format_text(result))
    return 0


def run_search(arguments: argparse.Namespace) -> int:
    """``hivlp search``."""
    given = [name for name in ("text", "image", "like", "queries", "vector") if getattr(arguments, name) is not None]
    if len(given) != 1:
        return usage("search", "give exactly one of TEXT, --image FILE, --like ID, --queries FILE, --vector FILE.npy")
    if arguments.model is not None and given[0] in ("like", "vector"):
        return usage("search", f"--model goes with what it encodes, not with --{given[0]}")
    if arguments.exact and arguments.shortlist is not None:
        return usage("search", "--exact ranks everything: it cannot be given with --shortlist")
    from hivlp.index import Index

    names = ("k", "shortlist", "exact", "where", "offset", "threshold", "group", "recall")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.rerank is not None and given[0] not in ("text", "queries"):
        return usage("search", "a fusion model compares texts with pictures: --rerank goes with TEXT or --queries")
    options |= {"rerank": load_fusion(arguments), "rerank_depth": arguments.rerank_depth}
    queries = None if arguments.queries is None else _lines(arguments.queries)
    with Index.open(arguments.index) as index, ThreadPoolExecutor(1) as beside:
        beside.submit(index.snapshot)  # while the model is loaded; the search says what is wrong with it
        vector = None
        if arguments.vector is not None:
            vector = {index.levels[-1].name: _load_vector(arguments.vector)}
        elif arguments.like is None:
            index.attach(index_model(index, arguments.model, arguments.device))
        if queries is None:
            result = index.search(arguments.text, image=arguments.image, like=arguments.like, vector=vector, **options)
            print_result(arguments, partial(_to_json, result, arguments), partial(_to_text, result, arguments))
            return 0
        results = index.search_many(queries, **options)
    for query, result in zip(queries, results, strict=True):
        data = partial(_to_json, result, arguments, query=query)
        print_result(arguments, data, lambda: f"{query}\n{_to_text(result, arguments)}\n")  # noqa: B023  (used now)
    return 0


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

    return read_npy(path, kinds="fiu", limit=VECTOR_LIMIT, error=HivlpError)
