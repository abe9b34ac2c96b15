"""Searches that wait: options by name, and a search that lets an event loop go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from hivlp.encode.base import Picture
from hivlp.search.fusion import Reranker

T = TypeVar("T")


class SearchOptions(TypedDict, total=False):
    """Options of :meth:`hivlp.index.Index.search`, by name."""

    image: Picture | str | None
    like: int | str | Path | None
    vector: Mapping[str, Any] | None
    k: int
    shortlist: int | Sequence[int] | None
    exact: bool
    where: str | None
    offset: int
    threshold: float | None
    group: bool | float
    recall: float | None
    missing: bool
    rerank: Reranker | None
    rerank_depth: int | None


async def in_thread(call: Callable[..., T], *given: Any, **options: Any) -> T:
    """What a call returns, made on a thread of the event loop's pool: it lets go of Python's lock while it scans."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(call, *given, **options))
