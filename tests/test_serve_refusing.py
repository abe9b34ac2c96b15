"""Searches that are refused on their connection while too many wait, over real sockets."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import h11
import httpx
import pytest
import uvicorn

from hivlp.index import Index
from hivlp.serve.app import create_app
from hivlp.serve.batching import Batcher
from hivlp.serve.connection import http_protocol
from hivlp.serve.guard import HEADERS
from hivlp.serve.metrics import Metrics
from hivlp.serve.refusing import refused
from hivlp.serve.settings import Settings
from serving import answers, free_port, until
from synthetic import FakeEncoder, index_pictures

HOST = [(b"host", b"localhost")]


def service(room=0, token=None):
    metrics = Metrics()
    searches = Batcher("searches", lambda tasks: tasks, metrics, room=room)
    return SimpleNamespace(searches=searches, metrics=metrics, settings=Settings(token=token))


def test_a_refusal_is_a_whole_answer_with_what_the_guard_adds():
    full = service()
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/search", headers=[("Host", "x"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(refused(full, b"/indexes/photos/search", HOST))
    head, body, end = (connection.next_event() for _ in range(3))
    told = {name.decode(): value.decode() for name, value in head.headers}
    assert head.status_code == 429 and told.items() >= {**HEADERS, "retry-after": "1"}.items()
    assert b'"busy"' in body.data and type(end) is h11.EndOfMessage
    assert 'hivlp_refused_total{queue="searches"} 1' in full.metrics.text()


@pytest.mark.parametrize(
    ("url", "headers", "options"),
    [
        (b"/search", HOST, {"room": 1}),
        (b"/items", HOST, {}),
        (b"/search", HOST, {"token": "secret"}),
        (b"/search", [*HOST, (b"origin", b"http://elsewhere")], {}),
        (b"/search", [*HOST, (b"transfer-encoding", b"chunked")], {}),
    ],
)
def test_the_guard_looks_first_at_what_it_may_answer_otherwise(url, headers, options):
    async def ask():
        return refused(service(**options), url, headers)

    assert asyncio.run(ask()) is None


class Slow(FakeEncoder):
    threads: tuple[str, ...] = ()
    """Names of those that encoded, one after another."""

    def encode_text(self, texts, *, levels=None):
        Slow.threads += (threading.current_thread().name,)
        time.sleep(0.02)
        return super().encode_text(texts, levels=levels)


@pytest.fixture
def port(tmp_path):
    index_pictures(tmp_path, 4)
    app = create_app(
        {"index": Index.open(tmp_path / "index", Slow())}, Settings(queue=3, batch=1, threads=1, decoders=1)
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, http=http_protocol(), log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True, name="loop")
    thread.start()
    until(lambda: answers(port))
    yield port
    server.should_exit = True
    thread.join()


def test_connections_that_were_refused_go_on(port):
    async def ask():
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            many = [client.post("/search", json={"query": f"text {n} {'word ' * 800}"}) for n in range(40)]
            found = await asyncio.gather(*many)
            after = [await client.post("/search", json={"query": "after"}) for _ in range(40)]
            metrics = (await client.get("/metrics")).text
        return [each.status_code for each in found], [each.status_code for each in after], metrics

    found, after, metrics = asyncio.run(ask())
    assert set(found) == {200, 429} and found.count(200) >= 3
    assert set(after) == {200}
    assert f'status="429"}} {found.count(429)}' in metrics


def test_a_lone_search_runs_in_the_loop_s_thread_and_several_in_a_worker(port):
    async def ask(*texts):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            found = await asyncio.gather(*[client.post("/search", json={"query": text}) for text in texts])
        return [each.status_code for each in found]

    until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
    Slow.threads = ()
    assert asyncio.run(ask("lone")) == [200] and Slow.threads == ("loop",)
    Slow.threads = ()  # of many at once some find others there, however slow this process is
    assert 200 in asyncio.run(ask(*map(str, range(16))))
    assert any(name.startswith("hivlp-searches") for name in Slow.threads)
