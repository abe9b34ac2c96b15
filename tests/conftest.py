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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Logs of file names that are no UTF-8 are escaped: pytest-xdist cannot send them from one process to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
