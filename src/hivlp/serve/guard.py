"""The guard before every route: who asks, by which name, how much and how long, and what every answer carries."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hivlp.serve.admitting import COOKIE, Headers, admitted, headers_of
from hivlp.serve.errors import RequestError, as_request_error, error_body
from hivlp.serve.replies import JSON
from hivlp.serve.service import Service

logger = logging.getLogger(__name__)
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """An ASGI application around another one, which sees only requests that may be answered.

    Attributes:
        service: that is guarded.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Guard an application.

        Args:
            app: that answers.
            service: whose settings hold, and whose metrics count requests.
        """
        self.service = service
        self._app, self._settings, self._metrics = app, service.settings, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        begun = False
        headers = headers_of(scope["headers"])
        origin = headers.get("origin")

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                told = message["headers"] = list(message.get("headers", ()))
                given = {name.lower() for name, _ in told}
                if origin is not None and origin in self._settings.origins:
                    allowed = _allowed(origin)
                    given |= {name for name, _ in allowed}
                    told += allowed
                told += [each for each in _ENCODED if each[0] not in given]
            await send(message)

        try:
            if self._is_preflight(scope, headers):
                await _preflight(answer)
                return
            cookie = admitted(self._settings, scope["method"], scope["path"], scope.get("query_string", b""), headers)
            if cookie is not None:
                await _redirect(answer, cookie, secure=headers.get("x-forwarded-proto") == "https")
                return
            limit = None if scope["path"].endswith("/events") else self._settings.seconds
            async with asyncio.timeout(limit):
                await self._app(scope, _limited(receive, self._most_bytes(headers)), answer)
        except TimeoutError:
            if not begun:
                late = RequestError(503, "timeout", f"there was no answer within {self._settings.seconds:g} s")
                await _tell(answer, late)
        except HTTPException as error:
            code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "bad_request")
            if not begun:
                await _tell(answer, RequestError(error.status_code, code, error.detail, error.headers))
        except Exception as error:
            told = as_request_error(error)
            if told is None:
                logger.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
                told = RequestError(500, "internal", "something is wrong with the service: its log says what")
            if not begun:
                await _tell(answer, told)
        finally:
            route = scope.get("route")
            name = getattr(route, "name", "other") if route is not None else "other"
            method = scope["method"] if len(scope["method"]) < 8 else "other"
            self._metrics.answered(name, method, status, time.perf_counter() - started)

    def _most_bytes(self, headers: Headers) -> int:
        settings = self._settings
        carries = headers.get("content-type", "").startswith("multipart/form-data")
        most = settings.body_bytes if carries else settings.json_bytes
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told) > most:
            raise RequestError(413, "too_large", f"the request is larger than {most >> 20} MB")
        return most

    def _is_preflight(self, scope: Scope, headers: Headers) -> bool:
        asked = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asked and headers.get("origin") in self._settings.origins


def _allowed(origin: str) -> list[tuple[bytes, bytes]]:
    """Headers that let the page of another origin read the answer."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"cross-origin-resource-policy", b"cross-origin"),
        (b"vary", b"origin"),
    ]


def _limited(receive: Receive, most: int) -> Receive:
    """What receives a body of at most so many bytes."""
    left = most

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise RequestError(413, "too_large", f"the request is larger than {most >> 20} MB")
        return message

    return limited


async def _tell(send: Send, error: RequestError) -> None:
    body = error_body(error)
    headers = {"content-type": JSON, "content-length": str(len(body)), **error.headers}
    await _send(send, error.status, headers, body)


async def _redirect(send: Send, cookie: str, *, secure: bool) -> None:
    """To the page, wherever a proxy has it; what it says of TLS can but keep the cookie from plain HTTP."""
    kept = f"{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000{'; Secure' if secure else ''}"
    await _send(send, 303, {"location": "./", "set-cookie": kept, "content-length": "0"}, b"")


async def _preflight(send: Send) -> None:
    allowed = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": "authorization, content-type",
        "access-control-max-age": "600",
        "content-length": "0",
    }
    await _send(send, 204, allowed, b"")


async def _send(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
