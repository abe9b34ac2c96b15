"""Fixtures that many tests ask for; what they are made of is in ``synthetic``."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthetic import FakeEncoder, write_pictures


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    write_pictures(folder, 30)
    return folder
