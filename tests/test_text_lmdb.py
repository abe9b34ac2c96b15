"""UNITER's text databases, read from generated ones of the same format."""

import json

import pytest

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed: pip install 'hivlp[systems]'")
frame = pytest.importorskip("lz4.frame", reason="lz4 is not installed: pip install 'hivlp[systems]'")
msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: pip install 'hivlp[systems]'")

from hivlp.errors import DataError  # noqa: E402
from hivlp.systems import texts  # noqa: E402
from hivlp.systems.texts import TextLmdb  # noqa: E402

PICTURE = "flickr30k_000000000007.npz"


def packed(**record) -> bytes:
    return frame.compress(msgpack.dumps(record))


def write(folder, records, pictures=None):
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 22) as env, env.begin(write=True) as transaction:
        for name, value in records.items():
            transaction.put(name.encode(), value)
    pictures = pictures or dict.fromkeys(records, PICTURE)
    about = {"meta": {"CLS": 101, "SEP": 102, "MASK": 103, "v_range": [106, 28996]}, "txt2img": pictures,
             "img2txts": {PICTURE: list(pictures)}, "id2len": dict.fromkeys(pictures, 3)}  # fmt: skip
    for name, value in about.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_a_caption_is_given_with_its_special_tokens_and_its_picture(tmp_path):
    held = TextLmdb(write(tmp_path / "db", {"0": packed(input_ids=[5, 6, 7], img_fname=PICTURE, toked_caption=["a"])}))
    found = held["0"]
    assert found.ids.tolist() == [101, 5, 6, 7, 102] and found.regions == PICTURE
    assert list(held) == ["0"] and len(held) == 1 and held.captions == {PICTURE: ["0"]}
    with pytest.raises(KeyError):
        held["1"]
    held.close()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"no frame", "not a readable record"),
        (packed(input_ids=[1])[:-6], "not a readable record"),
        (frame.compress(b"\xc1"), "not a readable record"),
        (frame.compress(msgpack.dumps([1])), "no fields"),
        (packed(input_ids="abc"), "list of ids"),
        (packed(input_ids=[-1]), "list of ids"),
        (packed(input_ids=[1], img_fname="other.npz"), "another in txt2img"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, value, said):
    held = TextLmdb(write(tmp_path / "db", {"0": value}))
    with pytest.raises(DataError, match=f"caption 0: .*{said}"):
        held["0"]


def test_a_record_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LIMIT", 1000)
    held = TextLmdb(write(tmp_path / "db", {"0": frame.compress(bytes(100_000))}))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        held["0"]


def test_a_caption_that_the_database_lacks_is_named(tmp_path):
    held = TextLmdb(write(tmp_path / "db", {"0": packed(input_ids=[1])}, {"0": PICTURE, "9": PICTURE}))
    with pytest.raises(DataError, match="caption 9: not in the database"):
        held["9"]


@pytest.mark.parametrize("name", ["data.mdb", "meta.json", "txt2img.json", "img2txts.json"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, name):
    folder = write(tmp_path / "db", {"0": packed(input_ids=[1])})
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"has no {name}"):
        TextLmdb(folder)
