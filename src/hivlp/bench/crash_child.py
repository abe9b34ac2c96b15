"""The victim of ``hivlp bench crash``: a process that changes an index at random and says what it did.

Each operation is printed before it begins, and again when the library has returned; what the second line confirms must
survive whatever comes next. Faults are injected by wrapping the calls through which vectors reach the disk.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.config import PictureConfig
from hivlp.encode.base import Picture
from hivlp.errors import IndexFolderError
from hivlp.index import Index
from hivlp.levels import Embeddings, Level
from hivlp.store.records import NewItem, Stamp

TOO_LARGE = "file too large"
FAULTS = ("short write", "disk full", "fsync fails", "ftruncate fails", TOO_LARGE, "killed inside")
"""What can be injected; the last is a SIGKILL between, or in the middle of, the calls of one operation."""

MOST_ITEMS = 60
Operation = dict[str, Any]


class NumberEncoder:
    """A model without weights: a picture is a number, and its vectors are exact and the same on every machine."""

    name = "numbers"
    fingerprint = "0" * 64
    levels = (Level("coarse", 8, 1, 1), Level("fine", 24, 2, 2))
    picture = PictureConfig(size=4)

    def vectors(self, contents: Sequence[int]) -> Embeddings:
        """Unit vectors of pictures given as numbers."""
        pixels = [np.random.default_rng(content).integers(0, 256, (4, 4, 3), np.uint8) for content in contents]
        return self.encode_pixels(np.array(pixels, np.uint8).reshape(len(contents), 4, 4, 3))

    def encode_pixels(self, pixels: NDArray[np.uint8], *, levels: Sequence[str] | None = None) -> Embeddings:
        """Unit vectors of (N, 4, 4, 3) pictures, through whole numbers, so that no rounding depends on N."""
        flat = pixels.reshape(len(pixels), 48).astype(np.int64) - 128
        vectors = {}
        for level in (level for level in self.levels if levels is None or level.name in levels):
            product = flat @ np.random.default_rng(level.dim).integers(-9, 10, (48, level.dim))
            lengths = np.sqrt((product**2).sum(axis=1, keepdims=True).astype(np.float64))
            vectors[level.name] = (product / lengths).astype(np.float32)
        return Embeddings(vectors)

    def encode_image(self, pictures: Sequence[Picture]) -> Embeddings:
        """Not needed here."""
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str], *, levels: Sequence[str] | None = None) -> Embeddings:
        """Not needed here."""
        raise NotImplementedError


def store(index: Index, contents: dict[str, int]) -> None:
    """Append pictures, given as path -> number."""
    items = [NewItem(path, n.to_bytes(32), f"number {n}", {"n": n}, Stamp(1, 2, 3, 4)) for path, n in contents.items()]
    index.store.append(items, NumberEncoder().vectors(list(contents.values())))


def choose(rng: random.Random, index: Index) -> Operation:
    """What to do next, in full, so that another process can tell what must have come of it."""
    known = [item.path for item in index.items()]
    kind = rng.choices(["add", "update", "remove", "compact", "merge"], [4, 3, 3, 1, 1])[0]
    if len(known) > MOST_ITEMS:
        kind = "remove"
    fresh = {f"/p/{rng.getrandbits(40):010x}.png": rng.getrandbits(32) for _ in range(rng.randrange(1, 12))}
    again = {path: rng.getrandbits(32) for path in rng.sample(known, min(len(known), rng.randrange(1, 8)))}
    match kind:
        case "add" | "merge":
            return {"op": kind, "items": {**fresh, **(again if kind == "merge" else {})}}
        case "update" if again:
            return {"op": "update", "items": again}
        case "remove" if known:
            most = min(len(known), 30 if len(known) > MOST_ITEMS else 8)
            return {"op": "remove", "paths": rng.sample(known, rng.randrange(1, most + 1))}
        case _:
            return {"op": "compact"}


def outcome(before: dict[str, int], operation: Operation) -> dict[str, int]:
    """What an index that held path -> number holds after an operation."""
    match operation["op"]:
        case "add" | "update":
            return {**before, **operation["items"]}
        case "merge":
            return {**operation["items"], **before}
        case "remove":
            return {path: content for path, content in before.items() if path not in set(operation["paths"])}
        case _:
            return before


def main(place: Path, seed: int, fault: str) -> None:
    """Change the index at ``place`` until somebody puts an end to it, or its parent has met its own."""
    rng, parent = random.Random(seed), os.getppid()
    with Index.open(place, NumberEncoder()) as index:
        _say({"ready": True})
        if fault and fault != TOO_LARGE:
            _inject(fault, rng)
        full_at = rng.randrange(1, 5) if fault == TOO_LARGE else 0
        while os.getppid() == parent:
            operation = choose(rng, index)
            other = place.parent / "other"
            if operation["op"] == "merge":
                shutil.rmtree(other, ignore_errors=True)
                try:
                    with Index.create(other, model=NumberEncoder()) as source:
                        store(source, operation["items"])
                except IndexFolderError:  # the fault has struck here
                    continue
            _say({"begin": operation})
            full_at -= 1
            if full_at == 0:
                _fill_disk(rng, place)
            try:
                match operation["op"]:
                    case "add" | "update":
                        store(index, operation["items"])
                    case "remove":
                        index.remove(operation["paths"])
                    case "compact":
                        index.compact()
                    case "merge":
                        index.merge(other)
            except IndexFolderError as error:
                _free_disk()
                if full_at == 0:
                    _say({"fault": fault})
                _say({"refused": str(error)})
            else:
                _free_disk()
                _say({"done": True})


def _say(line: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")


def _inject(fault: str, rng: random.Random) -> None:
    """Make one of the coming calls fail, once."""
    names = {
        "fsync fails": ["fsync"],
        "ftruncate fails": ["ftruncate"],
        "killed inside": ["pwrite", "fsync", "ftruncate"],
    }
    countdown = rng.randrange(1, 12)

    def wrap(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*arguments: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown != 0:
                return real(*arguments)
            if fault in ("ftruncate fails", "fsync fails"):
                _say({"fault": fault})
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if name == "pwrite":
                handle, data, offset = arguments
                part = max(1, rng.randrange(0, len(data)))
                written = real(handle, data[:part], offset)
                if fault == "short write":
                    _say({"fault": fault})
                    return written
            if fault == "killed inside":
                _say({"fault": fault})
                os.kill(os.getpid(), signal.SIGKILL)
            _say({"fault": fault})
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        setattr(os, name, call)

    for name in names.get(fault, ["pwrite"]):
        wrap(name)


def _fill_disk(rng: random.Random, place: Path) -> None:
    """A limit to the size of files stands for a full disk, and reaches SQLite's own calls too."""
    size = rng.choice([file.stat().st_size for file in place.iterdir() if file.is_file()])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + rng.randrange(2048), resource.RLIM_INFINITY))


def _free_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
