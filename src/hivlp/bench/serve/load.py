"""A load generator: HTTP/1.1 requests of any number of clients, from one thread of a process of its own.

Requests are bytes before the clock runs, and of an answer no more is read than its status and length, so that a service
waits for it as little as can be; :func:`run_load` says what it takes itself.
"""

from __future__ import annotations

import gc
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from hivlp.errors import HivlpError

BLOCK = 1 << 16
TICK = 0.005
"""Seconds between rounds of an open loop in which several requests are due."""
PATIENCE = 60.0
"""Seconds that an answer may take beyond the end of the load."""
BODYLESS = 204, 304


@dataclass(frozen=True)
class Load:
    """What became of the requests that were sent, in the order of their answers.

    Attributes:
        began: (n,) seconds of the load at which each was due.
        took: (n,) seconds from then to the last byte of its answer.
        status: (n,) of HTTP; 0 for a connection that broke.
        request: (n,) which of the requests it was.
        bodies: request -> its last answer, where answers are kept.
        started: when it began, by :func:`time.time`.
        seconds: that it lasted.
        cpu_seconds: that the generator computed meanwhile.
        unsent: requests that were due and found no client free.
    """

    began: NDArray[np.float64]
    took: NDArray[np.float64]
    status: NDArray[np.int64]
    request: NDArray[np.int64]
    bodies: dict[int, bytes]
    started: float
    seconds: float
    cpu_seconds: float
    unsent: int

    @property
    def good(self) -> NDArray[np.bool_]:
        """(n,) whether a request was answered."""
        return (self.status >= 200) & (self.status < 300)

    @property
    def throughput(self) -> float:
        """Requests answered a second, those left out whose answers came after the load's end."""
        return float((self.good & (self.began + self.took <= self.seconds)).sum()) / self.seconds


class _Asked(msgspec.Struct):
    port: int
    requests: list[bytes]
    clients: int
    seconds: float
    count: int
    rate: float
    keep: bool


class _Said(msgspec.Struct):
    """A :class:`Load`, its arrays as bytes."""

    began: bytes
    took: bytes
    status: bytes
    request: bytes
    bodies: dict[int, bytes]
    started: float
    seconds: float
    cpu_seconds: float
    unsent: int


def request_bytes(path: str, body: bytes, method: str = "POST") -> bytes:
    """A request with a JSON body, for :func:`run_load`."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body


def run_load(
    port: int,
    requests: Sequence[bytes],
    *,
    clients: int = 1,
    seconds: float = 5.0,
    count: int = 0,
    rate: float = 0.0,
    keep: bool = False,
) -> Load:
    """Send requests, over and over in their order, from a process of its own.

    Args:
        port: of the service, on this machine.
        requests: see :func:`request_bytes`.
        clients: connections, each of which sends its next request when it has the answer to its last.
        seconds: for which requests are sent.
        count: of requests, after which the load ends; 0 for as many as there is time for.
        rate: requests a second that are due whether or not earlier ones are answered (an open loop); what a request
            waits for a free client is part of its time. 0 for a closed loop.
        keep: whether the answers are kept.

    Raises:
        HivlpError: if the generator fails.
    """
    asked = msgspec.msgpack.encode(_Asked(port, list(requests), clients, seconds, count, rate, keep))
    done = subprocess.run([sys.executable, "-m", __name__], input=asked, capture_output=True, check=False)
    if done.returncode != 0:
        raise HivlpError(f"the load generator failed: {(done.stderr.decode().strip().splitlines() or ['?'])[-1]}")
    said = msgspec.msgpack.decode(done.stdout, type=_Said)
    return Load(
        np.frombuffer(said.began, np.float64),
        np.frombuffer(said.took, np.float64),
        np.frombuffer(said.status, np.int64),
        np.frombuffer(said.request, np.int64),
        **{name: getattr(said, name) for name in ("bodies", "started", "seconds", "cpu_seconds", "unsent")},
    )


class _Client:
    """One connection, and the request that it waits for."""

    __slots__ = ("due", "have", "number", "request", "socket", "want")

    def __init__(self, number: int) -> None:
        self.number, self.socket = number, None
        self.request, self.due = -1, 0.0
        self.have, self.want = b"", -1

    socket: socket.socket | None


class _Generator:
    """The loop of one load."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._selector = selectors.DefaultSelector()
        self._free = deque(_Client(number) for number in range(asked.clients))
        self._sent = 0
        self._done: list[tuple[float, float, int, int]] = []
        self._bodies: dict[int, bytes] = {}
        for client in self._free:
            self._connect(client)

    def run(self) -> _Said:
        asked = self._asked
        gc.disable()
        started, of_cores, self._zero = time.time(), time.process_time(), time.perf_counter()
        end = self._zero + asked.seconds
        most = asked.count or sys.maxsize
        while (now := time.perf_counter()) < end and self._sent < most:
            wait = end - now
            while self._free and self._sent < most:
                due = self._zero + self._sent / asked.rate if asked.rate else now
                if due > (now := time.perf_counter()):
                    wait = due - now
                    break
                self._send(self._free.popleft(), due if asked.rate else now)
            if asked.rate * TICK > 1:  # else this process would wake for each request, at the expense of the service
                time.sleep(max(0.0, min(TICK, end - now)))
                wait = 0.0
            self._receive(wait)
        seconds = time.perf_counter() - self._zero
        if asked.count:  # a load of so many requests lasts until they are answered
            self._drain()
            seconds = time.perf_counter() - self._zero
        cpu = time.process_time() - of_cores
        unsent = max(0, int(seconds * asked.rate) - self._sent)
        self._drain()
        began, took, status, request = zip(*self._done, strict=True) if self._done else ((), (), (), ())
        return _Said(
            np.array(began, np.float64).tobytes(),
            np.array(took, np.float64).tobytes(),
            np.array(status, np.int64).tobytes(),
            np.array(request, np.int64).tobytes(),
            self._bodies,
            started,
            seconds,
            cpu,
            unsent,
        )

    def _drain(self) -> None:
        """Wait for the answers that are still to come."""
        until = time.perf_counter() + PATIENCE
        while len(self._free) < self._asked.clients and time.perf_counter() < until:
            self._receive(0.1)

    def _connect(self, client: _Client) -> None:
        client.socket = socket.create_connection(("127.0.0.1", self._asked.port), timeout=PATIENCE)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(client.socket, selectors.EVENT_READ, client)

    def _close(self, client: _Client) -> None:
        if client.socket is not None:
            self._selector.unregister(client.socket)
            client.socket.close()
            client.socket = None

    def _send(self, client: _Client, due: float) -> None:
        client.request, client.due, client.have, client.want = self._sent % len(self._asked.requests), due, b"", -1
        self._sent += 1
        try:
            if client.socket is None:
                self._connect(client)
            assert client.socket is not None
            client.socket.sendall(self._asked.requests[client.request])
        except OSError:
            self._finish(client, 0)

    def _receive(self, wait: float) -> None:
        for key, _ in self._selector.select(wait):
            client: _Client = key.data
            assert client.socket is not None
            try:
                data = client.socket.recv(BLOCK)
            except OSError:
                data = b""
            if client.request < 0:  # an idle connection that the service closes
                self._close(client)
                continue
            if not data:
                self._close(client)
                self._finish(client, 0)
                continue
            client.have = client.have + data if client.have else data
            self._read(client)

    def _read(self, client: _Client) -> None:
        have = client.have
        if client.want < 0:
            end = have.find(b"\r\n\r\n")
            if end < 0:
                return
            head = have[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if place < 0 and int(head[9:12]) not in BODYLESS:
                raise ValueError(f"an answer without a length: {head.decode('latin-1')}")
            client.want = end + 4 + length
        if len(have) < client.want:
            return
        if self._asked.keep:
            self._bodies[client.request] = have[have.find(b"\r\n\r\n") + 4 :]
        status = int(have[9:12])
        if b"connection: close" in have[: have.find(b"\r\n\r\n")].lower():
            self._close(client)
        self._finish(client, status)

    def _finish(self, client: _Client, status: int) -> None:
        now = time.perf_counter()
        self._done.append((client.due - self._zero, now - client.due, status, client.request))
        client.request = -1
        self._free.append(client)


if __name__ == "__main__":
    generator = _Generator(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Asked))
    sys.stdout.buffer.write(msgspec.msgpack.encode(generator.run()))
