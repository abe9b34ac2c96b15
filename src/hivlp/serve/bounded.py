"""Connections with bounds: what a client may leave unfinished on one, and for how long."""

from __future__ import annotations

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 1 << 16
"""Of a request's line and headers, or of a trailer; httptools keeps what has no end."""
READ_BYTES = 1 << 20
"""That a client must have read of its answer when it is looked at again, unless less was left."""
SPARE = 64
"""Connections beyond the limit whose requests are still told so; others are closed at once."""


class Bounded(HttpToolsProtocol):
    """A connection that ends where nothing comes of it: the head of a request, an answer that is read.

    The guard bounds the time between the two.
    """

    _in_body = False
    _open = 0
    """Bytes that came since a part of a request was complete."""
    _reading: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for a first request."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + SPARE:
            self.transport.abort()
            return
        self.expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        super()._unset_keepalive_if_required()
        self._stop_reading()

    def data_received(self, data: bytes) -> None:
        """Take in a piece of a request."""
        self._open += len(data)
        super().data_received(data)
        if self._open > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    # Time.

    def expect(self) -> None:
        """Wait for the head of the next request, which does not come sooner for being begun."""
        super()._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        """Go on waiting, whatever uvicorn makes of a first byte."""

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless the last answer is being read still."""
        if self._reading is None:
            self.transport.abort()
        else:
            self.expect()

    def pause_writing(self) -> None:
        """Have the answer wait for a client that reads slowly."""
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        self._stop_reading()

    def _watch(self, left: int) -> None:
        self._reading = self.loop.call_later(self.timeout_keep_alive, self._read_on, left)

    def _read_on(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if before - left < READ_BYTES:
            self.transport.abort()
        else:
            self._watch(left)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    # Requests.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_body = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; a trailer, which comes behind the body, is none."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have a request answered."""
        self.begin_body()
        super()._unset_keepalive_if_required()
        super().on_headers_complete()

    def begin_body(self) -> None:
        """Take in what follows as a body."""
        self._open, self._in_body = 0, True

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body."""
        self._open = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._open = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or until the last answer has been read."""
        self._open = 0
        super()._unset_keepalive_if_required()
        super().on_response_complete()
        if self.transport.is_closing():
            self.expect()
