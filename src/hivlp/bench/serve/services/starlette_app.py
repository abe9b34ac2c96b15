"""A service as people write it: Starlette, the text tower, and an engine beside it, in one file.

Each request is answered in the event loop, one after another: on one core nothing is faster.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hivlp.bench.products.rivals import PRODUCTS, Product
from hivlp.bench.products.rivals.base import Effort, Hit
from hivlp.bench.products.rivals.faiss_list import FaissHnsw, FaissIvf
from hivlp.bench.products.rivals.qdrant_shard import QdrantEdge
from hivlp.bench.serve.services.base import Service, embeddings_of
from hivlp.encode import HiVLP
from hivlp.levels import Vectors


class StarletteIvf(Service):
    """As sentence-transformers' manual pairs a model with FAISS."""

    name: ClassVar[str] = "Starlette, FAISS IVF"
    packages: ClassVar[tuple[str, ...]] = ("faiss-cpu", "starlette", "uvicorn")
    how: ClassVar[str] = f"text tower, msgspec; {FaissIvf.how}"
    engine: ClassVar[type[Product] | None] = FaissIvf


class StarletteHnsw(Service):
    """The same with a graph."""

    name: ClassVar[str] = "Starlette, FAISS HNSW"
    packages: ClassVar[tuple[str, ...]] = ("faiss-cpu", "starlette", "uvicorn")
    how: ClassVar[str] = f"text tower, msgspec; {FaissHnsw.how}"
    engine: ClassVar[type[Product] | None] = FaissHnsw


class StarletteQdrant(Service):
    """The same with Qdrant's engine."""

    name: ClassVar[str] = "Starlette, Qdrant Edge"
    packages: ClassVar[tuple[str, ...]] = ("qdrant-edge-py", "starlette", "uvicorn")
    how: ClassVar[str] = f"text tower, msgspec; {QdrantEdge.how}"
    engine: ClassVar[type[Product] | None] = QdrantEdge


class _Term(msgspec.Struct):
    vector: list[float]


class _Search(msgspec.Struct):
    query: str | list[_Term]
    k: int = 10


class _Embed(msgspec.Struct):
    input: str


def create_app(product: Product, model: HiVLP, effort: Effort) -> Starlette:
    """The application.

    Args:
        product: an open engine with payloads.
        model: whose finest level is searched.
        effort: search parameters.
    """
    finest = model.levels[-1].name
    searches, embeds = msgspec.json.Decoder(_Search), msgspec.json.Decoder(_Embed)
    encoder = msgspec.json.Encoder()

    def answer(told: Any) -> Response:
        return Response(encoder.encode(told), media_type="application/json")

    def vector_of(text: str) -> Vectors:
        return np.asarray(model.encode_text([text], levels=[finest])[finest][0], np.float32)

    async def search(request: Request) -> Response:
        asked = searches.decode(await request.body())
        given = asked.query
        query = vector_of(given) if isinstance(given, str) else np.array(given[0].vector, np.float32)
        return answer({"hits": [_told(hit) for hit in product.search(query, asked.k, effort)]})

    async def embed(request: Request) -> Response:
        return answer(embeddings_of([vector_of(embeds.decode(await request.body()).input)]))

    async def ready(_: Request) -> Response:
        return Response(b"{}")

    return Starlette(
        routes=[
            Route("/search", search, methods=["POST"]),
            Route("/v1/embeddings", embed, methods=["POST"]),
            Route("/readyz", ready),
        ]
    )


def _told(hit: Hit) -> dict[str, Any]:
    row, path, caption, year, camera = hit
    return {"id": row, "path": path, "caption": caption, "metadata": {"year": year, "camera": camera}}


def main(folder: str, port: str, effort: str, model: str, engine: str) -> None:
    """Serve until the process is told to end."""
    product = next(each for each in PRODUCTS if each.__name__ == engine)()
    product.load()
    product.open(Path(folder))
    app = create_app(product, HiVLP.from_pretrained(model), msgspec.json.decode(effort))
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
