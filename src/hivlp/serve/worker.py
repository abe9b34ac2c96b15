"""A process that changes one index: it adds pictures and vectors, removes items, and runs jobs.

It reads commands from standard input, a line of JSON each, and writes what becomes of them to standard output, a line
of JSON each. Short commands that come while a job runs are carried out between two of the job's commits. The end of its
input ends it at once, which an index survives: its server has died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from hivlp.data.vectors.given import given_vectors
from hivlp.errors import DataError, HivlpError
from hivlp.index import AddReport, Index, watch
from hivlp.serve.uploads import uploads_of
from hivlp.serve.vectors import numbers

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A job was told to stop."""


class Worker:
    """What carries out commands on an index, one after another."""

    def __init__(self, path: Path, answers: IO[bytes]) -> None:
        """Open the index."""
        self._index = Index.open(path)
        self._answers = answers
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stop: set[str] = set()
        self._writing = threading.Lock()

    def read(self, source: IO[bytes]) -> None:
        """Take in commands until the server has gone; for a thread of its own."""
        for line in source:
            command = json.loads(line)
            if command["do"] == "stop":
                self._stop.add(command["id"])
            else:
                self._commands.put(command)
        os._exit(0)

    def run(self) -> None:
        """Carry out commands for ever."""
        while True:
            self._carry_out(self._commands.get())

    def _carry_out(self, command: dict[str, Any]) -> None:
        try:
            result = self._do(command)
        except Stopped:
            result = {"stopped": True}
        except HivlpError as error:
            result = {"error": str(error)}
        except OSError as error:
            result = {"error": f"the index cannot be written: {error.strerror}"}
        except Exception as error:
            sys.excepthook(*sys.exc_info())
            result = {"error": f"something is wrong with the service: {type(error).__name__}"}
        self._say({"id": command["id"], "result": result})

    def _do(self, command: dict[str, Any]) -> dict[str, Any]:
        index = self._index
        match command["do"]:
            case "remove":
                return {"removed": self._remove(command["ids"]), "items": len(index)}
            case "watch":
                return self._watch(command)
            case "vectors":
                return self._add_vectors(command["vectors"])
            case "add":
                report = index.add(
                    command["paths"], captions=command.get("captions"), metadata=command.get("metadata"), workers=1
                )
                found = {path: index.get(path) for path in command["paths"]}
                return {**report.to_json(), "ids": {path: item.id for path, item in found.items() if item is not None}}
        return self._job(command)

    def _job(self, command: dict[str, Any]) -> dict[str, Any]:
        number = command["id"]

        def follow(report: AddReport) -> None:
            self._say({"id": number, "done": report.seen, "items": len(self._index)})
            if number in self._stop:
                raise Stopped
            with contextlib.suppress(queue.Empty):
                while True:
                    other = self._commands.get_nowait()
                    if other["do"] == "job":  # jobs come one after another
                        self._commands.put(other)
                        break
                    self._carry_out(other)

        if number in self._stop:  # told so before it began
            raise Stopped
        report = self._index.add(command["paths"], prune=command.get("prune", False), on_progress=follow)
        return report.to_json()

    def _add_vectors(self, vectors: list[Mapping[str, Any]]) -> dict[str, Any]:
        given = [numbers(each["vector"]) for each in vectors]
        if len({len(vector) for vector in given}) != 1:
            raise DataError("the vectors are not of the same length")
        source = given_vectors(
            np.stack(given),
            ids=[each["path"] for each in vectors],
            captions=[each["caption"] for each in vectors],
            metadata=[each["metadata"] for each in vectors],
        )
        return self._index.add_embeddings(source).to_json()

    def _remove(self, ids: list[int]) -> int:
        """Remove items, and with them the files of those that were uploaded; says how many items there were."""
        index, uploads = self._index, uploads_of(self._index.path)
        paths = [Path(item.path) for each in ids if (item := index.get(each)) is not None]
        removed = index.remove(ids)
        for path in paths:
            # A stranger's index may have a link there, or a path with "..": what lies elsewhere was not uploaded.
            uploaded = path.parent.parent == uploads and os.path.realpath(path) == os.fspath(path)
            if uploaded and index.get(os.fspath(path)) is None:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                    path.parent.rmdir()
        return removed

    def _watch(self, command: dict[str, Any]) -> dict[str, Any]:
        """Keep the index in step with folders, in a thread of its own, for as long as this process lives."""

        def follow() -> None:
            folders = [Path(folder) for folder in command["paths"]]
            watch(self._index, folders, on_error=lambda message: logger.warning("%s; trying again", message))

        threading.Thread(target=follow, daemon=True).start()
        return {}

    def _say(self, message: Mapping[str, Any]) -> None:
        with self._writing:
            self._answers.write(json.dumps(message).encode() + b"\n")
            self._answers.flush()


def main() -> None:
    """Open the index of the first argument, and obey."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        worker = Worker(Path(sys.argv[1]), answers)
    except HivlpError as error:
        answers.write(json.dumps({"id": None, "result": {"error": str(error)}}).encode() + b"\n")
        answers.flush()
        sys.exit(1)
    threading.Thread(target=worker.read, args=(sys.stdin.buffer,), daemon=True).start()
    worker.run()


if __name__ == "__main__":
    main()
