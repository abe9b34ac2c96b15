"""Running a service: the process that listens, its signals, and its end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from hivlp.index import Index
from hivlp.serve.app import create_app
from hivlp.serve.connection import http_protocol
from hivlp.serve.guard import Guard
from hivlp.serve.listening import BACKLOG, check_exposure
from hivlp.serve.settings import Settings
from hivlp.serve.tracing import traced

GARBAGE = 20_000
"""Objects more than before, of those that can be in cycles, after which cycles are looked for."""
GRACE_SECONDS = 30
"""What requests have to end when the service is told to."""
RELOAD_SECONDS = 1.0
"""Seconds between opening the indexes anew and doing so again."""
FILES = 1000
"""That may be open beside connections: of indexes, pictures and processes."""


def serve(
    indexes: Mapping[str, Index], settings: Settings, sockets: Sequence[socket.socket], *, insecure: bool = False
) -> None:
    """Serve indexes until the process is told to end (SIGTERM, SIGINT); SIGHUP opens them anew.

    Args:
        indexes: open ones by their names.
        settings: of the service.
        sockets: that listen; see :func:`hivlp.serve.listening.listen`.
        insecure: listen without a token where other machines can ask.

    Raises:
        ArgumentError: if other machines could ask, and there is no token; or one that no header carries.
    """
    for each in sockets:
        check_exposure(each.getsockname()[0], settings, insecure=insecure)
    _allow_files(settings.connections + FILES)
    app = create_app(indexes, settings, on_ready=_freeze)
    application = traced(app)
    config = uvicorn.Config(
        application,
        http=http_protocol(direct=application is app),
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=1 << 16,
        ws="none",
    )
    _Server(config, app).run(list(sockets))


def _allow_files(count: int) -> None:
    """Let the process have so many files open where the system lets it: often it starts with fewer than connections."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < count:
            most = count if hard == resource.RLIM_INFINITY else min(count, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _freeze() -> None:
    """Have the garbage collector pass over what was loaded, and look at the rest less often.

    A full round of it held up all who waited for 25 ms; looked for every 700 objects, the few cycles that requests
    leave took a thirtieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])


class _Server(uvicorn.Server):
    """A server that opens its indexes anew when it is hung up on."""

    def __init__(self, config: uvicorn.Config, app: Guard) -> None:
        super().__init__(config)
        self._guard = app
        self._hung = False
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        with suppress(NotImplementedError, AttributeError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was asked, and end."""
        self._guard.service.end()
        await super().shutdown(sockets)

    def _hung_up(self) -> None:
        self._hung = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        """Open the indexes anew, once for all hang-ups that come meanwhile: those before stay open for a while."""
        while self._hung:
            self._hung = False
            await self._guard.service.reload()
            await asyncio.sleep(RELOAD_SECONDS)


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each index: its folder's, without the ending; a number behind those that would be the same."""
    named: dict[str, Path] = {}
    for path in paths:
        stem = (
            "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in path.resolve().stem) or "index"
        )
        name, count = stem, 2
        while name in named:
            name, count = f"{stem}-{count}", count + 1
        named[name] = path
    return named
