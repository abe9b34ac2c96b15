"""Ids and names: what a person types is what a person sees, and a number is never taken for a folder."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from hivlp.cli import main
from hivlp.errors import ArgumentError, DataError, QueryError
from hivlp.index import Index
from synthetic import Stored, write_pictures

COMPOSED, APART = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a person stands: pictures in ``p``, which nobody has indexed yet."""
    write_pictures(tmp_path / "p", 6)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "p"


def names(index: Index) -> list[str]:
    return sorted(Path(item.path).name for item in Stored(index).all_items())


def test_digits_are_an_id_unless_they_could_be_a_path(folder, tmp_path, encoder, capsys):
    write_pictures(tmp_path / "3", 2, start=10)
    with Index.create("x", model=encoder) as index:
        index.add("p", "3")
        before = names(index)
    assert main(["remove", "x", "3"]) == 1
    assert capsys.readouterr().err == ("hivlp: error: 3 could be an item's id or a path: write --id 3 or ./3\n")
    assert main(["remove", "x", "--id", "3", "2"]) == 0
    with Index.open("x", encoder) as index:
        assert len(index) == len(before) - 2 and Stored(index).get(3) is None
    assert main(["remove", "x", "./3"]) == 0
    with Index.open("x", encoder) as index:
        assert names(index) == [f"{n:05}.png" for n in (0, 3, 4, 5)]
    shutil.rmtree("3")
    assert main(["remove", "x", "4"]) == 0, "there is no such path any more"
    assert main(["remove", "x", "--path", "5"]) == 1 and main(["remove", "x", "007"]) == 1
    assert main(["remove", "x", "--id", "p"]) == 2
    assert main(["remove", "x", ""]) == 2
    with Index.open("x", encoder) as index:
        assert len(index) == 3


def test_a_folder_of_digits_that_is_gone_from_the_disk_is_still_no_id(folder, tmp_path, encoder, capsys):
    write_pictures(tmp_path / "3", 2, start=10)
    with Index.create("x", model=encoder) as index:
        index.add("p", "3")
    shutil.rmtree("3")
    assert main(["remove", "x", "3"]) == 1 and "--id 3 or ./3" in capsys.readouterr().err
    assert main(["remove", "x", "--path", "3"]) == 0


def test_text_is_a_path_and_a_number_an_id(folder, encoder):
    with Index.create("x", model=encoder) as index:
        index.add("p")
        with pytest.raises(QueryError, match="no item 3"):
            index.remove("3")
        for wanted in (np.int64(1), [np.uint8(2)], np.array([3])):
            assert index.remove(wanted) == 1
        assert index.remove("p/00003.png") == 1, "a path is not a list of letters"
        for wrong in (5.0, True, None, "", [None], float("nan"), {"p": 1}, np.True_):
            with pytest.raises(ArgumentError, match="an item is an id"):
                index.remove(wrong)
        assert names(index) == ["00004.png", "00005.png"]


@pytest.mark.parametrize(
    "typed", ["p/00001.png", "./p/../p/00001.png", "{home}/p/00001.png", "~/p/00001.png", "l/00001.png"]
)
def test_an_item_is_found_however_its_place_is_written(folder, tmp_path, encoder, monkeypatch, typed):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "l").symlink_to("p")
    with Index.create("x", model=encoder) as index:
        index.add("~/p")
        assert len(index) == 6
        typed = typed.format(home=tmp_path)
        assert index.remove(typed) == 1 and "00001.png" not in names(index)
        assert index.add(folder / "00001.png", captions={typed: "told"}).added == 1
        assert Stored(index).at(str(folder / "00001.png")).caption == "told"
        assert index.remove("p/") == 6


@pytest.mark.parametrize(("stored", "typed"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_name_is_found_in_another_spelling(folder, tmp_path, encoder, stored, typed):
    album = tmp_path / f"{stored}t{stored}"
    shutil.move(folder, album)
    (album / "00000.png").rename(album / f"caf{stored}.png")
    with Index.create("x", model=encoder) as index:
        place = f"{typed}t{typed}"
        told = {"captions": {f"{place}/caf{typed}.png": "coffee"}, "metadata": {f"{place}/caf{typed}.png": {"n": 1}}}
        assert index.add(place, **told).added == 6
        item = Stored(index).at(f"{album}/caf{stored}.png")
        assert (item.caption, item.metadata["n"]) == ("coffee", 1)
        assert index.remove([f"{place}/caf{typed}.png"]) == 1
        assert index.remove(tmp_path / place) == 5


def test_files_that_differ_in_spelling_alone_are_two(folder, tmp_path, encoder):
    for number, letter in enumerate((COMPOSED, APART)):
        shutil.copyfile(folder / f"0000{number}.png", tmp_path / f"caf{letter}.png")
    if len(list(tmp_path.glob("caf*.png"))) < 2:
        pytest.skip("this file system does not tell the two apart")
    mixed = f"{COMPOSED}{APART}"
    with Index.create("x", model=encoder) as index:
        told = {f"caf{COMPOSED}.png": "composed"}
        index.add(*tmp_path.glob("caf*.png"), captions=told)
        captions = {item.path: item.caption for item in Stored(index).all_items()}
        assert captions == {str(tmp_path / f"caf{COMPOSED}.png"): "composed", str(tmp_path / f"caf{APART}.png"): None}
        assert index.remove(f"caf{APART}.png") == 1
        assert names(index) == [f"caf{COMPOSED}.png"], "the very name comes first"
        for name in (f"a{COMPOSED}{COMPOSED}.png", f"a{APART}{APART}.png"):
            shutil.copyfile(folder / "00002.png", tmp_path / name)
            index.add(tmp_path / name)
        with pytest.raises(QueryError, match=r"spelt in 2 ways .* by an id \("):
            index.remove(f"a{mixed}.png")
        assert len(index) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"captions": "abc"}, "captions must map paths"),
        ({"captions": ["a"]}, "captions must map paths"),
        ({"captions": {3: "a"}}, "3 is none"),
        ({"captions": {"p/00001.png": 3}}, r"00001\.png is no text, but int 3"),
        ({"metadata": "abc"}, "metadata must map paths"),
        ({"metadata": {"p/00001.png": [1]}}, "must be a JSON object"),
        ({"metadata": {"p/00001.png": {"x": float("nan")}}}, r"00001\.png: x is nan, which JSON"),
        ({"metadata": {"p/00001.png": {"x": [1, np.float32("inf")]}}}, r"x\[1\] is inf"),
        ({"metadata": {"p/00001.png": {"x": np.datetime64("2024-01-01")}}}, "x must be JSON, not datetime64"),
        ({"metadata": {"p/00001.png": {"x": {1}}}}, "x must be JSON, not set"),
        ({"metadata": {"p/00001.png": {(1, 2): 1}}}, "a key must be a text"),
    ],
)
def test_what_cannot_be_told_of_a_picture_is_refused(folder, encoder, given, message):
    with Index.create("x", model=encoder) as index:
        with pytest.raises(DataError, match=message) as refused:
            index.add("p", **given)
        assert "\n" not in str(refused.value) and len(index) == 0


def test_what_numpy_and_pandas_hold_is_told_as_python_would(folder, encoder):
    values = {
        "n": np.int64(4),
        "f": np.float32(0.5),
        "a": np.arange(3),
        "b": np.True_,
        "s": np.str_("x"),
        "0": np.array(7),
    }
    with Index.create("x", model=encoder) as index:
        captions = {"p/00001.png": float("nan"), "p/00002.png": None, "p/00003.png": np.str_("three")}
        index.add("p", captions=captions, metadata={"p/00001.png": values, "p/00002.png": float("nan")})
        one, two, three = (Stored(index).at(str(folder / f"0000{n}.png")) for n in (1, 2, 3))
        assert {name: one.metadata[name] for name in values} == {
            "n": 4, "f": 0.5, "a": [0, 1, 2], "b": True, "s": "x", "0": 7,
        }  # fmt: skip
        assert (one.caption, two.caption, three.caption) == (None, None, "three")
        assert index.add("p", captions=captions, metadata={"p/00001.png": values}).skipped == 6


@pytest.mark.parametrize("paths", [5, None, [5], b"p", "", {"p": 1}, np.array(5)])
def test_what_is_no_path_is_refused(folder, encoder, paths):
    with Index.create("x", model=encoder) as index, pytest.raises(DataError, match="path"):
        index.add(paths)


def test_an_empty_name_is_not_the_current_folder(folder, capsys):
    for arguments in (["index", "", "-o", "x"], ["index", "p", "-o", ""], ["info", ""], ["evaluate", ""]):
        assert main(arguments) == 2 and "the name is empty" in capsys.readouterr().err
    assert not Path("x").exists()
