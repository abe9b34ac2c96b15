"""Searches by vectors that take no longer than all else about a request: answered on their connection.

What a request goes through otherwise (a task, routes, checks of each header) takes 0.1 ms, and so does such a search.
Whatever is not plain about a request, or goes wrong with it, is left to the usual way, which says so.
"""

from __future__ import annotations

import time

from hivlp.serve.admitting import admitted, headers_of
from hivlp.serve.answering import Search
from hivlp.serve.guard import HEADERS
from hivlp.serve.replies import JSON
from hivlp.serve.searching import SEARCHES
from hivlp.serve.served import Served
from hivlp.serve.service import Service

MOST_BYTES = 1 << 18
"""Of a body; of what came with its head no more is there."""
LEAST_BYTES = 5
"""Of a body for each dimension, without which it is a text or an item."""
NOT_PLAIN = {b"origin", b"transfer-encoding", b"expect", b"upgrade", b"content-encoding"}
"""Headers with which a request goes the usual way."""
_HEAD = "".join(
    f"{line}\r\n"
    for line in ("HTTP/1.1 200 OK", f"content-type: {JSON}", *(f"{name}: {value}" for name, value in HEADERS.items()))
).encode()


def may_be_direct(service: Service, url: bytes, headers: list[tuple[bytes, bytes]], connection: object) -> bool:
    """Whether a POST, of which the head has come, may be such a search.

    Args:
        service: that is asked.
        url: path and query.
        headers: by their names in lower case.
        connection: that it came on.
    """
    served = _asked(service, url)
    if served is None or not service.may_be_direct(served, connection):
        return False
    length = b""
    for name, value in headers:
        if name in NOT_PLAIN or (name == b"content-type" and value.startswith(b"multipart/")):
            return False
        if name == b"content-length":
            length = value
    least = LEAST_BYTES * served.index.levels[-1].dim
    return length.isdigit() and least <= int(length[:20]) <= MOST_BYTES


def answered(service: Service, url: bytes, headers: list[tuple[bytes, bytes]], body: bytes | bytearray) -> bytes | None:
    """The whole answer to a request that :func:`may_be_direct`; None for one that has to go the usual way."""
    started = time.perf_counter()
    served = _asked(service, url)
    assert served is not None
    try:
        admitted(service.settings, "POST", url.decode("ascii"), b"", headers_of(headers))
        search = Search(served, SEARCHES.decode(body), {})
        told = service.answerer.at_once(search) if search.plain and search.is_vector else None
    except Exception:  # whatever it is, it is told the usual way
        return None
    if told is None:
        return None
    service.metrics.answered("/search", "POST", 200, time.perf_counter() - started)
    return b"%bcontent-length: %d\r\n\r\n%b" % (_HEAD, len(told), told)


def _asked(service: Service, url: bytes) -> Served | None:
    """The index that a search by this address asks; None if it is another address."""
    if url == b"/search":
        return service.served(None)
    if not (url.startswith(b"/indexes/") and url.endswith(b"/search")):
        return None
    return service.indexes.get(url[9:-7].decode("latin-1"))
