"""What was measured before, so that hours of work go on where they stopped."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hivlp.errors import HivlpError
from hivlp.files.scratch import hold, write_whole


class Kept:
    """A folder with a file for each engine, good only on the machine and for the code that it was measured with."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Remember in a folder.

        Args:
            folder: is made when something is kept.
            about: all that a figure depends on beside the engine's own code: machine, versions.
        """
        self._folder, self._about = folder, about

    def read(self, engine: str) -> dict[str, Any] | None:
        """What :meth:`write` kept of ``module:Class``, with ``measured``, the day; None if there is nothing fit."""
        try:
            kept = json.loads(self._path(engine).read_text())
        except (OSError, ValueError):
            return None
        return kept["result"] if isinstance(kept, dict) and kept.get("key") == self._key(engine) else None

    def write(self, engine: str, measured: dict[str, Any]) -> None:
        """Keep what was measured of ``module:Class``, unless it failed."""
        if measured["status"] not in ("ok", "timeout"):
            return
        result = {**measured, "measured": time.strftime("%Y-%m-%d")}
        text = json.dumps({"key": self._key(engine), "result": result})
        write_whole(self._path(engine), lambda scratch: scratch.write_text(text))

    def _path(self, engine: str) -> Path:
        return self._folder / f"{engine.rpartition(':')[2]}.json"

    def _key(self, engine: str) -> str:
        module, _, name = engine.partition(":")
        about = [code_of(getattr(importlib.import_module(module), name)), self._about]
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def workplace(folder: Path, command: str) -> Iterator[None]:
    """A folder to build in, one run at a time; it goes when all is done, and stays for the next run where that fails.

    Raises:
        HivlpError: if another run of this command has it.
    """
    with hold(folder) as alone:
        if not alone:
            raise HivlpError(f"another `{command}` is under way (it builds in {folder})")
        yield
        shutil.rmtree(folder, ignore_errors=True)


def code_of(engine: type) -> str:
    """The code that an engine runs: its module without the classes that it has nothing of."""
    module = importlib.import_module(engine.__module__)  # of which it may only be a name elsewhere
    code = inspect.getsource(module)
    for _, other in inspect.getmembers(module, inspect.isclass):
        if other.__module__ == module.__name__ and other not in engine.__mro__:
            code = code.replace(inspect.getsource(other), "")
    return code
