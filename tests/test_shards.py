"""Tars, parquet files and vectors in many parts: damage costs what it touches, is named, and the rest is read."""

from __future__ import annotations

import io
import logging
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.data.vectors.source import open_embeddings
from hivlp.errors import DataError, HivlpError

BLOCK = 512


def tar(members: dict[str, bytes], layout: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(name: bytes, size: int | bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, content: bytes) -> bytes:
    return header(name, len(content)) + content + bytes(-len(content) % BLOCK)


GOOD, END = member(b"a.png", b"picture") + member(b"a.txt", b"one"), bytes(2 * BLOCK)


def facts(pairs: list[Pair]) -> list[tuple[str, tuple[str, ...], str, bytes]]:
    return [(pair.id, pair.captions, pair.split, pair.read()) for pair in pairs]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- tars


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (header(b"b.png", b"\xff" * 12), "claims a size that is none"),
        (header(b"b.png", b"-0000000001\0"), "claims a size that is none"),
        (header(b"b.png", b"\x80" + b"\x7f" * 11), "bytes before a member at 2048 does"),
        (header(b"x", 10**9, b"x"), "bytes before a member at 2048 does"),
        (header(b"x", 10**9, b"L"), "bytes before a member at 2048 does"),
        (header(b"x", 2 << 20, b"x") + bytes(2 << 20), "claims an extension of"),
        (
            header(b"x", 16, b"x") + b"16 size=-999999\n".ljust(BLOCK, b"\0") + header(b"b.png", 0),
            "a size that is none",
        ),
        (header(b"x", 9, b"x") + b"99 path=x".ljust(BLOCK, b"\0") + header(b"b.png", 0), "damaged extension"),
        (b"junk" * 128, "there is none"),
        (b"\0" * 100, "within a header"),
        (b"", "without an end mark"),
    ],
)
def test_what_comes_before_the_damage_in_a_tar_counts_and_the_damage_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes, message: str
) -> None:
    path = write(tmp_path / "t.tar", GOOD + damage + (END if damage.strip(b"\0") else b""))
    with caplog.at_level(logging.WARNING):
        assert facts(load_pairs(path)) == [("t/a", ("one",), "train", b"picture")]
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert message in caplog.messages[0]


def test_a_tar_that_ends_anywhere_gives_what_it_holds_and_nothing_else(tmp_path: Path) -> None:
    whole = tar({"a.png": b"picture", "a.txt": b"one", "b" * 120 + ".png": b"another", "b" * 120 + ".txt": b"two"})
    path = write(tmp_path / "t.tar", whole)
    wanted = facts(load_pairs(path))
    assert len(wanted) == 2
    for length in [*range(0, 9 * BLOCK, 37), *range(BLOCK, 14 * BLOCK, BLOCK)]:
        path.write_bytes(whole[:length])
        try:
            found = facts(load_pairs(path))
        except DataError as error:
            assert str(path) in str(error)
            found = []
        assert found == wanted[: len(found)]


@pytest.mark.slow
def test_tars_with_bytes_changed_at_random_end_in_our_errors(tmp_path: Path) -> None:
    whole = tar({"a.png": b"picture", "a.txt": b"one", "b" * 120 + ".png": b"x", "b" * 120 + ".json": b'{"text": "y"}'})
    rng = random.Random(0)
    for number in range(200):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            content[rng.randrange(12 * BLOCK)] = rng.randrange(256)
        if number % 2:  # as somebody would who means harm
            for place in range(0, 12 * BLOCK, BLOCK):
                if content[place + 257 : place + 262] == b"ustar":
                    content[place + 148 : place + 156] = b" " * 8
                    content[place + 148 : place + 156] = b"%06o\0 " % sum(content[place : place + BLOCK])
        try:
            facts(load_pairs(write(tmp_path / "t.tar", bytes(content))))
        except HivlpError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_behind_each_other_and_long_names(tmp_path: Path, layout: int) -> None:
    long = "b" * 150
    first = tar({"a.png": b"picture", "a.txt": b"one"}, layout)
    second = tar({f"{long}.png": b"another", f"{long}.txt": b"two"}, layout)
    path = write(tmp_path / "t.tar", first + second)
    assert [pair.id for pair in load_pairs(path)] == ["t/a", f"t/{long}"]


def test_keys_with_dots(tmp_path: Path) -> None:
    members = {
        "img.v2.jpg": b"1", "img.v2.txt": b"one", "img.v3.jpg": b"2", "img.v3.txt": b"two",
        "0.img.jpg": b"3", "0.txt": b"three",
        "1.jpg": b"4", "1.caption.txt": b"four",
        "2.jpg": b"5", "2.mask.png": b"no", "2.txt": b"five",
        "3.png": b"no", "3.jpg": b"6", "3.txt": b"six",
        "a.b/4.jpg": b"7", "a.b/4.txt": b"seven",
    }  # fmt: skip
    found = load_pairs(write(tmp_path / "t.tar", tar(members)))
    assert [(pair.captions[0], pair.read()) for pair in found] == [
        (word, str(number).encode())
        for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven"), 1)
    ]
    assert [pair.id for pair in found][:2] == ["t/img.v2", "t/img.v3"]


def test_a_damaged_sample_or_shard_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = tar({"0.png": b"x", "0.txt": b"one"})
    write(tmp_path / "cc3m-train-0000.tar", sound)
    write(tmp_path / "cc3m-train-0001.tar", b"text" * 500)
    write(tmp_path / "cc3m-train-0002.tar", b"\x1f\x8b" + bytes(600))
    members = {"0.png": b"x", "0.json": b"{", "1.png": b"x", "1.json": b"[" * 99_999, "2.png": b"x", "2.txt": b"\xff"}
    write(
        tmp_path / "cc3m-train-0003.tar", tar({**members, "3.png": b"x", "3.json": b'{"caption": 7.0}', "4.png": b""})
    )
    write(tmp_path / "cc3m-validation-0000.tar", sound)
    write(tmp_path / "test" / "0.tar", sound)
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(tmp_path)
    assert [(pair.id, pair.captions, pair.split) for pair in pairs] == [
        ("cc3m-train-0000/0", ("one",), "train"),
        ("cc3m-train-0003/3", ("7",), "train"),
        ("cc3m-validation-0000/0", ("one",), "val"),
        ("test/0/0", ("one",), "test"),
    ]
    told = "\n".join(caplog.messages)
    for part in ("0001.tar", "0002.tar", "is compressed", "sample 0", "sample 1", "sample 2", "sample 4: no caption"):
        assert part in told


# --- parquet


def table(path: Path, columns: dict[str, Any], group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


NAMES = pa.array(["a.png", "b.png", "c.png"])


@pytest.mark.parametrize(
    ("paths", "captions", "wanted"),
    [
        (NAMES, pa.array(["x", None, "nan"]), {"a.png": ("x",)}),
        (NAMES, pa.array([7.0, float("nan"), 2.5]), {"a.png": ("7",), "c.png": ("2.5",)}),
        (NAMES, pa.array([7, None, 8]), {"a.png": ("7",), "c.png": ("8",)}),
        (NAMES.dictionary_encode(), pa.array(["x", "y", "x"]).dictionary_encode(), "xyx"),
        (NAMES.cast(pa.string_view()), pa.array(["x", "y", "x"]).cast(pa.string_view()), "xyx"),
        (NAMES.cast(pa.large_string()), pa.array([["x"], ["y", None], ["x"]], pa.large_list(pa.string())), "xyx"),
        (NAMES.cast(pa.binary()), pa.array([b"x", b"y", b"x"]).cast(pa.binary_view()), "xyx"),
        (NAMES, pa.array([b"x", b"\xff", b"x"]), {"a.png": ("x",), "c.png": ("x",)}),
        (pa.array(["a.png", None, "a.png"]), pa.array(["x", "y", "z"]), {"a.png": ("x", "z")}),
    ],
)
def test_values_of_every_arrow_type_count_by_their_meaning(
    tmp_path: Path, paths: Any, captions: Any, wanted: Any
) -> None:
    found = load_pairs(table(tmp_path / "t.parquet", {"path": paths, "caption": captions}))
    if isinstance(wanted, str):
        wanted = {name: (text,) for name, text in zip(NAMES.to_pylist(), wanted, strict=True)}
    assert {pair.id: pair.captions for pair in found} == wanted


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4), pa.dictionary(pa.int32(), pa.binary())]
)
def test_pictures_of_every_arrow_type_of_bytes(tmp_path: Path, kind: Any) -> None:
    pictures = [b"\x89PNG", b"\xff\xd8\xff\xe0", b"BM\0\0"]
    column = pa.array(pictures).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(pictures, kind)
    found = load_pairs(table(tmp_path / "t.parquet", {"image": column, "caption": ["x", "y", "z"]}))
    assert [pair.read() for pair in found] == pictures


def test_a_damaged_parquet_file_or_row_group_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"path": [f"{n}.png" for n in range(6)], "caption": [f"caption {n}" for n in range(6)]}
    table(tmp_path / "data" / "train-0.parquet", columns)
    broken = table(tmp_path / "data" / "train-1.parquet", {**columns, "path": [f"x{n}.png" for n in range(6)]})
    content = bytearray(broken.read_bytes())
    place = pq.read_metadata(broken).row_group(1).column(1).dictionary_page_offset
    content[place : place + 12] = b"\xff" * 12
    broken.write_bytes(content)
    write(tmp_path / "data" / "train-2.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1")
    table(tmp_path / "data" / "validation-0.parquet", {"path": ["v.png"], "caption": ["v"]})
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(tmp_path)
    assert [pair.id for pair in pairs if pair.split == "train"] == [
        *columns["path"], "x0.png", "x1.png", "x4.png", "x5.png"
    ]  # fmt: skip
    assert [pair.id for pair in pairs if pair.split == "val"] == ["v.png"]
    assert len(caplog.messages) == 2
    assert "the rows 3 and following of group 1 are lost" in caplog.messages[0]
    assert "train-2.parquet" in caplog.messages[1]
    with pytest.raises(DataError, match=r"train-2\.parquet is not a readable parquet file"):
        load_pairs(tmp_path / "data" / "train-2.parquet")


@pytest.mark.slow
def test_parquet_files_with_bits_flipped_at_random_end_in_our_errors(tmp_path: Path) -> None:
    vectors = pa.array(list(np.ones((20, 4), np.float32)), pa.list_(pa.float32()))
    pictures = [{"bytes": b"\x89PNG", "path": None}] * 20
    file = table(tmp_path / "t.parquet", {"embedding": vectors, "image": pictures, "caption": ["x"] * 20}, 7)
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 4))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        for read in (lambda: facts(load_pairs(file)), lambda: list(open_embeddings(file).chunks())):
            try:
                read()
            except HivlpError as error:
                assert "\n" not in str(error)


# --- vectors


def test_what_is_told_of_vectors_counts_by_its_meaning(tmp_path: Path) -> None:
    vectors = pa.array(list(np.ones((4, 2), np.float32)), pa.list_(pa.float32()))
    columns = {"path": [b"img7.jpg", None, b"\xff", b"d"], "caption": [7.0, float("nan"), 1.5, None]}
    [chunk] = open_embeddings(table(tmp_path / "t.parquet", {"embedding": vectors, **columns}, 4)).chunks()
    assert [told.path for told in chunk.told] == ["img7.jpg", None, None, "d"]
    assert [told.caption for told in chunk.told] == ["7", None, "1.5", None]
    assert dict(chunk.refused) == {2: "column path holds bytes that are not UTF-8 text"}


def test_damaged_files_of_vectors_are_named_and_the_others_keep_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((3, 2), number, np.float32))
    (tmp_path / "0.npy").write_bytes(b"")
    (tmp_path / "2.npy").write_bytes((tmp_path / "2.npy").read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        source = open_embeddings(tmp_path)
    assert [(chunk.file.name, chunk.first, len(chunk.vectors)) for chunk in source.chunks()] == [
        ("1.npy", 0, 3), ("3.npy", 0, 3)
    ]  # fmt: skip
    assert [file.name for file in source.damaged] == ["0.npy", "2.npy"]
    assert len(caplog.messages) == 2
    for name in ("1.npy", "3.npy"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.npy is not a readable"):
        open_embeddings(tmp_path)


def test_what_is_damaged_is_counted_whatever_split_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", GOOD + END)
    write(tmp_path / "train-1.tar", GOOD[:1300])
    write(tmp_path / "test-0.tar", GOOD + END)
    for split, count in ((None, 2), ("train", 1), ("test", 1)):
        pairs = load_pairs(tmp_path, split)
        assert (len(pairs), pairs.skipped) == (count, 1)
