"""What all services share: how each is built, started and asked, and what it answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from hivlp.bench.products.rivals import Product
from hivlp.bench.products.rivals.base import Effort
from hivlp.bench.serve.load import request_bytes
from hivlp.levels import Vectors

K = 10
VECTOR, TEXT, EMBED = "vector", "text", "embed"
"""What is asked: a search by a vector, a search by a text, and the vector of a text."""


class Service:
    """A service that is measured; what it has in common with most is here.

    Attributes:
        name: shown in tables.
        packages: distributions that it needs.
        how: its parts and settings, in words.
        kinds: that it answers.
        engine: what searches in it, which is built and tuned without it; None for one that only embeds.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    how: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = (VECTOR, TEXT, EMBED)
    engine: ClassVar[type[Product] | None] = None

    def product(self, model: str) -> Product | None:
        """What searches in it, closed; ``model`` is the name of the one that makes vectors of texts."""
        return None if self.engine is None else self.engine()

    def command(self, folder: Path, port: int, effort: Effort, model: str) -> list[str]:
        """What starts it on a port of the loopback, with search parameters; this class's own file, run as a program."""
        engine = "" if self.engine is None else self.engine.__name__
        module = type(self).__module__
        return [
            sys.executable,
            "-m",
            module,
            str(folder),
            str(port),
            msgspec.json.encode(effort).decode(),
            model,
            engine,
        ]

    def search_request(self, query: Vectors | str, effort: Effort) -> bytes:
        """A search for ten items, by a (dim,) vector as a list of numbers, or by a text."""
        asked: Any = query if isinstance(query, str) else [{"vector": numbers_of(query)}]
        return request_bytes("/search", msgspec.json.encode({"query": asked, "k": K}))

    def embed_request(self, text: str) -> bytes:
        """A request for the vector of a text, as OpenAI has it."""
        return request_bytes("/v1/embeddings", msgspec.json.encode({"model": "", "input": text}))

    def rows(self, answer: bytes) -> list[int]:
        """The rows of the items that it found."""
        return [hit["id"] for hit in msgspec.json.decode(answer)["hits"]]


def numbers_of(vector: Vectors) -> list[float]:
    """As people send vectors: seven digits behind the point."""
    return [round(number, 7) for number in vector.tolist()]


def embeddings_of(rows: Sequence[Vectors]) -> dict[str, Any]:
    """Vectors as OpenAI answers them."""
    data = [{"object": "embedding", "index": place, "embedding": row.tolist()} for place, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": "", "usage": {"prompt_tokens": 0, "total_tokens": 0}}
