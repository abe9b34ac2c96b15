"""Our engine."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import AnnIndex
from hivlp.bench.ann.rivals.base import Ladder, Rows
from hivlp.levels import Vectors


class Ours:
    """Our engine."""

    name: ClassVar[str] = "hivlp"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        self._engine = AnnIndex.build(items, queries=train_queries)

    def settings(self) -> list[Ladder]:
        """Margins, for each choice of the other search parameters."""
        ladders: dict[tuple[float, ...], Ladder] = {}
        for each in self._engine.params_grid():
            if np.isfinite(each.margin):
                ladders.setdefault((each.slack, each.rerank, each.tolerance, each.nprobe), []).append({"setting": each})
        return list(ladders.values())

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        return self._engine.search(queries, k, setting["setting"])[0]
