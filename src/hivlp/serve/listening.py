"""Listening: which addresses a service may be asked at, bound before anything is said of them."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from hivlp.errors import ArgumentError, HivlpError
from hivlp.serve.settings import Settings

BACKLOG = 2048
"""Connections that may wait to be accepted."""
_NO_SUCH_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets at a port of every address that a host's name has, as ``localhost`` may have two.

    Args:
        host: name or address.
        port: of it; 0 for a free one.

    Raises:
        HivlpError: if the port is taken, or the address is none of this machine's.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, address in dict.fromkeys((family, str(place[0])) for family, *_, place in found):
            at = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(socket.create_server((address, at), family=family, backlog=BACKLOG))
            except OSError as error:  # one family of two may be turned off
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                absent = error
        if absent is not None and not sockets:
            raise absent
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        raise HivlpError(f"cannot listen at {host}, port {port}: {_reason(error)}") from error
    return sockets


def urls_of(sockets: Sequence[socket.socket]) -> list[str]:
    """Addresses that a browser can open: for all of a machine's (``0.0.0.0``, ``::``) its own one in its network."""
    found = []
    for each in sockets:
        host, port = each.getsockname()[:2]
        if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
            host = _own_address(each.family) or host
        found.append(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    return found


def check_exposure(host: str, settings: Settings, *, insecure: bool) -> None:
    """Whether a service may listen here as it is set up.

    Raises:
        ArgumentError: if other machines could ask, and there is no token; or one that no header carries.
    """
    if settings.token is not None and not (settings.token.isascii() and settings.token.isprintable()):
        raise ArgumentError("a token has letters, digits and signs of ASCII alone: a header carries no others")
    if settings.token is None and not insecure and not is_loopback(host):
        raise ArgumentError(
            f"{host} can be reached by other machines: give a token (HIVLP_TOKEN or --token-file), "
            "or say --insecure to let anyone ask"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is one that this machine alone reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_address(family: int) -> str | None:
    """The address by which this machine would ask a public one; no packet is sent."""
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))
        return str(asking.getsockname()[0])
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or error.errno is None:
        return "there is no such name"
    told = os.strerror(error.errno).lower()
    return f"{told}; --port 0 takes a free port" if error.errno == errno.EADDRINUSE else told
