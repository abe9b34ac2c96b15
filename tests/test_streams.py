"""Streams of pairs: shards by patterns, lanes with exact positions, and what is wrong with data, named."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.data.load import load_pairs
from hivlp.data.streams.lane import Dealt, Lane, Position, Source, lanes_of, shares
from hivlp.data.streams.opening import UnreachableError, expand
from hivlp.data.streams.reading import pairs_of
from hivlp.data.streams.shards import Shard, ShardList, find_shards, in_parts
from hivlp.errors import DataError
from synthetic import shard_members, write_karpathy, write_pairs, write_shards, write_tar


def read(shard: Shard, first: int = 0, split: str = "train") -> tuple[list[str], list[str]]:
    """Captions, and what was told."""
    told: list[str] = []
    return [pair.captions[0] for _, pair in pairs_of(shard, split, first, told.append, 0)], told


def tar(path: Path) -> Shard:
    return Shard(str(path), "tar")


def dealt(*folders: Path, lanes: int = 4, window: int = 5, seed: int = 3, weights=None) -> Dealt:
    sources = [
        Source(in_parts(find_shards(str(folder), "train", folder), lanes), weight, "train", str(folder))
        for folder, weight in zip(folders, weights or [1.0] * len(folders), strict=True)
    ]
    return Dealt(tuple(sources), lanes, window, seed, 0)


def taken(lane: Lane, count: int) -> list[str]:
    return [lane.take()[0].captions[0] for _ in range(count)]


def start(stream: Dealt, number: int, position: Position | None = None) -> Lane:
    return Lane(stream, number, position or Position.start(len(stream.sources)), pytest.fail)


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("plain.tar", ["plain.tar"]),
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("a{8..10}.tar", ["a8.tar", "a9.tar", "a10.tar"]),
        ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
        ("{a{0..1},b}", ["a0", "a1", "b"]),
        ("s3://bucket/{a}.tar", ["s3://bucket/a.tar"]),
    ],
)
def test_braces_count_and_list(pattern, words):
    assert list(expand(pattern)) == words


@pytest.mark.parametrize("pattern", ["{0..1", "{5..2}.tar"])
def test_braces_that_mean_nothing_are_refused(pattern):
    with pytest.raises(DataError, match=r"brace|backwards"):
        list(expand(pattern))


@pytest.mark.parametrize("pattern", ["", "*.tar", "{000..002}.tar", "00[0-2].tar", "{000,00{1..2}}.tar"])
def test_shards_are_found_by_folder_glob_and_braces(tmp_path, pattern):
    write_shards(tmp_path / "s", 3, 1)
    for where in (str(tmp_path / "s"), f"file://{tmp_path}/s"):
        if pattern or not where.startswith("file"):
            found = find_shards(f"{where}/{pattern}".rstrip("/"), "train", tmp_path)
            assert [shard.name for shard in found] == ["000", "001", "002"]
            assert all(shard.size > 0 for shard in found)


def test_missing_shards_are_named_at_once(tmp_path):
    write_shards(tmp_path, 2, 1)
    with pytest.raises(DataError, match=r"2 of 4 shards are missing: .*002\.tar, .*003\.tar"):
        find_shards(f"{tmp_path}/{{000..003}}.tar", "train", tmp_path)
    with pytest.raises(DataError, match="no file is called like"):
        find_shards(f"{tmp_path}/*.parquet", "train", tmp_path)


def test_changed_shards_are_named(tmp_path):
    write_shards(tmp_path, 3, 1)
    before = ShardList((tuple(find_shards(str(tmp_path), "train", tmp_path)),))
    before.save(tmp_path / "list.json")
    assert ShardList.load(tmp_path / "list.json").digest == before.digest
    write_tar(tmp_path / "001.tar", shard_members(range(9)))
    (tmp_path / "002.tar").unlink()
    after = ShardList((tuple(find_shards(str(tmp_path), "train", tmp_path)),))
    assert after.digest != before.digest and after.changes(before) == "shards: 1 removed, 1 changed"


# --- one shard


def parquet(folder: Path, count: int = 30) -> Path:
    members = shard_members(range(count))
    table = {
        "image": [members[f"{n:06}.png"] for n in range(count)],
        "caption": [f"picture {n} red circle" if n != 7 else None for n in range(count)],
    }
    pq.write_table(pa.table(table), folder / "x.parquet", row_group_size=8)
    return folder / "x.parquet"


@pytest.mark.parametrize("kind", ["tar", "parquet", "list"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_shard_is_read_from_any_place_on(tmp_path, kind, parts):
    """What comes behind a place is what came behind it in one go; parts share out all, once."""
    if kind == "list":
        write_karpathy(tmp_path, "x", [
            {"filename": f"{n}.png", "split": "train", "sentences": [{"raw": f"picture {n} red circle"}]}
            for n in range(30)
        ])  # fmt: skip
        (tmp_path / "0.png").write_bytes(b"x")
        [shard] = find_shards(str(tmp_path / "dataset_x.json"), "train", tmp_path)
    else:
        path = parquet(tmp_path) if kind == "parquet" else write_shards(tmp_path, 1, 30) / "000.tar"
        shard = Shard(str(path), kind)
    everything = []
    for part in range(parts):
        some = replace(shard, part=part, parts=parts)
        placed = [(place, pair.captions) for place, pair in pairs_of(some, "train", 0, lambda _: None, 0)]
        for number, (place, _) in enumerate(placed):
            again = [(at, pair.captions) for at, pair in pairs_of(some, "train", place, lambda _: None, 0)]
            assert again == placed[number + 1 :]
        everything += placed
    missing = {7} if kind == "parquet" else set()
    assert sorted(captions[0] for _, captions in everything) == sorted(
        f"picture {n} red circle" for n in range(30) if n not in missing
    )


def test_only_the_split_that_is_asked_for_is_read(tmp_path):
    source = write_pairs(tmp_path, ".tar")
    train, val = ([read(each, split=split)[0] for each in find_shards(str(source), split, tmp_path)]
                  for split in ("train", "val"))  # fmt: skip
    assert [*chain(*train)] == ["a red circle", "ein grünes Quadrat"] and [*chain(*val)] == ['a "blue" square']


def test_several_pictures_of_one_sample_each_have_a_place(tmp_path):
    png = shard_members([0])["000000.png"]
    path = write_tar(tmp_path / "a.tar", {
        "k.one.png": png, "k.one.txt": b"first", "k.two.png": png, "k.two.txt": b"second", "l.png": png, "l.txt": b"l",
    })  # fmt: skip
    places = [place for place, _ in pairs_of(tar(path), "train", 0, pytest.fail, 0)]
    assert [read(tar(path), place)[0] for place in places] == [["second", "l"], ["l"], []]


# --- lanes


def test_a_pass_gives_each_pair_once_however_the_shards_are_cut(tmp_path):
    write_shards(tmp_path, 8, 6)
    stream = dealt(tmp_path, window=6)
    seen = Counter(caption for lane in range(4) for caption in taken(start(stream, lane), 12))
    # A window reaches as far as a shard here, but the first ones are shorter: two passes may meet in the last.
    assert set(seen) <= {f"picture {n} red circle" for n in range(48)}
    whole = dealt(tmp_path, window=12)
    whole = replace(whole, lanes=4)
    first = [start(whole, lane) for lane in range(4)]
    drawn = Counter(caption for lane in first for caption in taken(lane, 3 * (lane.number + 1)))
    assert max(drawn.values()) == 1


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 70), st.integers(1, 9), st.sampled_from([(1.0,), (1.0, 3.0)]))
def test_a_lane_goes_on_from_any_position_as_if_it_had_never_stopped(tmp_path_factory, lane, stop, window, weights):
    root = tmp_path_factory.getbasetemp() / "lanes"
    if not root.exists():
        write_shards(root / "a", 5, 7)
        write_shards(root / "b", 1, 9, first=100)  # fewer shards than lanes
    folders = [root / "a", root / "b"][: len(weights)]
    stream = dealt(*folders, window=window, weights=weights)
    whole = taken(start(stream, lane), 90)
    before = start(stream, lane)
    assert taken(before, stop) == whole[:stop]
    kept = Position.of_json(json.loads(json.dumps(before.position.to_json())), len(weights))
    assert taken(start(stream, lane, kept), 90 - stop) == whole[stop:]


def test_lanes_read_other_shards_at_the_same_time(tmp_path):
    write_shards(tmp_path, 12, 4)
    stream = dealt(tmp_path, lanes=6, window=4)
    first = [set(taken(start(stream, lane), 4)) for lane in range(6)]
    assert not any(one & other for a, one in enumerate(first) for other in first[:a])


def test_sources_are_mixed_by_weight(tmp_path):
    write_shards(tmp_path / "a", 4, 10)
    write_shards(tmp_path / "b", 4, 10, first=1000)
    lane = start(dealt(tmp_path / "a", tmp_path / "b", weights=[3.0, 1.0], window=50), 0)
    numbers = [int(caption.split()[1]) for caption in taken(lane, 800)]
    assert 0.69 < sum(number < 1000 for number in numbers) / 800 < 0.81


def test_each_pass_has_another_order_and_each_seed(tmp_path):
    write_shards(tmp_path, 4, 10)
    stream = dealt(tmp_path, lanes=1, window=40)
    lane = start(stream, 0)
    passes = [taken(lane, 40) for _ in range(3)]
    assert len({tuple(each) for each in passes}) == 3 and len({frozenset(each) for each in passes}) == 1
    assert taken(start(replace(stream, seed=4), 0), 40) != passes[0]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_every_process_has_lanes_of_its_own_and_equal_counts(processes):
    lanes = [lanes_of(process, processes, 8) for process in range(processes)]
    assert [*chain(*lanes)] == list(range(8))
    counts = [sum(shares(64, 8)[lane] for lane in own) for own in lanes]
    assert counts == [64 // processes] * processes
    for batch, lanes_in_all in product((7, 31, 100), (1, 3, 7)):
        assert sum(shares(batch, lanes_in_all)) == batch


# --- what is wrong with data


def test_a_shard_that_ends_early_counts_up_to_there(tmp_path):
    path = write_shards(tmp_path, 1, 6) / "000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    captions, told = read(tar(path))
    assert 0 < len(captions) < 6 and captions == [f"picture {n} red circle" for n in range(len(captions))]
    assert "000.tar is not a readable, uncompressed tar file: it ends at byte" in told[-1]


def test_a_shard_with_another_checksum_is_left_out(tmp_path):
    write_shards(tmp_path, 2, 3)
    sums = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}" for name in ("000.tar", "001.tar")]
    (tmp_path / "SHA256SUMS").write_text("\n".join(sums))
    damaged = bytearray((tmp_path / "001.tar").read_bytes())
    damaged[700] ^= 1  # within a picture: no header tells
    (tmp_path / "001.tar").write_bytes(damaged)
    good, bad = find_shards(str(tmp_path), "train", tmp_path)
    assert len(read(good)[0]) == 3
    captions, [told] = read(bad)
    assert not captions and "001.tar is not the file that its checksum is of" in told
    (tmp_path / "SHA256SUMS").write_text("no sum at all\n")
    with pytest.raises(DataError, match="SHA256SUMS, line 1: not a SHA-256 and a name"):
        find_shards(str(tmp_path), "train", tmp_path)


def test_a_header_with_a_wrong_checksum_ends_the_shard(tmp_path):
    path = write_shards(tmp_path, 1, 4) / "000.tar"
    damaged = bytearray(path.read_bytes())
    place = damaged.find(b"000002.png")
    damaged[place + 4] ^= 1
    path.write_bytes(damaged)
    captions, told = read(tar(path))
    assert len(captions) == 2 and "where a header should be" in told[-1]


def test_a_damaged_page_of_parquet_costs_its_row_group(tmp_path):
    path = parquet(tmp_path)
    damaged = bytearray(path.read_bytes())
    place = damaged.find(shard_members([12])["000012.png"][40:60])
    damaged[place] ^= 1
    path.write_bytes(damaged)
    captions, told = read(Shard(str(path), "parquet"))
    numbers = [int(caption.split()[1]) for caption in captions]
    assert not {*range(8, 16)} & {*numbers} or 12 in numbers  # without checksums in the file nothing tells
    assert {*numbers} >= {*range(7), *range(16, 30)}
    pq.write_table(pq.read_table(parquet(tmp_path)), path, row_group_size=8, write_page_checksum=True)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(shard_members([12])["000012.png"][40:60])] ^= 1
    path.write_bytes(damaged)
    captions, told = read(Shard(str(path), "parquet"))
    assert {int(caption.split()[1]) for caption in captions} == {*range(7), *range(16, 30)}
    assert any("the rows 9 and following of group 1 are left out" in each for each in told)


def test_a_key_that_occurs_twice_counts_once(tmp_path, caplog):
    members = [*shard_members(range(3)).items(), *shard_members([1]).items(), *shard_members([5]).items()]
    captions, [told] = read(tar(write_tar(tmp_path / "a.tar", members)))
    assert captions == [f"picture {n} red circle" for n in (0, 1, 2, 5)]
    assert "sample 000001: a key that has been there before" in told
    with caplog.at_level("WARNING"):
        pairs = load_pairs(tmp_path)
    assert [pair.captions[0] for pair in pairs] == captions and pairs.skipped == 1 and told in caplog.text


def test_a_file_that_occurs_twice_in_a_sample_counts_once(tmp_path):
    one, other = shard_members([1]), shard_members([2])
    members = [*one.items(), *zip(one, other.values(), strict=True)]
    captions, told = read(tar(write_tar(tmp_path / "a.tar", members)))
    assert captions == ["picture 1 red circle"]
    assert [f"{name} has been there before" in each for name, each in zip(one, told, strict=True)] == [True, True]


def test_samples_that_are_not_whole_are_named_and_passed_over(tmp_path):
    members = shard_members(range(4))
    del members["000001.txt"]
    members["000002.txt"] = b"\xff\xfe\xff"
    captions, told = read(tar(write_tar(tmp_path / "a.tar", members)))
    assert captions == ["picture 0 red circle", "picture 3 red circle"]
    assert ["000001: no caption" in told[0], "000002.txt is not UTF-8" in told[1]] == [True, True]


def test_a_source_that_vanishes_is_waited_for_and_gone_on_with(tmp_path, caplog):
    path = write_shards(tmp_path, 1, 6) / "000.tar"
    away = path.rename(tmp_path / "away")
    with pytest.raises(UnreachableError, match=r"000\.tar cannot be read: No such file"):
        list(pairs_of(tar(path), "train", 0, pytest.fail, 0))

    import hivlp.data.streams.reading as reading

    class Clock:
        def sleep(self, seconds: float) -> None:
            away.rename(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "time", Clock())
        assert len(list(pairs_of(tar(path), "train", 0, pytest.fail, 5))) == 6
    assert "cannot be reached; trying again" in caplog.text


def test_a_source_without_any_pair_ends_in_a_sentence(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.txt": b"no picture"})
    with pytest.raises(DataError, match="holds no pair of the split train that can be read"):
        Lane(dealt(tmp_path), 0, Position.start(1), lambda _: None).take()


@pytest.mark.parametrize("bad", [None, [], [0, 0, [0]], [0, 0, [-1], [0]], [0, 0, [0, 0], [0]], ["x", 0, [0], [0]]])
def test_a_position_that_is_none_is_refused(bad):
    with pytest.raises((ValueError, TypeError)):
        Position.of_json(bad, 1)
