"""What every source of vectors promises: rows as they were written, in order, in pieces, with what is told of them."""

import numpy as np
import pytest

from hivlp.data.vectors import files
from hivlp.data.vectors.source import open_embeddings
from synthetic import VECTOR_FORMATS, random_unit, write_vectors

ROWS, DIMS = 10, 6


@pytest.fixture(params=VECTOR_FORMATS)
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_rows_come_back_as_they_were_written(kind, dtype, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", chunk)
    given = random_unit(np.random.default_rng(0), ROWS, DIMS).astype(dtype)
    place, told = write_vectors(tmp_path / "v", kind, given)
    source = open_embeddings(place)
    assert (source.rows, source.dim, source.damaged) == (ROWS, DIMS, {})
    chunks = list(source.chunks())
    assert max(len(each.vectors) for each in chunks) <= chunk and not any(each.refused for each in chunks)
    np.testing.assert_array_equal(np.concatenate([each.vectors for each in chunks]), given)
    rows = [row for each in chunks for row in each.told]
    wanted = [(f"{n}.jpg", f"caption {n}") if told else (None, None) for n in range(ROWS)]
    assert [(row.path, row.caption) for row in rows] == wanted
    by_file = {}
    for each in chunks:
        assert each.first == by_file.get(each.file, 0), "numbers of rows go on within a file"
        by_file[each.file] = each.first + len(each.vectors)


def test_a_sample_holds_rows_of_the_source_at_unit_length(kind, tmp_path):
    given = random_unit(np.random.default_rng(1), ROWS, DIMS)
    source = open_embeddings(write_vectors(tmp_path / "v", kind, 3 * given)[0])
    for count in (4, ROWS, 5 * ROWS):
        sample = source.sample(count)
        assert len(sample) <= min(count, ROWS) and len(sample) >= min(count, ROWS) // 2
        assert ((sample @ given.T).max(1) > 1 - 1e-5).all()
        np.testing.assert_array_equal(sample, source.sample(count))


def test_a_row_that_is_no_vector_is_left_out_of_a_sample(kind, tmp_path):
    given = random_unit(np.random.default_rng(2), ROWS, DIMS)
    given[3], given[7, 0] = 0, np.nan
    sample = open_embeddings(write_vectors(tmp_path / "v", kind, given)[0]).sample(ROWS)
    assert len(sample) == ROWS - 2 and np.isfinite(sample).all()


def test_a_source_can_be_read_twice(kind, tmp_path):
    source = open_embeddings(write_vectors(tmp_path / "v", kind, np.eye(DIMS, dtype=np.float32))[0])
    first, second = (np.concatenate([each.vectors for each in source.chunks()]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
