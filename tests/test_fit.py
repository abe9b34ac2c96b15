"""Coarse levels for given vectors: closed forms against what they claim, and learning against the closed forms."""

import numpy as np
import pytest

from hivlp.coarse import CoarseMaps, fit_coarse
from hivlp.coarse.closed import lean, prefix, principal, second_moment
from hivlp.coarse.distill import distill, ranking_loss
from hivlp.errors import DataError, IndexFolderError
from synthetic import unit


def off_distribution(items=3000, queries=1200, width=32, seed=0):
    """Items vary most where queries never look: principal directions of the items are the wrong ones to keep."""
    rng = np.random.default_rng(seed)
    item_spread = np.where(np.arange(width) < 8, 3.0, 1.0)
    query_spread = np.where(np.arange(width) < 8, 0.1, np.where(np.arange(width) < 16, 3.0, 0.3))
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return (
        unit(rng.normal(size=(items, width)) * item_spread @ turn),
        unit(rng.normal(size=(queries, width)) * query_spread @ turn),
    )


def score_error(maps, items, queries):
    """What ``lean`` minimises, from the vectors themselves."""
    return ((queries @ items.T - (queries @ maps.query.T) @ (items @ maps.item.T).T) ** 2).mean()


def test_lean_has_the_least_score_error():
    items, queries = (part.astype(np.float64) for part in off_distribution(400, 300))
    mean = items.mean(axis=0)
    maps = lean(second_moment(items), second_moment(queries), mean, 7)
    # The mean's direction is exact; of the rest no rank-6 approximation of the matrix of scores can be closer than its
    # truncated decomposition.
    direction = mean / np.linalg.norm(mean)
    rest = queries @ items.T - np.outer(queries @ direction, items @ direction)
    values = np.linalg.svd(rest, compute_uv=False)
    assert score_error(maps, items, queries) == pytest.approx((values[6:] ** 2).sum() / (400 * 300), rel=1e-4)
    np.testing.assert_allclose(maps.item @ maps.item.T, np.eye(7), atol=1e-5)


def test_lean_is_pca_where_queries_are_like_items():
    items, _ = off_distribution()
    moment = second_moment(items)
    lead = principal(moment, 1).item[0]
    one, other = lean(moment, moment, lead, 6), principal(moment, 6)
    np.testing.assert_allclose(one.item.T @ one.item, other.item.T @ other.item, atol=1e-3)
    np.testing.assert_allclose(one.query.T @ one.item, other.query.T @ other.item, atol=1e-3)
    np.testing.assert_allclose(lean(moment, moment, lead, 1).item[0], lead, atol=1e-6)


def test_lean_keeps_what_two_narrow_cones_have_in_common():
    items, queries = off_distribution()
    rng = np.random.default_rng(1)
    one, other = np.linalg.qr(rng.normal(size=(32, 2)))[0].T
    items, queries = unit(items + 1.5 * one), unit(queries + 0.5 * one + 1.5 * other)
    recall = fit_coarse(items, queries, dims=8, method="lean").recall
    assert recall["lean"] > 0.97  # without the mean in a dim of its own: 0.91


def test_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    item_map, query_map = rng.normal(size=(2, 3, 7))
    queries, items = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rng.normal(size=(n, 7)) for n in (5, 11)))
    arguments = (queries, items, 0.2)
    _, gradient = ranking_loss(item_map, query_map, 1.3, *arguments)
    step = 1e-6
    for matrix, told in ((item_map, gradient.item), (query_map, gradient.query)):
        for place in np.ndindex(matrix.shape):
            losses = []
            for sign in (1, -1):
                matrix[place] += sign * step
                losses.append(ranking_loss(item_map, query_map, 1.3, *arguments)[0])
                matrix[place] -= sign * step
            assert told[place] == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-7)
    up, down = (ranking_loss(item_map, query_map, 1.3 + sign * step, *arguments)[0] for sign in (1, -1))
    assert gradient.log_scale == pytest.approx((up - down) / (2 * step), abs=1e-7)


def test_loss_is_least_where_the_rankings_agree():
    items, queries = off_distribution(200, 20, 8)
    whole = np.eye(8)
    perfect, gradient = ranking_loss(whole, whole, np.log(1 / 0.1), queries, items, 0.1)
    assert np.abs(gradient.item).max() < 1e-4
    assert perfect < ranking_loss(whole[:4], whole[:4], np.log(1 / 0.1), queries, items, 0.1)[0]


@pytest.mark.slow
def test_learning_beats_the_closed_form_which_beats_pca_off_distribution():
    items, queries = off_distribution()
    fitted = fit_coarse(items, queries, dims=8)
    assert fitted.method == "distill"
    recall = fitted.recall
    assert recall["distill"] > recall["lean"] > recall["pca"] + 0.2
    assert (fitted.items, fitted.queries, fitted.held_out, fitted.shortlist) == (3000, 960, 240, 150)


def test_learning_that_does_not_help_is_dropped(monkeypatch):
    items, queries = off_distribution(800, 300)
    spoilt = prefix(32, 8)
    monkeypatch.setattr("hivlp.coarse.choose.distill", lambda *_, **__: spoilt)
    fitted = fit_coarse(items, queries, dims=8)
    assert fitted.method == "lean"
    assert fitted.maps.fingerprint == fit_coarse(items, queries, dims=8, method="lean").maps.fingerprint
    assert fitted.recall["lean"] > fitted.recall["distill"]


def test_without_queries_items_look_for_other_items():
    items, _ = off_distribution(1000)
    fitted = fit_coarse(items, dims=8, method="pca")
    assert (fitted.items, fitted.queries, fitted.held_out) == (800, 160, 40)
    assert fitted.recall["pca"] == pytest.approx(fitted.recall["lean"], abs=0.1)


def test_same_sample_same_maps():
    items, queries = off_distribution(600, 200)
    start = principal(second_moment(items), 8)
    calls = []
    one = distill(start, queries, items, steps=5, on_progress=lambda done, total: calls.append((done, total)))
    assert one.fingerprint == distill(start, queries, items, steps=5).fingerprint != start.fingerprint
    assert calls == [(n, 9) for n in range(1, 10)]


def test_few_items_get_principal_directions_and_no_promises():
    items, _ = off_distribution(20)
    fitted = fit_coarse(items, dims=8)
    assert (fitted.method, fitted.recall, fitted.held_out) == ("pca", {}, 0)
    assert fit_coarse(items, dims=8, method="prefix").maps.item[3, 3] == 1


@pytest.mark.parametrize(
    ("items", "queries", "dims", "message"),
    [
        (600, None, 32, "fewer than 32"),
        (600, None, 0, "fewer than 32"),
        (0, None, 8, "no vector"),
        (600, 99, 8, "too few"),
    ],
)
def test_refusals(items, queries, dims, message):
    vectors, asked = off_distribution(items, queries or 1)
    with pytest.raises(DataError, match=message):
        fit_coarse(vectors, asked if queries else None, dims=dims)


def test_queries_of_another_length_are_refused():
    with pytest.raises(DataError, match="same model"):
        fit_coarse(off_distribution()[0], np.eye(200, 31, dtype=np.float32), dims=8)


def test_a_vector_that_a_map_cannot_see_gets_a_coarse_one_all_the_same():
    maps = prefix(4, 2)
    coarse = maps.of_items(np.array([[0, 0, 1, 0], [1, 0, 0, 0]], np.float32))["coarse"]
    np.testing.assert_allclose(np.linalg.norm(coarse, axis=1), 1)


def test_maps_that_do_not_fit_are_refused(tmp_path):
    good = np.eye(2, 4, dtype=np.float32)
    for bad in (np.eye(4, dtype=np.float32), good.astype(np.float64), good * np.nan, np.eye(2, 5, dtype=np.float32)):
        with pytest.raises(ValueError, match="map"):
            CoarseMaps(good, bad)
    with pytest.raises(IndexFolderError, match=r"item_map\.npy is missing"):
        CoarseMaps.load(tmp_path)
    (tmp_path / "item_map.npy").write_bytes(b"no array")
    with pytest.raises(IndexFolderError, match="cannot be read"):
        CoarseMaps.load(tmp_path)
