"""A connection, and what is answered on it before a task is made of a request: refusals, and the briefest searches."""

from __future__ import annotations

from typing import Any

from hivlp.serve.direct import answered, may_be_direct
from hivlp.serve.refusing import refused
from hivlp.serve.service import Service


def http_protocol(*, direct: bool = True) -> Any:
    """The class of uvicorn's connections; its own choice where httptools is not installed.

    Args:
        direct: whether brief searches may be answered on the connection, where nothing wraps the application.
    """
    try:
        from hivlp.serve.bounded import Bounded
    except ImportError:
        return "auto"

    class Protocol(Bounded):
        """A connection that refuses searches while too many wait and answers the briefest; all else goes the usual way.

        A request whose search may be brief is held back until its body is there, if that came along with its head.
        """

        _refused = False
        _held: bytearray | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._service.requests = self.tasks

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._held is not None:  # the rest of it is on its way: a task may wait for that, for a limited time
                self._hand_over()

        def on_message_begin(self) -> None:
            self._refused = False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.begin_body()
            idle = (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused
            posted = idle and self.parser.get_method() == b"POST"
            if posted and direct and not self._service.searches.is_full and self._may_be_direct():
                self._held = bytearray()
            else:
                self._refuse_or_begin(posted=posted)

        def on_body(self, body: bytes) -> None:
            self.begin_body()
            if self._held is not None:
                self._held += body
            elif not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if self._held is not None:
                answer = answered(self._service, self.url, self.headers, self._held)
                if answer is not None:
                    self._held = None
                    self.transport.write(answer)
                    self.on_response_complete()  # which waits for the connection's next request
                    return
                self._hand_over()
            if self._refused:
                self.on_response_complete()
            else:
                super().on_message_complete()

        @property
        def _service(self) -> Service:
            service: Service = self.app_state["service"]
            return service

        def _may_be_direct(self) -> bool:
            plain = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
            room = self.limit_concurrency is None or len(self.connections) < self.limit_concurrency
            return plain and room and may_be_direct(self._service, self.url, self.headers, self)

        def _hand_over(self) -> None:
            """Have a request that was held back go the usual way."""
            held, self._held = self._held, None
            if self.transport.is_closing():
                self._refused = True
            else:
                self._refuse_or_begin(posted=True)
                self.on_body(bytes(held or b""))

        def _refuse_or_begin(self, *, posted: bool) -> None:
            refusal = refused(self._service, self.url, self.headers) if posted else None
            if refusal is None:
                super().on_headers_complete()
                return
            self._refused = True
            self.expect()  # its body has so long
            self.transport.write(refusal)
            self._service.searches.rest()
            if not self.parser.should_keep_alive():
                self.transport.close()

    return Protocol
