"""Streaming: in order, bounded, failures told apart from bugs."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hivlp.encode.stream import encode_stream
from hivlp.errors import PictureError
from synthetic import SIZE, FakeEncoder


def load(job: int):
    if job % 7 == 3:
        raise PictureError(f"{job} is broken")
    return np.full((SIZE, SIZE, 3), job, np.uint8)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 8, 50])
def test_every_job_comes_back_once_in_order(count, workers):
    encoder = FakeEncoder()
    batches = list(encode_stream(encoder, range(count), load, batch_size=8, workers=workers))
    assert [job for batch in batches for job in batch.jobs] == [job for job in range(count) if job % 7 != 3]
    assert [job for batch in batches for job, _ in batch.failures] == [job for job in range(count) if job % 7 == 3]
    for batch in batches:
        assert batch.embeddings.count == len(batch.jobs)
        for row, job in enumerate(batch.jobs):
            expected = encoder.encode_pixels(load(job)[None])
            np.testing.assert_allclose(batch.embeddings.fine[row], expected.fine[0], atol=1e-6)


def test_jobs_are_taken_only_as_they_are_needed():
    taken = []

    def jobs():
        for job in range(1000):
            taken.append(job)
            yield job

    stream = encode_stream(FakeEncoder(), jobs(), load, batch_size=4, workers=2)
    next(stream)
    assert len(taken) <= 4 * (2 + 2)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hivlp-encode")]


def test_a_bug_in_loading_is_raised_not_reported():
    def buggy(job):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(encode_stream(FakeEncoder(), range(5), buggy))
