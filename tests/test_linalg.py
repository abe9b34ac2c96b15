"""Closed forms against what they claim: square roots, the LeanVec projections, and Adam on a bowl."""

import numpy as np
import pytest

from hivlp.adam import Adam
from hivlp.linalg import lean_vec, square_roots


def moments(rng: np.random.Generator, dims: int = 12) -> tuple[np.ndarray, np.ndarray]:
    items, queries = (rng.normal(size=(200, dims)) @ rng.normal(size=(dims, dims)) for _ in range(2))
    return items.T @ items / 200, queries.T @ queries / 200


def test_a_root_squared_is_the_moment_and_its_inverse_undoes_it():
    items, _ = moments(np.random.default_rng(0))
    root, inverse = square_roots(items)
    np.testing.assert_allclose(root @ root, items, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(root @ inverse, np.eye(len(items)), atol=1e-8)


def test_small_eigenvalues_are_raised_to_the_floor():
    root, inverse = square_roots(np.diag([4.0, 0.0]), floor=1e-4)
    np.testing.assert_allclose(np.diag(root), [2, 0.02])
    np.testing.assert_allclose(np.diag(inverse), [0.5, 50])


@pytest.mark.parametrize("dims", [1, 5, 12])
def test_a_prefix_of_the_projections_has_the_least_score_error(dims):
    """The error is the tail of the singular values of the roots' product: no rank-m approximation has less."""
    items, queries = moments(np.random.default_rng(1))
    of_items, of_queries = (projection[:, :dims] for projection in lean_vec(items, queries))
    left_out = np.eye(len(items)) - of_queries @ of_items.T
    error = np.trace(queries @ left_out @ items @ left_out.T)
    values = np.linalg.svd(square_roots(queries)[0] @ square_roots(items)[0], compute_uv=False)
    assert error == pytest.approx(np.square(values[dims:]).sum(), rel=1e-6, abs=1e-6)


def test_all_projections_are_inverse_and_balanced():
    items, queries = moments(np.random.default_rng(2))
    of_items, of_queries = lean_vec(items, queries)
    np.testing.assert_allclose(of_items @ of_queries.T, np.eye(len(items)), atol=1e-7)
    product = np.trace(of_items.T @ items @ of_items) * np.trace(of_queries.T @ queries @ of_queries)
    nuclear = np.linalg.svd(square_roots(queries)[0] @ square_roots(items)[0], compute_uv=False).sum()
    assert product == pytest.approx(nuclear**2, rel=1e-6)


def test_adam_reaches_the_bottom_of_a_bowl():
    adam = Adam([np.array([3.0, -2.0]), np.float32(5)])
    for step in range(400):
        adam.step([2 * adam.parameters[0], 2 * adam.parameters[1]], [0.1 * (1 - step / 400), 0.2 * (1 - step / 400)])
    assert all(np.abs(values).max() < 1e-2 for values in adam.parameters)
