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
        """Margins for what signs and nibbles hand on; for a small collection, what a code of all rows hands on."""
        ladders: dict[tuple[float, ...], Ladder] = {}
        for each in self._engine.params_grid():
            if each.nprobe == 0:
                ladders.setdefault((), []).append({"setting": each})
            elif np.isfinite(each.margin):
                ladders.setdefault((each.slack, each.rerank, each.tolerance, each.nprobe), []).append({"setting": each})
        return list(ladders.values())

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        return self._engine.search(queries, k, setting["setting"])[0]


class OursOnDisk(Ours):
    """The same over vectors that stay on disk: for more of them than fit into memory."""

    name: ClassVar[str] = "hivlp, vectors on disk"
    on_disk: ClassVar[bool] = True  # ``build`` gets the items memory-mapped
