"""The map of a collection: what is alike lies together, whatever its size, and ids go with their positions."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from hivlp.coarse import NoCoarseLevel
from hivlp.index import Index
from hivlp.serve import projection
from hivlp.serve.map import Maps, drawn
from hivlp.serve.projection import project


def clusters(count: int, groups: int = 6, dim: int = 32, noise: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    labels = np.arange(count) % groups
    vectors = random.normal(size=(groups, dim))[labels] + noise * random.normal(size=(count, dim)) * np.sqrt(2)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def kept_neighbours(positions: np.ndarray, labels: np.ndarray) -> float:
    """Share of positions whose nearest other one is of their group."""
    apart = ((positions[:, None] - positions[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    return float((labels[apart.argmin(axis=1)] == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("landmarks", [150, 3000], ids=["most lie among landmarks", "all are landmarks"])
def test_what_is_alike_lies_together(monkeypatch, landmarks):
    monkeypatch.setattr(projection, "LANDMARKS", landmarks)
    vectors, labels = clusters(600)
    positions = project(vectors.__getitem__, len(vectors))
    assert positions.shape == (600, 2) and positions.dtype == np.float32
    assert np.isfinite(positions).all() and np.abs(positions).max() <= 1
    assert kept_neighbours(positions, labels) > 0.95
    assert np.ptp(positions, axis=0).min() > 0.5, "it fills the square"
    assert np.array_equal(positions, project(vectors.__getitem__, len(vectors))), "the same each time"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_vectors_have_positions_too(count):
    vectors = clusters(5)[0][:count]
    assert np.isfinite(project(vectors.__getitem__, count)).all()


def test_equal_vectors_have_positions():
    vectors = np.tile(clusters(1)[0], (40, 1))
    assert np.isfinite(project(vectors.__getitem__, 40)).all()


def test_ids_go_with_their_positions_and_removed_items_have_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))
    vectors, _ = clusters(60)
    np.save(tmp_path / "vectors.npy", vectors)
    with Index.create_from_embeddings(tmp_path / "i.hivlp", NoCoarseLevel(32)) as index:
        index.add_embeddings(tmp_path / "vectors.npy")
        index.remove([3, 4])
        maps = Maps()
        deadline = time.monotonic() + 60
        while (made := maps.of(index)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert made == drawn(index) == Maps().of(index), "kept for the next service"
        end = made.index(b"\n") + 1
        assert json.loads(made[:end]) == {"count": 58, "dtype": "float32"}
        ids = np.frombuffer(made[end + 58 * 8 :], "<i8")
        assert sorted(ids) == [number for number in range(1, 61) if number not in (3, 4)]
        index.remove(5)
        assert Maps().of(index) is None, "another commit has another map"
