"""Searching a service instead of a folder."""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hivlp.cli.output import UsageError, print_result
from hivlp.errors import HivlpError

HERE_ONLY = ("queries", "model", "device", "rerank", "rerank_depth", "rerank_keep", "page", "open", "show", "next",
             "fill", "fill_seconds")  # fmt: skip
"""Options of `search` that need the index itself."""
FILTER = ("after", "before", "camera", "lens", "near", "folder", "format", "rating", "keywords", "orientation")
VECTOR_LIMIT = 1 << 24
"""Bytes of a vector to search with."""
OPTIONS = ("k", "shortlist", "exact", "recall", "where", "threshold", "cut", "missing", "explain")


def service_url(index: Path) -> str | None:
    """The address of a service, if an index is given as one; a path has lost one of its slashes."""
    match = re.match(r"(https?):/+(.+)", str(index))
    return None if match is None else f"{match[1]}://{match[2]}"


def search_service(arguments: argparse.Namespace, url: str) -> int:
    """``hivlp search URL``; the token is read from ``HIVLP_TOKEN``."""
    from hivlp.serve.client import Client

    for name in HERE_ONLY:
        if getattr(arguments, name, None):
            option = f"--{name.replace('_', '-')}"
            raise UsageError("search", f"{option} goes with an index on this machine, not with a service")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in OPTIONS}
    options = {name: value for name, value in options.items() if value not in (None, False)}
    options["offset"] = arguments.offset
    words = {name: value for name in FILTER if (value := getattr(arguments, name))}
    if words:
        options["filter"] = words
    if arguments.order not in (None, "score"):
        options["order"] = arguments.order
    options["group"] = bool(arguments.fold) if arguments.group is None else arguments.group
    query, given = _query(arguments)
    with Client(url, token=os.environ.get("HIVLP_TOKEN") or None) as service:
        result = service.search(query, **given, **options)
    if arguments.paths or arguments.print0:
        end = "\0" if arguments.print0 else "\n"
        sys.stdout.write("".join(f"{hit.path}{end}" for hit in result))
    else:
        told = partial(result.to_json, explain=arguments.explain)
        print_result(arguments, told, lambda: f"{result}\n{result.explain()}" if arguments.explain else str(result))
    return 0


def _query(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """What is looked for, as a query or as an option of a search."""
    from hivlp.index.mixing import parse_mix

    if arguments.text:
        return parse_mix(arguments.text), {}
    if arguments.image is not None:
        return None, {"image": arguments.image}
    if arguments.vector is not None:
        from hivlp.files.npy import read_npy

        return None, {"vector": read_npy(arguments.vector, kinds="fiu", limit=VECTOR_LIMIT, error=HivlpError)}
    if arguments.like is not None:
        return None, {"like": int(arguments.like)} if arguments.like.isdecimal() else {"image": Path(arguments.like)}
    return None, {}
