"""What every encoder promises: unit rows at each level, which depend on nothing but their own picture or text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivlp.encode import HiVLP
from hivlp.encode.base import check_encoder
from hivlp.encode.onnx import batches_of
from synthetic import FakeEncoder, save_tiny

TEXTS = ["a red circle", "the blue square on white", "green", "a very long text " * 9, ""]


@pytest.fixture(scope="module", params=["fake", "hivlp-mini", pytest.param("exported", marks=pytest.mark.train)])
def encoder(request, tmp_path_factory):
    if request.param == "fake":
        return FakeEncoder()
    if request.param == "exported":
        pytest.importorskip("torch")
        return HiVLP.from_pretrained(save_tiny(tmp_path_factory.mktemp("tiny")))
    return HiVLP.from_pretrained(request.param)


def pixels(encoder, count: int) -> np.ndarray:
    size = encoder.picture.size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def assert_rows(encoder, found, count: int) -> None:
    """(count, dim) float32 at every level, coarse to fine."""
    assert list(found) == [level.name for level in encoder.levels]
    for level in encoder.levels:
        assert found[level.name].shape == (count, level.dim) and found[level.name].dtype == np.float32


def assert_same(one, other) -> None:
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=2e-5)


def test_it_says_who_it_is(encoder):
    check_encoder(encoder)
    assert encoder.name and len(encoder.fingerprint) == 64


def test_rows_are_unit_vectors(encoder):
    for found, count in ((encoder.encode_text(TEXTS[:4]), 4), (encoder.encode_pixels(pixels(encoder, 3)), 3)):
        assert_rows(encoder, found, count)
        for vectors in found.values():
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_place_or_its_neighbours(encoder):
    whole = encoder.encode_text(TEXTS)
    assert_same(whole.rows(slice(None, None, -1)), encoder.encode_text(TEXTS[::-1]))
    assert_same(whole.rows([1]), encoder.encode_text(TEXTS[1:2]))
    assert_same(whole, encoder.encode_text(TEXTS * 15).rows(slice(-len(TEXTS), None)))  # more than one batch
    images = pixels(encoder, 9)
    seen = encoder.encode_pixels(images)
    assert_same(seen.rows(slice(None, None, -1)), encoder.encode_pixels(images[::-1]))
    assert_same(seen.rows([8]), encoder.encode_pixels(images[8:]))


def test_nothing_gives_no_rows(encoder):
    assert_rows(encoder, encoder.encode_text([]), 0)
    assert_rows(encoder, encoder.encode_pixels(pixels(encoder, 0)), 0)


def test_levels_that_are_asked_for_are_those_of_all(encoder):
    whole = encoder.encode_text(TEXTS)
    for level in encoder.levels:
        alone = encoder.encode_text(TEXTS, levels=[level.name])
        assert list(alone) == [level.name]
        np.testing.assert_allclose(alone[level.name], whole[level.name], atol=2e-5)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80), st.integers(1, 16), st.none() | st.integers(0, 40))
def test_batches_of_texts_are_full_or_end_where_padding_costs_more_than_a_call(lengths, most, padding):
    lengths = np.sort(lengths)
    batches = list(batches_of(lengths, most, padding))
    assert [place for start, end in batches for place in range(start, end)] == list(range(len(lengths)))

    def padded(start, end):
        return int((lengths[end - 1] - lengths[start:end]).sum())

    for start, end in batches:
        assert end - start <= most and (padding is None or padded(start, end) <= padding)
        # It could not have been longer.
        assert end in (len(lengths), start + most) or padded(start, end + 1) > padding


def test_a_level_alone_is_bit_equal_to_what_it_is_beside_the_others(encoder):
    images = pixels(encoder, 9)
    whole = encoder.encode_pixels(images)
    coarse = encoder.encode_pixels(images, levels=["coarse"])
    assert list(coarse) == ["coarse"] and (coarse["coarse"] == whole["coarse"]).all()
