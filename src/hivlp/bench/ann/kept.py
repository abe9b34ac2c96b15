"""What was measured before, so that hours of work go on where they stopped."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import time
from pathlib import Path
from typing import Any


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
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(engine)
        scratch = path.with_suffix(f".{os.getpid()}")
        result = {**measured, "measured": time.strftime("%Y-%m-%d")}
        scratch.write_text(json.dumps({"key": self._key(engine), "result": result}))
        scratch.replace(path)

    def _path(self, engine: str) -> Path:
        return self._folder / f"{engine.rpartition(':')[2]}.json"

    def _key(self, engine: str) -> str:
        module, _, name = engine.partition(":")
        # The class may only be imported there.
        home = getattr(importlib.import_module(module), name).__module__
        source = inspect.getsource(importlib.import_module(home))
        return hashlib.sha256(json.dumps([source, self._about], sort_keys=True, default=str).encode()).hexdigest()
