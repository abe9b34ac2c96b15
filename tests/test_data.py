"""Reading pairs from every format, and the splits that hold for ever."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import hivlp
from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair, within
from hivlp.data.pictures import decode
from hivlp.errors import DataError, MissingExtraError, PictureError
from hivlp.mini import openclipart, stamps


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def facts(pairs: list[Pair]) -> list[tuple[str, tuple[str, ...], str]]:
    return [(pair.id, pair.captions, pair.split) for pair in pairs]


# --- folders


def test_folder_with_a_text_beside_each_picture(tmp_path: Path) -> None:
    write(tmp_path / "b.JPG", picture())
    write(tmp_path / "b.txt", "\ufeffa red square\n\n a  square \na red square\n")
    write(tmp_path / "test" / "a b.png", picture("blue"))
    write(tmp_path / "test" / "a b.txt", "a blue square")
    write(tmp_path / "untold.png", picture())
    write(tmp_path / "empty.png", picture())
    write(tmp_path / "empty.txt", "\n")
    pairs = load_pairs(tmp_path)
    assert facts(pairs) == [
        ("b.JPG", ("a red square", "a square"), "train"),
        ("test/a b.png", ("a blue square",), "test"),
    ]
    assert pairs[1].read() == picture("blue")
    assert facts(load_pairs(str(tmp_path), "test")) == facts(pairs[1:])


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl"])
def test_folder_with_a_table(tmp_path: Path, name: str) -> None:
    write(tmp_path / "pics" / "a.png", picture())
    row = {"file_name": "pics/a.png", "text": 'a, "red" square'}
    if name.endswith("csv"):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    else:
        write(tmp_path / name, json.dumps(row))
    [pair] = load_pairs(tmp_path)
    assert pair.captions == ('a, "red" square',)
    assert pair.read() == picture()


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture())
    write(tmp_path / "a.txt", b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        load_pairs(tmp_path)


# --- tables


def test_rows_of_one_picture_become_one_pair(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.tsv",
        "image\tcaption\tsplit\nb.png\tone\tdev\na.png\ttwo\t\nb.png\tthree\tval\nb.png\tone\tval\nc.png\t\t\n",
    )
    assert facts(load_pairs(table)) == [("b.png", ("one", "three"), "val"), ("a.png", ("two",), "train")]


def test_json_lines_with_lists(tmp_path: Path) -> None:
    table = write(tmp_path / "t.jsonl", '{"filename": "a.png", "captions": ["one", "two"]}\n\n')
    [pair] = load_pairs(table, images=tmp_path / "elsewhere")
    assert pair.captions == ("one", "two")
    assert pair.picture == tmp_path / "elsewhere" / "a.png"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,caption\n../a.png,x\n", r"t\.csv, line 2: .*leaves its folder"),
        ("t.csv", "image,caption\na.png,x\n/etc/a.png,x\n", r"line 3: .*leaves its folder"),
        ("t.csv", "image,caption\nb/../../a.png,x\n", "leaves its folder"),
        ("t.csv", "image,caption\nC:\\a.png,x\n", "leaves its folder"),
        ("t.csv", "image,caption\n..\\a.png,x\n", "leaves its folder"),
        ("t.csv", "image,caption\n,x\n", "empty"),
        ("t.csv", "picture,caption\na.png,x\n", "no picture column"),
        ("t.csv", "image,words\na.png,x\n", "no caption column"),
        ("t.csv", "image,caption,split\na.png,x,tset\n", "no split 'tset'"),
        ("t.csv", "image,caption,split\na.png,x,train\na.png,y,test\n", "line 3: a.png is in two splits"),
        ("t.csv", b"image,caption\na.png,caf\xe9\n", "not UTF-8"),
        ("t.csv", "image,caption\na.png," + "x" * 200_000 + "\n", "field larger"),
        ("t.csv", "", "no picture with a caption"),
        ("t.jsonl", '{"image": "a.png", "caption": "x"}\n{"image"\n', "line 2: not JSON"),
        ("t.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("t.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("t.jsonl", '{"image": 3, "caption": "x"}\n', "path is missing"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_names_may_hold_dots_and_spaces(tmp_path: Path) -> None:
    assert within(tmp_path, "a..b/c d...png", "here") == tmp_path / "a..b" / "c d...png"


# --- parquet


def write_parquet(path: Path, columns: dict[str, Any], group: int = 2) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "white", "black"]
    captions = ["a", "b", None, "d", "e"]
    write_parquet(tmp_path / "test-0.parquet", {"image": [picture(c) for c in colours], "caption": captions})
    pairs = load_pairs(tmp_path)
    assert [pair.captions[0] for pair in pairs] == ["a", "b", "d", "e"]
    assert {pair.split for pair in pairs} == {"test"}
    assert len({pair.id for pair in pairs}) == 4
    for pair, colour in zip(reversed(pairs), ["black", "white", "green", "red"], strict=True):
        assert pair.read() == picture(colour)
    assert not any(isinstance(pair.picture, bytes) for pair in pairs)
    assert pickle.loads(pickle.dumps(pairs[0])).read() == picture("red")  # noqa: S301 (as worker processes do)


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    write(tmp_path / "b.png", picture("blue"))
    images = [
        {"bytes": picture(), "path": "a.png"},
        {"bytes": None, "path": "b.png"},
        {"bytes": None, "path": "../../etc/passwd"},
        {"bytes": None, "path": None},
        None,
    ]
    captions = [["one", "two"], ["three"], ["four"], ["five"], ["six"]]
    file = write_parquet(tmp_path / "t.parquet", {"image": images, "captions": captions, "split": ["validation"] * 5})
    pairs = load_pairs(file, "val")
    assert pairs[0].captions == ("one", "two")
    assert [pair.read() for pair in pairs[:2]] == [picture(), picture("blue")]
    for pair in pairs[2:]:
        with pytest.raises(PictureError):
            pair.read()


def test_parquet_with_paths(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture())
    columns = {"path": ["a.png", "b.png", "a.png"], "text": ["one", "two", "three"]}
    pairs = load_pairs(write_parquet(tmp_path / "t.parquet", columns))
    assert facts(pairs) == [("a.png", ("one", "three"), "train"), ("b.png", ("two",), "train")]
    assert pairs[0].read() == picture()
    with pytest.raises(PictureError, match="No such file"):
        pairs[1].read()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["../a.png"], "text": ["x"]}, "row 1: .*leaves its folder"),
        ({"image": [1], "text": ["x"]}, "holds int64"),
        ({"text": ["x"]}, "no picture column"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_pairs(write_parquet(tmp_path / "t.parquet", columns))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"t\.parquet is not a readable parquet file") as caught:
        load_pairs(write(tmp_path / "t.parquet", "text"))
    assert "\n" not in str(caught.value)


# --- webdataset


def write_tar(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            body = content.encode() if isinstance(content, str) else content
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def test_webdataset(tmp_path: Path) -> None:
    members = {
        "x/0.json": '{"caption": "not this one"}',
        "x/0.png": picture("red"),
        "x/0.txt": "a red square\na square\n",
        "x/1.JPG": picture("blue"),
        "x/1.json": '{"text": "a blue square"}',
        "x/2.png": picture(),
        "x/3.txt": "no picture",
        "a-name-of-more-than-a-hundred-characters" * 3 + ".webp": picture("green"),
        "a-name-of-more-than-a-hundred-characters" * 3 + ".txt": "a green square",
    }
    write_tar(tmp_path / "train-0.tar", members)
    write_tar(tmp_path / "val-0.tar", {"0.png": picture("white"), "0.txt": "white"})
    pairs = load_pairs(tmp_path)
    assert [(pair.captions, pair.split) for pair in pairs] == [
        (("a red square", "a square"), "train"),
        (("a blue square",), "train"),
        (("a green square",), "train"),
        (("white",), "val"),
    ]
    assert pairs[0].id == "train-0/x/0"
    assert [pair.read() for pair in pairs] == [picture(c) for c in ("red", "blue", "green", "white")]


def test_webdataset_takes_nothing_but_regular_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, kind in (("0.png", tarfile.SYMTYPE), ("1.png", tarfile.LNKTYPE), ("2.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
            text = tarfile.TarInfo(name.replace("png", "txt"))
            text.size = 1
            tar.addfile(text, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="no picture with a caption"):
        load_pairs(tmp_path / "t.tar")


def test_bad_tars_are_named(tmp_path: Path) -> None:
    good = {"0.png": picture(), "0.txt": "x"}
    cases = {
        "text.tar": (write(tmp_path / "text.tar", "text"), "not a readable"),
        "zipped.tar": (write_tar(tmp_path / "zipped.tar", good, "w:gz"), "uncompressed"),
        "json.tar": (write_tar(tmp_path / "json.tar", {"0.png": picture(), "0.json": "{"}), "sample 0: not JSON"),
        "bytes.tar": (write_tar(tmp_path / "bytes.tar", {"0.png": picture(), "0.txt": b"\xff"}), "not UTF-8"),
        "long.tar": (write_tar(tmp_path / "long.tar", {"0.png": picture(), "0.txt": "x" * (2 << 20)}), "too large"),
    }
    for path, message in cases.values():
        with pytest.raises(DataError, match=message):
            load_pairs(path)


def test_a_tar_that_shrank_costs_the_picture_only(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"0.txt": "x", "0.png": picture()})
    [pair] = load_pairs(path)
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(PictureError, match="too short"):
        pair.read()


# --- Karpathy's JSON


def karpathy(*images: dict[str, Any]) -> str:
    return json.dumps({"dataset": "toy", "images": list(images)})


def entry(name: str, split: str, *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": c, "tokens": c.split()} for c in captions], **more}


def test_karpathy_splits_and_places(tmp_path: Path) -> None:
    write(tmp_path / "images" / "val2014" / "a.jpg", picture("red"))
    write(tmp_path / "images" / "b.jpg", picture("blue"))
    write(tmp_path / "c.jpg", picture("green"))
    path = write(
        tmp_path / "dataset.json",
        karpathy(
            entry("a.jpg", "restval", *"123456", filepath="val2014", cocoid=7),
            entry("b.jpg", "test", "b", filepath="train2014"),
            entry("c.jpg", "val", "c"),
            entry("d.jpg", "train", "d"),
        ),
    )
    pairs = load_pairs(path)
    assert facts(pairs) == [
        ("a.jpg", tuple("123456"), "train"),
        ("b.jpg", ("b",), "test"),
        ("c.jpg", ("c",), "val"),
        ("d.jpg", ("d",), "train"),
    ]
    assert [pair.read() for pair in pairs[:3]] == [picture(c) for c in ("red", "blue", "green")]
    with pytest.raises(PictureError):
        pairs[3].read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (karpathy(entry("../a.jpg", "test", "x")), "image 0: .*leaves its folder"),
        (karpathy(entry("a.jpg", "test", "x"), entry("a.jpg", "test", "x", filepath="/etc")), "image 1: .*leaves"),
        (karpathy(entry("a.jpg", "exam", "x")), "no split 'exam'"),
        (karpathy({"filename": "a.jpg"}), "image 0: not in Karpathy's layout: there is no 'split'"),
        (karpathy(entry("a.jpg", "test", "x")), "none of the pictures"),
        ("[]", "no list of images"),
        ('{"images": [1]}', "image 0: not in Karpathy's layout: a value is of another type"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_karpathy_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_pairs(write(tmp_path / "dataset.json", content))


# --- dispatch


def test_what_is_no_data_set(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "missing.csv", "does not exist"),
        (write(tmp_path / "a.xyz"), "is not a data set"),
        (tmp_path, "no picture with a caption"),
    ):
        with pytest.raises(DataError, match=message):
            load_pairs(source)
    table = write(tmp_path / "t.csv", "image,caption\na.png,x\n")
    with pytest.raises(DataError, match="no split 'exam'"):
        load_pairs(table, "exam")
    with pytest.raises(DataError, match="no pairs of the split 'test'; it has train"):
        load_pairs(table, "test")


@pytest.mark.slow
def test_optional_packages_are_asked_for_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = [Path(hivlp.__file__).parent / "data", *(Path(module.__file__) for module in (stamps, openclipart))]
    files = [path for room in rooms for path in ([room] if room.suffix else room.rglob("*.py"))]
    root = Path(hivlp.__file__).parent.parent
    names = ", ".join(".".join(path.relative_to(root).with_suffix("").parts) for path in files if path.stem[0] != "_")
    code = f"import sys, {names}; print({{'torch', 'pyarrow', 'resvg_py', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        load_pairs(write(tmp_path / "t.parquet"))


# --- stamps


def svg(width: str, height: str) -> str:
    return (
        f'<?xml version="1.0"?><!-- <svg width="0"> --><svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{height}"><rect width="100%" height="100%" fill="red"/></svg>'
    )


@pytest.fixture
def stamp_folder(tmp_path: Path) -> Path:
    """400 stamps outside ``symbols`` with captions of their own, and the odd cases."""
    root = tmp_path / "stamps"
    for number in range(400):
        folder = root / ("animals" if number % 2 else "food") / f"f{number % 7}"
        write(folder / f"{number}.png", b"x")
        write(folder / f"{number}.txt", f" Item {number}. \nde.utf8=Ding {number}\n")
    for number in range(20):
        write(root / "symbols" / f"{number}.png", b"x")
        write(root / "symbols" / f"{number}.txt", f"Sign {number}")
    for name in ("one", "two"):
        write(root / "twice" / f"{name}.png", b"x")
        write(root / "twice" / f"{name}.txt", "Twins.")
    return root


def test_the_split_follows_the_rule(stamp_folder: Path) -> None:
    pairs = stamps.read_stamps(stamp_folder)
    assert Counter(pair.split for pair in pairs) == {"test": 200, "val": 100, "train": 122}
    ordered = sorted((f"Item {number}." for number in range(400)), key=lambda c: hashlib.sha256(c.encode()).hexdigest())
    by_caption = {pair.captions[0]: pair.split for pair in pairs}
    assert [by_caption[caption] for caption in ordered] == ["test"] * 200 + ["val"] * 100 + ["train"] * 100
    assert by_caption["Twins."] == by_caption["Sign 0"] == "train"
    assert stamps.held_out_captions(stamp_folder) == {caption.casefold() for caption in ordered[:300]}
    assert [pair.id for pair in pairs] == sorted((pair.id for pair in pairs), key=lambda name: name.split("/"))


def test_training_shares_no_caption_with_what_is_held_out(stamp_folder: Path) -> None:
    caption = sorted(stamps.held_out_captions(stamp_folder))[0]
    write(stamp_folder / "animals" / "shout.png", b"x")
    write(stamp_folder / "animals" / "shout.txt", caption.upper())
    pairs = stamps.read_stamps(stamp_folder)
    held_out = stamps.held_out_captions(stamp_folder)
    assert not any(pair.captions[0].casefold() in held_out for pair in pairs if pair.split == "train")
    # An exact copy makes the caption occur twice: it may no longer be held out.
    original = next(pair for pair in pairs if pair.captions[0].casefold() == caption)
    write(stamp_folder / "animals" / "copy.png", b"x")
    write(stamp_folder / "animals" / "copy.txt", original.captions[0])
    again = {pair.id: pair.split for pair in stamps.read_stamps(stamp_folder)}
    assert "test" not in (again[original.id], again["animals/copy.png"])


def test_which_stamps_count(tmp_path: Path) -> None:
    for name in ("both.svg", "drawn.svg"):
        write(tmp_path / "a" / name, svg("20", "10px"))
    for name, size in (("pt", "10pt"), ("zero", "0"), ("mm", "210mm")):
        write(tmp_path / "a" / f"{name}.svg", svg(size, "10"))
        write(tmp_path / "a" / f"{name}.txt", name)
    write(tmp_path / "a" / "broken.svg", "<svg")
    write(tmp_path / "a" / "both.png", picture())
    write(tmp_path / "a" / "mirror.png", picture())
    write(tmp_path / "a" / "silent.png", picture())
    write(tmp_path / "a" / "silent.txt", "\nde.utf8=stumm\n")
    for name in ("both", "drawn", "broken", "alone"):
        write(tmp_path / "a" / f"{name}.txt", name)
    pairs = stamps.read_stamps(tmp_path)
    assert [pair.id for pair in pairs] == ["a/both.png", "a/drawn.svg"]
    pytest.importorskip("resvg_py")
    drawn = decode(pairs[1].read())
    assert drawn.size == (512, 256)
    assert drawn.getpixel((100, 100)) == (255, 0, 0)


def test_a_hostile_svg_costs_neither_memory_nor_the_process(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    for width, height in (("1e9", "1e9"), ("1", "1e9"), ("1e9", "1")):
        drawing = stamps.Drawing(write(tmp_path / "x.svg", svg(width, height)))
        with contextlib.suppress(PictureError):
            assert max(decode(drawing.read()).size) <= 512
    with pytest.raises(PictureError, match="cannot be drawn"):
        stamps.Drawing(write(tmp_path / "x.svg", "<svg")).read()


def test_missing_stamps_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVLP_STAMPS", str(tmp_path / "none"))
    with pytest.raises(DataError, match="apt-get install tuxpaint-stamps-default"):
        load_pairs("stamps")


needs_stamps = pytest.mark.skipif(not stamps.DEFAULT_ROOT.is_dir(), reason="tuxpaint-stamps-default is not installed")


@pytest.mark.slow
@pytest.mark.stamps
@needs_stamps
def test_the_real_stamps() -> None:
    pytest.importorskip("resvg_py")
    pairs = stamps.read_stamps(stamps.DEFAULT_ROOT)
    assert Counter(pair.split for pair in pairs) == {"test": 200, "val": 99, "train": 623}
    for split, digest in (
        ("test", "4f10f7402dbcf28e4c0825b06fbca13abc08aa919f51ae60d89b695cf85f4f6f"),
        ("val", "958ab078f67c31f7268b788638d87dd369f6bc6ed88660a0a3eb0dfaa21459f4"),
    ):
        captions = sorted(pair.captions[0] for pair in pairs if pair.split == split)
        assert hashlib.sha256("\n".join(captions).encode()).hexdigest() == digest


@pytest.mark.slow
@pytest.mark.stamps
@needs_stamps
def test_the_header_tells_which_real_drawings_resvg_refuses() -> None:
    resvg_py = pytest.importorskip("resvg_py")
    refused = set()
    for path in stamps.DEFAULT_ROOT.rglob("*.svg"):
        try:
            resvg_py.svg_to_bytes(svg_path=str(path), width=8, height=8)
        except ValueError:
            refused.add(path)
    assert {path for path in stamps.DEFAULT_ROOT.rglob("*.svg") if not stamps.drawable(path)} == refused
    alone = [p for p in refused if p.with_suffix(".txt").exists() and not p.with_suffix(".png").exists()]
    assert len(alone) == 16


# --- openclipart


def clip(title: str, keywords: str = "", description: str = "", license: str = "PublicDomain", author: str = "") -> str:
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords.split())
    return f"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<metadata><rdf:RDF><cc:Work rdf:about=""><dc:title>{title}</dc:title><dc:description>{description}</dc:description>
<dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="http://web.resource.org/cc/{license}"/></cc:Work></rdf:RDF></metadata>
<path d="M 0 0 & this is never read"/></svg>"""


@pytest.mark.slow
def test_openclipart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "clips"
    clips = {
        "a/cow": clip("Brown_cow_02", "animal hash cow Jane", "A cow on the grass", author="Jane"),
        "a/owned": clip("Green cow", license="GPL/2.0/"),
        "a/held": clip("the DOG!"),
        "a/huge": clip("Huge cow"),
        "a/broken": "<svg",
        "a/italian": clip("Cavallo", "mammal horse", author="Architetto Francesco Rollandin"),
        "a/mail": clip("A bottle", "tool", "bottle@example.org"),
        **{f"icons/{number}": clip("gramastar", "stars") for number in range(5)},
    }
    for name, content in clips.items():
        write(root / "svg" / f"{name}.svg", content)
        write(root / "png" / f"{name}.png", picture())
    header = bytearray(picture())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    write(root / "png" / "a" / "huge.png", bytes(header))
    (root / "png" / "a" / "zlink.png").symlink_to("cow.png")
    write(root / "svg" / "a" / "zlink.svg", clips["a/cow"])
    write(tmp_path / "stamps" / "animals" / "dog.png")
    write(tmp_path / "stamps" / "animals" / "dog.txt", "A dog.")
    monkeypatch.setenv("HIVLP_STAMPS", str(tmp_path / "stamps"))
    monkeypatch.setenv("HIVLP_OPENCLIPART", str(root))
    assert facts(load_pairs("openclipart")) == [
        ("a/cow.png", ("Brown cow", "A cow on the grass", "animal, cow"), "train"),
        ("a/italian.png", ("mammal, horse",), "train"),
        ("a/mail.png", ("A bottle",), "train"),
    ]


@pytest.mark.slow
def test_pictures_of_the_demonstration_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shown", "other"):
        write(tmp_path / "svg" / f"{name}.svg", clip(f"{name} thing"))
        write(tmp_path / "png" / f"{name}.png", picture())
    (tmp_path / "png" / "alias.png").symlink_to("shown.png")
    package = tmp_path / "package"
    write(package / "assets" / "pictures" / "captions.jsonl", '{"file": "x.webp", "source": "alias.png"}\n')
    monkeypatch.setattr("importlib.resources.files", lambda name: package)
    assert [pair.id for pair in openclipart.read_openclipart(tmp_path)] == ["other.png"]


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Clipart by Nicu Buculei - baloon1_04", "baloon"),
        ("RedSportsCar", "Red Sports Car"),
        ("Dog 06 Drawn With Straight Lines", "Dog Drawn With Straight Lines"),
        ("HASH(0x85e63e0)", ""),
        ("Salt &amp;amp; pepper &lt;b&gt;", "Salt & pepper"),
        ("Baseball Glove (B and W)", "Baseball Glove in black and white"),
        ("Part of the Flat Icon Collection (Wed Aug 25 23:29:46 2004)", ""),
        ("Lemon SVG theme", ""),
        ("Ice Cream Cone (3 scoop)", "Ice Cream Cone (3 scoop)"),
        ("42", ""),
    ],
)
def test_titles_become_captions(title: str, clean: str) -> None:
    assert openclipart.clean_title(title) == clean


def test_missing_openclipart_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVLP_OPENCLIPART", str(tmp_path))
    with pytest.raises(DataError, match="apt-get install openclipart-png"):
        load_pairs("openclipart")


@pytest.mark.slow
@pytest.mark.stamps
@needs_stamps
@pytest.mark.skipif(not openclipart.DEFAULT_ROOT.is_dir(), reason="openclipart is not installed")
def test_the_real_openclipart_keeps_clear_of_what_is_held_out() -> None:
    pytest.importorskip("resvg_py")
    pairs = openclipart.read_openclipart(openclipart.DEFAULT_ROOT)
    assert len(pairs) == 1948, "of 2,020: the others show a held-out stamp's drawing, or one of the demonstration"
    assert not any("woman_chemist" in pair.id or pair.id.endswith("/compact_disc.png") for pair in pairs)
    held_out = stamps.held_out_captions(stamps.DEFAULT_ROOT)
    bare = {caption.removeprefix("a ").removeprefix("an ").removeprefix("the ").rstrip(".!") for caption in held_out}
    for pair in pairs:
        assert pair.split == "train"
        assert not {caption.casefold() for caption in pair.captions} & (held_out | bare)
        assert not any("hash(" in caption.casefold() or "@" in caption for caption in pair.captions)


# --- flash cards


def test_flashcards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("animals/baby_rabbit.jpg", "animals/dog.jpg", "food/pie.jpg"):
        write(tmp_path / "cards" / name, picture())
    write(tmp_path / "stamps" / "animals" / "dog.png")
    write(tmp_path / "stamps" / "animals" / "dog.txt", "A dog.")
    monkeypatch.setenv("HIVLP_STAMPS", str(tmp_path / "stamps"))
    monkeypatch.setenv("HIVLP_FLASHCARDS", str(tmp_path / "cards"))
    assert facts(load_pairs("flashcards")) == [
        ("animals/baby_rabbit.jpg", ("baby rabbit",), "train"),
        ("food/pie.jpg", ("pie",), "train"),
    ]
    monkeypatch.setenv("HIVLP_FLASHCARDS", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="apt-get install pysiogame"):
        load_pairs("flashcards")
