"""Recall against hand-written matrices and a naive oracle."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.evaluate import first_hits, score
from hivlp.levels import Embeddings


def level(array):
    return np.asarray(array, np.float32)


def test_a_hand_written_matrix():
    # Three pictures on the axes; five captions, two pictures have two.
    images = level(np.eye(3))
    texts = level([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.5, 0.4], [0.0, 0.3, 0.7], [0.6, 0.0, 0.4]])
    owner = np.array([0, 0, 1, 2, 2])
    to_image = first_hits([texts], [images], owner[:, None], None)
    assert to_image.tolist() == [0, 1, 0, 0, 1]
    result = score(Embeddings({"fine": images}), Embeddings({"fine": texts}), owner, 3)
    assert result["levels"]["fine"]["text_to_image"] == {"R@1": 60.0, "R@5": 100.0, "R@10": 100.0}
    # Picture 0: caption 0 first. Picture 1: caption 1 (not its own) first, then its own. Picture 2: caption 3.
    assert result["levels"]["fine"]["image_to_text"]["R@1"] == round(200 / 3, 2)
    assert result["levels"]["fine"]["rsum"] == round(60 + 100 + 100 + 66.67 + 100 + 100, 2)


def test_ties_count_against_us():
    images = level(np.ones((4, 2)) / 2**0.5)
    texts = level(np.ones((4, 2)) / 2**0.5)
    owner = np.arange(4)
    result = score(Embeddings({"fine": images}), Embeddings({"fine": texts}), owner, 2)
    assert result["levels"]["fine"]["text_to_image"]["R@1"] == 0
    assert first_hits([texts], [images], owner[:, None], None).tolist() == [3, 3, 3, 3]
    # A tie at the edge of the shortlist loses the item altogether.
    assert first_hits([texts, texts], [images, images], owner[:, None], 2).tolist() == [4, 4, 4, 4]


def test_the_cascade_cannot_find_what_the_coarse_level_lost():
    coarse_images, fine_images = level([[1, 0], [0.8, 0.6], [0, 1]]), level(np.eye(3))
    coarse_text, fine_text = level([[1, 0]]), level([[0, 0, 1]])
    owner = np.array([[2]])
    assert first_hits([fine_text], [fine_images], owner, None).tolist() == [0]
    assert first_hits([coarse_text, fine_text], [coarse_images, fine_images], owner, 2).tolist() == [3]
    assert first_hits([coarse_text, fine_text], [coarse_images, fine_images], owner, 3).tolist() == [0]


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
    levels=st.integers(1, 3),
)
def test_any_cascade_equals_the_naive_one(seed, images, captions, shortlist, levels):
    rng = np.random.default_rng(seed)
    # Small integers are exact in float32 and full of ties.
    queries = [rng.integers(-2, 3, (images * captions, 4)).astype(np.float32) for _ in range(levels)]
    items = [rng.integers(-2, 3, (images, 4)).astype(np.float32) for _ in range(levels)]
    own = np.repeat(np.arange(images), captions)[:, None]
    got = first_hits(queries, items, own, shortlist)
    assert got.tolist() == naive_ranks(queries, items, own, shortlist)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 20), extra=st.integers(0, 10))
def test_a_shortlist_of_everything_is_the_fine_level(seed, images, extra):
    rng = np.random.default_rng(seed)
    coarse, fine = (
        Embeddings({"c": level(rng.normal(size=(images, 3))), "f": level(rng.normal(size=(images, 6)))})
        for _ in range(2)
    )
    result = score(coarse, fine, np.arange(images), images + extra)
    assert result["cascade"]["text_to_image"] == result["levels"]["f"]["text_to_image"]
    assert result["cascade"]["image_to_text"] == result["levels"]["f"]["image_to_text"]
    assert set(result["cascade"]["retained"]["text_to_image"].values()) == {1.0}
