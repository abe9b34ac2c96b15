"""Options of a search by name, for callers that pass them on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from hivlp.encode.base import Picture
from hivlp.index.queries import GivenVectors
from hivlp.search.fusion import Reranker


class SearchOptions(TypedDict, total=False):
    """Options of :meth:`hivlp.index.Index.search`, by name."""

    image: Picture | str | None
    like: int | str | Path | None
    vector: GivenVectors | None
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
    fill: int
    fill_seconds: float
