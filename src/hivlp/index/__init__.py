"""A folder that holds items and their level vectors, and answers queries by a cascade over the levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hivlp.index.index import Index
from hivlp.search.results import Duplicate, Hit, SearchResult

if TYPE_CHECKING:
    from hivlp.index.adding.report import AddReport, Failure
    from hivlp.index.finding import Found, find
    from hivlp.index.from_embeddings import EmbeddingsReport, index_embeddings
    from hivlp.index.mixing import Mix
    from hivlp.index.photo_filter import PhotoFilter
    from hivlp.index.repair import RepairReport
    from hivlp.index.watching import watch
    from hivlp.store.verify import Damage, VerifyReport

__all__ = [
    "AddReport",
    "Damage",
    "Duplicate",
    "EmbeddingsReport",
    "Failure",
    "Found",
    "Hit",
    "Index",
    "Mix",
    "PhotoFilter",
    "RepairReport",
    "SearchResult",
    "VerifyReport",
    "find",
    "index_embeddings",
    "watch",
]

_HOMES = {
    "AddReport": "hivlp.index.adding.report",
    "Damage": "hivlp.store.verify",
    "EmbeddingsReport": "hivlp.index.from_embeddings",
    "Failure": "hivlp.index.adding.report",
    "Found": "hivlp.index.finding",
    "Mix": "hivlp.index.mixing",
    "PhotoFilter": "hivlp.index.photo_filter",
    "RepairReport": "hivlp.index.repair",
    "VerifyReport": "hivlp.store.verify",
    "find": "hivlp.index.finding",
    "index_embeddings": "hivlp.index.from_embeddings",
    "watch": "hivlp.index.watching",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a search from the shell should not wait for what adds, verifies and repairs."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
