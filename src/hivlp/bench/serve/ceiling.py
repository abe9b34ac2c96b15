"""The ceiling of the load generator: what it gets from a server that answers everything with the same bytes."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import cast

BODY = b'{"hits":[]}'.ljust(3000)
"""About as long as the answer to a search."""
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
_LENGTH = b"content-length: "


class _Same(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._have = cast(asyncio.WriteTransport, transport), b""

    def data_received(self, data: bytes) -> None:
        self._have += data
        while (end := self._have.find(b"\r\n\r\n")) >= 0:
            head = self._have[:end].lower()
            place = head.find(_LENGTH)
            length = int(head[place + len(_LENGTH) :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self._have) < end + 4 + length:
                return
            self._have = self._have[end + 4 + length :]
            self._transport.write(ANSWER)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Same, "127.0.0.1", port)
    await server.serve_forever()


def main(port: str) -> None:
    """Serve until the process is told to end."""
    try:
        run = importlib.import_module("uvloop").run
    except ModuleNotFoundError:
        run = asyncio.run
    run(_serve(int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
