"""What every reader of pairs promises: one small data set in each format gives the same pairs, splits and skips."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from hivlp.data.load import READERS, load_pairs
from hivlp.errors import DataError
from synthetic import CAPTIONED, PAIR_FORMATS, picture_bytes, write_pairs

WANTED = {picture_bytes(number): each[1:] for number, each in enumerate(CAPTIONED) if each[1]}
"""Content of a picture -> its captions and split."""


@pytest.fixture(params=PAIR_FORMATS)
def source(request, tmp_path):
    return write_pairs(tmp_path / "set", request.param)


def test_a_format_gives_the_pairs_that_were_written(source):
    pairs = load_pairs(source)
    assert {pair.read(): (pair.captions, pair.split) for pair in pairs} == WANTED
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_pairs_have_an_order_that_stays(source):
    assert load_pairs(source) == load_pairs(str(source)) == load_pairs(source)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_is_that_part_of_all_pairs(source, split):
    assert load_pairs(source, split) == load_pairs(source).of(split)


def test_a_picture_without_a_caption_is_skipped_and_named_but_no_damage(source, caplog):
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(source)
    assert pairs.skipped == 0
    assert "no caption" in caplog.text and "4" in caplog.text


def test_a_damaged_source_is_refused_by_its_name(source):
    files = [file for file in [source, *Path(source).rglob("*")] if file.is_file() and file.suffix != ".png"]
    for file in files:
        file.write_bytes(b"\xc3\x28" * 400)
    with pytest.raises(DataError) as caught:
        load_pairs(source)
    assert "\n" not in str(caught.value) and any(file.name in str(caught.value) for file in files)


def test_every_registered_suffix_is_held_to_this():
    assert {name for name in READERS.names() if name.startswith(".")} <= {name.split()[0] for name in PAIR_FORMATS}


def test_a_package_may_register_a_name_and_a_suffix(tmp_path):
    """In a process of its own, with a distribution as pip leaves it."""
    (tmp_path / "readers_of_mine.py").write_text(
        "from hivlp.data.pairs import Pair\n"
        "from hivlp.data.readers.reader import Reader\n"
        "NAMED = Reader(lambda source: [Pair('x', b'', (source.argument,), 'val')], argument='WORDS')\n"
        "LINES = Reader(lambda source: [Pair(f.name, b'', (f.read_text(),)) for f in source.files],"
        " shards=('.mine',))\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hivlp.readers]\nmine = readers_of_mine:NAMED\n.mine = readers_of_mine:LINES\n"
    )
    (tmp_path / "set").mkdir()
    for name in ("b.mine", "a.mine"):
        (tmp_path / "set" / name).write_text(f"caption {name}")
    code = (
        "from hivlp.data.load import load_pairs\n"
        "print([pair.captions[0] for source in ('mine:a b', 'set/b.mine', 'set') for pair in load_pairs(source)])"
    )
    paths = [str(tmp_path), *filter(None, sys.path)]
    run = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == str(["a b", "caption b.mine", "caption a.mine", "caption b.mine"]), result.stderr
