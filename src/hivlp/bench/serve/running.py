"""A service that runs in a process of its own, and how much memory it and its children have."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hivlp.errors import HivlpError

START_SECONDS = 120.0


@dataclass(frozen=True)
class Running:
    """A service that answers.

    Attributes:
        port: of it, on the loopback.
        process: its own.
    """

    port: int
    process: subprocess.Popen[bytes]

    def memory(self) -> int:
        """Resident bytes that are no file's, of it and of its children (Linux; 0 elsewhere)."""
        return sum(_anonymous(pid) for pid in _family(self.process.pid))

    def cpu_seconds(self, *, children: bool = True) -> float:
        """Seconds that it, and its children where they count, have computed, in hundredths (Linux; 0 elsewhere)."""
        return sum(_computed(pid) for pid in _family(self.process.pid)[: None if children else 1])

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running(command: Sequence[str], port: int, request: bytes, environment: Mapping[str, str]) -> Iterator[Running]:
    """A service, from when it answers a request until the block is left.

    Args:
        command: that starts it.
        port: on which it listens.
        request: that it answers with a status of 200 once it is ready.
        environment: variables beside those of this process.

    Raises:
        HivlpError: if it ends before, with the last that it said; or does not answer in time.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        try:
            until = time.perf_counter() + START_SECONDS
            while not _answers(port, request):
                if process.poll() is not None:
                    raise HivlpError(_last_line(said) or f"it ended with {process.returncode}")
                if time.perf_counter() > until:
                    raise HivlpError(f"no answer within {START_SECONDS:g} s")
                time.sleep(0.05)
            yield Running(port, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            process.kill()
            process.wait()


def free_port() -> int:
    """One on which nobody listens."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


def _answers(port: int, request: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as place:
            place.sendall(request)
            return place.recv(1 << 16)[9:12] == b"200"
    except OSError:
        return False


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _family(pid: int) -> list[int]:
    """A process and those that it started, and so on."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                found += _family(int(child))
    return found


def _computed(pid: int) -> float:
    with suppress(OSError):
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _anonymous(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0
