"""Chroma: a persistent client's collection with documents and metadata."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric, pieces
from hivlp.levels import Vectors


class Chroma:
    """An HNSW graph over float32; captions are documents, all else is metadata."""

    name: ClassVar[str] = "Chroma"
    packages: ClassVar[tuple[str, ...]] = ("chromadb",)
    keeps_payloads: ClassVar[bool] = True
    how: ClassVar[str] = "HNSW max_neighbors 32, ef_construction 200; captions as documents"

    def load(self) -> None:
        self._chroma = importlib.import_module("chromadb")

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        graph = {
            "space": "ip", "ef_construction": 200, "max_neighbors": 32, "num_threads": 2, "batch_size": 1000,
            # What is not synced yet is put into the graph again whenever the collection is opened.
            "sync_threshold": 1000,
        }  # fmt: skip
        self._collection = self._client(folder).create_collection(
            "photos", configuration={"hnsw": graph}, embedding_function=None
        )
        self._rows = 0
        self.add(items, payloads)
        self.close()

    def _client(self, folder: Path) -> Any:
        settings = self._chroma.Settings(anonymized_telemetry=False)
        return self._chroma.PersistentClient(str(folder / "chroma"), settings=settings)

    def open(self, folder: Path) -> None:
        self._folder = folder
        self._collection = self._client(folder).get_collection("photos", embedding_function=None)
        self._rows = self._collection.count()
        self._ef = self._collection.configuration["hnsw"]["ef_search"]

    def efforts(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return [[{"ef": ef} for ef in geometric(12, 1500)]]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        return self._ask(query[None], k, effort, years)[0]

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        starts = range(0, len(queries), 100)
        return [hits for start in starts for hits in self._ask(queries[start : start + 100], k, effort)]

    def _ask(self, queries: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[list[Hit]]:
        if effort["ef"] != self._ef:  # the effort is the collection's, not the query's, and is read when it is opened
            self._collection.modify(configuration={"hnsw": {"ef_search": effort["ef"]}})
            self.close()
            self.open(self._folder)
        where = None
        if years is not None:
            first, last = years
            where = (
                {"year": first} if first == last else {"$and": [{"year": {"$gte": first}}, {"year": {"$lte": last}}]}
            )
        found = self._collection.query(
            query_embeddings=queries, n_results=k, where=where, include=["documents", "metadatas"]
        )
        return [
            [
                (int(row), known["path"], caption, known["year"], known["camera"])
                for row, caption, known in zip(*of_query, strict=True)
            ]
            for of_query in zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        ]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        for first, vectors, known in pieces(items, payloads):
            self._collection.add(
                ids=[str(self._rows + first + number) for number in range(len(vectors))],
                embeddings=np.asarray(vectors, np.float32),
                documents=[payload.caption for payload in known],
                metadatas=[{"path": each.path, "year": each.year, "camera": each.camera} for each in known],
            )
        self._rows += len(items)

    def remove(self, rows: Sequence[int]) -> None:
        for start in range(0, len(rows), 5000):
            self._collection.delete(ids=[str(row) for row in rows[start : start + 5000]])

    def close(self) -> None:
        del self._collection
        self._chroma.api.client.SharedSystemClient.clear_system_cache()
