"""Fetching pictures by their addresses: from public ones alone, whatever names and redirects lead to."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urljoin, urlsplit

from hivlp.serve.errors import RequestError, bad_request

SECONDS = 10.0
"""For all of it, redirects included."""
REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.ip_network("::/96")


def is_public(text: str) -> bool:
    """Whether an address is one of the public network, the IPv4 address that an IPv6 one may stand for included."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if any(address in network for network in (*_NAT64, _COMPATIBLE)):
            inner = ipaddress.IPv4Address(address.packed[-4:])
            return is_public(str(inner)) and address not in _COMPATIBLE and address not in _NAT64[1]
        if inner is not None:
            return is_public(str(inner))
    reserved = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not reserved


def fetch(address: str, most: int) -> bytes:
    """The content of a picture's address.

    The name is resolved once; every address that it has must be public, and the connection is made to one of these, not
    to what the name may mean a moment later. Each redirect is checked in the same way. Proxies are not used.

    Args:
        address: ``http`` or ``https``, on the usual port.
        most: bytes that it may have.

    Raises:
        RequestError: if it may not be fetched, or cannot be.
    """
    deadline = time.monotonic() + SECONDS
    for _ in range(REDIRECTS + 1):
        moved, data = _get(address, most, deadline)
        if moved is None:
            return data
        address = urljoin(address, moved)
    raise bad_request(f"the picture's address is redirected more than {REDIRECTS} times")


def _get(address: str, most: int, deadline: float) -> tuple[str | None, bytes]:
    """Where an address has moved to, or its content."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise bad_request("the picture's address makes no sense") from error
    host = parts.hostname
    if parts.scheme not in PORTS or not host or parts.username is not None or parts.password is not None:
        raise bad_request("a picture's address is http or https, without a user's name")
    if port not in (None, PORTS[parts.scheme]) or any(ord(letter) < 33 for letter in address):
        raise bad_request("a picture's address has no port of its own")
    place = _resolved(host, PORTS[parts.scheme])
    try:
        with _connected(place, PORTS[parts.scheme], parts.scheme, host, deadline) as connection:
            path = parts.path or "/"
            connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers={"Accept": "image/*"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                return response.getheader("Location", ""), b""
            if response.status != 200:
                raise bad_request(f"the picture's address answers with status {response.status}")
            return None, _read(response, most, deadline)
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        raise bad_request(f"the picture's address cannot be fetched: {type(error).__name__}") from error


def _resolved(host: str, port: int) -> str:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise bad_request("the picture's address has a name that is not known") from error
    if not found or not all(map(is_public, found)):
        raise RequestError(403, "forbidden", "a picture is fetched from public addresses alone")
    return min(found, key=lambda address: ":" in address)


class _connected:
    """A connection to one address, in the name of a host."""

    def __init__(self, place: str, port: int, scheme: str, host: str, deadline: float) -> None:
        seconds = max(0.1, deadline - time.monotonic())
        plain = socket.create_connection((place, port), seconds)
        try:
            if not is_public(plain.getpeername()[0]):
                raise RequestError(403, "forbidden", "a picture is fetched from public addresses alone")
            secure = (
                ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
            )
        except BaseException:
            plain.close()
            raise
        self._connection = http.client.HTTPConnection(host, port, timeout=seconds)
        self._connection.sock = secure

    def __enter__(self) -> http.client.HTTPConnection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _read(response: http.client.HTTPResponse, most: int, deadline: float) -> bytes:
    blocks, size = [], 0
    while block := response.read1(1 << 16):
        size += len(block)
        if size > most:
            raise RequestError(413, "too_large", f"the picture is larger than {most >> 20} MB")
        if time.monotonic() > deadline:
            raise bad_request(f"the picture was not fetched within {SECONDS:g} s")
        blocks.append(block)
    return b"".join(blocks)
