"""Finding photos: mixed queries, filters by words, cuts, orders, pages, and hits whose files are there."""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hivlp.errors import HivlpError, QueryError
from hivlp.index import Index, Mix, PhotoFilter, find
from hivlp.index.mixing import parse_mix
from hivlp.index.photo_filter import EARTH_KM, joined
from synthetic import FakeEncoder, write_pictures

PLACES = {"paris": (48.8566, 2.3522), "london": (51.5074, -0.1278), "fiji": (-17.7, 178.0), "samoa": (-13.8, -171.8)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def index(library):
    folder = library / "photos"
    metadata = {}
    for number, path in enumerate([*write_pictures(folder / "2019", 6), *write_pictures(folder / "2021", 6, start=50)]):
        place = list(PLACES.values())[number % 4]
        metadata[str(path)] = {
            "taken": f"20{19 + 2 * (number // 6)}-0{1 + number % 6}-15T10:00:00",
            "camera": ("Canon EOS 5D", "X100")[number % 2],
            "lat": place[0], "lon": place[1], "rating": number % 6, "keywords": ["Sea", f"n{number}"],
        }  # fmt: skip
    Image.new("RGB", (30, 20)).save(folder / "plain.webp")
    (folder / "plain.webp").rename(folder / "undated.webp")
    with Index.create(library / "x.hivlp", model=FakeEncoder()) as index:
        index.add(folder, metadata=metadata)
        yield index


def numbers(found) -> list[str]:
    return [Path(hit.path).stem for hit in found.result]


def ids(found) -> list[int]:
    return [hit.id for hit in found.result]


# Mixed queries.


def test_a_mix_ranks_by_what_each_part_says_with_equal_weight(index):
    """Against the sum of standardized cosines."""
    path = Path(index.get(3).path)
    mix = Mix.of_text("a dog") + Mix.of_image(path) - 0.5 * Mix.of_text("snow")
    items = np.stack([index.vectors(item.id).fine[0] for item in index.items()])
    expected = np.zeros(len(items))
    for weight, vectors in ((1, {"query": "a dog"}), (1, {"image": path}), (-0.5, {"query": "snow"})):
        scores = items @ index.query_vectors(**vectors)["fine"]
        expected += weight * scores / scores.std()
    order = [item.id for item in index.items()]
    found = index.search(mix, k=len(order), exact=True)
    assert [hit.id for hit in found] == [order[place] for place in np.argsort(-expected, kind="stable")]


def test_a_mix_of_one_part_is_that_query(index):
    alone = index.search("a dog", k=5)
    mixed = index.search(Mix.of_text("a dog"), k=5)
    assert [hit.id for hit in alone] == [hit.id for hit in mixed]
    item = index.search(Mix.of_item(3), k=1)[0]
    assert item.id == 3 and item.scores["fine"] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (-Mix.of_text("a"), "without a minus"),
        (Mix.of_text("a") - "a", "cancel"),
        (Mix.of_item(99), "no item 99"),
        (Mix.of_text(" "), "empty"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(index, mix, reason):
    with pytest.raises(QueryError, match=reason):
        index.search(mix)


def test_operators_take_texts_and_paths():
    mix = "a dog" + Mix.of_image("b.jpg") * 2 - Path("c.jpg")
    assert [(part.weight, part.text, part.image) for part in mix.parts] == [
        (1, "a dog", None), (2, None, Path("b.jpg")), (-1, None, Path("c.jpg")),
    ]  # fmt: skip
    assert str(mix) == '"a dog" + 2 * b.jpg - c.jpg'
    assert str("x" - Mix.of_item(4)) == '"x" - item 4'
    for bad in (lambda: mix * math.nan, lambda: mix + 3, lambda: True * mix):
        with pytest.raises((HivlpError, TypeError)):
            bad()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["a dog"], "a dog"),
        (["a", "dog"], "a dog"),
        (["rock - n - roll"], "rock - n - roll"),
        (['the "best" dog'], 'the "best" dog'),
        (['"a dog" + "a cat"'], '"a dog" + "a cat"'),
        (['"a dog" - 0.5*"snow"'], '"a dog" - 0.5 * "snow"'),
        (['"a dog" + PICTURE'], '"a dog" + PICTURE'),
        (["a dog", "+", "PICTURE", "-", "snow"], '"a dog" + PICTURE - "snow"'),
        (["PICTURE", "-", "2 * deep snow"], 'PICTURE - 2 * "deep snow"'),
        (["a", "dog", "-", "snow"], '"a dog" - "snow"'),
        (["-", "snow", "+", "dog"], '- "snow" + "dog"'),
    ],
)
def test_mixes_are_typed_with_signs(words, meant, tmp_path):
    picture = write_pictures(tmp_path, 1)[0]
    words, meant = [word.replace("PICTURE", str(picture)) for word in words], meant.replace("PICTURE", str(picture))
    assert str(parse_mix(words)) == meant


@pytest.mark.parametrize(
    "words", [['"a" "b"'], ['"a" + nofile.jpg'], ['- "snow"'], ["-", "snow"], ["a", "+", "-", "b"]]
)
def test_mixes_that_cannot_be_meant_are_refused(words):
    with pytest.raises(QueryError):
        parse_mix(words)


@given(st.lists(st.text('"+-*.ab1 ', max_size=12), min_size=1, max_size=6))
def test_any_words_are_a_query_or_refused(words):
    with suppress(QueryError):
        assert isinstance(parse_mix(words), (str, Mix))


def test_like_takes_a_path(index):
    path = index.get(4).path
    assert [hit.id for hit in index.search(like=path)] == [hit.id for hit in index.search(like=4)]
    with pytest.raises(QueryError, match="has 6 items in"):
        index.search(like=Path(path).parent)
    with pytest.raises(QueryError, match="like must be a whole number, or the path of an item"):
        index.search(like="nowhere.png")


# Filters.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"after": "2021"}, {f"{n:05}" for n in range(50, 56)}),
        ({"after": "2019-03", "before": "2019-05-01"}, {"00002", "00003"}),
        ({"camera": "canon", "rating": 4}, {"00004", "00054"}),
        ({"keywords": ("sea", "N3")}, {"00003"}),
        ({"folder": "2019", "camera": "x1"}, {"00001", "00003", "00005"}),
        ({"format": "webp"}, {"undated"}),
        ({"format": ".WEBP", "orientation": "landscape"}, {"undated"}),
        ({"near": (48.85, 2.35, 10), "after": "2021"}, {"00052"}),
        ({"near": (-16, 180, 1000)}, {"00002", "00003", "00050", "00051", "00054", "00055"}),
        ({"near": (90, 0, 20_100), "before": "2019-03"}, {"00000", "00001"}),
    ],
)
def test_words_filter_photos(index, words, expected):
    assert set(numbers(find(index, "x", photo_filter=PhotoFilter(**words), k=50))) == expected


def haversine(a: tuple[float, float], b: tuple[float, float]) -> float:
    (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, place)) for place in (a, b))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(half)))


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(1, 21_000))
def test_near_is_distance_on_a_globe(index, lat, lon, km):
    with index.store.reading() as reader:
        rows = set(reader.rows_where(PhotoFilter(near=(lat, lon, km)).where).rows)
    for item in index.items():
        if "lat" in item.metadata:
            away = haversine((lat, lon), (item.metadata["lat"], item.metadata["lon"]))
            if abs(away - km) > 0.01:
                assert (item.row in rows) == (away <= km)


def test_a_folder_is_a_path_or_a_name_and_no_part_of_one(index, library):
    def count(folder):
        return len(find(index, "x", photo_filter=PhotoFilter(folder=folder), k=50).result)

    assert count(library / "photos" / "2019") == count("2019") == 6
    assert count(library / "photos" / "20") == count("20") == count("201") == 0
    assert count("it's") == 0 and count("PHOTOS") == 13


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"after": "yesterday"}, "after is a date"),
        ({"before": "2020-13"}, "before is a date"),
        ({"near": (91, 0, 1)}, "latitude"),
        ({"near": (1, 2)}, "latitude"),
        ({"near": (1, 2, math.inf)}, "latitude"),
        ({"orientation": "round"}, "landscape"),
        ({"keywords": "sea"}, "several texts"),
        ({"format": "tar"}, "format is avif"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, reason):
    with pytest.raises(QueryError, match=reason):
        _ = PhotoFilter(**words).where


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"camera": "Nikkon"}, r"no picture has camera 'Nikkon'; there are: Canon EOS 5D \(6\), X100 \(6\)"),
        ({"lens": "50mm"}, "no picture tells its lens; known are: camera, format, height, keywords, lat, lon, "),
        ({"after": "2030"}, "no picture is taken from 2030; there are those from 2019-01-15T10:00:00 to 2021-06"),
        ({"keywords": ("sky",)}, r"no picture has the keywords sky; there are: Sea \(12\)"),
        ({"near": (0, 0, 5)}, "no picture is within 5 km of 0,0"),
        ({"folder": "none"}, "no picture is in a folder none"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(index, words, hint):
    import re

    found = find(index, "x", photo_filter=PhotoFilter(**words))
    assert not found.result.hits and re.match(hint, found.hint), found.hint


def test_conditions_are_joined_whole():
    assert joined(None, None) is None and joined("a", None) == "a"
    assert joined("a OR b -- note", "c") == "(a OR b -- note\n) AND (c\n)"


@pytest.mark.slow
@given(st.text(max_size=20))
def test_words_are_values_and_never_conditions(index, text):
    for name in ("camera", "lens", "folder", "keywords"):
        value = (text,) if name == "keywords" else text
        if name == "folder" and ("\0" in text or not text):
            continue
        where = PhotoFilter(**{name: value}).where
        with index.store.reading() as reader:
            assert len(reader.rows_where(where).rows) <= 13


# Orders, cuts and pages.


def test_hits_come_by_date_on_request_and_undated_ones_last(index):
    by_score = find(index, "x", k=13)
    newest, oldest = find(index, "x", k=13, order="newest"), find(index, "x", k=13, order="oldest")
    dates = [hit.metadata.get("taken") for hit in newest.result]
    assert dates[:-1] == sorted(dates[:-1], reverse=True) and dates[-1] is None
    assert ids(oldest)[:-1] == ids(newest)[-2::-1] and ids(oldest)[-1] == ids(newest)[-1]
    assert sorted(hit.rank for hit in newest.result) == [hit.rank for hit in by_score.result]
    with pytest.raises(QueryError, match="order is"):
        find(index, "x", order="size")


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}, {"cut": True}, {"group": True}, {"where": "id > 4"}])
def test_pages_by_date_are_parts_of_one_list_of_the_hits_that_there_are_by_score(index, order, options):
    whole = find(index, "x", k=50, order=order, **options)
    dates = [hit.metadata.get("taken") for hit in whole.result]
    assert dates == sorted(filter(None, dates), reverse=order == "newest") + [None] * dates.count(None)
    assert {*ids(whole)} == {*ids(find(index, "x", k=50, **options))} and whole.total == len(ids(whole))
    pages, at = [], 0
    while at < whole.total:
        page = find(index, "x", k=3, offset=at, order=order, **options)
        assert page.total == whole.total and page.next_offset == at + len(page.result)
        pages, at = pages + ids(page), page.next_offset
    assert pages == ids(whole) and not find(index, "x", k=3, offset=at, order=order, **options).result
    seen = ids(whole)[:3]
    assert ids(find(index, "x", k=50, order=order, seen=seen, **options)) == ids(whole)[3:]
    for wrong in ({"k": 0}, {"k": 3, "offset": -1}):
        with pytest.raises(QueryError, match="must be at least"):
            find(index, "x", order=order, **wrong)


def test_without_a_query_photos_that_pass_come_by_date(index):
    found = find(index, photo_filter=PhotoFilter(camera="canon"), k=4)
    assert numbers(found) == ["00054", "00052", "00050", "00004"]
    more = find(index, photo_filter=PhotoFilter(camera="canon"), k=4, offset=found.next_offset, order="newest")
    assert numbers(more) == ["00002", "00000"]
    assert numbers(find(index, order="oldest", k=2)) == ["00000", "00001"]
    assert numbers(find(index, k=50))[-1] == "undated"


def test_the_cut_follows_the_scores(tmp_path):
    """Three pictures of one subject among many of none, whatever the level of their scores."""
    rng = np.random.default_rng(0)
    encoder = FakeEncoder()
    query = encoder.encode_text(["a dog"]).fine[0]
    for shift in (0.0, 2.0):  # all vectors, and so all scores, alike
        common = rng.normal(size=64) * shift
        vectors = rng.normal(size=(400, 64)) + common
        vectors[:3] += 12 * query
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        with Index.create(tmp_path / f"{shift}", model=encoder) as index:
            from synthetic import fill

            fill(index, {"fine": vectors, "coarse": vectors[:, :16] / np.linalg.norm(vectors[:, :16], axis=1)[:, None]})
            found = find(index, "a dog", cut=True, missing=True, exact=True)
            assert sorted(ids(found)) == [1, 2, 3] and found.to_json()["cut"] == round(found.cut, 4)
            rest = find(index, "a dog", cut=True, missing=True, exact=True, seen=[1, 2])
            assert ids(rest) == [3] and rest.cut == pytest.approx(found.cut)
            assert not find(index, "a dog", cut=True, missing=True, exact=True, seen=[1, 2, 3]).result.hits


def test_the_next_page_shows_nothing_that_was_seen(index):
    seen, pages = [], []
    while page := ids(find(index, "x", k=5, seen=seen)):
        pages.append(page)
        seen += page
    assert pages[0] == ids(find(index, "x", k=5)) and len(seen) == len(set(seen)) == len(index)


# What is there.


def test_files_that_went_since_the_last_walk_are_left_out_and_others_take_their_place(library, index, tmp_path):
    folder = tmp_path / "p"
    write_pictures(folder, 8)
    shutil.copyfile(folder / "00007.png", folder / "copy.png")
    with Index.create(tmp_path / "x", model=FakeEncoder()) as other:
        other.add(folder)
        every = find(other, "x", k=9)
        for hit in every.result.hits[:2]:
            Path(hit.path).unlink()
        found = find(other, "x", k=4)
        assert ids(found) == ids(every)[2:6] and found.gone == tuple(ids(every)[:2])
        assert ids(find(other, "x", k=4, offset=found.next_offset)) == ids(every)[6:]
        assert ids(find(other, "x", k=4, missing=True)) == ids(every)[:4]
        assert [hit.id for hit in find(other, k=9).result] == sorted(ids(every)[2:], reverse=True)
        shutil.rmtree(folder)
        nothing = find(other, "x", k=4)
        assert not nothing.result.hits and "hivlp relocate" in nothing.hint
