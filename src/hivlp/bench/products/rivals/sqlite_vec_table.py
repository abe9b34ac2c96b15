"""sqlite-vec: a virtual table of bits that is scanned whole, and an ordinary table of vectors that rescore."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric
from hivlp.levels import Vectors


class SqliteVec:
    """Binary quantization and rescoring, as its documentation shows them.

    The vectors lie in an ordinary table: out of the virtual one a single vector takes 0.2 ms, as it lies somewhere in
    a value of megabytes.
    """

    name: ClassVar[str] = "sqlite-vec"
    packages: ClassVar[tuple[str, ...]] = ("sqlite-vec",)
    keeps_payloads: ClassVar[bool] = True
    how: ClassVar[str] = "bits in a vec0 table scanned whole, rescored by float32; year as its metadata column"

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
        self._db.execute(
            f"CREATE VIRTUAL TABLE bits USING vec0(row INTEGER PRIMARY KEY, vector bit[{items.shape[1]}], year INTEGER)"
        )
        self._db.execute(
            "CREATE TABLE photos "
            "(row INTEGER PRIMARY KEY, path TEXT, caption TEXT, year INTEGER, camera TEXT, vector BLOB)"
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
            passing, limits = (
                ("AND year = ?", [first]) if first == last else ("AND year BETWEEN ? AND ?", [first, last])
            )
        return self._db.execute(  # type: ignore[no-any-return]
            "WITH near AS MATERIALIZED "
            f"(SELECT row FROM bits WHERE vector MATCH vec_quantize_binary(?) AND k = ? {passing}) "
            "SELECT row, path, caption, year, camera FROM near JOIN photos USING (row) "
            "ORDER BY vec_distance_cosine(vector, ?) LIMIT ?",
            [blob, max(k, effort["rescored"]), *limits, blob, k],
        ).fetchall()

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        return [self.search(query, k, effort) for query in queries]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        blobs = [np.ascontiguousarray(vector).tobytes() for vector in items]
        rows = range(self._rows, self._rows + len(items))
        with self._db:
            self._db.executemany(
                "INSERT INTO bits (row, vector, year) VALUES (?, vec_quantize_binary(?), ?)",
                ((row, blob, payload.year) for row, blob, payload in zip(rows, blobs, payloads, strict=True)),
            )
            self._db.executemany(
                "INSERT INTO photos VALUES (?, ?, ?, ?, ?, ?)",
                ((row, *payload, blob) for row, blob, payload in zip(rows, blobs, payloads, strict=True)),
            )
        self._rows += len(items)

    def remove(self, rows: Sequence[int]) -> None:
        with self._db:
            for table in ("bits", "photos"):
                self._db.executemany(f"DELETE FROM {table} WHERE row = ?", ((int(row),) for row in rows))

    def close(self) -> None:
        self._db.close()
