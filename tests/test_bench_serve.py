"""Services under load: the generator, the services, the report, and one run of all parts."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

from hivlp.ann import native
from hivlp.bench.products.collection import Collection, write_collection
from hivlp.bench.products.rivals.listed import PayloadList
from hivlp.bench.serve import run as bench
from hivlp.bench.serve.load import Load, request_bytes, run_load
from hivlp.bench.serve.overload import recovery_seconds
from hivlp.bench.serve.report import ahead
from hivlp.bench.serve.running import free_port, running
from hivlp.bench.serve.services import SERVICES, Service
from hivlp.bench.serve.services.base import K
from hivlp.bench.serve.services.starlette_app import create_app
from hivlp.errors import HivlpError
from hivlp.files.scratch import hold
from synthetic import FakeEncoder, cloud, quick_tuning

REQUESTS = [request_bytes("/search", json.dumps({"n": n}).encode()) for n in range(5)]


@contextmanager
def answering(answer):
    """The port of a server that answers the body of each request with what ``answer`` makes of it."""
    loop, port = asyncio.new_event_loop(), free_port()

    async def talk(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                writer.write(answer(json.loads(await reader.readexactly(length))))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ZeroDivisionError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(talk, "127.0.0.1", port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield port
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def http(status, body, *more):
    head = "".join(f"{each}\r\n" for each in (f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *more))
    return f"{head}\r\n{body}".encode()


def test_a_load_of_so_many_requests_has_the_answer_to_each():
    with answering(lambda asked: http(429 if asked["n"] == 3 else 200, f"answer {asked['n']}")) as port:
        load = run_load(port, REQUESTS, clients=3, seconds=60, count=25, keep=True)
    assert sorted(load.request.tolist()) == sorted([0, 1, 2, 3, 4] * 5)
    assert load.bodies == {n: f"answer {n}".encode() for n in range(5)}
    assert (load.status == 429).tolist() == (load.request == 3).tolist() and load.good.sum() == 20
    assert (load.took > 0).all() and load.throughput == pytest.approx(20 / load.seconds)


def test_connections_that_are_closed_or_broken_are_made_anew():
    with answering(lambda asked: http(200, "x" * 100_000, "Connection: close")) as port:
        load = run_load(port, REQUESTS, clients=2, seconds=60, count=10)
        assert load.good.all() and len(load.took) == 10
    with answering(lambda asked: 1 / 0) as port:  # which ends the connection
        assert (run_load(port, REQUESTS, clients=2, seconds=60, count=6).status == 0).all()


def test_an_open_loop_counts_what_a_request_waited_for_a_client():
    def slow(asked):
        time.sleep(0.05)
        return http(200, "x")

    with answering(slow) as port:
        load = run_load(port, REQUESTS, clients=1, seconds=1, rate=40)
    assert load.unsent > 5 and load.took.max() > 0.2
    assert load.began.tolist() == pytest.approx([n / 40 for n in range(len(load.began))])
    with answering(lambda asked: http(200, "x")) as port:  # several of which are sent in a round
        load = run_load(port, REQUESTS, clients=50, seconds=0.5, rate=2000)
    assert np.sort(load.began).tolist() == pytest.approx([n / 2000 for n in range(len(load.began))])
    assert 100 < len(load.began) <= 1001, "the one that is due at the end may be sent"


def test_a_load_without_a_server_is_a_line():
    with pytest.raises(HivlpError, match="load generator failed: ConnectionRefused"):
        run_load(free_port(), REQUESTS)


def test_a_service_that_ends_before_it_answers_says_why():
    command = [sys.executable, "-c", "raise SystemExit('no such index')"]
    with pytest.raises(HivlpError, match="no such index"), running(command, free_port(), REQUESTS[0], {}):
        pass


def load_of(began, took, status=200, started=0.0, seconds=10.0):
    count = len(began)
    arrays = np.array(began, float), np.array(took, float), np.full(count, status), np.zeros(count, int)
    return Load(*arrays, {}, started, seconds, 0.0, 0)


def test_a_service_has_recovered_when_no_probe_is_late_any_more():
    load = load_of([], [], started=100, seconds=10)
    probes = load_of([5, 9, 11, 12, 13], [4, 3, 0.5, 0.1, 0.1], started=100)
    assert recovery_seconds(probes, load, 0.2) == pytest.approx(2)  # the one of the ninth second took until the 12th
    assert recovery_seconds(load_of([5, 11], [0.1, 0.1], started=100), load, 0.2) == 0
    refused = load_of([5, 13], [0.1, 0.1], status=429, started=100)
    assert recovery_seconds(refused, load, 0.2) == pytest.approx(3.1)


def test_ours_is_put_beside_the_best_other_of_each_cell():
    def row(service, qps, p99, clients=1, status="ok"):
        return {
            "service": service, "kind": "vector", "recall_wanted": 0.99, "clients": clients, "status": status,
            "qps": qps, "p99_ms": p99,
        }  # fmt: skip

    rows = [row("a", 100, 2.0), row("b", 50, 1.0), row("c", 40, 4.0), row("b", 9, 9.0, clients=8)]
    assert ahead([*rows, row("d", 999, 0.1, status="not installed")], "a") == [
        {"kind": "vector", "recall_wanted": 0.99, "clients": 1, "qps": 2.0, "next_by_qps": "b", "p99": 0.5,
         "next_by_p99": "b"}
    ]  # fmt: skip


class Exact:
    """A product that compares everything."""

    def __init__(self, items, folder, payloads):
        PayloadList.write(folder, payloads)
        self._items, self._list = items, PayloadList(folder)

    def search(self, query, k, effort, years=None):
        return self._list.hits(np.argsort(-self._items @ query)[:k])


def test_a_starlette_service_answers_vectors_and_texts(tmp_path):
    collection, model = collection_of(tmp_path / "c", dim=FakeEncoder().levels[-1].dim), FakeEncoder()
    service, items = SERVICES[1](), collection.read("items")
    client = TestClient(create_app(Exact(items, tmp_path, collection.payloads()), model, {}))

    def ask(request):
        head, _, body = request.partition(b"\r\n\r\n")
        return client.post(head.split()[1].decode(), content=body).content

    found = service.rows(ask(service.search_request(items[3], {})))
    assert found == np.argsort(-items @ items[3])[:K].tolist()
    words = model.encode_text(["a red circle"]).fine[0]
    assert service.rows(ask(service.search_request("a red circle", {}))) == np.argsort(-items @ words)[:K].tolist()
    told = json.loads(ask(service.embed_request("a red circle")))["data"][0]["embedding"]
    np.testing.assert_allclose(told, words, atol=1e-6)


def collection_of(folder: Path, count=400, dim=16):
    captions = [f"caption {row}" for row in range(count)]
    return write_collection(folder, cloud(count, dim, 0), captions, cloud(60, dim, 1), cloud(50, dim, 2))


class Trivial(Service):
    """Answers everything with no hits."""

    name = "trivial"
    packages = ()
    how = "nothing"
    kinds = ("vector", "embed")

    def command(self, folder, port, effort, model):
        return [sys.executable, "-m", "hivlp.bench.serve.ceiling", str(port)]


class Broken(Trivial):
    name = "broken"

    def command(self, folder, port, effort, model):
        return [sys.executable, "-c", "raise SystemExit('not installed: it')"]


PLAN = bench.Plan(0.1, 1, (0.99,), 1.0, 100, 60.0)


def run_of(folder, plan=PLAN, dim=16, count=400):
    collection = collection_of(folder / "collection", count, dim)
    truth = collection.truth("test")
    questions = bench.Questions(np.array(collection.read("test")), [f"word {n}" for n in range(len(truth))], truth)
    return bench.Run(collection, questions, folder / "run", "hivlp-mini", plan)


def test_every_cell_has_a_row_and_a_service_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CLIENTS", (1, 4))
    monkeypatch.setattr(bench.Run, "_lasting", lambda *given: {})
    report = bench.compare(run_of(tmp_path), (Trivial, Broken), time.perf_counter())
    assert [(row["service"], row["kind"], row.get("clients"), row["status"]) for row in report.rows] == [
        ("trivial", "vector", 1, "ok"),
        ("trivial", "vector", 4, "ok"),
        ("trivial", "embed", 1, "ok"),
        ("trivial", "embed", 4, "ok"),
        ("broken", "vector", None, "not installed: it"),
        ("broken", "embed", None, "not installed: it"),
    ]
    assert report.rows[0]["recall"] == 0 and report.rows[0]["qps"] > 0
    assert [row["clients"] for row in report.ceiling] == [1, 4]
    assert "not installed: it" in report.to_text()
    # What was measured is kept, what failed is tried again.
    assert [path.name for path in (tmp_path / "run" / "measured").iterdir()] == ["Trivial.json"]


def test_a_run_beside_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "collection_of", lambda *_: Collection(tmp_path / "words"))
    monkeypatch.setattr(Collection, "read", lambda *_: np.zeros((1, 4), np.float32))
    monkeypatch.setattr(Collection, "truth", lambda *_: np.zeros((1, 10), int))
    monkeypatch.setattr(bench, "read_wordnet", lambda: ([], []))
    with hold(tmp_path / "words-serve"), pytest.raises(HivlpError, match="another `hivlp bench serve --size small`"):
        bench.run("small", SimpleNamespace(source="hivlp-mini"))


@pytest.mark.slow
def test_hivlp_s_service_finds_what_it_should_and_loses_nothing_under_an_overload(tmp_path):
    if native.load() is None:
        pytest.skip("hivlp's kernels are not compiled here")
    run = run_of(tmp_path, dim=768, count=1400)
    ours = SERVICES[0]
    folder = tmp_path / "run" / "ServedIndex"
    folder.mkdir(parents=True)
    with quick_tuning():
        count = run.collection.later()
        items, learn = run.collection.read("items")[:count], run.collection.read("learn")
        ours().product("hivlp-mini").build(folder, items, run.collection.payloads()[:count], learn)
    with run._running(ours, {"recall": 0.99}) as service:
        rows = run._cells(ours, service, "vector", 0.99, {"recall": 0.99})
        told = run._lasting(ours(), service, {"recall": 0.99})
    assert all(row["recall"] > 0.95 and not row["failed"] for row in rows)
    cpu = told["overload"]["cpu"]
    assert 0 < told["overload"]["bare_share"] < 1
    assert cpu.keys() == {"service", "writer", "generator"} and cpu["service"] > 0, "a writer's may be below a tick"
    assert told["overload"]["lost"] == 0 and told["overload"]["failed"] == 0 and told["overload"]["posted"] > 0
    assert told["drift"]["requests"] == 100
