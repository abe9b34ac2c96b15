"""Uploads of a service, kept in the index folder: they stay with it where it is renamed, moved or copied."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

import pytest

from hivlp.index import Index
from hivlp.serve.changing import _stored
from hivlp.serve.settings import Settings
from hivlp.serve.uploads import follow_uploads, uploads_of
from hivlp.serve.worker import Worker
from serving import asked, error, until
from synthetic import FakeEncoder, write_pictures


@pytest.fixture
def place(tmp_path):
    """An index with three pictures elsewhere (items 1 to 3) and three uploads (4 to 6)."""
    write_pictures(tmp_path / "pictures", 3)
    with Index.create(tmp_path / "before", model=FakeEncoder()) as index:
        index.add(tmp_path / "pictures")
        for number, picture in enumerate(write_pictures(tmp_path / "sent", 3, start=50)):
            data = picture.read_bytes()
            kept = uploads_of(index.path) / hashlib.sha256(data).hexdigest()[:32] / f"sent {number}.png"
            kept.parent.mkdir(parents=True)
            kept.write_bytes(data)
            index.add(kept)
    return tmp_path


def paths(index: Index) -> list[Path]:
    return [Path(item.path) for item in index]


def test_uploads_follow_an_index_that_was_renamed(place):
    (place / "before").rename(place / "after")
    with asked({"after": Index.open(place / "after", FakeEncoder())}) as service:
        until(lambda: service.get("/readyz").status_code == 200)
        found = service.search(query="red", k=6).json()
        assert sorted(hit["id"] for hit in found["hits"]) == [1, 2, 3, 4, 5, 6] and "gone" not in found
        assert all(service.get(f"/items/{number}/{what}").status_code == 200
                   for number in (4, 5, 6) for what in ("original", "thumbnail"))  # fmt: skip


def test_a_read_only_service_leaves_them_where_they_were(place):
    (place / "before").rename(place / "after")
    with asked({"after": Index.open(place / "after", FakeEncoder())}, Settings(read_only=True)) as service:
        until(lambda: service.get("/readyz").status_code == 200)
        assert sorted(service.search(query="red", k=6).json()["gone"]) == [4, 5, 6]


def test_a_copy_takes_its_uploads_once_the_other_index_is_gone(place):
    shutil.copytree(place / "before", place / "copy")
    with Index.open(place / "copy", FakeEncoder()) as index:
        assert follow_uploads(index) == 0, "the pictures are where the items say"
        shutil.rmtree(place / "before")
        assert follow_uploads(index) == 3 and follow_uploads(index) == 0
        assert all(path.exists() for path in paths(index)) and index.verify().ok


def test_neither_links_nor_paths_of_others_are_followed(place):
    (place / "before").rename(place / "after")
    uploads = uploads_of(place / "after")
    folders = sorted(uploads.iterdir())
    secret = folders[0].rename(place / "elsewhere")
    folders[0].symlink_to(secret)
    os.mkfifo(folders[1] / "pipe")
    with Index.open(place / "after", FakeEncoder()) as index:
        index.relocate(place / "before" / "serve", place / "before" / "others")
        assert follow_uploads(index) == 0
        assert {path.parts[-4] for path in paths(index)[3:]} == {"others"}


def test_a_link_in_the_place_of_uploads_leads_nowhere(place):
    """As a stranger's index may have one: what lies behind it is neither shown, indexed, written nor removed."""
    outside = place / "outside"
    picture = write_pictures(outside / "folder", 1, start=90)[0]
    uploads = uploads_of(place / "before")
    shutil.rmtree(uploads)
    uploads.symlink_to(outside, target_is_directory=True)
    with Index.open(place / "before", FakeEncoder()) as index:
        index.add(picture)
    worker = Worker(place / "before", io.BytesIO())
    worker._carry_out({"id": "1", "do": "remove", "ids": [7]})
    assert picture.exists()
    with asked({"before": Index.open(place / "before", FakeEncoder())}) as service:
        assert error(service("POST", "/jobs", json={"paths": [str(outside)]})) == (403, "forbidden")
        sent = service("POST", "/items", files={"files": ("x.png", picture.read_bytes())})
        assert error(sent) == (403, "forbidden") and [*outside.rglob("*.png")] == [picture]


def test_an_upload_with_a_long_name_is_stored(place):
    with asked({"before": Index.open(place / "before", FakeEncoder())}) as service:
        served = service.app.service.served(None)
        for name in ("猫" * 300, "x" * 300 + ".png", "\ud800/..\0"):
            path = Path(_stored(served, (place / "pictures" / "00000.png").read_bytes(), name))
            assert path.exists() and path.suffix == ".png"
