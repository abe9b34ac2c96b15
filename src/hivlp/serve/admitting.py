"""Who may ask: by which name, from which site, with which token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from hivlp.serve.errors import RequestError
from hivlp.serve.settings import Settings

OPEN = ("/healthz", "/readyz", "/")
"""Paths that tell nothing, for which no token is needed; the page's own files are others."""
COOKIE = "hivlp"
LOCAL = ("localhost", "ip6-localhost")

Headers = Mapping[str, str]
"""By their names in lower case."""


def headers_of(listed: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Headers as they came, names in lower case, by their names; of several of one name the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(listed)}


def admitted(settings: Settings, method: str, path: str, query: bytes, headers: Headers) -> str | None:
    """Check who asks; gives the cookie to set where the page is opened with the token.

    Raises:
        RequestError: if the request may not be answered.
    """
    own, origin = headers.get("host", ""), headers.get("origin")
    host = _host_name(own)
    if settings.token is None and not _is_own(host, settings):
        raise RequestError(
            421, "unknown_host", f"this service is not called {host!r:.80}: start it with --allow-host to call it so"
        )
    if origin not in (None, *settings.origins, f"http://{own}", f"https://{own}"):
        raise RequestError(
            403, "cross_origin", f"another site, {origin!r:.80}, may not use this service, asked for as {own!r:.80}: "
            "a proxy has to pass the Host header on; --allow-origin lets another site in",
        )  # fmt: skip
    site = headers.get("sec-fetch-site", "same-origin")
    opened = method == "GET" and headers.get("sec-fetch-mode") == "navigate" and path == "/"
    if site in ("cross-site", "same-site") and origin not in settings.origins and not opened:
        raise RequestError(403, "cross_origin", "another site may not use this service")
    if settings.token is None:
        return None
    if path == "/" and b"token=" in query:
        given = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        if not _same(given, settings.token):
            raise RequestError(401, "unauthorized", "this is not the service's token")
        return _cookie(settings.token)
    if path in OPEN or path.startswith("/static/"):
        return None
    if not _bears(settings.token, headers):
        raise RequestError(
            401, "unauthorized", "send the service's token: Authorization: Bearer TOKEN, or open /?token=TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return None


def _is_own(host: str, settings: Settings) -> bool:
    """Whether a name is one that no other site can make a browser's name for this service."""
    if host in LOCAL or host in settings.hosts or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bears(token: str, headers: Headers) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _same(given.strip(), token)
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return False
    return cookie is not None and _same(cookie.value, _cookie(token))


def _same(given: str, wanted: str) -> bool:
    """Whether two texts are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


def _cookie(token: str) -> str:
    """What a browser keeps instead of the token."""
    return hashlib.sha256(b"hivlp page\0" + token.encode()).hexdigest()


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
