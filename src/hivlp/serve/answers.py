"""Answers of a service as its clients read them: bounded, checked, and of the types of this library."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np

from hivlp.errors import HivlpError
from hivlp.levels import Vectors
from hivlp.search.plan import ToldPlan
from hivlp.search.results import Duplicate, Hit, SearchResult
from hivlp.serve.vectors import numbers

T = TypeVar("T")
MOST_BYTES = 1 << 28
"""Of an answer, when it is unpacked."""


class ServiceError(HivlpError):
    """An answer that is an error.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: word for programs.
        retry_after: seconds after which the service wants to be asked again, as where it is busy (429); else None.
    """

    def __init__(
        self, message: str, status: int = 0, code: str = "no_answer", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class Body:
    """The body of an answer as it comes, which may be neither endless nor slow."""

    def __init__(self, seconds: float) -> None:
        self.data, self._seconds = bytearray(), seconds
        self._end = time.monotonic() + seconds

    def take(self, block: bytes) -> None:
        """Take in a piece of it.

        Raises:
            ServiceError: if it is one too many.
        """
        self.data += block
        if len(self.data) > MOST_BYTES:
            raise ServiceError(f"the answer is larger than {MOST_BYTES >> 20} MB: is this a hivlp service?")
        if time.monotonic() > self._end:
            raise ServiceError(f"the answer has not ended within {self._seconds:g} s")


class _Copy(msgspec.Struct):
    id: int
    path: str


class _Hit(msgspec.Struct):
    rank: int
    id: int
    path: str
    caption: str | None
    scores: dict[str, float]
    metadata: dict[str, Any]
    duplicates: list[_Copy] | None = None


class _Look(msgspec.Struct):
    ranks: int | None
    stages: list[dict[str, Any]]


class _Chosen(msgspec.Struct):
    why: str
    looks: list[_Look]


class _Found(msgspec.Struct):
    hits: list[_Hit]
    timings_ms: dict[str, float]
    plan: list[dict[str, Any]]
    explain: _Chosen | None = None


class Fields(msgspec.Struct):
    """What ``GET /fields`` answers."""

    fields: list[dict[str, Any]]


class Items(msgspec.Struct):
    """A page of ``GET /items``."""

    items: list[dict[str, Any]]
    next: int | None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


def checked(data: Any, kind: type[T]) -> T:
    """An answer of the shape that it must have.

    Raises:
        ServiceError: if it has another one.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ServiceError(f"the answer is not as it must be ({error}): is this a hivlp service?") from error


def page_of(data: Any, after: int) -> Items:
    """A page of items behind an id.

    Raises:
        ServiceError: if it is none, or does not lead on.
    """
    page = checked(data, Items)
    if page.next is not None and page.next <= after:
        raise ServiceError("the items go round in a circle: is this a hivlp service?")
    return page


def answer_of(response: httpx.Response, body: bytes | bytearray) -> dict[str, Any]:
    """What a service answered.

    Raises:
        ServiceError: if it is an error.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ServiceError("the answer is no JSON: is this a hivlp service?", response.status_code) from error
    if response.is_success and isinstance(data, dict):
        return data
    told = data.get("error") if isinstance(data, dict) else None
    told = told if isinstance(told, dict) else {}
    message, code = told.get("message", f"status {response.status_code}"), told.get("code", "unknown")
    after = response.headers.get("retry-after", "")
    seconds = float(after) if after.isascii() and after.isdecimal() and len(after) < 10 else None
    raise ServiceError(str(message), response.status_code, str(code), seconds)


def result_of(data: Mapping[str, Any]) -> SearchResult:
    """A search's answer as :meth:`hivlp.Index.search` gives it."""
    found = checked(data, _Found)
    hits = [
        Hit(
            hit.rank, hit.id, hit.path, hit.caption, hit.scores, hit.metadata,
            None if hit.duplicates is None else [Duplicate(each.id, each.path) for each in hit.duplicates],
        )
        for hit in found.hits
    ]  # fmt: skip
    chosen = None if found.explain is None else ToldPlan(data["explain"])
    return SearchResult(hits, found.timings_ms, found.plan, chosen)


def rows_of(data: Mapping[str, Any]) -> Vectors:
    """(n, dim) float32 vectors of an answer."""
    rows = [numbers(each.embedding) for each in checked(data, _Embeddings).data]
    if len({len(row) for row in rows}) != 1:
        raise ServiceError("the vectors of the answer are not of one length: is this a hivlp service?")
    return np.stack(rows)
