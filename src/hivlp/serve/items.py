"""The routes of items: what is known of them, their thumbnails and originals, and which values fields have."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import PurePath
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hivlp.search.results import Hit
from hivlp.serve.answering import hit_json
from hivlp.serve.asking import index_of, number, service_of
from hivlp.serve.errors import RequestError, bad_request, not_found
from hivlp.serve.originals import Original, open_original
from hivlp.serve.replies import encoded_json, json_reply
from hivlp.serve.served import Served
from hivlp.serve.thumbnails import etag, side_for
from hivlp.store.records import Item

T = TypeVar("T")
BLOCK = 1 << 18
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")
"""One range of bytes; what asks for others is sent the whole."""
LAST_ID = (1 << 63) - 1
VALUES = 50
"""Values of a field that are told."""
SANDBOX = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"


def item_json(served: Served, item: Item) -> dict[str, Any]:
    """An item as it is told: as a hit is, without rank and scores."""
    told = hit_json(served, Hit(0, item.id, item.path, item.caption, {}, item.metadata))
    del told["rank"], told["scores"]
    return {**told, "missing": item.missing}


async def list_items(request: Request) -> Response:
    """``GET /items``."""
    served = index_of(request)
    after, limit = number(request, "after", 0, 0, LAST_ID), number(request, "limit", 100, 1, 1000)
    where = request.query_params.get("where")
    if where is not None and len(where) > 20_000:
        raise bad_request("where is too long")
    return json_reply(await in_thread(request, _listed, served, after, limit, where))


def _listed(served: Served, after: int, limit: int, where: str | None) -> bytes:
    if where is None:
        items = list(served.index.items(after=after, limit=limit))
    else:
        with served.index.store.reading() as reader:
            passing, live = reader.rows_where(where).rows, reader.live()
            ids = live[np.isin(live[:, 0], np.array(passing, np.int64)), 1]
            page = np.sort(ids[ids > after])[:limit].tolist()
            items = [item for each in page if (item := reader.get(each)) is not None]
    following = items[-1].id if len(items) == limit else None
    return encoded_json({"items": [item_json(served, item) for item in items], "next": following})


async def get_item(request: Request) -> Response:
    """``GET /items/{id}``."""
    served = index_of(request)
    item = await in_thread(request, _item, request)
    return json_reply(item_json(served, item))


def _item(request: Request) -> Item:
    served, number_of = index_of(request), request.path_params["id"]
    item = served.index.get(number_of) if 0 < number_of <= LAST_ID else None
    if item is None:
        raise not_found(f"{served.name} has no item {number_of}")
    return item


async def thumbnail(request: Request) -> Response:
    """``GET /items/{id}/thumbnail``."""
    service, served = service_of(request), index_of(request)
    side = side_for(number(request, "size", 320, 1, 1 << 16))

    def make() -> tuple[str, bytes | None]:
        item = _item(request)
        tag = f'"{etag(item, side)}"'
        if request.headers.get("if-none-match") == tag:
            return tag, None
        return tag, service.thumbnails.of(served, item, side)

    tag, made = await in_thread(request, make)
    headers = {"etag": tag, "cache-control": "private, max-age=3600, stale-while-revalidate=86400"}
    if made is None:
        return Response(status_code=304, headers=headers)
    return Response(made, media_type="image/webp", headers=headers)


async def original(request: Request) -> Response:
    """``GET /items/{id}/original``."""
    served = index_of(request)

    def open_it() -> tuple[Item, Original]:
        item = _item(request)
        return item, open_original(item.path, served.roots)

    item, opened = await in_thread(request, open_it)
    name = quote(PurePath(item.path).name.encode("utf-8", "replace"))
    kind = "inline" if opened.shown else "attachment"
    headers = {
        "content-security-policy": SANDBOX,
        "content-disposition": f"{kind}; filename*=UTF-8''{name}",
        "cache-control": "private, max-age=3600",
        "accept-ranges": "bytes",
        "etag": f'"{opened.changed:.6f}-{opened.size}"',
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        opened.file.close()
        return Response(status_code=304, headers=headers)
    try:
        unchanged = request.headers.get("if-range", headers["etag"]) == headers["etag"]
        start, end, status = _range(request.headers.get("range") if unchanged else None, opened.size)
    except RequestError:
        opened.file.close()
        raise
    if status == 206:
        headers["content-range"] = f"bytes {start}-{end - 1}/{opened.size}"
    headers["content-length"] = str(end - start)
    return StreamingResponse(_blocks(opened, start, end), status, headers, opened.media_type)


def _range(text: str | None, size: int) -> tuple[int, int, int]:
    """First byte, byte behind the last, and status of what is sent."""
    asked = _RANGE.fullmatch(text or "")
    if asked is None or asked[0] == "bytes=-":
        return 0, size, 200
    first, last = asked.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise RequestError(416, "bad_range", "the picture has no such bytes", {"Content-Range": f"bytes */{size}"})
    return start, end, 206


async def _blocks(opened: Original, start: int, end: int) -> AsyncIterator[bytes]:
    with opened.file as file:
        file.seek(start)
        left = end - start
        while left > 0:
            block = await asyncio.to_thread(file.read, min(BLOCK, left))
            if not block:
                return
            left -= len(block)
            yield block


async def fields(request: Request) -> Response:
    """``GET /fields``."""
    served = index_of(request)
    return json_reply(await in_thread(request, _fields, served))


def _fields(served: Served) -> bytes:
    index = served.index
    key = (index.store.changes(), index)
    if served.told_fields is not None and served.told_fields[0] == key:
        return served.told_fields[1]
    declared, found = index.fields, []
    started = time.monotonic()
    with index.store.reading() as reader:
        for name in dict.fromkeys([*declared, *reader.keys()]):
            if '"' in name:
                continue
            values = reader.values_of(name, VALUES)
            bounds = reader.range_of(name)
            kind = declared.get(name) or _kind(values)
            least, most = bounds if bounds is not None else (None, None)
            found.append({"name": name, "type": kind, "values": values, "min": least, "max": most})
            if time.monotonic() - started > served.seconds / 2:
                break
    told = encoded_json({"fields": found})
    served.told_fields = key, told
    return told


async def collection_map(request: Request) -> Response:
    """``GET /map``: positions of all items in two dimensions; 202 while they are worked out."""
    made = await in_thread(request, service_of(request).maps.of, index_of(request).index)
    if made is None:
        return json_reply(b'{"status":"computing"}', 202)
    return Response(made, media_type="application/octet-stream")


def _kind(values: list[tuple[Any, int]]) -> str:
    kinds = {type(value) for value, _ in values}
    return "int" if kinds == {int} else "float" if kinds and kinds <= {int, float} else "str"


async def in_thread(request: Request, call: Callable[..., T], *arguments: Any) -> T:
    """What a call gives that waits for the disk, made in one of the service's threads for that."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service_of(request).threads, lambda: call(*arguments))
