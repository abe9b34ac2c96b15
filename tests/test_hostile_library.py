"""Files, names, clocks and disks that a photo library should not have, and has: nothing stops, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import pytest

from hivlp.errors import ArgumentError, IndexFolderError
from hivlp.index import Index, find
from hivlp.index.watching import watch
from synthetic import FakeEncoder, write_pictures

NAMES = (
    "a\nb.png", "\u202egnp.exe.png", "-rf.png", "x" * 250 + ".png", os.fsdecode(b"\xff\xfe.png"), " .png", "a'b\"c.png",
    "%s.png", "é.png", "e\u0301.png", "\x7f\x1b[31m.png", "*?[.png", "\\.png", "~.png", "\u2028.png", "\ufeff.png",
)  # fmt: skip
SECOND = 10**9
LATEST = (1 << 63) - 1


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("relative", [False, True])
def test_any_name_is_found_moved_and_pruned(tmp_path, relative):
    library = tmp_path / "library"
    library.mkdir()
    for number, name in enumerate(NAMES):
        write_pictures(tmp_path / "new", 1, start=number)[0].rename(library / name)
    with Index.create(tmp_path / "x", model=FakeEncoder(), relative=relative) as index:
        assert index.add(library).added == len(NAMES) == len(index.search("x", k=50))
        assert index.add(library, prune=True).skipped == len(NAMES)
        assert all(index.get(library / name) is not None for name in NAMES)
        moved = library.rename(tmp_path / os.fsdecode(b"moved\n\xff"))
        assert index.relocate(library, moved) == (len(NAMES), 0)
        assert index.add(moved).skipped == len(NAMES) and index.verify().ok
        shutil.rmtree(moved)
        write_pictures(moved, 1, start=99)
        assert index.add(moved, prune=True).pruned == len(NAMES)


def test_what_is_no_picture_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    library = tmp_path / "library"
    write_pictures(library, 2)
    wrong = {
        "zero.png": b"",
        "huge.png": png((1 << 31) - 1, (1 << 31) - 1),
        "none.png": png(0, 0),
        "wide.png": b"\x89PNG",
    }
    for name, data in wrong.items():
        (library / name).write_bytes(data)
    os.mkfifo(library / "pipe.png")
    monkeypatch.chdir(library)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("sock.png")
    for name, target in (("loop.png", "loop.png"), ("gone.png", "nowhere"), ("zeros.png", "/dev/zero"), ("loop", ".")):
        (library / name).symlink_to(target)
    for name in ("00000.txt", "00000.xmp", "dir.png"):
        (library / name).mkdir()
    for name in ("00001.txt", "00001.xmp"):
        os.mkfifo(library / name)
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        report = index.add(library, prune=True)
        assert report.added == 2 and index.verify().ok
        named = {Path(failure.path).name for failure in report.failed}
        assert named == {*wrong, "pipe.png", "sock.png", "loop.png", "gone.png", "zeros.png"}
        assert all("\n" not in failure.error for failure in report.failed)


def test_what_replaced_a_picture_hides_its_item_until_a_picture_is_there_again(tmp_path, encoder, monkeypatch):
    library, outside = tmp_path / "library", tmp_path / "outside.png"
    paths = write_pictures(library, 9)
    (written,) = write_pictures(tmp_path / "other", 1, start=50)
    written.rename(outside)
    kept = {path: path.read_bytes() for path in paths}
    with Index.create(tmp_path / "index", model=encoder) as index:
        index.add(library)
        before = {item.path: item.id for item in index}
        for path in paths[:6]:
            path.unlink()
        paths[0].write_bytes(b"")
        paths[1].write_bytes(kept[paths[1]][:200])
        paths[2].write_text("no picture")
        paths[3].symlink_to("nowhere.png")
        paths[4].symlink_to(outside)
        os.mkfifo(paths[5])
        monkeypatch.chdir(tmp_path)
        for prune in (False, True, False):
            report = index.add("library", prune=prune)
            assert (report.missing, report.pruned) == (6, 0)
            assert {failure.path for failure in report.failed} == {str(path) for path in paths[:6]}
            assert {hit.path for hit in index.search("x")} == {str(path) for path in paths[6:]}
            assert len(index.search("x", missing=True)) == 9
        encoded = encoder.encoded
        for path in paths[:6]:
            path.unlink()
            path.write_bytes(kept[path])
        assert index.add(library).missing == 0 and encoder.encoded == encoded
        assert {hit.path: hit.id for hit in index.search("x")} == before


@pytest.mark.parametrize("now", [0, 2**32 * SECOND, LATEST + 5], ids=["1970", "2106", "2262"])
def test_clocks_that_are_wrong_cost_reading_again_and_no_item(tmp_path, monkeypatch, now):
    library = tmp_path / "library"
    files = write_pictures(library, 5)
    for path, at in zip(files, (0, -SECOND, 2**32 * SECOND, LATEST, LATEST + SECOND), strict=True):
        try:
            os.utime(path, ns=(at, at))
        except OSError:  # a file system that has no such time
            os.utime(path, ns=(SECOND, SECOND))
    encoder = FakeEncoder()
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(library)
        monkeypatch.setattr(time, "time_ns", lambda: now)
        for _ in range(2):
            report = index.add(library, prune=True)
            assert (report.skipped, report.failed, report.items) == (5, [], 5)
        write_pictures(library, 1, start=3000)[0].replace(files[0])
        assert index.add(library).updated == 1 and encoder.encoded == 6 and index.verify().ok


def test_a_folder_that_is_renamed_or_removed_while_it_is_read_is_found_at_the_next_walk(tmp_path):
    library, encoder, encode = tmp_path / "library", FakeEncoder(), FakeEncoder.encode_pixels
    write_pictures(library / "a", 20)
    write_pictures(library / "b", 20, start=100)

    def meddling(pixels):
        if (library / "b").exists():
            (library / "b").rename(library / "z")
            shutil.rmtree(library / "a")
        return encode(encoder, pixels)

    encoder.encode_pixels = meddling
    with Index.create(tmp_path / "x", model=encoder) as index:
        first = index.add(library, workers=1)
        assert first.added + len(first.failed) <= 40
        report = index.add(library, prune=True)
        assert {item.path for item in index.items()} == {str(path) for path in (library / "z").iterdir()}
        assert not report.failed and report.missing == 0 and index.verify().ok


def test_paths_that_are_none_are_refused_and_odd_ones_mean_what_they_say(tmp_path):
    library = tmp_path / "library"
    write_pictures(library / "a", 3)
    write_pictures(library / "b", 3, start=50)
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        index.add(library)
        for old in ("", "x\0"):
            with pytest.raises(ArgumentError, match="is not a path"):
                index.relocate(old, "/x")
        assert index.relocate(library, library) == (6, 0) == index.relocate("/", "/")
        assert index.relocate(f"{library}/a/", f"{library}/b/") == (3, 0)
        assert index.relocate(library / "b", library / "b" / "b") == (6, 0)
        assert index.relocate("/", "/mnt") == (6, 0) == index.relocate("/mnt", "/")
        assert index.relocate(library / "b" / "b", library / "b") == (6, 0) and index.verify().ok


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["the index", "the pictures"])
def test_what_may_not_be_touched_is_said_and_nothing_is_lost(tmp_path, closed):
    library = tmp_path / "library"
    write_pictures(library / "a", 3)
    write_pictures(library / "b", 2, start=9)
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        index.add(library)
    if closed == "the pictures":
        for place in (tmp_path, *tmp_path.rglob("*")):
            os.chown(place, 65534, 65534)
        (library / "a").chmod(0)
        (library / "b" / "00009.png").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o005)

    def work() -> None:
        with Index.open(tmp_path / "x", FakeEncoder()) as index:
            if closed == "the index":
                assert len(index.search("x")) == 5
                for change in (lambda: index.add(library, prune=True), lambda: index.relocate(library, "/x")):
                    with pytest.raises(IndexFolderError, match="cannot be written: permission denied"):
                        change()
                return
            report = index.add(library, prune=True)
            assert (report.pruned, report.missing, len(index), len(report.failed)) == (0, 0, 5, 2)
            assert len(find(index, "x").result) == 2

    assert as_nobody(work) == 0


def as_nobody(work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_watching_goes_on_while_folders_become_files_and_links(tmp_path):
    library = tmp_path / "library"
    write_pictures(library, 3)
    reports, errors, stop = [], [], threading.Event()
    inner = library / "inner"

    def meddle(report) -> None:
        reports.append((report.added, report.pruned, len(report.failed)))
        match len(reports):
            case 1:
                write_pictures(inner, 2, start=60)
            case 2:
                shutil.rmtree(inner)
                inner.write_text("a file now")
            case 3:
                inner.unlink()
                inner.symlink_to("inner")
            case _:
                stop.set()

    with Index.create(library / "x", model=FakeEncoder()) as index:
        watch(index, [library], every=0.01, prune=True, stop=stop, on_report=meddle, on_error=errors.append)
        assert reports == [(3, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 0)] and errors == [] and len(index) == 3
