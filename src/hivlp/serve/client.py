"""Clients of a service, with the result types of :meth:`hivlp.Index.search`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack
from urllib.parse import quote

import httpx
import numpy as np

from hivlp.encode.base import Picture
from hivlp.index.mixing import Mix
from hivlp.levels import Vectors
from hivlp.search.results import SearchResult
from hivlp.serve.answers import Body, Fields, ServiceError, answer_of, checked, page_of, result_of, rows_of
from hivlp.serve.requests import Asking, RemoteOptions, embeddings

__all__ = ["AsyncClient", "Client", "ServiceError"]
SECONDS = 60.0


class Client(Asking):
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
        self._http = httpx.Client(base_url=self.url, headers=self.headers, timeout=timeout, transport=transport)

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
        image: Picture | str | None = None,
        like: int | None = None,
        vector: Any = None,
        **options: Unpack[RemoteOptions],
    ) -> SearchResult:
        """What :meth:`hivlp.Index.search` finds there; with none of query, image, like and vector, items by date.

        Args:
            query: text, or a :class:`hivlp.index.Mix`.
            image: a picture: its file, its content or a PIL image.
            like: id of an item.
            vector: of the finest level, where the index makes the coarser ones of it; else by the names of levels.
            options: see :class:`RemoteOptions`; with ``explain`` the result's ``chosen`` says which plan was chosen.

        Raises:
            ServiceError: if the service answers with an error, or not at all.
        """
        return result_of(self._ask(self.searching(query, {"image": image, "like": like, "vector": vector}, options)))

    def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> Vectors:
        """(n, dim) float32 unit vectors of texts, at the level of so many dimensions; default the finest."""
        return np.concatenate([rows_of(self._ask(each)) for each in embeddings(texts, dimensions)])

    def state(self) -> dict[str, Any]:
        """What is served: indexes, levels, fields, limits."""
        return self._ask({"method": "GET", "url": "/api/state"})

    def fields(self) -> list[dict[str, Any]]:
        """Fields, and which values they have."""
        return checked(self._ask(self.calling("GET", "/fields")), Fields).fields

    def get(self, item: int) -> dict[str, Any] | None:
        """What is known of an item; None if there is none."""
        try:
            return self._ask(self.calling("GET", f"/items/{int(item)}"))
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    def items(self, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Items by id, ascending."""
        following: int | None = after
        while following is not None:
            page = page_of(self._ask(self.listing(following)), following)
            yield from page.items
            following = page.next

    def add(
        self,
        pictures: Iterable[Path | str],
        *,
        captions: Mapping[str, str] | Mapping[Path, str] | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | Mapping[Path, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Upload pictures; gives what ``hivlp index --json`` prints, and their ids by their paths there.

        Args:
            pictures: their files on this machine.
            captions: of some of them, by their paths.
            metadata: of some of them, by their paths.
        """
        return self._ask(self.uploading(pictures, captions, metadata))

    def remove(self, ids: Iterable[int]) -> dict[str, Any]:
        """Remove items by id."""
        return self._ask(self.calling("DELETE", "/items", {"ids": list(ids)}))

    def index(self, paths: Iterable[Path | str], *, prune: bool = False) -> dict[str, Any]:
        """Have the service index folders that it sees beneath its roots; gives the job."""
        return self._ask(self.indexing(paths, prune))

    def job(self, number: str) -> dict[str, Any]:
        """How far a job has come."""
        return self._ask(self.calling("GET", f"/jobs/{quote(number, safe='')}"))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            with self._http.stream(**request) as response:
                body = Body(self._seconds)
                for block in response.iter_bytes():
                    body.take(block)
                return answer_of(response, body.data)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} gives no answer: {str(error) or type(error).__name__}") from error


class AsyncClient(Asking):
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
        self._http = httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=timeout, transport=transport)

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
        image: Picture | str | None = None,
        like: int | None = None,
        vector: Any = None,
        **options: Unpack[RemoteOptions],
    ) -> SearchResult:
        """See :meth:`Client.search`."""
        asked = self.searching(query, {"image": image, "like": like, "vector": vector}, options)
        return result_of(await self._ask(asked))

    async def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> Vectors:
        """See :meth:`Client.embed`."""
        return np.concatenate([rows_of(await self._ask(each)) for each in embeddings(texts, dimensions)])

    async def state(self) -> dict[str, Any]:
        """See :meth:`Client.state`."""
        return await self._ask({"method": "GET", "url": "/api/state"})

    async def fields(self) -> list[dict[str, Any]]:
        """See :meth:`Client.fields`."""
        return checked(await self._ask(self.calling("GET", "/fields")), Fields).fields

    async def get(self, item: int) -> dict[str, Any] | None:
        """See :meth:`Client.get`."""
        try:
            return await self._ask(self.calling("GET", f"/items/{int(item)}"))
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    async def items(self, *, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """See :meth:`Client.items`."""
        following: int | None = after
        while following is not None:
            page = page_of(await self._ask(self.listing(following)), following)
            for item in page.items:
                yield item
            following = page.next

    async def add(
        self,
        pictures: Iterable[Path | str],
        *,
        captions: Mapping[str, str] | Mapping[Path, str] | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | Mapping[Path, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """See :meth:`Client.add`."""
        return await self._ask(self.uploading(pictures, captions, metadata))

    async def remove(self, ids: Iterable[int]) -> dict[str, Any]:
        """See :meth:`Client.remove`."""
        return await self._ask(self.calling("DELETE", "/items", {"ids": list(ids)}))

    async def index(self, paths: Iterable[Path | str], *, prune: bool = False) -> dict[str, Any]:
        """See :meth:`Client.index`."""
        return await self._ask(self.indexing(paths, prune))

    async def job(self, number: str) -> dict[str, Any]:
        """See :meth:`Client.job`."""
        return await self._ask(self.calling("GET", f"/jobs/{quote(number, safe='')}"))

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._http.stream(**request) as response:
                body = Body(self._seconds)
                async for block in response.aiter_bytes():
                    body.take(block)
                return answer_of(response, body.data)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} gives no answer: {str(error) or type(error).__name__}") from error
