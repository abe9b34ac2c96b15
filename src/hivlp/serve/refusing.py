"""Refusing searches on their connection, before a task is made of them: so an overload costs those answered little."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

from hivlp.serve.errors import busy, error_body
from hivlp.serve.guard import HEADERS
from hivlp.serve.replies import JSON
from hivlp.serve.service import Service


def refused(service: Service, url: bytes, headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The whole answer to a request that is refused; None for one that is not, or that the guard has to look at first.

    Args:
        service: that is asked.
        url: path and query.
        headers: by their names in lower case.
    """
    if not url.endswith(b"/search") or service.settings.token is not None:
        return None
    if any(name in (b"origin", b"transfer-encoding") for name, _ in headers) or service.searches.reserve():
        return None
    error = service.searches.refusal()
    service.metrics.answered("/search", "POST", error.status)
    return _answer(str(error))


@lru_cache(8)
def _answer(message: str) -> bytes:
    """The whole answer of those that are told to come again."""
    error = busy(message)
    body = error_body(error)
    told = {**HEADERS, **error.headers, "content-type": JSON, "content-length": str(len(body))}
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *(f"{name}: {told[name]}" for name in told)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
