"""The index folder: adding, changing, removing, refusing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from hivlp.errors import HivlpError, IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.index.adding import pictures as adding_module
from hivlp.store import vectors as vectors_module
from synthetic import FakeEncoder, Stored, tuned_connections, write_pictures


def age(*paths: Path) -> None:
    """Give files an old time stamp, so that the racy rule does not apply. (The change time stays new.)"""
    for path in paths:
        os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.fixture
def index(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x.hivlp", model=encoder) as index:
        index.add(pictures)
        yield index


def paths(index: Index) -> list[str]:
    return [item.path for item in Stored(index).all_items()]


def check_consistent(index: Index, encoder: FakeEncoder) -> None:
    """Every stored vector is the one that its picture gives."""
    for item in Stored(index).all_items():
        expected = encoder.encode_image([Path(item.path)])
        for level in index.levels:
            stored = index.store.embeddings(item.row)[level.name]
            np.testing.assert_allclose(stored, expected[level.name], rtol=1e-3, atol=1e-6)  # float16


def test_add_then_again_then_changed(index, encoder, pictures, tmp_path):
    assert len(index) == 30
    check_consistent(index, encoder)
    before = encoder.encoded
    again = index.add(pictures)
    assert (again.added, again.updated, again.skipped, again.failed) == (0, 0, 30, [])
    assert encoder.encoded == before, "nothing was encoded again"
    shutil.copyfile(write_pictures(tmp_path / "other", 1, start=900)[0], pictures / "00007.png")
    write_pictures(pictures, 2, start=100)
    report = index.add(pictures)
    assert (report.added, report.updated, report.skipped, report.items) == (2, 1, 29, 32)
    check_consistent(index, encoder)
    assert index.info().dead == 1


def test_same_size_change_within_the_clocks_tick_is_seen(index, pictures):
    """The racy case: content changes, size and times do not."""
    path = pictures / "00003.png"
    item = Stored(index).at(str(path))
    data = bytearray(path.read_bytes())
    status = path.stat()
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = index.add(pictures)
    # Flipping a CRC bit breaks the PNG: it is noticed and reported, and the item as it was is kept.
    assert len(report.failed) + report.updated == 1
    assert Stored(index).at(str(path)).id == item.id


def test_the_quick_check_skips_reading(tmp_path, encoder, monkeypatch):
    folder = tmp_path / "p"
    age(*write_pictures(folder, 5))
    monkeypatch.setattr(adding_module, "RACY_NS", -(10**18))
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(folder)
        monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
        assert index.add(folder).skipped == 5


def test_content_known_from_another_path_is_not_encoded_again(index, encoder, pictures, tmp_path):
    copies = tmp_path / "copies"
    shutil.copytree(pictures, copies)
    before = encoder.encoded
    report = index.add(copies)
    assert report.added == 30 and encoder.encoded == before and len(index) == 60
    check_consistent(index, encoder)


def test_broken_pictures_are_reported_and_the_rest_is_stored(tmp_path, encoder):
    folder = tmp_path / "mixed"
    good = write_pictures(folder, 3)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes(good[0].read_bytes()[:60])
    with Index.create(tmp_path / "x", model=encoder) as index:
        report = index.add(folder)
        assert report.added == 3 and len(index) == 3
        assert {Path(failure.path).name for failure in report.failed} == {"empty.png", "text.jpg", "cut.png"}
        assert all("\n" not in failure.error and failure.error for failure in report.failed)
        json.dumps(report.to_json())


ODD = ["with space.png", "émoji 🦊.png", "new\nline.png", "quote'\".png", "--dash.png", "%41.png"]


def test_odd_file_names_come_back_as_they_are(tmp_path, encoder):
    folder = tmp_path / "odd"
    source = write_pictures(tmp_path / "source", len(ODD) + 1)
    folder.mkdir()
    for name, path in zip(ODD, source, strict=False):
        shutil.copyfile(path, folder / name)
    raw = os.fsencode(folder) + b"/\xff\xfe.png"  # no valid UTF-8
    shutil.copyfile(os.fsencode(source[-1]), raw)
    with Index.create(tmp_path / "x", model=encoder) as index:
        assert index.add(folder).added == len(ODD) + 1
        assert {os.fsencode(path) for path in paths(index)} == {os.fsencode(folder / name) for name in ODD} | {raw}
        assert index.add(folder).skipped == len(ODD) + 1
        result = index.search(image=Path(os.fsdecode(raw)), k=1)
        assert os.fsencode(result[0].path) == raw
        str(result)
        assert index.remove([os.fsdecode(raw)]) == 1


def test_captions_come_from_text_files_or_the_caller(tmp_path, encoder):
    folder = tmp_path / "p"
    first, second, third = write_pictures(folder, 3)
    first.with_suffix(".txt").write_text("a fox\nand more", encoding="utf-8")
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(folder, captions={str(second): "a crow"})
        assert [Stored(index).at(str(path)).caption for path in (first, second, third)] == ["a fox", "a crow", None]


def test_overlapping_roots_give_each_picture_once(tmp_path, encoder, pictures):
    write_pictures(pictures / "inner", 4, start=200)
    with Index.create(tmp_path / "x", model=encoder) as index:
        report = index.add(pictures / "inner", pictures, pictures / "inner" / "00200.png")
        assert (report.added, report.updated, report.skipped, len(index)) == (34, 0, 0, 34)


def test_progress_is_told_only_of_what_is_stored(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(adding_module, "COMMIT_ITEMS", 7)
    write_pictures(tmp_path / "p", 40)
    seen = []
    with Index.create(tmp_path / "x", model=encoder) as index, Index.open(tmp_path / "x") as reader:
        index.add(tmp_path / "p", on_progress=lambda report: seen.append((report.added, len(reader))))
    assert len(seen) > 3
    assert all(told == stored for told, stored in seen)
    assert seen[-1] == (40, 40)


def test_remove_by_id_path_and_folder(index, encoder, pictures):
    write_pictures(pictures / "sub", 3, start=300)
    index.add(pictures)
    first = Stored(index).at(str(pictures / "00000.png"))
    assert index.remove([first.id, pictures / "00001.png"]) == 2
    assert index.remove([str(pictures / "sub")]) == 3
    assert len(index) == 28
    with pytest.raises(QueryError, match="no item 99999"):
        index.remove([Stored(index).at(str(pictures / "00002.png")).id, 99999])
    assert len(index) == 28, "nothing is removed when one is unknown"
    found = {hit.id for hit in index.search("anything", k=100)}
    assert len(found) == 28 and first.id not in found
    assert index.add(pictures).added == 5
    assert Stored(index).at(str(pictures / "00000.png")).id != first.id, "ids are not used twice"


def test_compact_changes_nothing_but_the_size(index, encoder, pictures):
    index.remove(sorted(pictures.iterdir())[:20:2])
    before = index.search("some words", k=50)
    size = index.info().bytes
    with Index.open(index.path, encoder) as reader:
        reader.search("some words", k=5)
        steps = []
        assert index.compact(lambda *step: steps.append(step)) == 10
        assert steps == [(20, 40), (40, 40)]
        assert [hit.id for hit in reader.search("some words", k=50)] == [hit.id for hit in before]
    after = index.search("some words", k=50)
    assert [(hit.id, hit.scores) for hit in after] == [(hit.id, hit.scores) for hit in before]
    assert index.info().dead == 0 and index.info().bytes < size
    assert index.compact() == 0
    check_consistent(index, encoder)
    assert index.add(pictures).added == 10


def test_merge_adds_what_is_not_there(index, encoder, pictures, tmp_path):
    write_pictures(tmp_path / "more", 5, start=400)
    with Index.create(tmp_path / "y", model=encoder) as other:
        other.add(tmp_path / "more", pictures / "00000.png")
    steps = []
    assert index.merge(tmp_path / "y", lambda *step: steps.append(step)) == 5
    assert steps == [(6, 6)]
    assert len(index) == 35
    check_consistent(index, encoder)
    assert index.merge(tmp_path / "y") == 0
    with pytest.raises(IndexFolderError, match="the same index"):
        index.merge(index.path)
    with Index.create(tmp_path / "z", model=FakeEncoder("stranger", seed=1)):
        pass
    with pytest.raises(IndexFolderError, match="stranger"):
        index.merge(tmp_path / "z")


def test_another_model_is_refused_in_a_sentence(index):
    with pytest.raises(IndexFolderError, match="made with model fake, not other"):
        Index.open(index.path, FakeEncoder("other", seed=1))
    with pytest.raises(IndexFolderError, match="other weights"):
        Index.open(index.path, FakeEncoder(seed=1))
    with pytest.raises(IndexFolderError, match="fake"):
        Index.open(index.path, FakeEncoder(dims=(8, 64)))


def test_folders_that_are_no_index_are_refused(tmp_path, encoder, pictures):
    with pytest.raises(IndexFolderError, match="not an index"):
        Index.open(tmp_path / "nosuch")
    with pytest.raises(IndexFolderError, match="is not an index"):
        Index.create(pictures, model=encoder)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(IndexFolderError, match="is not an index"):
        Index.create(file, model=encoder)
    (tmp_path / "empty").mkdir()
    with Index.create(tmp_path / "empty", model=encoder):
        pass
    with pytest.raises(IndexFolderError, match="already an index"):
        Index.create(tmp_path / "empty", model=encoder)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left behind"


def test_damage_is_named(index, encoder, pictures):
    index.close()
    vectors = sorted(index.path.glob("fine.*.f16"))[0]
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-100])
    with (
        Index.open(index.path, encoder) as damaged,
        pytest.raises(IndexFolderError, match=r"fine\.0\.f16 holds 29 of 30"),
    ):
        damaged.search("x")
    with Index.open(index.path, encoder) as damaged, pytest.raises(IndexFolderError, match="damaged"):
        damaged.add(pictures)
    vectors.unlink()
    with Index.open(index.path, encoder) as damaged, pytest.raises(IndexFolderError, match="missing"):
        damaged.info()
    vectors.write_bytes(whole + b"rows that were never committed" * 50)
    with Index.open(index.path, encoder) as healed:
        assert len(healed.search("x", k=99)) == 30
    (index.path / "items.db").write_bytes(b"this is no database, whatever it is called" * 100)
    with pytest.raises(IndexFolderError, match="damaged"):
        Index.open(index.path)


def test_a_failing_disk_leaves_the_index_as_it_was(index, encoder, pictures, monkeypatch):
    write_pictures(pictures, 5, start=500)
    before = [(hit.id, hit.scores) for hit in index.search("words", k=99)]

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("pwrite", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(vectors_module.os, name, full)
            with pytest.raises(IndexFolderError, match="no space left"):
                index.add(pictures)
        assert [(hit.id, hit.scores) for hit in index.search("words", k=99)] == before
    assert index.add(pictures).added == 5
    check_consistent(index, encoder)


@pytest.mark.slow
def test_a_full_database_leaves_the_index_as_it_was(index, encoder, pictures):
    write_pictures(pictures, 300, start=1000)
    ((pages,),) = Stored(index).sql("PRAGMA page_count")
    with tuned_connections(f"PRAGMA max_page_count={pages + 2}"), Index.open(index.path, encoder) as full:
        with pytest.raises(IndexFolderError, match="full"):
            full.add(pictures)
        assert len(full.search("words", k=999)) == len(full) == 30
    assert index.add(pictures).added == 300
    check_consistent(index, encoder)


def test_a_second_writer_is_refused_and_readers_go_on(index, encoder, pictures):
    with FileLock(index.path / "lock"):
        with pytest.raises(IndexFolderError, match="another process"):
            Index.open(index.path, encoder).add(pictures)
        assert len(index.search("x")) == 10


@pytest.mark.slow
def test_readers_see_whole_commits_while_another_process_writes(tmp_path, encoder, monkeypatch):
    write_pictures(tmp_path / "p", 200)
    script = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path; from synthetic import FakeEncoder; from hivlp.index import Index\n"
        "from hivlp.index.adding import pictures as adding\n"
        "adding.COMMIT_ITEMS = 10\n"
        "with Index.open(sys.argv[1], FakeEncoder()) as index: print(index.add(Path(sys.argv[2])).added)\n"
    )
    Index.create(tmp_path / "x", model=encoder).close()
    source = str(Path(__file__).parent.parent / "src")
    command = [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "x"),
        str(tmp_path / "p"),
        str(Path(__file__).parent),
        source,
    ]
    sizes = []
    with Index.open(tmp_path / "x", encoder) as reader:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            while writer.poll() is None:
                result = reader.search("words", k=1000)
                sizes.append(len(result))
                assert all(np.isfinite(hit.scores["fine"]) for hit in result)
            assert writer.stdout.read().strip() == "200"
        sizes.append(len(reader.search("words", k=1000)))
    assert sizes == sorted(sizes) and sizes[-1] == 200


def test_an_index_on_a_read_only_medium_can_be_searched(index, encoder):
    """Root may write anywhere, so read-only is played by a database that refuses to."""
    index.close()
    with tuned_connections("PRAGMA query_only=ON"), Index.open(index.path, encoder) as reader:
        assert len(reader.search("words")) == 10
        with pytest.raises(IndexFolderError, match="cannot be written"):
            reader.remove([1])
    assert sorted(file.name for file in index.path.iterdir()) == ["coarse.0.f16", "fine.0.f16", "items.db", "lock"]


def test_the_catalog_survives_other_threads_connections(index, encoder):
    results = []

    def search():
        with Index.open(index.path, encoder) as mine:
            results.append(len(mine.search("words", k=99)))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [30] * 4


def test_an_older_or_newer_format_is_refused(index):
    index.close()
    with sqlite3.connect(index.path / "items.db") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    db.close()
    with pytest.raises(HivlpError, match="format 99"):
        Index.open(index.path)
