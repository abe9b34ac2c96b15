"""The index at its edges: equal vectors, hostile conditions, folders that may not be read, names that are met twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hivlp.ann import native
from hivlp.errors import ArgumentError, DataError, IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.levels import Embeddings
from hivlp.store.codec import FLOAT16, FLOAT32
from hivlp.store.database import LOOK_SECONDS
from hivlp.store.records import NewItem, Stamp
from synthetic import STAMP, FakeEncoder, Stored, fill, random_levels, random_unit, write_pictures

TESTS = Path(__file__).parent


@pytest.fixture
def index(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(pictures)
        yield index


@pytest.mark.parametrize("dim", [63, 64, 384])
def test_pages_are_sorted_by_the_scores_they_show_and_twins_keep_their_order(tmp_path, dim):
    rng = np.random.default_rng(0)
    encoder = FakeEncoder(dims=(16, dim))
    vectors = {level.name: np.repeat(random_unit(rng, 40, level.dim), 3, axis=0) for level in encoder.levels}
    with Index.create(tmp_path / "x", model=encoder) as index:
        fill(index, vectors)
        for _ in range(20):
            query = {level.name: rng.normal(size=level.dim) for level in encoder.levels}
            for options in ({"exact": True}, {"shortlist": 200}):
                for k in (5, 7, 119):
                    hits = list(index.search(vector=query, k=k, **options))
                    keys = [(-hit.scores["fine"], hit.id) for hit in hits]
                    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "condition",
    ["0) UNION SELECT (999999", "0) UNION SELECT (-1", "0) UNION SELECT ('a'", "length(hex(zeroblob(400000000))) > 0"],
)
def test_a_condition_is_one_bounded_expression(index, condition):
    with pytest.raises(QueryError):
        index.search("x", where=condition)
    assert len(index.search("x", k=50)) == 30


def test_a_condition_may_look_into_json_lists(index):
    item = Stored(index).get(1)
    index.store.append(
        [NewItem(item.path, item.hash, None, {"tags": ["red", "old"]}, item.stamp)], index.store.embeddings(item.row)
    )
    found = index.search("x", where="'red' IN (SELECT value FROM json_each(metadata, '$.tags'))")
    assert [hit.id for hit in found] == [1]


def test_ids_that_no_item_can_have_are_unknown(index):
    with pytest.raises(QueryError, match="no item"):
        index.search(like=10**30)
    with pytest.raises(QueryError, match="no item"):
        index.remove([10**30])


def test_damage_inside_the_catalog_is_told_in_a_sentence(tmp_path, encoder):
    vectors = {level.name: np.eye(level.dim, dtype=np.float32)[np.zeros(900, int)] for level in encoder.levels}
    with Index.create(tmp_path / "x", model=encoder) as index:
        items = [NewItem(f"/p/{n}", n.to_bytes(32), "words " * 9, {}, Stamp(1, 2, 3, 4)) for n in range(900)]
        index.store.append(items, Embeddings(vectors))
    file = tmp_path / "x" / "items.db"
    data = bytearray(file.read_bytes())
    data[len(data) // 3 :] = b"\x5a" * (len(data) - len(data) // 3)
    file.write_bytes(data)
    picture = write_pictures(tmp_path / "p", 1)[0]
    with Index.open(tmp_path / "x", encoder) as index:
        for use in (lambda: index.search("x", k=900), lambda: len(index), index.info, lambda: index.add(picture)):
            with pytest.raises(IndexFolderError, match="malformed"):
                use()


UNPRIVILEGED = """
import mmap, os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from synthetic import FakeEncoder
from hivlp.errors import IndexFolderError
from hivlp.index import Index
encoder, place = FakeEncoder(), Path(sys.argv[3])
os.setgid(65534), os.setuid(65534)
with Index.open(place / "x", encoder) as index:
    assert len(index.search("words")) == 10
for use in (
    lambda: Index.open(place / "x", encoder).remove([1]),
    lambda: Index.open(place / "locked_catalog", encoder),
    lambda: Index.open(place / "locked_vectors", encoder).search("words"),
    lambda: Index.open(place / "closed" / "x", encoder),
    lambda: Index.create(place / "closed" / "y", model=encoder),
):
    try:
        use()
    except IndexFolderError as error:
        print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_or_written_is_told_in_a_sentence(index, tmp_path):
    index.close()
    shutil.copytree(index.path, tmp_path / "locked_catalog")
    (tmp_path / "locked_catalog" / "items.db").chmod(0o600)
    shutil.copytree(index.path, tmp_path / "locked_vectors")
    (tmp_path / "locked_vectors" / "fine.0.f16").chmod(0o600)
    shutil.copytree(index.path, tmp_path / "closed" / "x")
    (tmp_path / "closed").chmod(0o700)
    opened = []
    for folder in [tmp_path, *tmp_path.parents]:  # pytest's own folders are private
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001 and folder != Path("/"):
            opened.append((folder, folder.stat().st_mode))
            folder.chmod(0o755)
    try:
        command = [sys.executable, "-c", UNPRIVILEGED, str(TESTS), str(TESTS.parent / "src"), str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        for folder, mode in opened:
            folder.chmod(mode)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("refused:") == 5


def test_a_root_inside_another_is_met_even_if_the_walk_would_pass_it_by(index, pictures):
    hidden = write_pictures(pictures / ".hidden", 2, start=50)
    shutil.copyfile(hidden[0], pictures / "no_suffix")
    assert index.add(pictures, pictures / ".hidden", pictures / "no_suffix").added == 3


def test_a_linked_folder_leads_to_the_same_items(index, pictures, tmp_path):
    (tmp_path / "link").symlink_to(pictures)
    assert index.add([tmp_path / "link"]).skipped == 30
    assert index.remove([tmp_path / "link"]) == 30


def test_what_was_known_of_a_picture_outlives_its_content(index, pictures, tmp_path):
    item = Stored(index).at(str(pictures / "00000.png"))
    index.store.append(
        [NewItem(item.path, item.hash, "a fox", {"by": "me"}, item.stamp)], index.store.embeddings(item.row)
    )
    shutil.copyfile(write_pictures(tmp_path / "other", 1, start=77)[0], item.path)
    assert index.add(pictures).updated == 1
    changed = Stored(index).at(item.path)
    assert (changed.id, changed.caption, changed.metadata["by"]) == (item.id, "a fox", "me")


def test_metadata_is_stored_beside_what_the_picture_says_and_can_change_without_the_picture(tmp_path, encoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2024:06:01 12:30:00"
    folder = tmp_path / "p"
    folder.mkdir()
    Image.new("RGB", (40, 20), "red").save(folder / "a.jpg", exif=exif)
    shutil.copyfile(folder / "a.jpg", folder / "twin.jpg")
    facts = {"format": "JPEG", "width": 20, "height": 40, "orientation": "portrait", "taken": "2024-06-01T12:30:00"}
    given = {str(folder / "a.jpg"): {"by": "me", "tags": ("x", "y")}}
    with Index.create(tmp_path / "i", model=encoder) as index:
        assert index.add(folder, metadata=given).added == 2
        assert Stored(index).at(str(folder / "a.jpg")).metadata == {**facts, "by": "me", "tags": ["x", "y"]}
        assert Stored(index).at(str(folder / "twin.jpg")).metadata == facts
        assert len(index.search("x", where="metadata->>'taken' LIKE '2024-06%' AND metadata->>'by' = 'me'")) == 1
        assert (index.add(folder).skipped, index.add(folder, metadata=given).skipped) == (2, 2)
        given[str(folder / "a.jpg")] = {"by": "you"}
        (folder / "twin.txt").write_text("a red thing")
        assert index.add(folder, metadata=given).updated == 2
        assert Stored(index).at(str(folder / "a.jpg")).metadata == {**facts, "by": "you", "tags": ["x", "y"]}
        assert Stored(index).at(str(folder / "twin.jpg")).caption == "a red thing"
        for wrong in ({"by": b"me"}, {"by": float("nan")}):
            with pytest.raises(DataError, match="JSON"):
                index.add(folder, metadata={"a.jpg": wrong})


def test_a_caption_is_never_a_link_or_a_pipe(tmp_path, encoder):
    secret = tmp_path / "secret"
    secret.write_text("not for captions")
    linked, piped, marked = write_pictures(tmp_path / "p", 3)
    linked.with_suffix(".txt").symlink_to(secret)
    os.mkfifo(piped.with_suffix(".txt"))
    marked.with_suffix(".txt").write_text("a fox", encoding="utf-8-sig")
    # A process of its own: opening the pipe would never return.
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from synthetic import FakeEncoder; from hivlp.index import Index\n"
        "with Index.create(sys.argv[3], model=FakeEncoder()) as index: index.add(sys.argv[4])\n"
    )
    arguments = [str(TESTS), str(TESTS.parent / "src"), str(tmp_path / "x"), str(tmp_path / "p")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=60)
    with Index.open(tmp_path / "x", encoder) as index:
        assert [Stored(index).at(str(path)).caption for path in (linked, piped, marked)] == [None, None, "a fox"]


def test_json_is_utf8_whatever_the_name(tmp_path, encoder):
    source = write_pictures(tmp_path / "source", 1)[0]
    (tmp_path / "p").mkdir()
    shutil.copyfile(source, os.fsencode(tmp_path / "p") + b"/\xff.png")
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(tmp_path / "p")
        json.dumps(index.search(image=source).to_json(), ensure_ascii=False).encode("utf-8")


def test_an_index_opened_by_a_relative_name_stays_open_elsewhere(index, tmp_path, encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Index.open("x", encoder) as relative:
        monkeypatch.chdir("/")
        assert len(relative.search("words")) == 10


def test_compact_clears_what_a_killed_one_left(index):
    left = index.path / "fine.7.f16"
    left.write_bytes(b"half a generation")
    assert index.compact() == 0
    assert not left.exists()


@pytest.mark.parametrize("kernels", [True, False])
def test_half_precision_is_what_numpy_gives_bit_for_bit(kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(native, "load", lambda: None)
    rng = np.random.default_rng(0)
    halves = np.arange(1 << 16, dtype=np.uint16).view("<f2").astype("<f4").view("<u4")
    cases = [
        rng.integers(0, 1 << 32, 200_000, np.uint32),
        rng.integers(0, 0x7F800001, 200_000, np.uint32) | (rng.integers(0, 2, 200_000, np.uint32) << np.uint32(31)),
        *(halves + np.uint32(ulp) for ulp in (0, 0xFFF, 0x1000, 0x1001)),
    ]
    for bits in cases:
        numbers = bits.view("<f4").reshape(-1, 16)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = numbers.astype("<f2")
        assert np.array_equal(FLOAT16.encode(numbers).view("<u2"), expected.view("<u2"))
        for length in (1, 13):  # not whole groups of those that are converted together
            some = numbers.reshape(-1)[None, :length]
            assert np.array_equal(FLOAT16.encode(some).view("<u2"), expected.reshape(-1)[None, :length].view("<u2"))
    turned = rng.standard_normal((9, 5), np.float32).T
    assert np.array_equal(FLOAT16.encode(turned), turned.astype("<f2"))
    assert np.array_equal(FLOAT32.encode(turned), turned)
    assert FLOAT16.encode(turned[:0]).shape == (0, 9)
    room = np.zeros((7, 9), "<f2")
    assert FLOAT16.encode(turned, room[1:6]).base is room
    assert np.array_equal(room[1:6], turned.astype("<f2")) and not room[[0, 6]].any()


def test_items_said_to_be_new_that_are_not_are_refused_and_nothing_is_stored(index):
    before = [(item.id, item.path, item.hash, item.row) for item in Stored(index).all_items()]
    known = before[7][1]
    vectors = Embeddings({name: np.repeat(array, 3, axis=0) for name, array in index.store.embeddings(0).items()})
    for paths in (["/new/a", known, "/new/b"], ["/new/a", "/new/b", known]):
        items = [NewItem(path, bytes(32), None, {}, STAMP) for path in paths]
        with pytest.raises(IndexFolderError, match="unique"):
            index.store.append(items, vectors, new=True)
        assert [(item.id, item.path, item.hash, item.row) for item in Stored(index).all_items()] == before
        assert index.verify().ok
    items = [NewItem(path, bytes(32), None, {}, Stamp(1, 2, 3, 4)) for path in ("/new/a", "/new/a", "/new/b")]
    assert index.store.append(items, vectors, new=True) == 1  # which comes twice is seen all the same
    assert index.verify().ok and len(index) == len(before) + 2


def test_a_folder_made_anew_at_the_same_path_is_not_touched_by_an_index_of_the_old_one(tmp_path, encoder):
    searched = fill(Index.create(tmp_path / "x", model=encoder), random_levels(encoder.levels, 50))
    query = {level.name: np.ones(level.dim) for level in encoder.levels}
    for _ in range(2):
        searched.search(vector=query)
    fresh = Index.open(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "moved")
    with pytest.raises(IndexFolderError, match="moved, deleted or replaced"):
        searched.remove(1)
    assert not (tmp_path / "x").exists()
    with fill(Index.create(tmp_path / "x", model=encoder), random_levels(encoder.levels, 90, seed=1)) as new:
        time.sleep(2 * LOOK_SECONDS)
        for old in (searched, fresh):
            for act in (
                lambda: old.search(vector=query),  # noqa: B023  (used now)
                lambda: old.search(vector=query, where="id > 2"),  # noqa: B023
                lambda: fill(old, random_levels(encoder.levels, 5)),  # noqa: B023
                lambda: old.remove(1),  # noqa: B023
                old.compact,
            ):
                with pytest.raises(IndexFolderError, match="moved, deleted or replaced"):
                    act()
            old.close()
        assert new.verify().ok
        assert len(new) == 90


@pytest.mark.parametrize("after", [np.int64(28), 28])
def test_a_page_of_items_begins_behind_any_whole_number(index, after):
    assert [item.id for item in index.items(after=after)] == [29, 30]
    assert len(list(index.items(after=-(1 << 80)))) == 30
    assert list(index.items(after=1 << 80)) == []
    for wrong in ("1", 1.5, None, True):
        with pytest.raises(ArgumentError):
            next(index.items(after=wrong))


@pytest.mark.parametrize("name", ["\0", "a\0b", "\ud800", None, 1])
def test_what_can_be_no_path_is_said_to_be_none(index, name):
    with pytest.raises(ArgumentError, match="is not a path"):
        index.named(name)


def test_a_path_that_is_no_text_and_not_there_is_not_found(index):
    assert index.named("a\udcff") == []
    with pytest.raises(QueryError, match="has no item"):
        index.remove("a\udcff")


def test_metadata_with_half_a_surrogate_pair_is_kept(tmp_path, encoder):
    with Index.create(tmp_path / "x", model=encoder) as index:
        item = NewItem("/p/0.png", bytes(32), None, {"é": "\ud800"}, STAMP)
        index.store.append([item], Embeddings(random_levels(encoder.levels, 1)))
        assert index.get(1).metadata == {"é": "\ud800"}
        assert index.verify().ok


def test_an_index_of_float32_is_not_called_old_when_it_is_tuned(tmp_path, encoder):
    with (
        Index.create(tmp_path / "x", model=encoder, vectors="float32") as index,
        pytest.raises(IndexFolderError, match="stores float32 vectors"),
    ):
        index.tune()


def test_what_a_caller_does_to_a_hit_is_not_in_later_answers(tmp_path, encoder):
    with Index.create(tmp_path / "x", model=encoder) as index:
        vectors = random_levels(encoder.levels, 1)
        index.store.append([NewItem("/p/0.png", bytes(32), None, {"a": 1, "b": [1]}, STAMP)], Embeddings(vectors))
        for _ in range(4):
            (hit,) = index.search(vector={name: rows[0] for name, rows in vectors.items()}).hits
            assert hit.metadata == {"a": 1, "b": [1]}
            hit.metadata["c"] = 2
            hit.metadata["b"].append(2)


def test_a_backup_put_back_into_an_open_index_is_what_is_searched(tmp_path, encoder):
    vectors = random_levels(encoder.levels, 40)
    query = {name: rows[9] for name, rows in vectors.items()}
    with fill(Index.create(tmp_path / "x", model=encoder), vectors) as index:
        backup = (tmp_path / "x" / "items.db").read_bytes()
        index.remove(10)
        for _ in range(3):
            assert 10 not in [hit.id for hit in index.search(vector=query, k=40)]
        with (tmp_path / "x" / "items.db").open("r+b") as file:  # in place, as `cp` does
            file.write(backup)
            file.truncate()
        assert index.search(vector=query)[0].id == 10
        index.remove(11)
        for _ in range(2):
            found = [hit.id for hit in index.search(vector=query, k=40)]
            assert found[0] == 10 and 11 not in found and len(found) == 39
