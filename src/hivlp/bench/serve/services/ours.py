"""``hivlp serve``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from hivlp.bench.products.rivals import Product
from hivlp.bench.products.rivals.base import Effort, Payload
from hivlp.bench.products.rivals.ours import Ours as OurIndex
from hivlp.bench.serve.load import request_bytes
from hivlp.bench.serve.services.base import K, Service, numbers_of
from hivlp.index import Index
from hivlp.levels import Vectors


class ServedIndex(OurIndex):
    """An index with the model that made its vectors, so that texts can be searched for."""

    def __init__(self, model: str) -> None:
        self._model = model

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        index = Index.from_vectors(
            np.asarray(items),
            folder / "index",
            ids=[payload.path for payload in payloads],
            captions=[payload.caption for payload in payloads],
            metadata=[{"year": payload.year, "camera": payload.camera} for payload in payloads],
            model=self._model,
            fit="none",
            fields={"year": "int"},
        )
        index.tune(np.asarray(queries, np.float32))
        index.close()


class Ours(Service):
    """``hivlp serve`` on an index folder; the effort is the recall that each request asks for."""

    name: ClassVar[str] = "hivlp serve"
    packages: ClassVar[tuple[str, ...]] = ("hivlp", "starlette", "uvicorn")
    how: ClassVar[str] = "an index of given vectors, tuned with sample queries; effort: recall"
    engine: ClassVar[type[Product] | None] = ServedIndex

    def product(self, model: str) -> Product:
        return ServedIndex(model)

    def command(self, folder: Path, port: int, effort: Effort, model: str) -> list[str]:
        return [sys.executable, "-m", "hivlp", "serve", str(folder / "index"), "--port", str(port)]

    def search_request(self, query: Vectors | str, effort: Effort) -> bytes:
        asked: Any = query if isinstance(query, str) else [{"vector": numbers_of(query)}]
        return request_bytes("/search", msgspec.json.encode({"query": asked, "k": K, **effort}))

    def rows(self, answer: bytes) -> list[int]:
        return [hit["id"] - 1 for hit in msgspec.json.decode(answer)["hits"]]
