"""Tables as people and programs write them: read as a person reads them, or refused by file and line."""

from __future__ import annotations

import datetime
import decimal
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair, split_of_folders, split_of_name
from hivlp.data.readers.values import as_text
from hivlp.errors import DataError


def read(path: Path, content: str | bytes) -> list[tuple[str, tuple[str, ...]]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(pair.id, pair.captions) for pair in load_pairs(path)]


CSV, TSV = "image,caption\n", "image\tcaption\n"


# --- quotes


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a.png,"the dog\nb.png,a cat\nc.png,a bird\n', "line 2: a quote .* line 3, which looks like the next row"),
        ('a.png,x\nb.png,"the dog\nc.png,12"\nd.png,y\n', "line 3: a quote .* line 4"),
        ('a.png,x\nb.png,"the dog\n', "line 3: a quote .* before the file does"),
        ('a.png,"the dog\n\nb.png,12"\n', "line 2: a quote .* line 4"),
        ('img_1,"the dog\nimg_22,12"\n', "line 2: a quote .* line 3"),
        ('http://x/1,"the dog\nhttp://y/z,12"\n', "line 2: a quote .* line 3"),
    ],
)
def test_a_quote_that_never_closes_is_named_and_swallows_no_row(tmp_path: Path, rows: str, line: str) -> None:
    for ending in ("\n", "\r\n", "\r"):
        with pytest.raises(DataError, match=line):
            read(tmp_path / "t.csv", (CSV + rows).replace("\n", ending))


def test_a_quote_that_never_closes_is_named_where_the_picture_comes_last(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: a quote"):
        read(tmp_path / "t.csv", 'caption,image\n"the dog,a.png\n12",b.png\n')
    assert read(tmp_path / "t.csv", 'caption,image\n"A dog.\nIt runs",a.png\n') == [("a.png", ("A dog. It runs",))]


def test_between_tabs_a_quote_is_a_quote(tmp_path: Path) -> None:
    rows = 'a.png\t"the dog\nb.png\ta "big" cat\nc.png\ta 12"\nd.png\t"a ""red"" bird"\ne.png\t"two\nlines"\n'
    assert read(tmp_path / "t.tsv", TSV + rows) == [
        ("a.png", ('"the dog',)),
        ("b.png", ('a "big" cat',)),
        ("c.png", ('a 12"',)),
        ("d.png", ('a "red" bird',)),
        ("e.png", ("two lines",)),
    ]


def test_quoted_cells_hold_commas_line_ends_and_doubled_quotes(tmp_path: Path) -> None:
    rows = 'a.png,"A dog.\nIt runs, fast."\nb.png,"a ""red"", big bird"\nc.png, "x, y" \n"d, e.png","z"\nf.png,""\n'
    assert read(tmp_path / "t.csv", CSV + rows) == [
        ("a.png", ("A dog. It runs, fast.",)),
        ("b.png", ('a "red", big bird',)),
        ("c.png", ("x, y",)),
        ("d, e.png", ("z",)),
    ]


def test_quotes_amid_a_cell_are_part_of_it(tmp_path: Path) -> None:
    rows = 'a.png,the "big" dog\nb.png,"Hello" said the dog\nc.png,a 12" ruler\n'
    assert [captions[0] for _, captions in read(tmp_path / "t.csv", CSV + rows)] == [
        'the "big" dog',
        '"Hello" said the dog',
        'a 12" ruler',
    ]


# --- cells


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_surplus_cells_are_an_unquoted_caption_in_the_last_column(tmp_path: Path, delimiter: str) -> None:
    text = f"image,caption\na.png,a dog, running, fast\n{'b.png,x,,,'}\n,,\n".replace(",", delimiter)
    found = read(tmp_path / "t.csv", text)
    assert found == [("a.png", ("a dog, running, fast".replace(",", delimiter),)), ("b.png", ("x",))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,caption,split\na.png,a dog, running,train\n", "line 2: 4 cells for 3 columns; .* quotes"),
        ("t.csv", CSV + "my, picture.png,a dog\n", "line 2: 3 cells for 2 columns"),
        ("t.csv", CSV + 'a.png,"a dog",surplus\n', "line 2: 3 cells for 2 columns"),
        ("t.tsv", TSV + "a.png\ta dog\tsurplus\n", "line 2: 3 cells for 2 columns"),
        ("t.csv", CSV + "a.png,x\nb.png\n", "line 3: 1 cell for 2 columns"),
        ("t.csv", "image,caption,split\na.png,x\n", "line 2: 2 cells for 3 columns"),
        ("t.csv", "image,caption,Caption\na.png,x,y\n", "line 1: two columns are called 'caption'"),
        ("t.csv", CSV + "a.png,x\0\n", "line 2: holds a NUL"),
        ("t.csv", (CSV + "a.png,x\n").encode("utf-16-le"), "line 1: holds a NUL .* UTF-16"),
        ("t.csv", (CSV + "a.png,x\nb.png,café\n").encode("latin-1"), r"not UTF-8 text: line 3, byte 10 \(0xe9\)"),
        ("t.jsonl", b'{"image": "a.png", "caption": "caf\xe9"}', "not UTF-8 text: line 1, byte 35"),
        ("t.jsonl", '{"image": "a.png", "caption": "x", "caption": "y"}', "line 1: .* 'caption' occurs twice"),
        ("t.jsonl", '{"image": "a.png", "caption": {"x": 1}}', "line 1: the caption holds a dict"),
        ("t.jsonl", '{"image": "a.png", "caption": ' + "9" * 5000 + "}", "line 1: not JSON"),
        ("t.jsonl", '{"image": "a\\ud800.png", "caption": "x"}', "line 1: .* not a path"),
        ("t.jsonl", '{"image": "a.png", "caption": "x", "split": ["x"]}', "line 1: the split holds a list"),
    ],
)
def test_a_damaged_table_is_refused_by_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content",
    [
        "Image ;CAPTION\r\na.png;x\r\n\r\nb.png;y\r\n",
        "sep=;\r\nimage;caption\r\na.png;x\r\nb.png;y\r\n",
        "image_name| comment_number| comment\na.png| 0| x\nb.png| 0| y",
        "image,caption\ra.png,x\rb.png,y\r",
        "image,caption\r\na.png,x\nb.png,y",
        "image\tcaption\na.png\tx\nb.png\ty\n",
        "\ufeffimage,caption\na.png,x\nb.png,y\n",
        "image,caption\na.png,x\nb.png,y\n".encode("utf-16"),
        "id,File-Name,caption,\n1,a.png,x,\n2,b.png,y,\n",
    ],
)
def test_delimiters_line_ends_marks_and_headers_in_use(tmp_path: Path, content: str | bytes) -> None:
    assert read(tmp_path / "t.csv", content) == [("a.png", ("x",)), ("b.png", ("y",))]


# --- values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("x", "x"),
        (" NaN ", None),
        ("null", None),
        (7, "7"),
        (7.0, "7"),
        (1e300, "1e+300"),
        (2.0**53, "9007199254740992"),
        (2.5, "2.5"),
        (float("nan"), None),
        (True, "true"),
        (b"img7.jpg", "img7.jpg"),
        (decimal.Decimal("7.00"), "7"),
        (decimal.Decimal("NaN"), None),
        (datetime.date(2020, 1, 2), "2020-01-02"),
    ],
)
def test_a_value_is_text_by_its_meaning(value: Any, text: str | None) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("value", [float("inf"), b"\xff", {"a": 1}, datetime.timedelta(1)])
def test_a_value_without_a_meaning_as_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="holds"):
        as_text(value)


def test_missing_captions_are_none_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("a", None), ("a", "x"), ("b", float("nan")), ("c", 7.0), ("d", [None, "y", 3, "nan"]), ("e", [])]
    lines = [json.dumps({"image": f"{name}.png", "caption": caption}) for name, caption in rows]
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path / "t.jsonl", "\n".join(lines))
    assert found == [("a.png", ("x",)), ("c.png", ("7",)), ("d.png", ("y", "3"))]
    assert [message.split(", ")[1] for message in caplog.messages] == [f"line {n}: no caption" for n in (1, 3, 6)]


def test_many_rows_without_a_caption_are_named_in_a_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(tmp_path / "t.csv", CSV + "a.png,x\n" + "b.png,\n" * 100)
    assert len(caplog.messages) == 6
    assert "100 entries without a caption" in caplog.messages[-1]


def test_halves_of_characters_are_joined_or_marked(tmp_path: Path) -> None:
    line = '{"image": "a.png", "caption": "a \\ud83d\\ude00 \\ud800"}'
    assert read(tmp_path / "t.jsonl", line) == [("a.png", ("a \U0001f600 \ufffd",))]


def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.json", "t.tar"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="not a regular file"):
            load_pairs(tmp_path / name)


# --- splits, and captions that are captions


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("cc3m-validation-0000", "val"),
        ("cc3m_train_0000", "train"),
        ("test-00000-of-00004", "test"),
        ("captions_val2017", "val"),
        ("coco-karpathy-test", "test"),
        ("flickr30kTest", "test"),
        ("dev", "val"),
        ("train_test", "test"),
        ("captions", None),
        ("attestation-contest-0001", None),
    ],
)
def test_names_of_shards_and_tables_say_their_split(stem: str, split: str | None) -> None:
    assert split_of_name(stem) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val2017/1.jpg", "val"),
        ("images/test/a/1.jpg", "test"),
        ("Test_Images/1.jpg", "test"),
        ("train/1.jpg", "train"),
        ("test tubes/1.jpg", None),
        ("crash_test/1.jpg", None),
        ("animals/1-test.jpg", None),
    ],
)
def test_folders_say_their_split_if_they_say_nothing_else(name: str, split: str | None) -> None:
    assert split_of_folders(name) == split


def test_a_table_of_a_split_and_pictures_of_a_split_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text(CSV + "val2017/a.png,x\ntrain2017/b.png,y\nc.png,z\n")
    (tmp_path / "captions_test.csv").write_text(CSV + "val2017/a.png,x\n")
    (tmp_path / "own.csv").write_text("image,caption,Split\ntest/a.png,x,train\ntest/b.png,y,\n")
    assert [pair.split for pair in load_pairs(tmp_path / "captions.csv")] == ["val", "train", "train"]
    assert [pair.split for pair in load_pairs(tmp_path / "captions_test.csv")] == ["test"]
    assert [pair.split for pair in load_pairs(tmp_path / "own.csv")] == ["train", "test"]


@pytest.mark.train
def test_folder_names_are_captions_only_if_asked_for_and_shard_names_never() -> None:
    pytest.importorskip("torch")
    from hivlp.train.inputs.augment import caption_variants
    from hivlp.train.recipe.schema import Augment

    pair = Pair("cc3m-train-0000/animals/dog", b"", ("A dog.",), shard="cc3m-train-0000")
    assert caption_variants(pair, Augment()) == ["A dog.", "dog"]
    assert caption_variants(pair, Augment(folders=True)) == ["A dog.", "dog", "dog, animals", "dog, animals"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a.png,"' + '""\n' * 50_000, "does a quote not close"),
        ("a.png," + '"a,' * 50_000, "more than 10000 cells"),
        ("a.png," + "x" * (17 << 20), "line 2: longer than"),
    ],
)
def test_what_no_table_holds_is_refused_before_it_costs_much(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv", CSV + content)


def test_the_files_that_data_sets_come_in_are_read_as_they_are(tmp_path):
    (tmp_path / "val2017").mkdir()
    for name in ("1.jpg", "val2017/1.jpg", "val2017/2.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,A child , in pink .\n1.jpg,A girl\n")
    (tmp_path / "results.token").write_text('1.jpg#0\tA "child" in pink .\n1.jpg#1\tA girl\n')
    assert load_pairs(tmp_path / "captions.txt")[0].captions == ("A child , in pink .", "A girl")
    assert load_pairs(tmp_path / "results.token")[0].captions == ('A "child" in pink .', "A girl")
    coco = {
        "info": {}, "licenses": [],
        "images": [{"id": 9, "file_name": "2.jpg", "height": 8}, {"id": 4, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 4, "id": 1, "caption": "A dog"}, {"image_id": 9, "id": 2, "caption": "A cat"},
                        {"image_id": 4, "id": 3, "caption": "It barks"}],
    }  # fmt: skip
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(coco))
    pairs = load_pairs(path)
    assert [(pair.id, pair.captions, pair.split) for pair in pairs] == [
        ("2.jpg", ("A cat",), "val"), ("1.jpg", ("A dog", "It barks"), "val")
    ]  # fmt: skip
    assert pairs[0].read() == (tmp_path / "val2017" / "2.jpg").read_bytes()
    for change, place in (
        ({"annotations": [{"image_id": 5, "caption": "x"}]}, "annotation 0: not in COCO's layout"),
        ({"annotations": 5}, "annotations: not in COCO's layout"),
        ({"images": [{"id": 4, "file_name": "1.jpg"}] * 2}, "image 1: the id 4 occurs twice"),
        ({"images": [{"id": [], "file_name": "1.jpg"}]}, "image 0: not in COCO's layout"),
        ({"images": [5]}, "image 0: not in COCO's layout"),
    ):
        path.write_text(json.dumps(coco | change))
        with pytest.raises(DataError, match=place):
            load_pairs(path)
    (tmp_path / "results.token").write_text("1.jpg#0\tA child\n1.jpg A girl\n")
    with pytest.raises(DataError, match=r"results\.token, line 2: not a picture's name"):
        load_pairs(tmp_path / "results.token")


def test_numbers_of_few_bits_are_as_they_were_meant(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for kind, types in (("float", (pa.float32(), pa.float16())), ("double", (pa.float64(),))):
        for held in types:
            table = pa.table({"image": ["0.png", "1.png", "2.png"], "caption": pa.array([0.1, 7, None], held)})
            parquet.write_table(table, tmp_path / f"{kind}.parquet")
            assert [pair.captions for pair in load_pairs(tmp_path / f"{kind}.parquet")] == [("0.1",), ("7",)]
