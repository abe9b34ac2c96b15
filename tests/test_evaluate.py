"""Recall against hand-written matrices and a naive oracle."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.cli.parser import build_parser
from hivlp.errors import DataError
from hivlp.evaluate.recall import cascade_ranks, level_ranks, score
from hivlp.index import Index
from hivlp.levels import DEFAULT_SHORTLIST, Embeddings
from synthetic import FakeEncoder, fill, unit


def level(array):
    return np.asarray(array, np.float32)


def half(array):
    """What an index stores without rounding it."""
    return np.asarray(array, np.float16).astype(np.float32)


def test_a_hand_written_matrix():
    # Three pictures on the axes; five captions, two pictures have two.
    images = level(np.eye(3))
    texts = level([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.5, 0.4], [0.0, 0.3, 0.7], [0.6, 0.0, 0.4]])
    owner = np.array([0, 0, 1, 2, 2])
    to_image, to_text = level_ranks(texts, images, owner)
    assert to_image.tolist() == [0, 1, 0, 0, 1] and to_text.tolist() == [0, 1, 0]
    result = score(Embeddings({"fine": images}), Embeddings({"fine": texts}), owner, 3).to_json()
    assert result["levels"]["fine"]["text_to_image"] == {"R@1": 60.0, "R@5": 100.0, "R@10": 100.0}
    # Picture 0: caption 0 first. Picture 1: caption 1 (not its own) first, then its own. Picture 2: caption 3.
    assert result["levels"]["fine"]["image_to_text"]["R@1"] == round(200 / 3, 2)
    assert result["levels"]["fine"]["rsum"] == round(60 + 100 + 100 + 66.67 + 100 + 100, 2)


def test_ties_count_against_us():
    images = level(np.ones((4, 2)) / 2**0.5)
    texts = level(np.ones((4, 2)) / 2**0.5)
    owner = np.arange(4)
    result = score(Embeddings({"fine": images}), Embeddings({"fine": texts}), owner, 2).to_json()
    assert result["levels"]["fine"]["text_to_image"]["R@1"] == 0
    assert level_ranks(texts, images, owner)[0].tolist() == [3, 3, 3, 3]
    # A tie at the edge of the shortlist loses the item altogether.
    assert cascade_ranks([texts, texts], [images, images], owner[:, None], 2).tolist() == [4, 4, 4, 4]


def test_the_cascade_cannot_find_what_the_coarse_level_lost():
    coarse_images, fine_images = level([[1, 0], [0.8, 0.6], [0, 1]]), level(np.eye(3))
    coarse_text, fine_text = level([[1, 0]]), level([[0, 0, 1]])
    owner = np.array([[2]])
    assert level_ranks(fine_text, fine_images, owner[0])[0].tolist() == [0]
    assert cascade_ranks([coarse_text, fine_text], [coarse_images, fine_images], owner, 2).tolist() == [3]
    assert cascade_ranks([coarse_text, fine_text], [coarse_images, fine_images], owner, 3).tolist() == [0]


def naive_ranks(queries, items, own, shortlist):
    ranks = []
    for q in range(len(queries[0])):
        mine = {int(i) for i in own[q] if i >= 0}
        alive = list(range(len(items[0])))
        for number, (query, item) in enumerate(zip(queries, items, strict=True)):
            scores = {i: np.float32(query[q] @ item.T[:, i]) for i in alive}
            if number < len(queries) - 1:
                alive = sorted(alive, key=lambda i: (-scores[i], i in mine))[:shortlist]
        found = [i for i in alive if i in mine]
        if not found:
            ranks.append(len(items[0]))
            continue
        best = max(scores[i] for i in found)
        ranks.append(sum(1 for i in alive if i not in mine and scores[i] >= best))
    return ranks


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 12),
    captions=st.integers(1, 3),
    shortlist=st.integers(1, 14),
    levels=st.integers(2, 3),
)
def test_any_cascade_equals_the_naive_one(seed, images, captions, shortlist, levels):
    rng = np.random.default_rng(seed)
    # Small integers are exact in float16 and float32, and full of ties.
    texts = [rng.integers(-2, 3, (images * captions, 4)).astype(np.float32) for _ in range(levels)]
    pictures = [rng.integers(-2, 3, (images, 4)).astype(np.float32) for _ in range(levels)]
    owner = np.repeat(np.arange(images), captions)[:, None]
    got = cascade_ranks(texts, pictures, owner, shortlist)
    assert got.tolist() == naive_ranks(texts, pictures, owner, shortlist)
    captions_of = np.arange(images * captions).reshape(images, captions)
    got = cascade_ranks(pictures, texts, captions_of, shortlist)
    assert got.tolist() == naive_ranks(pictures, texts, captions_of, shortlist)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 12), captions=st.integers(1, 30), block=st.integers(1, 99))
def test_counted_ranks_are_those_of_sorting(seed, images, captions, block):
    rng = np.random.default_rng(seed)
    texts, pictures = (rng.integers(-2, 3, (count, 4)).astype(np.float32) for count in (captions, images))
    owner = rng.integers(0, images, captions)  # in any order, and some pictures have no caption
    own = [[t for t in range(captions) if owner[t] == i] for i in range(images)]
    table = np.array([row + [-1] * (captions - len(row)) for row in own])
    to_image, to_text = level_ranks(texts, pictures, owner, block)
    assert to_image.tolist() == naive_ranks([texts], [pictures], owner[:, None], None)
    assert to_text.tolist() == naive_ranks([pictures], [texts], table, None)


def test_equal_vectors_tie_wherever_they_lie_in_the_matrix():
    # A matrix product rounds the same two vectors by their place: every copy must count against the right one.
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(1, 255)).astype(np.float32) for _ in range(2))
    for copies in (3, 17, 64, 100):
        images, texts = np.repeat(one, copies, 0), np.repeat(other, copies + 5, 0)
        to_image, to_text = level_ranks(texts, images, np.arange(copies + 5) % copies)
        assert set(to_image.tolist()) == {copies - 1}
        assert set(to_text.tolist()) <= {copies + 5 - 1, copies + 5 - 2, copies + 5 - 3}


def test_the_cascade_that_is_judged_is_the_search(tmp_path):
    """Ranks that a person sees who types each caption into an index of the same vectors."""
    rng = np.random.default_rng(0)
    images, captions, k = 90, 180, 12
    centres = rng.normal(size=(images, 24))
    owner = np.repeat(np.arange(images), 2)
    fine = {"pictures": centres, "texts": centres[owner] + 1.3 * rng.normal(size=(captions, 24))}
    fine = {kind: unit(rows) for kind, rows in fine.items()}
    coarse = {kind: unit(rows[:, :6]) for kind, rows in fine.items()}
    got = cascade_ranks([coarse["texts"], fine["texts"]], [coarse["pictures"], fine["pictures"]], owner[:, None], k)
    with Index.create(tmp_path / "x", model=FakeEncoder(dims=(6, 24))) as index:
        fill(index, {"coarse": coarse["pictures"], "fine": fine["pictures"]})
        for number in range(captions):
            vector = {"coarse": coarse["texts"][number], "fine": fine["texts"][number]}
            seen = [hit.id - 1 for hit in index.search(vector=vector, k=k, shortlist=k)]
            rank = seen.index(owner[number]) if owner[number] in seen else images
            assert got[number] == rank
    assert 0 < (got == images).sum() < captions, "some are lost, some are not"


def test_one_shortlist_wherever_none_is_given():
    from inspect import signature

    from hivlp.evaluate.evaluation import evaluate

    assert signature(evaluate).parameters["shortlist"].default == DEFAULT_SHORTLIST
    pytest.importorskip("torch")
    from hivlp.train.adapt import AdaptConfig
    from hivlp.train.recipe.schema import Recipe

    assert AdaptConfig().shortlist == DEFAULT_SHORTLIST
    assert {f.name: f.default for f in fields(Recipe)}["shortlist"] == DEFAULT_SHORTLIST
    for verb in (["evaluate", "x"], ["adapt", "x", "y", "-o", "z"]):
        assert build_parser().parse_args(verb).shortlist == DEFAULT_SHORTLIST


def test_an_empty_shortlist_is_refused():
    one = Embeddings({"coarse": level(np.eye(2)), "fine": level(np.eye(2))})
    with pytest.raises(DataError, match="at least 1"):
        score(one, one, np.arange(2), 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 20), extra=st.integers(0, 10))
def test_a_shortlist_of_everything_is_the_fine_level(seed, images, extra):
    rng = np.random.default_rng(seed)
    coarse, fine = (
        Embeddings({"c": half(rng.normal(size=(images, 3))), "f": half(rng.normal(size=(images, 6)))}) for _ in range(2)
    )
    result = score(coarse, fine, np.arange(images), images + extra).to_json()
    assert result["cascade"]["text_to_image"] == result["levels"]["f"]["text_to_image"]
    assert result["cascade"]["image_to_text"] == result["levels"]["f"]["image_to_text"]
    assert set(result["cascade"]["retained"]["text_to_image"].values()) == {1.0}
