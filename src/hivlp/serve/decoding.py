"""Decoding in other processes, which may die of what they are given without harm to the service."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hivlp.config import PictureConfig
from hivlp.errors import PictureError

SECONDS = 20.0
"""What one picture may take."""


class Decoders:
    """A few decoding processes, started when they are first needed, for any number of threads."""

    def __init__(self, count: int) -> None:
        """None runs yet."""
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)
        self._closed = False

    def pixels(self, data: bytes, config: PictureConfig) -> NDArray[np.uint8]:
        """A picture prepared as a model's input; see :func:`hivlp.data.pictures.load_pixels`.

        Raises:
            PictureError: if it cannot be decoded.
        """
        answer, made = self._ask({"picture": asdict(config)}, data)
        return np.frombuffer(made, np.uint8).reshape(answer["shape"])

    def thumbnail(self, picture: bytes | Path, side: int) -> bytes:
        """A WebP image of at most ``side`` pixels a side.

        Raises:
            PictureError: if the picture cannot be decoded.
        """
        if isinstance(picture, Path):
            return self._ask({"side": side, "path": os.fspath(picture)}, b"")[1]
        return self._ask({"side": side}, picture)[1]

    def close(self) -> None:
        """End the processes that are free; the others end when they are done."""
        self._closed = True
        while True:
            try:
                process = self._free.get_nowait()
            except queue.Empty:
                return
            if process is not None:
                process.end()

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        with self._process() as process:
            answer, made = process.ask(request, data)
        if "error" in answer:
            raise PictureError(answer["error"])
        return answer, made

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._free.get()
        try:
            if process is not None and not process.alive:
                process.end()
                process = None
            process = process or _Process()
            yield process
        except BaseException:
            if process is not None and not process.idle:
                process.end()
                process = None
            raise
        finally:
            if self._closed and process is not None:
                process.end()
            self._free.put(process)


class _Process:
    """One decoding process.

    Attributes:
        idle: whether it waits for a request, having answered all before.
    """

    def __init__(self) -> None:
        self.idle = True
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hivlp.serve.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """What it makes of a picture.

        Raises:
            PictureError: if it dies of it, or takes too long.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        late = threading.Timer(SECONDS, self._child.kill)
        late.daemon = True
        late.start()
        self.idle = False
        try:
            _write(self._child.stdin, json.dumps({**request, "bytes": len(data)}).encode() + b"\n", data)
            line = self._child.stdout.readline()
            if not line:
                raise EOFError
            answer = json.loads(line)
            made = self._child.stdout.read(answer["bytes"])
            if len(made) < answer["bytes"]:
                raise EOFError
        except (OSError, EOFError) as error:
            took_long = late.finished.is_set()
            raise PictureError("took too long to decode" if took_long else "could not be decoded") from error
        finally:
            late.cancel()
        self.idle = True
        return answer, made

    def end(self) -> None:
        """Kill it, and let go of its pipes."""
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what it was to read has nobody to read it
                    continue
        self._child.wait()


def _write(sink: IO[bytes], *parts: bytes) -> None:
    for part in parts:
        sink.write(part)
    sink.flush()
