"""The one who changes an index for a service: a process of its own, started anew when it dies."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from hivlp.errors import IndexFolderError, QueryError
from hivlp.serve.errors import RequestError
from hivlp.serve.replies import encoded_json

logger = logging.getLogger(__name__)
LINE_BYTES = 64 << 20
"""Of an answer: a report of many failures is long."""
RETRY_SECONDS = 1.0
REVIVE_SECONDS = 10.0
"""Seconds after which a process that watches folders is started anew when it has died."""
TRIES = 20
"""Times that a change is tried while another process writes the index."""


class WriterDied(RequestError):
    """The writing process has died of what it was given; what it had committed is kept."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.INTERNAL_SERVER_ERROR, "writer_died", "the process that writes the index has died")


class WriterRestarted(WriterDied):
    """The writing process was ended to open another folder; what it was doing is to be done there."""


class _Asked(NamedTuple):
    """A command that a process has been given: its answer, and who follows its progress."""

    answer: asyncio.Future[dict[str, Any]]
    follow: Callable[[dict[str, Any]], None] | None


class Writer:
    """A process that changes one index, for any number of requests at once."""

    def __init__(self, path: Path, watched: Sequence[Path] = ()) -> None:
        """It is started when it is first needed.

        Args:
            path: of the index.
            watched: folders that it keeps the index in step with.
        """
        self._path, self._watched = path, watched
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[str, _Asked] = {}  # of the process that runs
        self._starting = asyncio.Lock()
        self._closing = self._restarting = False

    async def change(self, do: str, **details: Any) -> dict[str, Any]:
        """What a short change results in, as ``hivlp index --json`` and its kin print it.

        Raises:
            QueryError: if it makes no sense.
            IndexFolderError: if another process goes on writing.
            WriterDied: if the process dies of it.
        """
        for _ in range(TRIES):
            try:
                result = await self.run(uuid.uuid4().hex, do, details)
            except WriterRestarted:
                result = {"error": "another index is being put into the place of this one"}
                continue
            if "is being written" not in result.get("error", ""):
                break
            await asyncio.sleep(RETRY_SECONDS)
        if error := result.get("error"):
            raise (IndexFolderError if "is being written" in error else QueryError)(error)
        return result

    async def run(
        self, number: str, do: str, details: dict[str, Any], follow: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """The result of a command; ``follow`` is told of its progress.

        Raises:
            WriterDied: if the process dies meanwhile.
        """
        await self.start()
        asked, command = self._asked, _Asked(asyncio.get_running_loop().create_future(), follow)
        asked[number] = command
        try:
            self._write({"id": number, "do": do, **details})
            return await command.answer
        finally:
            del asked[number]

    async def stop(self, number: str) -> None:
        """Have a job stop at its next commit."""
        if number in self._asked:
            self._write({"id": number, "do": "stop"})

    async def start(self) -> None:
        """Start it, if it does not run."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hivlp.serve.worker", os.fspath(self._path),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
            )  # fmt: skip
            self._asked = {}
            self._reading = asyncio.create_task(self._read(self._process, self._asked))
            if self._watched:
                self._write({"id": "watch", "do": "watch", "paths": [os.fspath(folder) for folder in self._watched]})

    async def close(self) -> None:
        """End it; a job goes on from its last commit when the service is started again."""
        self._closing = True
        process, reading = self._process, self._reading
        if process is None or reading is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await reading

    async def restart(self) -> None:
        """End it and let it open the folder anew, as after another index was put into its place."""
        self._restarting = True
        await self.close()
        self._closing = self._restarting = False
        if self._watched:
            await self.start()

    def _write(self, command: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError, RuntimeError):  # it is ending: those who wait are told when it has
            self._process.stdin.write(encoded_json(command) + b"\n")

    async def _read(self, process: asyncio.subprocess.Process, asked: dict[str, _Asked]) -> None:
        """Take in what a process says that was asked so much, until it ends."""
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                _take(json.loads(line), asked)
        except ValueError as error:  # a line that is too long, or no JSON
            logger.error("the process that writes %s is ended: %s", self._path, error)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            for each in asked.values():
                if not each.answer.done():
                    each.answer.set_exception(WriterRestarted() if self._restarting else WriterDied())
            if self._watched and not self._closing:  # nobody else would ask for it
                asyncio.get_running_loop().call_later(REVIVE_SECONDS, self._revive)

    def _revive(self) -> None:
        if not self._closing:
            self._reviving = asyncio.create_task(self.start())


def _take(message: dict[str, Any], asked: dict[str, _Asked]) -> None:
    """Give what a process says to those who wait for it."""
    if "result" not in message:
        each = asked.get(message["id"])
        if each is not None and each.follow is not None:
            each.follow(message)
        return
    # Without a number it is why the index cannot be opened: all that wait are told.
    numbers = [message["id"]] if message["id"] is not None else list(asked)
    for number in numbers:
        each = asked.get(number)
        if each is not None and not each.answer.done():
            each.answer.set_result(message["result"])
