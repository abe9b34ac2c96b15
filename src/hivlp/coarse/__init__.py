"""A coarse level fitted to vectors that somebody already has, with nothing but linear algebra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hivlp.coarse.maps import CoarseMaps, NoCoarseLevel

if TYPE_CHECKING:
    from hivlp.coarse.choose import METHODS, Fitted, Method, fit_coarse

__all__ = ["METHODS", "CoarseMaps", "Fitted", "Method", "NoCoarseLevel", "fit_coarse"]


def __getattr__(name: str) -> Any:
    """Import on first use: a search needs the maps, and nothing that fits them."""
    if name in __all__:
        from hivlp.coarse import choose

        return getattr(choose, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
