"""The bench of streams: its shards are what the readers read, and its jobs are watched and killed."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from hivlp.bench.stream.job import Job, losses
from hivlp.bench.stream.run import StreamReport, write_recipe
from hivlp.bench.stream.shards import write_shards
from hivlp.data.load import load_pairs
from hivlp.errors import HivlpError

pytestmark = pytest.mark.train


def test_its_shards_hold_as_many_pairs_as_wanted_and_are_written_once(tmp_path):
    folder = write_shards(tmp_path / "shards", 40, 4, (24, 24))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 4
    pairs = load_pairs(folder)
    assert len({pair.captions for pair in pairs}) == len(pairs) == 40 and pairs[0].read()[:2] == b"\xff\xd8"
    next(iter(before)).unlink()
    write_shards(folder, 40, 4, (24, 24))
    again = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert again.keys() == before.keys() and sum(again[path] == before[path] for path in again) == 3


@pytest.mark.slow
def test_a_job_is_watched_and_killed(tmp_path):
    shards = write_shards(tmp_path / "shards", 160, 16, (24, 24))
    job = Job(write_recipe(tmp_path / "r.yaml", shards, steps=500, batch=16), tmp_path / "out")
    try:
        assert job.wait_for(2) > 0 and job.peak > 50 << 20
    finally:
        job.kill()
    assert 2 <= len(losses(tmp_path / "out")) < 500
    again = Job(tmp_path / "r.yaml", tmp_path / "out")
    with pytest.raises(HivlpError, match="add --resume"):
        again.wait_for(600)


def test_a_report_says_what_it_found():
    report = StreamReport(
        pairs=2_000_000, shards_mb=1, folder="x", start_s=3.6, rss_mb=564, pairs_per_second={"2 pairs": 9.0},
        relative_speed=0.991, spread=0.035, kills=10, steps=60, resume_equal=False,
        loader_pairs_per_second={"loader": 9.0}, loader_ratio=0.9, waiting_share=0.001,
    )  # fmt: skip
    assert "NOT equal" in report.to_text() and "0.991" in report.to_text()
    found = json.loads(json.dumps(report.to_json()))
    assert {"start_s", "rss_mb", "relative_speed", "resume_equal"} <= found.keys()
