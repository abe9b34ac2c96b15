"""Requests of a service as its clients put them."""

from __future__ import annotations

import io
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from hivlp.errors import QueryError
from hivlp.index.mixing import Mix
from hivlp.index.photo_filter import PhotoFilter
from hivlp.serve.answers import ServiceError
from hivlp.serve.replies import JSON
from hivlp.serve.vectors import as_base64

AT_ONCE = 256
"""Texts that are embedded by one request."""
_ENCODED: dict[str, str] = {"content-type": JSON}


class RemoteOptions(TypedDict, total=False):
    """Options of a search by a service; see docs/serve.md."""

    k: int
    offset: int
    where: str | None
    params: Sequence[str | int | float | bool | None]
    filter: PhotoFilter | Mapping[str, Any] | None
    order: Literal["relevance", "newest", "oldest"]
    recall: float | None
    exact: bool
    shortlist: int | None
    threshold: float | None
    cut: bool
    group: bool | float
    seen: Sequence[int]
    missing: bool
    explain: bool


class Asking:
    """What both clients share: how requests are put."""

    def __init__(self, url: str, *, token: str | None, index: str | None) -> None:
        self.url = url.rstrip("/")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ServiceError(f"{url!r} is no address of a service: {error}") from error
        if token is not None and not token.isascii():
            raise ServiceError("a token has letters and digits of ASCII alone")
        self._prefix = "" if index is None else f"/indexes/{quote(index, safe='')}"
        self.headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def searching(self, query: Any, given: Mapping[str, Any], options: RemoteOptions) -> dict[str, Any]:
        """A search as httpx sends it."""
        terms, files = _terms(query, given)
        asked = {name: value for name, value in options.items() if value is not None}
        if isinstance(words := options.get("filter"), PhotoFilter):
            asked["filter"] = {name: value for name, value in asdict(words).items() if value is not None}
        if terms is not None:
            asked["query"] = terms
        body = _json(asked)
        address = f"{self._prefix}/search"
        if files:
            return {"method": "POST", "url": address, "data": {"request": body.decode()}, "files": files}
        return {"method": "POST", "url": address, "content": body, "headers": _ENCODED}

    def uploading(
        self,
        pictures: Iterable[Path | str],
        captions: Mapping[Any, str] | None,
        metadata: Mapping[Any, Mapping[str, Any]] | None,
    ) -> dict[str, Any]:
        """An upload of pictures, with what is told of them by their paths."""
        names = {path: f"{number}-{path.name}" for number, path in enumerate(map(Path, pictures))}
        told = {"captions": _by_name(names, captions or {}), "metadata": _by_name(names, metadata or {})}
        files = [
            ("files", (name, _content(path), mimetypes.guess_type(path.name)[0] or "application/octet-stream"))
            for path, name in names.items()
        ]
        form = {"request": _json(told).decode()}
        return {"method": "POST", "url": f"{self._prefix}/items", "data": form, "files": files}

    def indexing(self, paths: Iterable[Path | str], prune: bool) -> dict[str, Any]:
        """A new job."""
        return self.calling("POST", "/jobs", {"paths": [str(path) for path in paths], "prune": prune})

    def listing(self, after: int) -> dict[str, Any]:
        """A page of items."""
        return self.calling("GET", f"/items?after={after}&limit=1000")

    def calling(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """A request of the index that is meant, with JSON or nothing."""
        asked: dict[str, Any] = {"method": method, "url": f"{self._prefix}{path}"}
        return asked if body is None else {**asked, "content": _json(body), "headers": _ENCODED}


def embeddings(texts: str | Sequence[str], dimensions: int | None) -> Iterator[dict[str, Any]]:
    """Requests for the vectors of texts, so many at once that none of them takes too long."""
    given = [texts] if isinstance(texts, str) else list(texts)
    for begin in range(0, max(1, len(given)), AT_ONCE):
        asked: dict[str, Any] = {"input": given[begin : begin + AT_ONCE], "encoding_format": "base64"}
        if dimensions is not None:
            asked["dimensions"] = dimensions
        yield {"method": "POST", "url": "/v1/embeddings", "content": _json(asked), "headers": _ENCODED}


def _json(value: Any) -> bytes:
    """A value as JSON; numbers and arrays of NumPy too, which ids often are."""
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise QueryError(f"a {type(value).__name__} cannot be sent to a service")


def _by_name(names: Mapping[Path, str], told: Mapping[Any, Any]) -> dict[str, Any]:
    """What is told of pictures, by the names of their parts instead of their paths."""
    found = {}
    for path, value in told.items():
        if Path(path) not in names:
            raise QueryError(f"{str(path)!r:.200} is none of the pictures that are added")
        found[names[Path(path)]] = value
    return found


def _content(picture: Any) -> bytes:
    """The bytes of a picture's file; of a PIL image, as PNG."""
    if isinstance(picture, bytes):
        return picture
    if hasattr(picture, "save"):
        with io.BytesIO() as file:
            picture.save(file, "PNG")
            return file.getvalue()
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise QueryError(f"{str(picture)!r:.200} cannot be read: {error.strerror}") from error


def _terms(query: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A query as terms of a request, and the files that they name."""
    if not (query is None or isinstance(query, str | Mix)):
        raise QueryError(f"a service is asked for one text or Mix at a time, not a {type(query).__name__}")
    named = {name: value for name, value in given.items() if value is not None}
    if (query is not None) + len(named) > 1:
        raise QueryError("give one of a text, an image, an item (like) and a vector")
    files: dict[str, Any] = {}

    def upload(picture: Any) -> str:
        name = f"picture{len(files)}"
        files[name] = (name, _content(picture), "application/octet-stream")
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
