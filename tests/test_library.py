"""An index that keeps up with a photo library: moved, renamed, deleted and re-added files, and a library that moves."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from hivlp.errors import DataError, IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.index import watching as watching_module
from hivlp.index.adding import pictures as adding_module
from hivlp.index.adding.gone import is_gone
from hivlp.index.watching import watch
from synthetic import Stored, write_pictures


@pytest.fixture
def library(tmp_path):
    write_pictures(tmp_path / "library" / "a", 6)
    write_pictures(tmp_path / "library" / "b", 6, start=100)
    return tmp_path / "library"


@pytest.fixture
def index(tmp_path, encoder, library):
    with Index.create(tmp_path / "x.hivlp", model=encoder) as index:
        index.add(library)
        yield index


def state(index: Index) -> dict[str, tuple[bytes, dict]]:
    """What the index says of each path: content, metadata, and the fine vector's bytes."""
    return {
        item.path: (item.hash, item.caption, item.metadata, index.vectors(item.id).fine.tobytes())
        for item in index.items()
        if not item.missing
    }


def fresh(index: Index, *roots: Path) -> dict[str, tuple[bytes, dict]]:
    """What an index that is made now would say."""
    place = index.path.with_name("fresh.hivlp")
    shutil.rmtree(place, ignore_errors=True)
    with Index.create(place, model=index.model) as other:
        other.add(*roots)
        return state(other)


def shown(index: Index, **options) -> set[str]:
    return {Path(hit.path).name for hit in index.search("x", k=100, **options)}


def test_a_renamed_file_and_a_moved_folder_keep_their_items_without_encoding(index, encoder, library):
    before = {item.hash: item.id for item in index.items()}
    (library / "a" / "00000.png").rename(library / "a" / "renamed.png")
    (library / "b").rename(library / "c")
    encoded = encoder.encoded
    report = index.add(library)
    assert (report.added, report.updated, report.moved, report.skipped, report.missing) == (0, 0, 7, 5, 0)
    assert encoder.encoded == encoded
    assert {item.hash: item.id for item in index.items()} == before
    assert state(index) == fresh(index, library)
    assert index.verify().ok and index.info().dead == 0


def test_what_was_told_of_a_file_moves_with_it(index, library):
    first, second = library / "a" / "00000.png", library / "a" / "00001.png"
    index.add(first, captions={str(first): "a fox"}, metadata={str(first): {"album": "x"}})
    first.rename(library / "fox.png")
    second.rename(library / "new.png")
    (library / "new.txt").write_text("a crow")
    report = index.add(library)
    assert (report.moved, report.added, report.updated) == (2, 0, 0)
    fox, crow = index.get(library / "fox.png"), index.get(library / "new.png")
    assert (fox.caption, fox.metadata["album"], crow.caption) == ("a fox", "x", "a crow")


def test_missing_files_are_marked_hidden_from_searches_and_come_back(index, encoder, library, tmp_path):
    away = tmp_path / "away"
    (library / "a").rename(away)
    report = index.add(library)
    assert (report.missing, report.pruned, report.items) == (6, 0, 12)
    assert index.info().missing == 6
    assert len(shown(index)) == 6 and shown(index) == shown(index, where="id > 0")
    assert shown(index, missing=True) == {Path(item.path).name for item in index.items()}
    assert [len(result) for result in index.search_many(["x", "y"], k=100)] == [6, 6]
    again = index.add(library)
    assert (again.missing, again.skipped) == (6, 6)
    away.rename(library / "a")
    encoded = encoder.encoded
    back = index.add(library)
    assert (back.missing, back.added, back.skipped) == (0, 0, 12) and encoder.encoded == encoded
    assert len(shown(index)) == 12 and index.info().missing == 0


def test_pruning_removes_what_is_gone_and_what_is_excluded_now(index, library):
    (library / "a" / "00000.png").unlink()
    report = index.add(library, prune=True, exclude=["b/"])
    assert (report.pruned, report.missing, report.items) == (7, 0, 5)
    assert state(index) == {path: value for path, value in fresh(index, library).items() if "/b/" not in path}


def test_a_folder_without_any_picture_is_not_pruned(index, library, tmp_path):
    """The mount point of a disk that is not connected."""
    library.rename(tmp_path / "disk")
    library.mkdir()
    report = index.add(library, prune=True)
    assert (report.pruned, report.missing, report.items) == (0, 12, 12)
    assert "not connected" in report.failed[0].error
    library.rmdir()
    (tmp_path / "disk").rename(library)
    assert index.add(library, prune=True).missing == 0 and len(shown(index)) == 12


def test_a_file_that_a_folder_took_the_name_of_is_gone(index, library):
    (library / "a" / "00000.png").unlink()
    (library / "a" / "00000.png").mkdir()
    assert index.add(library).missing == 1 and len(shown(index)) == 11


def test_only_the_folders_that_are_walked_are_looked_at(index, library):
    (library / "a" / "00000.png").unlink()
    (library / "b" / "00100.png").unlink()
    assert index.add(library / "b").missing == 1
    assert index.add(library / "a" / "00001.png").missing == 0
    assert index.add(library / "a", library / "b").missing == 2


def test_a_copy_on_another_disk_is_no_move_while_the_first_disk_is_away(index, library, tmp_path):
    shutil.copytree(library / "a", tmp_path / "backup")
    library.rename(tmp_path / "disconnected")
    report = index.add(tmp_path / "backup")
    assert (report.moved, report.added) == (0, 6)
    (tmp_path / "disconnected").rename(library)
    assert state(index) == fresh(index, library, tmp_path / "backup")


def test_names_that_are_exchanged_or_passed_on_need_no_encoding(index, encoder, library, monkeypatch):
    monkeypatch.setattr(adding_module, "COMMIT_ITEMS", 1)
    folder = library / "a"
    paths = sorted(folder.iterdir())
    for path in reversed(paths):  # each takes the name of the next
        path.rename(folder / f"{int(path.stem) + 1:05}.png")
    first, second = sorted((library / "b").iterdir())[:2]
    first.rename(library / "b" / "tmp.png")
    second.rename(first)
    (library / "b" / "tmp.png").rename(second)
    encoded = encoder.encoded
    report = index.add(library, prune=True)
    assert report.added + report.updated + report.moved == 8 and encoder.encoded == encoded
    assert state(index) == fresh(index, library)


def test_names_that_differ_in_case_alone_are_told_apart_by_the_folder(tmp_path, monkeypatch):
    path = write_pictures(tmp_path, 1)[0]
    other = tmp_path / "other.png"
    os.link(path, other)  # as a system that ignores case sees "A.png" and "a.png": one file by two names
    assert not is_gone(str(path), str(other))
    monkeypatch.setattr(os, "listdir", lambda folder: ["other.png"])
    assert is_gone(str(path), str(other))
    assert is_gone(str(tmp_path / "none.png")) and is_gone(str(path / "below.png"))


def test_a_file_that_may_not_be_looked_at_is_not_gone(index, library, monkeypatch):
    lstat = os.lstat

    def refused(path, **options):
        if "/a/" in str(path):
            raise PermissionError(13, "Permission denied")
        return lstat(path, **options)

    shutil.rmtree(library / "a")
    monkeypatch.setattr(os, "lstat", refused)
    assert index.add(library, prune=True).pruned == 0


def test_a_library_that_moved_as_a_whole_is_relocated_without_reading(index, encoder, library, tmp_path):
    target = tmp_path / "elsewhere" / "photos"
    target.parent.mkdir()
    library.rename(target)
    assert index.relocate(library, target) == (12, 0)
    assert state(index) == fresh(index, target)
    encoded = encoder.encoded
    report = index.add(target)
    assert (report.added, report.moved, report.missing, report.skipped) == (0, 0, 0, 12) and encoder.encoded == encoded
    assert index.verify().ok
    with pytest.raises(QueryError, match="no item in"):
        index.relocate(library, target)


def test_relocation_into_the_folder_itself_and_onto_items_that_are_there(index, library):
    ids = sorted(item.id for item in index.items())
    assert index.relocate(library, library / "inner") == (12, 0)
    assert sorted(item.id for item in index.items()) == ids
    assert index.relocate(library / "inner" / "a", library / "a") == (6, 0)
    assert index.relocate(library / "inner", library) == (6, 0)
    index.relocate(library / "a" / "00000.png", library / "b" / "00100.png")
    assert len(index) == 11 and index.verify().ok


def test_missing_items_stay_hidden_in_an_index_that_takes_them_in(index, encoder, library, tmp_path):
    shutil.rmtree(library / "a")
    index.add(library)
    with Index.create(tmp_path / "other.hivlp", model=encoder) as other:
        other.merge(index.path)
        assert len(other) == 12 and len(shown(other)) == 6


def test_a_failing_disk_leaves_paths_as_they_were(index, library, monkeypatch):
    before = state(index)
    (library / "b").rename(library / "c")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hivlp.store.writer.Writer.finish", fail)
        with pytest.raises(IndexFolderError, match="no space left"):
            index.add(library)
    assert state(index) == before
    assert index.add(library).moved == 6


@pytest.mark.slow
def test_a_library_in_which_everything_happens_ends_equal_to_a_fresh_index(index, encoder, library):
    """Renamed, moved, copied, replaced, deleted and re-added, many times over."""
    rng = np.random.default_rng(0)
    attic, fresh_number = library.parent / "attic", 1000
    attic.mkdir()
    for _ in range(12):
        for _ in range(6):
            files = sorted(path for path in library.rglob("*.png"))
            path = files[rng.integers(len(files))]
            match rng.integers(6):
                case 0:
                    path.rename(path.with_name(f"r{rng.integers(10**9)}.png"))
                case 1:
                    folder = library / f"f{rng.integers(4)}"
                    folder.mkdir(exist_ok=True)
                    path.rename(folder / path.name)
                case 2:
                    shutil.copyfile(path, path.with_name(f"c{rng.integers(10**9)}.png"))
                case 3 if len(files) > 4:
                    path.rename(attic / path.name)
                case 4:
                    for old in sorted(attic.iterdir())[:1]:
                        old.rename(library / old.name)
                case _:
                    fresh_number += 1
                    new = write_pictures(library, 1, start=fresh_number)[0]
                    if rng.integers(2):
                        new.replace(path)
        report = index.add(library, prune=bool(rng.integers(2)))
        assert not report.failed
        assert state(index) == fresh(index, library)
        assert shown(index) == {path.name for path in library.rglob("*.png")}
    assert index.verify().ok


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@contextmanager
def watching(index: Index, *folders: Path, **options):
    reports, errors, stop = [], [], threading.Event()
    arguments = {"on_report": reports.append, "on_error": errors.append, "stop": stop, **options}
    thread = threading.Thread(target=watch, args=(index, folders), kwargs=arguments)
    thread.start()
    try:
        yield reports, errors
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("every", [0.05, None])
def test_watching_keeps_an_index_in_step(index, library, every, monkeypatch):
    if every is None and not watching_module.notified():
        every = 0.04  # watchfiles is an extra: without it, folders are looked at
    monkeypatch.setattr(watching_module, "QUIET_MS", 50)
    with watching(index, library, every=every) as (reports, _):
        wait_for(lambda: reports)
        write_pictures(library, 1, start=500)
        wait_for(lambda: len(shown(index)) == 13)
        (library / "b").rename(library / "c")
        wait_for(lambda: sum(report.moved for report in reports) == 6)
        shutil.rmtree(library / "a")
        wait_for(lambda: len(shown(index)) == 7)
    assert len(index) == 13
    assert index.add(library, prune=True).pruned == 6


def test_watching_waits_for_a_folder_and_a_writer(index, library, tmp_path):
    with watching(index, library, every=0.02) as (reports, errors):
        wait_for(lambda: reports)
        library.rename(tmp_path / "disk")
        time.sleep(0.1)
        with FileLock(index.path / "lock", thread_local=False):
            (tmp_path / "disk").rename(library)
            wait_for(lambda: any("written by another process" in error for error in errors))
        count = len(reports)
        wait_for(lambda: len(reports) > count)
    assert len(shown(index)) == 12
    with pytest.raises(DataError, match="does not exist"):
        watch(index, [library / "none"])


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "another disk"])
def test_a_folder_that_was_named_is_not_pruned_with_what_is_around_it(index, library, tmp_path, left):
    """A disk that is mounted inside the library, named beside it, and not connected."""
    disk = library / "b"
    disk.rename(tmp_path / "disk")
    if left != "nothing":
        disk.mkdir()
    if left == "another disk":
        (disk / "note.txt").write_text("x")
    (library / "a" / "00000.png").unlink()
    report = index.add(library, disk, prune=True)
    assert (report.pruned, report.missing, report.items) == (1, 6, 11)
    assert [failure.path for failure in report.failed] == [str(disk)] and "disk" in report.failed[0].error
    shutil.rmtree(disk, ignore_errors=True)
    (tmp_path / "disk").rename(disk)
    assert index.add(library, disk, prune=True).missing == 0 and len(shown(index)) == 11
    shutil.rmtree(disk)
    assert index.add(library, prune=True).pruned == 6


@contextmanager
def mounted(monkeypatch, *folders: Path):
    """Meanwhile these folders lie on another disk, as far as the system tells."""
    stat = os.stat

    def told(path, **options):
        status = stat(path, **options)
        if not any(os.fspath(path) == str(folder) or os.fspath(path).startswith(f"{folder}/") for folder in folders):
            return status
        fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_") and name[-3:] == "_ns"}
        return os.stat_result([*status[:2], status.st_dev + 1, *status[3:]], fields)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", told)
        yield


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a note"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_disk_that_was_mounted_in_a_folder_is_not_pruned_while_it_is_away(
    library, tmp_path, encoder, monkeypatch, left, relative
):
    """Nobody named it: the walk has seen that it was a disk."""
    disk = library / "b"
    with Index.create(tmp_path / "y.hivlp", model=encoder, relative=relative) as index:
        with mounted(monkeypatch, disk):
            index.add(library)
        disk.rename(tmp_path / "disk")
        if left != "nothing":
            disk.mkdir()
        if left == "a note":
            (disk / "note.txt").write_text("x")
        (library / "a" / "00000.png").unlink()
        for _ in range(2):
            report = index.add(library, prune=True)
            assert (report.missing, report.items) == (6, 11)
            assert [failure.path for failure in report.failed] == [str(disk)] and "disk" in report.failed[0].error
        index.add(library / "a", prune=True)  # which says nothing of the disk
        shutil.rmtree(disk, ignore_errors=True)
        (tmp_path / "disk").rename(disk)
        with mounted(monkeypatch, disk):
            assert index.add(disk).missing == 0
            (disk / "00100.png").unlink()
            assert index.add(library, prune=True).pruned == 1
        disk.rename(tmp_path / "disk")
        assert index.add(library, prune=True).missing == 5
        assert index.remove(disk) == 5
        assert not index.add(library, prune=True).failed


def test_a_disk_whose_pictures_were_copied_into_its_folder_is_a_folder(library, tmp_path, encoder, monkeypatch):
    with Index.create(tmp_path / "y.hivlp", model=encoder) as index:
        with mounted(monkeypatch, library / "b"):
            index.add(library)
        assert index.add(library, prune=True).items == 12
        shutil.rmtree(library / "b")
        assert index.add(library, prune=True).pruned == 6
    with Index.create(tmp_path / "z.hivlp", model=encoder) as index, mounted(monkeypatch, library / "a"):
        index.add(library)
        Stored(index).sql("UPDATE meta SET value = '[7]' WHERE key = 'disks'")  # damaged: it says nothing
        (library / "a" / "00000.png").unlink()
        assert index.add(library, prune=True).pruned == 1


def test_a_folder_that_is_away_is_named_and_the_others_are_read(index, library, tmp_path):
    library.rename(tmp_path / "disk")
    write_pictures(tmp_path / "other", 2, start=300)
    report = index.add(tmp_path / "other", library, prune=True)
    assert (report.added, report.pruned, report.items) == (2, 0, 14)
    assert [failure.path for failure in report.failed] == [str(library)]
    for paths in ([library], [tmp_path / "other", tmp_path / "typo"]):
        with pytest.raises(DataError, match="does not exist"):
            index.add(*paths, prune=True)
    assert len(index) == 14


def test_a_disk_that_goes_during_the_walk_is_not_pruned(index, library, tmp_path, monkeypatch):
    find = adding_module.find_pictures

    def unplugged(*arguments):
        found = list(find(*arguments))
        yield found[0]
        library.rename(tmp_path / "disk")

    monkeypatch.setattr(adding_module, "find_pictures", unplugged)
    report = index.add(library, prune=True)
    assert (report.pruned, report.missing, report.items) == (0, 11, 12)
    assert [failure.path for failure in report.failed] == [str(library)]


def test_watching_spares_and_names_a_folder_that_is_away(index, library, tmp_path):
    disk = library / "b"
    reports, errors, stop = [], [], threading.Event()

    def seen(report):
        reports.append(report)
        if len(reports) == 1:
            disk.rename(tmp_path / "disk")
        elif len(reports) == 2:
            library.rename(tmp_path / "all")

    def told(error):
        errors.append(error)
        stop.set()

    watch(index, [library, disk], prune=True, every=0.01, stop=stop, on_report=seen, on_error=told)
    assert [(report.pruned, len(report.failed)) for report in reports] == [(0, 0), (0, 1)]
    assert len(index) == 12 and str(library) in errors[0] and "disk" in errors[0]
