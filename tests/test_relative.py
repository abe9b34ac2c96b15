"""Paths relative to the index: index and pictures move together, and nothing else is different."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.cli import main
from hivlp.errors import DamagedIndexError, IndexFolderError, QueryError
from hivlp.index import Index, PhotoFilter, find
from hivlp.index.watching import watch
from hivlp.store import schema
from hivlp.store.derived import keep_payloads
from hivlp.store.path_codec import PathCodec
from serving import asked
from synthetic import FakeEncoder, Stored, write_pictures

NAMES = ("a.png", "é.png", os.fsdecode(b"\xff.png"), ".x", "0", "...", " ", "a\nb", "日本", "-", "~")
BASES = ("/", "/m/d/", "/m/é/", os.fsdecode(b"/m/\xff/"))


@st.composite
def paths(draw):
    """Absolute and other paths, most of them in or about the folder of an index, in odd spellings too."""
    parts = draw(st.lists(st.sampled_from((*NAMES, "m", "d", "", ".", "..")), max_size=4))
    return draw(st.sampled_from((*BASES, "", "./", "/m/dd/"))) + "/".join(parts)


@settings(max_examples=300, deadline=None)
@given(path=paths() | st.binary(max_size=9).map(os.fsdecode), base=st.sampled_from((None, *BASES)))
def test_each_path_has_one_spelling_and_each_spelling_is_one_paths(path, base):
    codec = PathCodec(base)
    spelled = codec.encode(path)
    assert codec.decode(spelled) == path == codec.shown(spelled) and codec.encode_all([path]) == [spelled]
    for written in (path, os.fsencode(path)):  # as a spelling that anybody wrote
        try:
            meant = codec.decode(written)
        except ValueError:
            assert base is not None and not path.startswith("/")
            continue
        again = codec.encode(meant)
        inside = base is not None and path.startswith(base)
        assert os.fsdecode(again) == path or inside, "but for an absolute path below the folder"
        assert base is None or not meant.startswith("/") or path.startswith("/") or meant.startswith(base)


@settings(max_examples=150, deadline=None)
@given(
    known=st.lists(paths(), max_size=12, unique=True), folder=paths().filter(bool), base=st.sampled_from((None, *BASES))
)
def test_the_items_of_a_folder_are_found_by_ranges_of_their_spellings(known, folder, base):
    codec = PathCodec(base)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE items (path NOT NULL UNIQUE)")
    db.executemany("INSERT INTO items VALUES (?)", [(codec.encode(path),) for path in known])
    found = [
        codec.decode(spelled)
        for condition, values in codec.ranges(folder)
        for (spelled,) in db.execute(f"SELECT path FROM items WHERE {condition}", values)
    ]
    db.close()
    inside = folder.rstrip("/") + "/"
    assert sorted(found) == sorted(
        path for path in known if path == folder or (path.startswith(inside) and path != inside)
    )


class Life:
    """A disk with an index and its pictures, which one of the two lives moves about between any two steps."""

    def __init__(self, place: Path, *, relative: bool) -> None:
        self.place, self.relative, self.moves = place, relative, 0
        self.disk = place / "disk0"
        write_pictures(self.disk / "photos" / "a", 4)
        write_pictures(self.disk / "photos" / "b", 4, start=100)
        write_pictures(place / "elsewhere", 2, start=200)
        Index.create(self.disk / "x.hivlp", model=FakeEncoder(), relative=relative).close()

    def move(self) -> None:
        if self.relative:
            self.moves += 1
            self.disk = self.disk.rename(self.place / f"disk{self.moves}")

    def told(self, path: str) -> str:
        """A path as both lives have it."""
        return path.replace(str(self.disk), "DISK").replace(str(self.place), "PLACE")

    def state(self) -> dict[str, object]:
        """What each face of the index says of it."""
        with Index.open(self.disk / "x.hivlp", FakeEncoder()) as index:
            items = [
                (item.id, self.told(item.path), item.hash, item.caption, item.metadata, item.missing)
                for item in index.items()
            ]
            folder = str(self.disk / "photos" / "a")
            by_path = f"path LIKE '{self.disk}/photos/%' AND path NOT LIKE '%é%'"
            searches = [
                [(hit.id, self.told(hit.path), hit.scores) for hit in index.search("x", k=50, group=True, **options)]
                for options in ({}, {"where": by_path}, {"where": f"path >= '{self.disk}'"}, {"missing": True})
            ]
            found = find(index, "x", photo_filter=PhotoFilter(folder=folder)).result
            return {
                "items": items,
                "searches": searches,
                "found": [self.told(hit.path) for hit in found],
                "named": [[item.id for item in index.named(name)] for name in (folder, str(self.disk), "/", "photos")],
                "got": [index.get(self.disk / "photos" / "a" / "00001.png") is not None],
                "table": sorted(self.told(path) for path in index.to_arrow()["path"].to_pylist()),
                "verified": (index.verify().ok, index.verify().items),
                "missing": index.info().missing,
            }

    def do(self, step: int, rng: np.random.Generator) -> object:
        photos = self.disk / "photos"
        files = sorted(path for path in photos.rglob("*.png"))
        path = files[rng.integers(len(files))]
        number = int(rng.integers(3))
        with Index.open(self.disk / "x.hivlp", FakeEncoder()) as index:
            match rng.integers(10):
                case 0:
                    path.rename(path.with_name(f"é{step}.png"))
                case 1:
                    (photos / f"f{number}").mkdir(exist_ok=True)
                    path.rename(photos / f"f{number}" / f"{step}.png")
                case 2 if len(files) > 3:
                    path.unlink()
                case 3:
                    write_pictures(photos / "new", 1, start=1000 + step)
                case 4:
                    shutil.copyfile(path, self.place / "elsewhere" / f"copy{step}.png")
                case 5:
                    return index.remove(path) if index.get(path) else None
                case 6:
                    folder = next(iter(sorted(photos.iterdir())))
                    folder.rename(photos / f"moved{step}")
                    known = index.named(str(folder))
                    return index.relocate(folder, photos / f"moved{step}") if known else None
                case 7:
                    keep_payloads(index.store, least=1)
                case 8:
                    return index.compact()
            report = index.add(photos, self.place / "elsewhere", prune=bool(number == 0))
            return {name: value for name, value in report.to_json().items() if isinstance(value, int)}


@pytest.mark.parametrize("seed", range(2))
def test_a_relative_index_that_moves_is_an_absolute_one_that_stays(tmp_path, seed):
    stays, moves = Life(tmp_path / "stays", relative=False), Life(tmp_path / "moves", relative=True)
    for step in range(12):
        done = [life.do(step, np.random.default_rng([seed, step])) for life in (stays, moves)]
        assert done[0] == done[1], step
        moves.move()
        assert stays.state() == moves.state(), step


@pytest.fixture
def disk(tmp_path):
    """A disk that was indexed at another place."""
    write_pictures(tmp_path / "before" / "photos", 6)
    assert main(["index", str(tmp_path / "before/photos"), "-o", str(tmp_path / "before/x.hivlp"), "--relative"]) == 0
    (tmp_path / "other").mkdir()
    return (tmp_path / "before").rename(tmp_path / "other" / "disk")


def test_every_verb_finds_the_pictures_where_the_disk_is_now(disk, capsys, tmp_path):
    index, photos = str(disk / "x.hivlp"), disk / "photos"
    names = {str(path) for path in photos.iterdir()}
    capsys.readouterr()

    def told(*arguments):
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert {hit["path"] for hit in told("search", index, "a stamp")["hits"]} == names
    assert main(["search", index, "a stamp", "--paths"]) == 0 and set(capsys.readouterr().out.split()) == names
    page = tmp_path / "page.html"
    assert main(["search", index, "a stamp", "--page", str(page)]) == 0
    assert page.read_text().count("data:image/webp") == 6 and "cannot be read" not in page.read_text()
    assert len(told("search", index, "--like", photos / "00001.png")["hits"]) == 5
    assert told("info", index)["relative"] and told("info", index, "--verify")["ok"]
    again = told("index", photos, "-o", index)
    assert (again["skipped"], again["added"], again["missing"], again["failed"]) == (6, 0, 0, [])
    (photos / "00000.png").rename(disk / "photos" / "moved.png")
    (photos / "00001.png").unlink()
    pruned = told("index", photos, "-o", index, "--prune")
    assert (pruned["moved"], pruned["pruned"]) == (1, 1)
    assert told("remove", index, photos / "moved.png")["removed"] == 1
    assert told("merge", _merged(tmp_path), index)["added"] == 4
    assert [item.path for item in Stored(tmp_path / "merged").items()] == [
        str(photos / f"{n:05}.png") for n in range(2, 6)
    ]


def _merged(tmp_path: Path) -> Path:
    Index.create(tmp_path / "merged", model="hivlp-mini").close()
    return tmp_path / "merged"


def test_the_service_shows_thumbnails_and_originals_from_where_the_disk_is_now(disk):
    with Index.open(disk / "x.hivlp") as index, asked({"x": index}) as service:
        hits = service.search(query="a stamp").json()["hits"]
        assert len(hits) == 6
        for hit in hits:
            assert service.get(hit["thumbnail"]).status_code == service.get(hit["original"]).status_code == 200


def test_watching_goes_on_where_the_disk_is_now(tmp_path, encoder):
    write_pictures(tmp_path / "a" / "photos", 3)
    with Index.create(tmp_path / "a" / "x", model=encoder, relative=True) as index:
        index.add(tmp_path / "a" / "photos")
    disk = (tmp_path / "a").rename(tmp_path / "b")
    write_pictures(disk / "photos", 1, start=50)
    encoded, reports, stop = encoder.encoded, [], threading.Event()

    def seen(report):
        reports.append(report)
        stop.set()

    with Index.open(disk / "x", encoder) as index:
        watch(index, [disk / "photos"], every=0.01, stop=stop, on_report=seen)
    assert (reports[0].added, reports[0].skipped, reports[0].missing) == (1, 3, 0) and encoder.encoded == encoded + 1


def test_pictures_that_the_index_alone_was_moved_to_are_its_own(tmp_path, encoder):
    """Stored by whole paths, since they lay elsewhere; beside the index now."""
    photos = tmp_path / "disk" / "photos"
    write_pictures(photos, 4)
    with Index.create(tmp_path / "home" / "x", model=encoder, relative=True) as index:
        index.add(photos)
        keep_payloads(index.store, least=1)
    shutil.move(tmp_path / "home" / "x", tmp_path / "disk" / "x")
    with Index.open(tmp_path / "disk" / "x", encoder) as index:
        assert index.verify().ok and len(index.search("x", where=f"path LIKE '{photos}/%'")) == 4
        assert len(index.named(str(photos))) == 4
        report = index.add(photos)
        assert (report.skipped, report.added, report.moved, len(index)) == (4, 0, 0, 4)
        assert Stored(index).sql("SELECT count(*) FROM items WHERE path LIKE 'photos/%'") == [(4,)]
        before = {item.id for item in index.items()}
    disk = (tmp_path / "disk").rename(tmp_path / "again")
    with Index.open(disk / "x", encoder) as index:
        assert index.add(disk / "photos").skipped == 4 and {item.id for item in index.items()} == before
        assert index.verify().ok


@pytest.mark.parametrize("written", ["../secret.png", "a/../../secret.png", "a//b.png", "./", "", ".//etc/passwd"])
def test_a_stored_path_that_leaves_the_folder_is_damage(tmp_path, encoder, written):
    write_pictures(tmp_path / "disk", 2)
    with Index.create(tmp_path / "disk" / "x", model=encoder, relative=True) as index:
        index.add(tmp_path / "disk")
        keep_payloads(index.store, least=1)
    record = list(Stored(index).sql(f"SELECT {schema.ITEM} FROM items WHERE id = 1")[0])
    record[1] = written
    crc = schema.record_crc(*record)  # as somebody who knows how would write it
    Stored(index).sql(
        f"UPDATE items SET path = '{written}', crc = {crc} WHERE id = 1",
        "DELETE FROM meta WHERE key IN ('payloads', 'optional_check')",
    )
    with Index.open(index.path, encoder) as opened:
        if written == "./":  # an empty name, of no file
            assert opened[1].path == ""
            return
        with pytest.raises(DamagedIndexError, match="item 1"):
            list(opened.search("x"))
        assert [damage.kind for damage in opened.verify().damage] == ["record"]
        assert opened.search("x", where="id = 2")[0].id == 2
        with pytest.raises(QueryError):
            opened.remove(tmp_path / "secret.png")
        assert opened.repair().forgotten and len(opened) == 1


def test_a_stored_path_through_a_link_is_not_served(tmp_path):
    """A disk from a stranger, on which a folder became a link since."""
    write_pictures(tmp_path / "disk" / "photos", 2)
    write_pictures(tmp_path / "private", 2)
    with Index.create(tmp_path / "disk" / "x", model=FakeEncoder(), relative=True) as index:
        index.add(tmp_path / "disk" / "photos")
    shutil.rmtree(tmp_path / "disk" / "photos")
    (tmp_path / "disk" / "photos").symlink_to(tmp_path / "private")
    with Index.open(index.path, FakeEncoder()) as index, asked({"x": index}) as service:
        for hit in service.search(query="x").json()["hits"]:
            assert hit.get("original") is None or service.get(hit["original"]).status_code in (403, 404)
            assert hit.get("thumbnail") is None or service.get(hit["thumbnail"]).status_code in (403, 404)


def test_relative_paths_are_for_a_new_index_of_pictures(tmp_path, pictures, encoder, capsys):
    Index.create(tmp_path / "x", model=encoder).close()
    with pytest.raises(IndexFolderError, match="stores whole paths: make a new index"):
        Index.open_or_create(tmp_path / "x", model=encoder, relative=True)
    with Index.open_or_create(tmp_path / "y", model=encoder, relative=True, vectors="int8") as index:
        index.add(pictures)
        assert (index.info().format, index.info().vectors) == (schema.RELATIVE_FORMAT, "int8")
    with Index.open_or_create(tmp_path / "y", model=encoder) as index:
        assert index.info().relative and len(index) == 30
    assert main(["index", "--embeddings", "x.npy", "--relative", "-o", str(tmp_path / "z")]) == 2
    assert "--relative goes with PATH" in capsys.readouterr().err
