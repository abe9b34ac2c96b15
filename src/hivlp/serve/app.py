"""The application: every route of the service, behind its guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

import hivlp
from hivlp.index import Index
from hivlp.serve import changing, embedding, items, searching
from hivlp.serve.asking import service_of
from hivlp.serve.errors import not_found
from hivlp.serve.guard import Guard
from hivlp.serve.metrics import MEDIA_TYPE
from hivlp.serve.models import K_MOST
from hivlp.serve.openapi import description
from hivlp.serve.replies import encoded_json, json_reply
from hivlp.serve.service import Service
from hivlp.serve.settings import Settings


class _ItemId(Convertor[int]):
    """The id of an item in an address: a number that SQLite holds, and that Python reads however many digits come."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        """The id."""
        return int(value)

    def to_string(self, value: int) -> str:
        """As it stands in an address."""
        return str(value)


register_url_convertor("item", _ItemId())
PAGE = Path(__file__).parent / "page"
Handler = Callable[[Request], Awaitable[Response]]

OF_AN_INDEX: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/search", searching.search),
    ("GET", "/items/{id:item}/thumbnail", items.thumbnail),
    ("GET", "/items/{id:item}/original", items.original),
    ("GET", "/items/{id:item}", items.get_item),
    ("GET", "/items", items.list_items),
    ("POST", "/items", changing.add_items),
    ("DELETE", "/items/{id:item}", changing.remove_item),
    ("DELETE", "/items", changing.remove_items),
    ("GET", "/fields", items.fields),
    ("GET", "/map", items.collection_map),
    ("POST", "/jobs", changing.add_job),
    ("GET", "/jobs", changing.list_jobs),
    ("GET", "/jobs/{job}/events", changing.job_events),
    ("POST", "/jobs/{job}/pause", changing.steer_job),
    ("POST", "/jobs/{job}/resume", changing.steer_job),
    ("POST", "/jobs/{job}/cancel", changing.steer_job),
    ("GET", "/jobs/{job}", changing.get_job),
)
"""Routes that each index has under its name, and the first one without."""


def create_app(
    indexes: Mapping[str, Index], settings: Settings | None = None, on_ready: Callable[[], object] = lambda: None
) -> Guard:
    """The ASGI application that serves indexes.

    Args:
        indexes: open ones by their names, the first of which answers where no name is given; they are closed with it.
        settings: of the service.
        on_ready: called once in the event loop's thread when models and last commits are loaded.
    """
    settings = Settings() if settings is None else settings
    service = Service(indexes, settings)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[dict[str, Service]]:
        warming = asyncio.get_running_loop().run_in_executor(None, service.warm_up)
        warming.add_done_callback(lambda _: on_ready())
        try:
            await service.start()
            yield {"service": service}
        finally:
            await warming
            await service.close()

    router = Router(
        [*_routes(), Mount("/static", GZipMiddleware(_PageFiles(directory=PAGE)), name="/static")],
        redirect_slashes=False,
        default=_nothing,
        lifespan=lifespan,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app  # so that what a route refuses is raised, and told by the guard as all else
        await router(scope, receive, send)

    return Guard(app, service)


class _PageFiles(StaticFiles):
    """The page's own files, which a browser may keep and asks after by their tags."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        """What answers a request for a file."""
        response = super().file_response(*arguments, **named)
        response.headers["cache-control"] = "no-cache"
        return response


def _routes() -> list[BaseRoute]:
    routes: list[BaseRoute] = []
    for prefix in ("", "/indexes/{name}"):
        methods: dict[str, dict[str, Handler]] = {}
        for method, path, call in OF_AN_INDEX:
            methods.setdefault(path, {})[method] = call
        routes += [_route(prefix, path, calls) for path, calls in methods.items()]
    alone: dict[str, Handler] = {
        "/": page,
        "/healthz": healthy,
        "/readyz": ready,
        "/metrics": metrics,
        "/api/state": state,
        "/openapi.json": openapi,
    }
    routes += [_route("", path, {"GET": call}) for path, call in alone.items()]
    # They are tried in their order: thirty of them take a tenth of a millisecond.
    return [_route("", "/v1/embeddings", {"POST": embedding.embeddings}), *routes]


def _route(prefix: str, path: str, calls: Mapping[str, Handler]) -> Route:
    """A route that calls by the method, so that another is told which there are; metrics and traces have its path."""
    name = path.replace(":item}", "}")
    if len(calls) == 1:
        ((method, call),) = calls.items()
        return Route(prefix + path, call, methods=[method], name=name)

    async def chosen(request: Request) -> Response:
        return await calls["GET" if request.method == "HEAD" else request.method](request)

    return Route(prefix + path, chosen, methods=list(calls), name=name)


async def page(_: Request) -> Response:
    """``GET /``: the page."""
    return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


async def healthy(_: Request) -> Response:
    """``GET /healthz``: the service runs."""
    return json_reply(b'{"status":"ok"}')


async def ready(request: Request) -> Response:
    """``GET /readyz``: the models are loaded."""
    if service_of(request).ready:
        return json_reply(b'{"status":"ready"}')
    return json_reply(b'{"status":"loading"}', 503)


async def metrics(request: Request) -> Response:
    """``GET /metrics``: counters and histograms for Prometheus."""
    text = await items.in_thread(request, service_of(request).metrics.text)
    return Response(text, headers={"content-type": MEDIA_TYPE})


async def state(request: Request) -> Response:
    """``GET /api/state``: what is served, and within which limits."""
    service = service_of(request)

    def told() -> bytes:
        return encoded_json(
            {
                "version": hivlp.__version__,
                "indexes": [served.state() for served in service.indexes.values()],
                "limits": {"upload_bytes": service.settings.upload_bytes, "k_max": K_MOST},
            }
        )

    return json_reply(await items.in_thread(request, told))


async def openapi(_: Request) -> Response:
    """``GET /openapi.json``: every route, described."""
    return json_reply(description())


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise not_found("there is nothing here")
