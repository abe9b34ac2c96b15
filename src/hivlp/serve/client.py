"""Clients of a service, with the result types of :meth:`hivlp.Index.search`."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np

from hivlp.errors import HivlpError, QueryError
from hivlp.index.mixing import Mix
from hivlp.levels import Vectors
from hivlp.search.results import Duplicate, Hit, SearchResult
from hivlp.serve.replies import JSON
from hivlp.serve.vectors import as_base64, numbers

T = TypeVar("T")
SECONDS = 60.0
MOST_BYTES = 1 << 28
"""Of an answer, when it is unpacked."""
_ENCODED: dict[str, str] = {"content-type": JSON}


class ServiceError(HivlpError):
    """An answer that is an error.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: word for programs.
    """

    def __init__(self, message: str, status: int = 0, code: str = "no_answer") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Asking:
    """What both clients share: how requests are put, and answers read."""

    def __init__(self, url: str, *, token: str | None, index: str | None) -> None:
        self.url = url.rstrip("/")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ServiceError(f"{url!r} is no address of a service: {error}") from error
        if token is not None and not token.isascii():
            raise ServiceError("a token has letters and digits of ASCII alone")
        self._prefix = "" if index is None else f"/indexes/{index}"
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def _search(self, query: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """A search as httpx sends it."""
        terms, files = _terms(query, given)
        asked = {name: value for name, value in options.items() if value is not None}
        if terms is not None:
            asked["query"] = terms
        body = msgspec.json.encode(asked)
        address = f"{self._prefix}/search"
        if files:
            return {"method": "POST", "url": address, "data": {"request": body.decode()}, "files": files}
        return {"method": "POST", "url": address, "content": body, "headers": _ENCODED}

    def _upload(self, pictures: Iterable[Path | str], captions: Mapping[str, str], metadata: Any) -> dict[str, Any]:
        files, names, facts = [], dict[str, str](), dict[str, Any]()
        for number, picture in enumerate(map(Path, pictures)):
            name = f"{number}-{picture.name}"
            kind = mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
            files.append(("files", (name, picture.read_bytes(), kind)))
            if str(picture) in captions:
                names[name] = captions[str(picture)]
            if str(picture) in metadata:
                facts[name] = metadata[str(picture)]
        body = msgspec.json.encode({"captions": names, "metadata": facts}).decode()
        return {"method": "POST", "url": f"{self._prefix}/items", "data": {"request": body}, "files": files}

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        asked: dict[str, Any] = {"method": method, "url": f"{self._prefix}{path}"}
        return asked if body is None else {**asked, "content": msgspec.json.encode(body), "headers": _ENCODED}


class Client(_Asking):
    """A client of ``hivlp serve``, for any number of threads.

    Examples:
        >>> with Client("http://127.0.0.1:8000") as service:  # doctest: +SKIP
        ...     for hit in service.search("a dog on a beach", k=5):
        ...         print(hit.rank, hit.path, hit.scores)
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        index: str | None = None,
        timeout: float = SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """A client of a service.

        Args:
            url: of the service.
            token: that it asks for.
            index: name of the one that is meant; default the first that is served.
            timeout: seconds to wait for an answer to begin, and then for its end.
            transport: of httpx, instead of its own.
        """
        super().__init__(url, token=token, index=index)
        self._seconds = timeout
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search(
        self,
        query: str | Mix | None = None,
        *,
        image: Path | bytes | str | None = None,
        like: int | None = None,
        vector: Any = None,
        **options: Any,
    ) -> SearchResult:
        """What :meth:`hivlp.Index.search` finds there; with none of query, image, like and vector, items by date.

        Args:
            query: text, or a :class:`hivlp.index.Mix`.
            image: a picture: its file or content.
            like: id of an item.
            vector: of the finest level, or by the names of levels.
            options: ``k``, ``offset``, ``where``, ``params``, ``filter``, ``order``, ``recall``, ``exact``, ``cut``,
                ``group``, ``seen``, ``threshold``, ``missing``.

        Raises:
            ServiceError: if the service answers with an error, or not at all.
        """
        return result_of(self._ask(self._search(query, {"image": image, "like": like, "vector": vector}, options)))

    def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> Vectors:
        """(n, dim) float32 unit vectors of texts, at the level of so many dimensions; default the finest."""
        return rows_of(self._ask(_embedding(texts, dimensions)))

    def state(self) -> dict[str, Any]:
        """What is served: indexes, levels, fields, limits."""
        return self._ask({"method": "GET", "url": "/api/state"})

    def fields(self) -> list[dict[str, Any]]:
        """Fields, and which values they have."""
        return _checked(self._ask(self._json("GET", "/fields")), _Fields).fields

    def get(self, item: int) -> dict[str, Any] | None:
        """What is known of an item; None if there is none."""
        try:
            return self._ask(self._json("GET", f"/items/{int(item)}"))
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    def items(self, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Items by id, ascending."""
        following: int | None = after
        while following is not None:
            page = _checked(self._ask(self._json("GET", f"/items?after={following}&limit=1000")), _Items)
            if page.next is not None and page.next <= following:
                raise ServiceError("the items go round in a circle: is this a hivlp service?")
            yield from page.items
            following = page.next

    def add(
        self,
        pictures: Iterable[Path | str],
        *,
        captions: Mapping[str, str] | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Upload pictures; gives what ``hivlp index --json`` prints, and their ids."""
        return self._ask(self._upload(pictures, captions or {}, metadata or {}))

    def remove(self, ids: Iterable[int]) -> dict[str, Any]:
        """Remove items by id."""
        return self._ask(self._json("DELETE", "/items", {"ids": list(ids)}))

    def index(self, paths: Iterable[Path | str], *, prune: bool = False) -> dict[str, Any]:
        """Have the service index folders that it sees beneath its roots; gives the job."""
        return self._ask(self._json("POST", "/jobs", {"paths": [str(path) for path in paths], "prune": prune}))

    def job(self, number: str) -> dict[str, Any]:
        """How far a job has come."""
        return self._ask(self._json("GET", f"/jobs/{number}"))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            with self._http.stream(**request) as response:
                body = _Body(self._seconds)
                for block in response.iter_bytes():
                    body.take(block)
                return answer_of(response, body.data)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} gives no answer: {error}") from error


class AsyncClient(_Asking):
    """A client of ``hivlp serve`` for an event loop; methods as of :class:`Client`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        index: str | None = None,
        timeout: float = SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """A client of a service; see :class:`Client`."""
        super().__init__(url, token=token, index=index)
        self._seconds = timeout
        self._http = httpx.AsyncClient(base_url=self.url, headers=self._headers, timeout=timeout, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def search(
        self,
        query: str | Mix | None = None,
        *,
        image: Path | bytes | str | None = None,
        like: int | None = None,
        vector: Any = None,
        **options: Any,
    ) -> SearchResult:
        """See :meth:`Client.search`."""
        asked = self._search(query, {"image": image, "like": like, "vector": vector}, options)
        return result_of(await self._ask(asked))

    async def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> Vectors:
        """See :meth:`Client.embed`."""
        return rows_of(await self._ask(_embedding(texts, dimensions)))

    async def state(self) -> dict[str, Any]:
        """See :meth:`Client.state`."""
        return await self._ask({"method": "GET", "url": "/api/state"})

    async def add(
        self,
        pictures: Iterable[Path | str],
        *,
        captions: Mapping[str, str] | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """See :meth:`Client.add`."""
        return await self._ask(self._upload(pictures, captions or {}, metadata or {}))

    async def remove(self, ids: Iterable[int]) -> dict[str, Any]:
        """See :meth:`Client.remove`."""
        return await self._ask(self._json("DELETE", "/items", {"ids": list(ids)}))

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._http.stream(**request) as response:
                body = _Body(self._seconds)
                async for block in response.aiter_bytes():
                    body.take(block)
                return answer_of(response, body.data)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} gives no answer: {error}") from error


class _Body:
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


class _Found(msgspec.Struct):
    hits: list[_Hit]
    timings_ms: dict[str, float]
    plan: list[dict[str, Any]]


class _Fields(msgspec.Struct):
    fields: list[dict[str, Any]]


class _Items(msgspec.Struct):
    items: list[dict[str, Any]]
    next: int | None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


def _checked(data: Any, kind: type[T]) -> T:
    """An answer of the shape that it must have.

    Raises:
        ServiceError: if it has another one.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ServiceError(f"the answer is not as it must be ({error}): is this a hivlp service?") from error


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
    raise ServiceError(str(message), response.status_code, str(code))


def result_of(data: Mapping[str, Any]) -> SearchResult:
    """A search's answer as :meth:`hivlp.Index.search` gives it."""
    found = _checked(data, _Found)
    hits = [
        Hit(
            hit.rank, hit.id, hit.path, hit.caption, hit.scores, hit.metadata,
            None if hit.duplicates is None else [Duplicate(each.id, each.path) for each in hit.duplicates],
        )
        for hit in found.hits
    ]  # fmt: skip
    return SearchResult(hits, found.timings_ms, found.plan)


def rows_of(data: Mapping[str, Any]) -> Vectors:
    """(n, dim) float32 vectors of an answer."""
    rows = [numbers(each.embedding) for each in _checked(data, _Embeddings).data]
    if len({len(row) for row in rows}) != 1:
        raise ServiceError("the vectors of the answer are not of one length: is this a hivlp service?")
    return np.stack(rows)


def _embedding(texts: str | Sequence[str], dimensions: int | None) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "input": texts if isinstance(texts, str) else list(texts), "encoding_format": "base64"
    }  # fmt: skip
    if dimensions is not None:
        asked["dimensions"] = dimensions
    return {"method": "POST", "url": "/v1/embeddings", "content": msgspec.json.encode(asked), "headers": _ENCODED}


def _terms(query: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A query as terms of a request, and the files that they name."""
    named = {name: value for name, value in given.items() if value is not None}
    if (query is not None) + len(named) > 1:
        raise QueryError("give one of a text, an image, an item (like) and a vector")
    files: dict[str, Any] = {}

    def upload(picture: Any) -> str:
        name = f"picture{len(files)}"
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        files[name] = (name, content, "application/octet-stream")
        return name

    if isinstance(query, Mix):
        terms = []
        for part in query.parts:
            term: dict[str, Any] = {"weight": part.weight}
            if part.text is not None:
                term["text"] = part.text
            elif part.item is not None:
                term["item"] = part.item
            elif part.vectors is not None:
                term["vector"] = _told(part.vectors)
            else:
                term["upload"] = upload(part.image)
            terms.append(term)
        return terms, files
    if "like" in named:
        return [{"item": named["like"]}], files
    if "vector" in named:
        return [{"vector": _told(named["vector"])}], files
    if "image" in named:
        return [{"upload": upload(named["image"])}], files
    return query, files


def _told(vector: Any) -> Any:
    if isinstance(vector, Mapping):
        return {name: _told(each) for name, each in vector.items()}
    return as_base64(np.asarray(vector, np.float32).reshape(-1))
