"""Connections over real sockets on which clients begin and do not end: none is held for ever, nor takes much memory."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.server import ServerState

from hivlp.index import Index
from hivlp.serve.app import create_app
from hivlp.serve.bounded import SPARE
from hivlp.serve.connection import http_protocol
from hivlp.serve.settings import Settings
from serving import answers, free_port, until
from synthetic import FakeEncoder, index_pictures

SECONDS = 0.3
"""That the service waits for a head, and for an answer to be read."""
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("connections")
    index_pictures(folder, 2)
    app = create_app(
        {"index": Index.open(folder / "index", FakeEncoder())},
        Settings(seconds=SECONDS, threads=1, decoders=1, token="secret"),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=free_port(), http=http_protocol(), log_level="critical", ws="none", limit_concurrency=20,
            timeout_keep_alive=SECONDS,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: answers(server.config.port))
    yield server
    server.should_exit = True
    thread.join()


@pytest.fixture
def connect(server):
    open_ones = []

    def connect(small=False):
        made = socket.socket()
        if small:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(10)
        made.connect(("127.0.0.1", server.config.port))
        open_ones.append(made)
        return made

    yield connect
    for each in open_ones:
        each.close()
    until(lambda: not server.server_state.connections)


def ended(server):
    until(lambda: not server.server_state.connections, 10)


def dribble(connection, data, seconds=10):
    """Send a byte every now and then until the other side has had enough."""
    end = time.monotonic() + seconds
    for place in range(100_000):
        assert time.monotonic() < end, "it is taken for ever"
        try:
            connection.sendall(data[place % len(data)].to_bytes(1, "big"))
        except OSError:
            return
        time.sleep(0.02)


def test_who_says_nothing_is_not_waited_for(server, connect):
    assert connect().recv(1) == b""


@pytest.mark.parametrize(
    "begun", [b"GET /", GET % b"/healthz" + b"GET /", b"POST /x HTTP/1.1\r\nHost: localhost\r\nx: "]
)
def test_a_head_that_comes_by_the_byte_is_not_waited_for(server, connect, begun):
    connection = connect()
    connection.sendall(begun)
    dribble(connection, b"a")
    ended(server)


def test_a_body_that_comes_by_the_byte_behind_its_answer_is_not_waited_for(server, connect):
    connection = connect()
    connection.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n{")
    assert connection.recv(12) == b"HTTP/1.1 401"
    dribble(connection, b" ")
    ended(server)


@pytest.mark.parametrize("head", [b"GET /", GET[:-2] % b"/" + b"x: ", b"POST / HTTP/1.1\r\nHost: x\r\n"
                                  b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx: "])  # fmt: skip
def test_a_head_has_an_end(server, connect, head):
    connection, sent = connect(), 0
    connection.sendall(head)
    try:
        while sent < 64 << 20:
            connection.sendall(b"a" * (1 << 18))
            sent += 1 << 18
    except OSError:
        pass
    assert sent < 32 << 20
    ended(server)


@pytest.mark.parametrize("last", [b"", b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"])
def test_an_answer_that_nobody_reads_is_given_up(server, connect, last):
    connection = connect(small=True)
    connection.sendall(GET % b"/static/js/app.js" * 400 + last)
    until(lambda: server.server_state.connections, 10)
    ended(server)


def test_what_comes_behind_a_body_is_no_header(connect):
    connection = connect()
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head + b"2\r\n{}\r\n0\r\nAuthorization: Bearer secret\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 401"


def test_connections_beyond_those_that_may_be_open_are_closed_at_once():
    class Transport(asyncio.Transport):
        aborted = False

        def get_extra_info(self, name, default=None):
            return default

        def abort(self):
            self.aborted = True

    async def open_many():
        state = ServerState()
        config = uvicorn.Config(lambda *_: None, limit_concurrency=20, ws="none", log_level="critical")
        for _ in range(20 + SPARE + 5):
            connection = http_protocol()(config, state, {"service": SimpleNamespace()})
            connection.connection_made(Transport())
        return sum(connection.transport.aborted for connection in state.connections)

    assert asyncio.run(open_many()) == 5
