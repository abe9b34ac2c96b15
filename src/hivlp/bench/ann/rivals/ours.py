"""Our engine."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.rivals.base import Ladder, Rows
from hivlp.engine import Engine
from hivlp.levels import Vectors

EXHAUSTIVE_BELOW = 10_000


class Ours:
    """Our engine; small collections are scanned whole."""

    name: ClassVar[str] = "hivlp"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        self._exact = items.astype(np.float32) if len(items) < EXHAUSTIVE_BELOW else None
        self._engine = None if self._exact is not None else Engine.build(items, queries=train_queries)

    def settings(self) -> list[Ladder]:
        """Lists for some lengths of the shortlists."""
        if self._engine is None:
            return [[{}]]
        ladders: dict[tuple[int, bool], Ladder] = {}
        for each in self._engine.settings():
            if each.lists >= 24 and each.shortlist in (100, 160, 400, 800, 1600, 3200):
                ladders.setdefault((each.shortlist, np.isinf(each.margin)), []).append({"setting": each})
        return list(ladders.values())

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        if self._engine is not None:
            return self._engine.search(queries, k, setting["setting"])[0]
        assert self._exact is not None
        found = np.empty((len(queries), k), np.int64)
        for row, query in zip(found, queries, strict=True):
            scores = self._exact @ query
            best = np.argpartition(scores, -k)[-k:]
            row[:] = best[np.argsort(-scores[best])]
        return found


class OursOnDisk(Ours):
    """The same over vectors that stay on disk: for more of them than fit into memory."""

    name: ClassVar[str] = "hivlp, vectors on disk"
    on_disk: ClassVar[bool] = True
