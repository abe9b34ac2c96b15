"""A model that needs no weights, and pictures that need no disk space."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.data.pictures import load_pixels
from hivlp.levels import Embeddings, Level
from hivlp.store import database
from hivlp.store.folder import Store, reading

SIZE = 16


class FakeEncoder:
    """Deterministic: pictures by a fixed random projection of their pixels, texts by their words."""

    def __init__(self, name: str = "fake", dims: Sequence[int] = (16, 64), seed: int = 0) -> None:
        self.name = name
        names = ("coarse", "fine")[-len(dims) :] if len(dims) <= 2 else [f"level{n}" for n in range(len(dims))]
        self.levels = tuple(Level(name, dim, n, n) for n, (name, dim) in enumerate(zip(names, dims, strict=True), 1))
        self.picture = PictureConfig(size=SIZE)
        self.fingerprint = hashlib.sha256(f"{name} {dims} {seed}".encode()).hexdigest()
        rng = np.random.default_rng(seed)
        self._maps = {level.name: rng.normal(size=(SIZE * SIZE * 3, level.dim)) for level in self.levels}
        self.encoded = 0

    def encode_pixels(self, pixels):
        self.encoded += len(pixels)
        flat = pixels.reshape(len(pixels), -1) / 255.0 - 0.5
        return self._unit({name: flat @ matrix for name, matrix in self._maps.items()})

    def encode_image(self, pictures):
        return self.encode_pixels(np.stack([load_pixels(picture, self.picture) for picture in pictures]))

    def encode_text(self, texts, *, levels=None):
        out = {level.name: np.zeros((len(texts), level.dim)) for level in self.levels}
        for row, text in enumerate(texts):
            for word in text.split():
                seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4])
                for level in self.levels:
                    out[level.name][row] += np.random.default_rng(seed).normal(size=level.dim)
        return self._unit(out)

    @staticmethod
    def _unit(vectors):
        return Embeddings(
            {n: (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)).astype(np.float32)
             for n, v in vectors.items()}
        )  # fmt: skip


class Stored:
    """What a folder's last commit says: the methods of a reader, each asked of a store that is opened for it."""

    def __init__(self, index) -> None:
        self.path = Path(getattr(index, "path", index))

    def __getattr__(self, name):
        def ask(*given, **more):
            with reading(self.path) as reader:
                found = getattr(reader, name)
                found = found(*given, **more) if callable(found) else found
                return list(found) if isinstance(found, Iterator) else found

        return ask

    def changing(self):
        return closing_after(Store(self.path), "changing")

    def sql(self, *statements: str):
        """Change ``items.db`` behind the library's back; the rows of the last statement."""
        with closing(sqlite3.connect(self.path / "items.db", isolation_level=None)) as db:
            return [db.execute(statement).fetchall() for statement in statements][-1]


PLAIN = database.connect


@contextmanager
def tuned_connections(*statements: str):
    """Every connection to an ``items.db`` that is opened meanwhile begins with these."""

    def connect(file):
        db = PLAIN(file)
        for statement in statements:
            db.execute(statement)
        return db

    database.connect = connect
    try:
        yield
    finally:
        database.connect = PLAIN


@contextmanager
def closing_after(store: Store, what: str):
    with closing(store), getattr(store, what)() as transaction:
        yield transaction


def write_pictures(folder: Path, count: int, start: int = 0) -> list[Path]:
    """Small pictures, each of its own content."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        path = folder / f"{number:05}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    write_pictures(folder, 30)
    return folder
