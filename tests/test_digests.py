"""Digests of large files are remembered, and never of a file that has changed."""

import hashlib
import os
import time

import pytest

from hivlp.files import digests


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests.json"


@pytest.fixture
def large(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(digests.SMALL + 1))
    return file


@pytest.fixture
def settled(monkeypatch):
    """Files count as old at once."""
    monkeypatch.setattr(digests, "RACY_NS", -(10**18))


def sha(file) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def test_a_large_file_is_read_once(large, settled, monkeypatch):
    assert digests.sha256_of(large) == sha(large)
    expected = sha(large)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert digests.sha256_of(large) == expected


def test_a_file_of_other_content_has_another_digest_whatever_its_time_says(large, settled):
    first, status = digests.sha256_of(large), large.stat()
    data = bytearray(large.read_bytes())
    data[7] ^= 1
    time.sleep(0.02)  # longer than the clock of time stamps ticks
    large.write_bytes(data)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.sha256_of(large) == sha(large) != first


def test_a_file_that_has_just_changed_is_not_remembered(large, cache):
    digests.sha256_of(large)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "\x00"])
def test_a_damaged_cache_is_done_without(large, settled, cache, content):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text(content)
    assert digests.sha256_of(large) == sha(large)


def test_a_cache_that_cannot_be_written_is_done_without(large, settled, cache):
    cache.parent.write_text("a file where the folder should be")
    assert digests.sha256_of(large) == sha(large)
