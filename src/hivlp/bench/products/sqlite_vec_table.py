"""sqlite-vec: a virtual table that is scanned whole, bits first, rescored by the vectors."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.base import Between, Effort, Hit, Payload, geometric
from hivlp.levels import Vectors


class SqliteVec:
    """Binary quantization and rescoring, as its documentation shows them."""

    name: ClassVar[str] = "sqlite-vec"
    packages: ClassVar[tuple[str, ...]] = ("sqlite-vec",)
    how: ClassVar[str] = "vec0 table scanned whole: bits, rescored by float32; year as metadata column"

    def load(self) -> None:
        self._extension = importlib.import_module("sqlite_vec")
        # Some builds of Python cannot load extensions into SQLite; a package of the same interface can.
        loads = hasattr(sqlite3.Connection, "enable_load_extension")
        self._sqlite = sqlite3 if loads else importlib.import_module("pysqlite3")

    def _connect(self, folder: Path) -> None:
        self._db: Any = self._sqlite.connect(folder / "photos.db", check_same_thread=False)
        self._db.enable_load_extension(True)
        self._extension.load(self._db)
        self._db.enable_load_extension(False)

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        self._connect(folder)
        dim = items.shape[1]
        self._db.execute(
            f"CREATE VIRTUAL TABLE photos USING vec0(row INTEGER PRIMARY KEY, coarse bit[{dim}], vector float[{dim}], "
            "year INTEGER, +path TEXT, +caption TEXT, +camera TEXT)"
        )
        self._rows = 0
        self.add(items, payloads)
        self.close()

    def open(self, folder: Path) -> None:
        self._connect(folder)
        self._rows = self._db.execute("SELECT count(*) FROM photos").fetchone()[0]

    def efforts(self) -> list[Ladder]:
        """Rows that are rescored."""
        return [[{"rescored": rows} for rows in geometric(20, 4000)]]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        blob, passing = query.tobytes(), ""
        limits: list[int] = []
        if years is not None:
            first, last = years
            passing, limits = ("AND year = ?", [first]) if first == last else ("AND year BETWEEN ? AND ?", [first, last])
        return self._db.execute(
            "WITH near AS MATERIALIZED (SELECT row, path, caption, year, camera, vector FROM photos "
            f"WHERE coarse MATCH vec_quantize_binary(?) AND k = ? {passing}) "
            "SELECT row, path, caption, year, camera FROM near ORDER BY vec_distance_cosine(vector, ?) LIMIT ?",
            [blob, effort["rescored"], *limits, blob, k],
        ).fetchall()

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        return [self.search(query, k, effort) for query in queries]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        rows = (
            (row, vector.tobytes(), vector.tobytes(), payload.year, payload.path, payload.caption, payload.camera)
            for row, (vector, payload) in enumerate(
                zip(map(np.ascontiguousarray, items), payloads, strict=True), self._rows
            )
        )
        with self._db:
            self._db.executemany(
                "INSERT INTO photos (row, coarse, vector, year, path, caption, camera) "
                "VALUES (?, vec_quantize_binary(?), ?, ?, ?, ?, ?)",
                rows,
            )
        self._rows += len(items)

    def remove(self, rows: Sequence[int]) -> None:
        with self._db:
            self._db.executemany("DELETE FROM photos WHERE row = ?", ((int(row),) for row in rows))

    def close(self) -> None:
        self._db.close()
