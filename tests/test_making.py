"""The making of an index that fails leaves no folder, no parents of one, and what was there before."""

from __future__ import annotations

import numpy as np
import pytest

from hivlp.cli import main
from hivlp.errors import ArgumentError, DataError, HivlpError, IndexFolderError
from hivlp.index import Index
from hivlp.levels import Level
from synthetic import FakeEncoder, random_unit, write_pictures

VECTORS = random_unit(np.random.default_rng(0), 40, 16)


def spoilt(row: int, value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[row] = value
    return vectors


def endless(value):
    yield from [value] * 20
    raise RuntimeError("midway")


def raising(*_):
    raise RuntimeError("midway")


def tree(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def twice(*names):
    encoder = FakeEncoder()
    encoder.levels = tuple(Level(name, 16, 1, 1) for name in names)
    return encoder


GIVEN = {
    "a NaN": lambda place: Index.from_vectors(spoilt(30, np.nan), place),
    "no direction": lambda place: Index.from_vectors(spoilt(39, 0), place, fit="none"),
    "no vectors": lambda place: Index.from_vectors(np.zeros((0, 16)), place),
    "ragged": lambda place: Index.from_vectors([[1.0, 0.0], [1.0]], place),
    "ids that end": lambda place: Index.from_vectors(VECTORS, place, ids=map(str, range(39))),
    "ids that raise": lambda place: Index.from_vectors(VECTORS, place, ids=endless("a")),
    "metadata that raise": lambda place: Index.from_vectors(VECTORS, place, metadata=endless({})),
    "a model of another width": lambda place: Index.from_vectors(VECTORS, place, model=FakeEncoder(dims=(8, 24))),
    "no such model": lambda place: Index.from_vectors(VECTORS, place, model="no/such/folder"),
    "no such codec": lambda place: Index.from_vectors(VECTORS, place, vectors="int4"),
    "no such type": lambda place: Index.from_vectors(VECTORS, place, fields={"year": "date"}),
    "queries of another width": lambda place: Index.from_vectors(VECTORS, place, queries=VECTORS[:, :8], dims=4),
    "a progress bar that raises": lambda place: Index.from_vectors(VECTORS, place, on_progress=raising),
    "an empty model": lambda place: Index.create(place, model=""),
    "an unknown model": lambda place: Index.open_or_create(place, model="no/such/folder"),
    "a level twice": lambda place: Index.create(place, model=twice("fine", "fine")),
    "no level": lambda place: Index.open_or_create(place, model=twice()),
}


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "no parents"])
@pytest.mark.parametrize("how", GIVEN)
def test_a_failed_making_leaves_what_was_there(tmp_path, how, before):
    place = tmp_path / "deep" / "down" / "x" if before == "no parents" else tmp_path / "x"
    if before == "an empty folder":
        place.mkdir()
    (tmp_path / "other").mkdir()
    there = tree(tmp_path)
    with pytest.raises((HivlpError, RuntimeError)):
        GIVEN[how](place)
    assert tree(tmp_path) == there


def test_a_temporary_index_that_fails_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(DataError, match="1 of 40 vectors"):
        Index.from_vectors(spoilt(3, np.inf))
    assert tree(tmp_path) == []
    with Index.from_vectors(VECTORS) as index:
        assert len(index) == 40 and tree(tmp_path)
    assert tree(tmp_path) == []


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hivlp.store.vectors.VectorFile.create", full)
    with pytest.raises(IndexFolderError, match="cannot be created: no space left"):
        Index.create(tmp_path / "a" / "x", model=FakeEncoder())
    assert tree(tmp_path) == []


def test_a_folder_that_is_not_new_is_left_alone(tmp_path, capsys):
    with Index.from_vectors(VECTORS, tmp_path / "x") as index:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "letter.txt").write_text("x")
        there = tree(tmp_path)
        for place in ("x", "taken"):
            with pytest.raises(IndexFolderError):
                Index.from_vectors(VECTORS, tmp_path / place)
        with pytest.raises(ArgumentError):
            Index.open_or_create(tmp_path / "x", fields={"year": "date"})
        np.save(tmp_path / "bad.npy", np.full((3, 16), np.nan, np.float32))
        assert main(["index", "--embeddings", str(tmp_path / "bad.npy"), "-o", str(tmp_path / "x")]) == 0
        (tmp_path / "bad.npy").unlink()
        assert [name for name in tree(tmp_path) if "lock" not in name] == [name for name in there if "lock" not in name]
        assert len(index) == 40


@pytest.mark.parametrize("how", ["a model that is none", "no picture that can be read", "bad vectors", "interrupted"])
def test_the_shell_leaves_no_folder_either(tmp_path, capsys, monkeypatch, how):
    write_pictures(tmp_path / "good", 2)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"\xff\xd8\xffno picture")
    np.save(tmp_path / "bad.npy", np.zeros((3, 16), np.float32))
    there, out = tree(tmp_path), str(tmp_path / "new" / "x")
    good, bad, vectors = str(tmp_path / "good"), str(tmp_path / "bad"), str(tmp_path / "bad.npy")
    if how == "interrupted":
        monkeypatch.setattr(
            "hivlp.index.adding.pictures.encode_stream", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
    arguments = {
        "a model that is none": ["index", good, "-o", out, "--model", bad],
        "no picture that can be read": ["index", bad, "-o", out],
        "bad vectors": ["index", "--embeddings", vectors, "-o", out, "--fit", "none"],
        "interrupted": ["index", good, "-o", out],
    }[how]
    assert main(arguments) in (1, 130)
    told = capsys.readouterr()
    assert "hivlp: error: " in told.err and told.err.count("\n") <= 3
    assert tree(tmp_path) == there


def test_what_was_stored_before_a_failure_is_kept(tmp_path, capsys):
    write_pictures(tmp_path / "mixed", 2)
    (tmp_path / "mixed" / "a.jpg").write_bytes(b"\xff\xd8\xffno picture")
    assert main(["index", str(tmp_path / "mixed"), "-o", str(tmp_path / "x")]) == 0
    vectors = spoilt(1, np.nan).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    assert main(["index", "--embeddings", str(tmp_path / "v.npy"), "-o", str(tmp_path / "y"), "--fit", "none"]) == 0
    assert (tmp_path / "x").is_dir() and (tmp_path / "y").is_dir()
    with Index.open(tmp_path / "y") as index:
        assert len(index) == 39
