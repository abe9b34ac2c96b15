"""A service in this process over httpx, and one in a process of its own: what the tests of `hivlp serve` ask."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx

from hivlp.serve.app import create_app
from hivlp.serve.settings import Settings


class Asked:
    """A client of an application whose lifespan and requests run on an event loop in a thread."""

    def __init__(self, indexes, settings=None, host="127.0.0.1:8000"):
        self.app = create_app(indexes, settings or Settings())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._host = host
        self.run(self._begin())

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _begin(self):
        self._messages: asyncio.Queue = asyncio.Queue()
        self._told: asyncio.Queue = asyncio.Queue()
        state: dict = {}
        await self._messages.put({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "state": state}
        self._life = asyncio.create_task(self.app(scope, self._messages.get, self._told.put))
        told = await self._told.get()
        assert told["type"] == "lifespan.startup.complete", told

        async def with_state(scope, receive, send):
            await self.app({**scope, "state": state}, receive, send)

        self.asgi = with_state
        transport = httpx.ASGITransport(with_state)
        self._client = httpx.AsyncClient(transport=transport, base_url=f"http://{self._host}")

    def __call__(self, method, path, **options):
        return self.run(self._client.request(method, path, **options))

    def get(self, path, **options):
        return self("GET", path, **options)

    def search(self, **request):
        return self("POST", "/search", json=request)

    def close(self):
        async def end():
            await self._messages.put({"type": "lifespan.shutdown"})
            await self._life
            await self._client.aclose()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def asked(indexes, settings=None, **options):
    client = Asked(indexes, settings, **options)
    try:
        yield client
    finally:
        client.close()


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def start(index, *options, port=None, environment=None):
    """A service in a process of its own, when it answers; and its port."""
    port = port or free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "hivlp", "serve", str(index), "--port", str(port), *map(str, options)],
        env={**os.environ, **(environment or {})},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: answers(port))
    return process, port


def answers(port, path="/readyz"):
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def until(holds, seconds=120):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.05)
    return found


def error(response):
    return response.status_code, json.loads(response.content)["error"]["code"]
