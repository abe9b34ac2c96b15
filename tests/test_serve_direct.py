"""Searches by vectors that are answered on their connection: as all others are, or by them, over real sockets."""

from __future__ import annotations

import base64
import json
import socket
import threading

import h11
import numpy as np
import pytest
import uvicorn

from hivlp.index import Index
from hivlp.serve import connection
from hivlp.serve.app import create_app
from hivlp.serve.connection import http_protocol
from hivlp.serve.settings import Settings
from serving import answers, free_port, until
from synthetic import clusters

DIM = 16
VECTORS = clusters(300, DIM, seed=3)
TOKEN = "a secret"
HEAD = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}"}


class Running:
    """Two services of one index, one of which answers on connections where it may; what was answered so."""

    def __init__(self, path):
        self.direct: list[bytes] = []
        self.ports, self._ends = [], []
        for direct in (True, False):
            app = create_app({"words": Index.open(path), "more": Index.open(path)}, Settings(token=TOKEN, seconds=0.5))
            config = uvicorn.Config(
                app, port=free_port(), http=http_protocol(direct=direct), log_level="critical", ws="none",
                server_header=False, date_header=False,
            )  # fmt: skip
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            self.ports.append(config.port)
            self._ends.append((server, thread))
        for port in self.ports:
            until(lambda port=port: answers(port))

    def ask(self, *pieces: bytes, count: int = 1):
        """What either service answers to the same bytes, and how often on its connection."""
        self.direct.clear()
        first, second = (exchanged(port, pieces, count) for port in self.ports)
        assert first == second
        return first, len(self.direct)

    def close(self):
        for server, thread in self._ends:
            server.should_exit = True
            thread.join()


def exchanged(port, pieces, count):
    """The answers to some requests that come in pieces on one connection: status, headers, JSON without times."""
    told = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
            if piece is not pieces[-1]:
                threading.Event().wait(0.05)
        parser, data = h11.Connection(h11.CLIENT), b""
        for _ in range(count):
            parser.send(h11.Request(method="POST", target="/search", headers=[("Host", "x"), ("Content-Length", "0")]))
            parser.send(h11.EndOfMessage())
            body = b""
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    data = client.recv(1 << 16)
                    parser.receive_data(data)
                elif type(event) is h11.Response:
                    status, headers = event.status_code, sorted(event.headers)
                elif type(event) is h11.Data:
                    body += event.data
                elif type(event) is h11.EndOfMessage:
                    break
            shown = json.loads(body)
            shown.pop("timings_ms", None)
            told.append((status, [each for each in headers if each[0] != b"content-length"], shown))
            if parser.our_state is h11.MUST_CLOSE or parser.their_state is h11.MUST_CLOSE:
                assert client.recv(1) == b""
                break
            parser.start_next_cycle()
    return told


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "words.hivlp"
    Index.from_vectors(VECTORS, path, captions=[f"word {row}" for row in range(len(VECTORS))]).close()
    with pytest.MonkeyPatch.context() as patch:
        made, usual = None, connection.answered

        def watched(*arguments):
            answer = usual(*arguments)
            if answer is not None and made is not None:
                made.direct.append(answer)
            return answer

        patch.setattr(connection, "answered", watched)
        made = Running(path)
        yield made
        made.close()


def request(body, path="/search", method="POST", version="1.1", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {**HEAD, "Content-Length": len(data), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{name}: {value}\r\n" for name, value in named.items() if value is not None]
    return f"{method} {path} HTTP/{version}\r\n{''.join(lines)}\r\n".encode() + data


def vector(row=5, **options):
    return {"query": [{"vector": VECTORS[row].tolist()}], **options}


@pytest.mark.parametrize("path", ["/search", "/indexes/words/search", "/indexes/more/search"])
@pytest.mark.parametrize("options", [{}, {"k": 3, "offset": 4}, {"recall": 0.9, "explain": True}, {"threshold": 0.5}])
def test_it_is_answered_as_the_usual_way_does(running, path, options):
    ((status, headers, told),), direct = running.ask(request(vector(**options), path))
    assert status == 200 and direct == 1 and told["hits"]
    assert (b"x-frame-options", b"DENY") in headers
    if not options:
        best = np.argsort(-(VECTORS @ VECTORS[5]), kind="stable")[:10]
        assert [hit["id"] - 1 for hit in told["hits"]] == best.tolist()


def test_base64_and_levels_are_vectors_too(running):
    text = base64.b64encode(VECTORS[7].astype("<f4").tobytes()).decode()
    for vector in (text, {"fine": VECTORS[7].tolist()}, {"fine": text}):
        ((status, _, told),), direct = running.ask(request({"query": [{"vector": vector}]}))
        assert status == 200 and direct == 1 and told["hits"][0]["id"] == 8


def test_requests_that_follow_at_once_on_a_connection_are_answered_in_their_order(running):
    rows = (5, 6, 7)
    told, direct = running.ask(b"".join(request(vector(row, k=1)) for row in rows), count=3)
    assert [each[2]["hits"][0]["id"] - 1 for each in told] == list(rows) and direct == 3
    mixed = request(vector(5, k=1)) + request({"query": [{"item": 7}], "k": 1}) + request(vector(6, k=1))
    told, direct = running.ask(mixed, count=3)
    assert [each[0] for each in told] == [200] * 3 and told[0][2]["hits"][0]["id"] == 6 and direct >= 1
    assert told[2][2]["hits"][0]["id"] == 7


OTHERS = {
    "vectors with weights": (
        request({"query": [{"vector": VECTORS[n].tolist(), "weight": 1 - n} for n in (0, 3)]}),
        200,
    ),
    "an item": (request({"query": [{"item": 3}]}), 200),
    "nothing": (request({}), 200),
    "a filter": (request(vector(where="id > 3")), 200),
    "exact": (request(vector(exact=True)), 200),
    "a text": (request({"query": "words"}), 400),
    "another length": (request({"query": [{"vector": [1.0]}]}), 400),
    "not finite": (request({"query": [{"vector": base64.b64encode(b"\xff" * 4 * DIM).decode()}]}), 400),
    "no JSON": (request(b"{"), 400),
    "no UTF-8": (request(b'{"query": "\xff"}'), 400),
    "unknown name": (request(vector(unknown=1)), 400),
    "too many hits": (request(vector(k=10**6)), 400),
    "an upload": (request({"query": [{"upload": "a"}]}), 400),
    "no token": (request(vector(), Authorization=None), 401),
    "another token": (request(vector(), Authorization="Bearer no"), 401),
    "another site": (request(vector(), Origin="http://elsewhere"), 403),
    "another site's frame": (request(vector(), Sec_Fetch_Site="cross-site"), 403),
    "its own page": (request(vector(), Origin="http://localhost"), 200),
    "no such index": (request(vector(), "/indexes/none/search"), 404),
    "a name that is no text": (request(vector(), "/indexes/%ff/search"), 404),
    "another address": (request(vector(), "/items/search"), 404),
    "a question mark": (request(vector(), "/search?x=1"), 200),
    "another method": (request(vector(), method="PUT"), 405),
    "an old version": (request(vector(), version="1.0"), 200),
    "a last request": (request(vector(), Connection="close"), 200),
    "a form": (request(vector(), Content_Type="multipart/form-data; boundary=x"), 400),
    "chunks": (
        request(b"", Content_Length=None, Transfer_Encoding="chunked")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(json.dumps(vector())), json.dumps(vector()).encode()),
        200,
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_plain_goes_the_usual_way(running, what):
    data, wanted = OTHERS[what]
    ((status, _, told),), direct = running.ask(data)
    assert (status, direct) == (wanted, 0) and ("hits" in told) == (wanted == 200)


def test_a_body_that_comes_later_is_waited_for_by_a_task(running):
    data = request(vector())
    ((status, _, told),), direct = running.ask(data[:-900], data[-900:-20], data[-20:])
    assert status == 200 and len(told["hits"]) == 10 and direct == 0


def test_a_body_that_never_comes_is_given_up(running):
    ((status, _, told),), direct = running.ask(request(vector())[:-5])
    assert (status, told["error"]["code"], direct) == (503, "timeout", 0)
