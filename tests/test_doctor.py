"""What `hivlp doctor` says of an installation in which something is wrong."""

from __future__ import annotations

import json
import shutil

import pytest

from hivlp.cli import main
from hivlp.index import Index
from synthetic import write_pictures

pytestmark = pytest.mark.slow


@pytest.fixture
def index(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    with Index.create(tmp_path / "index", model="hivlp-mini") as made:
        made.add(tmp_path / "pictures")
    return tmp_path / "index"


def told(capsys, *words):
    code = main(["doctor", "--json", *map(str, words)])
    return code, {found["what"]: found for found in json.loads(capsys.readouterr().out)["findings"]}


def test_pictures_that_are_not_in_their_places_are_noted(index, capsys):
    assert told(capsys, index)[1][f"index {index}"]["state"] == "ok"
    shutil.rmtree(index.parent / "pictures")
    code, found = told(capsys, index)
    note = found[f"index {index}"]
    assert (code, note["state"]) == (0, "note") and "is not there, nor are 2 others" in note["text"]


def test_an_index_that_this_user_cannot_write_is_noted_with_what_that_means(index, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _: path != index)
    assert "cannot write it" in told(capsys, index)[1][f"index {index}"]["text"]


def test_a_cache_that_cannot_be_made_is_wrong_and_says_what_to_do(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "file"))
    code, found = told(capsys)
    assert (code, found["cache"]["state"]) == (1, "wrong") and "HIVLP_CACHE names another" in found["cache"]["text"]
