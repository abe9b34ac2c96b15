"""Fusion stage of a plan: the first ranks, which the finest level has ordered, ordered again by a fusion model.

A fusion model looks at a text and a picture together, so it takes a pass for every pair: far too long for a collection,
fine for the last 10 to 256 candidates. It comes after the looks of a plan, whichever of them found its candidates, and
reorders them alone; later ranks stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import PictureError, QueryError
from hivlp.levels import Vectors

DEEPEST = 10_000
"""Candidates that a fusion model may be given, at most."""


class Shown(NamedTuple):
    """A picture that a fusion model is shown.

    Attributes:
        key: tells it from others; what a model keeps of a picture is kept under its key, so a changed one has another.
        name: of its file.
        read: gives the encoded picture; raises :class:`hivlp.errors.PictureError` if it cannot be had.
    """

    key: str
    name: str
    read: Callable[[], bytes]

    @classmethod
    def file(cls, path: Path) -> Shown:
        """A picture's file, told from others by its path, size and time of change."""

        def read() -> bytes:
            from hivlp.data.pictures.source import opened_source  # few searches read pictures

            with opened_source(path) as source:
                return source.whole().read()

        try:
            state = path.stat()
            key = f"{path}\0{state.st_size}\0{state.st_mtime_ns}"
        except (OSError, ValueError):
            key = str(path)
        return cls(key, path.name, read)

    @classmethod
    def stored(cls, name: str, read: Callable[[], bytes]) -> Shown:
        """A picture that is no file of its own, told from others by its content.

        Args:
            name: what it is called.
            read: gives the encoded picture.
        """
        try:
            return cls(hashlib.sha256(read()).hexdigest(), name, read)
        except PictureError:
            return cls(f"unread\0{name}", name, read)


class Reranker(Protocol):
    """A fusion model that scores pairs of a text and a picture."""

    @property
    def name(self) -> str:
        """What people call the model."""

    @property
    def depth(self) -> int:
        """Candidates that it is given where nobody says how many, as published where that was."""

    @property
    def rule(self) -> str:
        """What its score is, such as ``matching logit plus cosine``."""

    def score(self, texts: Sequence[str], pictures: Sequence[Shown]) -> Vectors:
        """(n,) float32 scores, higher is better; NaN for a picture that cannot be read.

        Args:
            texts: one of each pair.
            pictures: the other of each pair.
        """


@dataclass(frozen=True)
class Fuse:
    """Re-ranking of a ranking's first ranks by a fusion model.

    Attributes:
        model: its name.
        keep: ranks that it reorders.
        rule: what its score is.
    """

    model: str
    keep: int
    rule: str

    @classmethod
    def of(cls, reranker: Reranker, depth: int | None) -> Fuse:
        """The stage for a model.

        Args:
            reranker: the model.
            depth: ranks that it reorders; None for as many as it is made for.

        Raises:
            QueryError: if the depth is out of range.
        """
        keep = reranker.depth if depth is None else depth
        if not 1 <= keep <= DEEPEST:
            raise QueryError(f"rerank_depth must be 1 to {DEEPEST}, not {keep}")
        return cls(reranker.name, keep, reranker.rule)

    def to_json(self) -> dict[str, Any]:
        """The stage and its numbers."""
        return {"stage": "fuse", "model": self.model, "keep": self.keep, "rule": self.rule}

    def __str__(self) -> str:
        return f"the first {self.keep} → fuse {self.model} ({self.rule})"


def fused_order(scores: Vectors) -> NDArray[np.int64]:
    """Places in the order of fusion scores, best first; equal ones stay as they were, NaN comes last."""
    return np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
