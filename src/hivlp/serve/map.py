"""Map of a collection: each item's position in two dimensions, worked out once a commit and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from hivlp.files.digests import cache_folder
from hivlp.files.scratch import write_whole
from hivlp.index import Index
from hivlp.serve.projection import project

log = logging.getLogger(__name__)


class Maps:
    """Maps of any number of indexes, for any number of threads; each is made in a thread of its own."""

    def __init__(self) -> None:
        """No map is under way."""
        self._folder = cache_folder() / "maps"
        self._lock = threading.Lock()
        self._making: set[str] = set()  # indexes, one map of each at a time: commits may come faster than maps are made
        self._failed: dict[Path, Exception] = {}

    def of(self, index: Index) -> bytes | None:
        """The map of an index's last commit as ``GET /map`` sends it, or None while it is made.

        A line of JSON, ``{"count": n, "dtype": "float32"}``, then (n, 2) float32 positions in [-1, 1] and (n,)
        int64 ids, little-endian.

        Raises:
            Exception: that making it failed with; the next call tries again.
        """
        whose = hashlib.sha256(os.fsencode(os.path.realpath(index.path))).hexdigest()[:24]
        place = self._folder / f"{whose}-{hashlib.sha256(index.store.changes()).hexdigest()[:24]}.map"
        with suppress(OSError):
            return place.read_bytes()
        with self._lock:
            if error := self._failed.pop(place, None):
                raise error
            if whose not in self._making:
                self._making.add(whose)
                threading.Thread(target=self._make, args=(index, place, whose), name="map", daemon=True).start()
        return None

    def _make(self, index: Index, place: Path, whose: str) -> None:
        try:
            made = drawn(index)
            write_whole(place, lambda path: path.write_bytes(made))
            for old in self._folder.glob(f"{whose}-*.map"):
                if old != place:
                    old.unlink(missing_ok=True)
        except Exception as error:
            log.warning("the map of %s could not be made: %s", index.path, error)
            with self._lock:
                self._failed[place] = error
        finally:
            with self._lock:
                self._making.remove(whose)


def drawn(index: Index) -> bytes:
    """The map of an index's last commit: positions by the finest level, of those that have it."""
    with index.store.reading() as reader:
        live = reader.live()
        live = live[~reader.are_pending(live[:, 0])]
        finest, stored = reader.files()[-1], reader.vectors()[-1]
        positions = project(lambda numbers: finest.codec.decode(stored[live[numbers, 0]]), len(live))
    head = json.dumps({"count": len(live), "dtype": "float32"}).encode() + b"\n"
    return head + positions.astype("<f4").tobytes() + live[:, 1].astype("<i8").tobytes()
