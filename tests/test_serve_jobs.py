"""Jobs of a service with a writer that does as it is told: what is told at the wrong moment, and what disks do."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn

from hivlp.index import Index
from hivlp.serve.errors import RequestError
from hivlp.serve.jobs import Job, Jobs
from hivlp.serve.run import _Server
from hivlp.serve.served import Served
from hivlp.serve.worker import Worker
from hivlp.serve.writer import Writer, WriterDied
from serving import asked, until
from synthetic import FakeEncoder, write_pictures


class FakeWriter:
    """A writer whose jobs take until the test says how they end; see :class:`hivlp.serve.writer.Writer`."""

    def __init__(self):
        self.runs, self.stopped = [], []

    async def run(self, number, do, details, follow=None):
        ended = asyncio.get_running_loop().create_future()
        self.runs.append((number, details, follow, ended))
        return await ended

    async def stop(self, number):
        self.stopped.append(number)

    def end(self, **result):
        self.runs[-1][3].set_result(result)


DONE = {"added": 1, "updated": 0, "moved": 0, "skipped": 0, "failed": []}


def working(folder, script, allowed=lambda path: True):
    """Run a script with jobs of a folder, and what runs them."""

    async def run():
        writer = FakeWriter()
        jobs = Jobs(folder, writer, allowed)
        try:
            return await asyncio.wait_for(script(jobs, writer), 20)
        finally:
            await jobs.close()

    return asyncio.run(run())


async def settled():
    for _ in range(60):
        await asyncio.sleep(0.001)


def test_a_job_that_is_resumed_before_it_has_stopped_goes_on(tmp_path):
    async def script(jobs, writer):
        job = jobs.add(["/x"], prune=False)
        await settled()
        await jobs.steer(job, "pause")
        await jobs.steer(job, "resume")
        writer.end(stopped=True)
        await settled()
        assert len(writer.runs) == 2 and job.state == "running"
        assert writer.runs[0][0] != writer.runs[1][0], "what stops the one run does not stop the other"
        writer.end(**DONE)
        await settled()
        assert job.state == "done"

    working(tmp_path, script)


@pytest.mark.parametrize("how", ["pause", "cancel"])
def test_a_job_is_stopped_by_its_run(tmp_path, how):
    async def script(jobs, writer):
        job = jobs.add(["/x"], prune=False)
        await settled()
        await jobs.steer(job, how)
        assert writer.stopped == [writer.runs[0][0]]
        writer.end(stopped=True)
        await settled()
        assert len(writer.runs) == 1 and job.state == {"pause": "paused", "cancel": "cancelled"}[how]

    working(tmp_path, script)


def test_jobs_go_on_where_they_cannot_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hivlp.serve.jobs.KEEP_SECONDS", 0.0)

    async def script(jobs, writer):
        job = jobs.add(["/x"], prune=False)
        await settled()
        shutil.rmtree(tmp_path / "jobs")
        (tmp_path / "jobs").write_text("no folder")
        writer.runs[0][2]({"done": 1})
        writer.end(**DONE)
        await settled()
        assert job.state == "done"

    working(tmp_path / "jobs", script)


def test_a_job_that_cannot_be_kept_is_not_taken(tmp_path):
    for way in ("write_text", "symlink_to"):
        getattr(tmp_path / way, way)(str(tmp_path))
        working(tmp_path / way, not_taken)


async def not_taken(jobs, writer):
    with pytest.raises(RequestError, match="cannot be kept") as told:
        jobs.add(["/x"], prune=False)
    assert told.value.status == 507 and not jobs.all() and not writer.runs


def kept(folder: Path, name: str, **facts):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"paths": ["/inside/x"], "state": "queued", **facts}))


def test_jobs_that_came_with_an_index_are_not_trusted(tmp_path):
    folder = tmp_path / "jobs"
    good = "0123456789abcdef"
    kept(folder, good, id=good)
    kept(folder, "a" * 16, id="../../elsewhere")
    kept(folder, "b" * 16, id="b" * 16, paths=["/outside"], created=0)
    kept(folder, "c" * 16, id="c" * 16, paths=[])
    kept(folder, "d" * 16, id="d" * 16, paths="/inside/x")
    kept(folder, "e" * 16, id="e" * 16, state="sleeping")
    kept(folder, "f" * 16, id="f" * 16, done="many")
    (folder / f"{'1' * 16}.json").write_bytes(b"\xff" * 9)
    (folder / f"{'2' * 16}.json").write_text("[" * 100_000)
    os.mkfifo(folder / f"{'3' * 16}.json")

    async def script(jobs, writer):
        jobs.resume()
        await settled()
        assert {job.id: job.state for job in jobs.all()} == {good: "running", "b" * 16: "failed"}
        assert len(writer.runs) == 1 and writer.runs[0][1]["paths"] == ["/inside/x"]
        assert not (tmp_path.parent / "elsewhere.json").exists()

    working(folder, script, allowed=lambda path: path.startswith("/inside/"))


def test_what_is_left_of_old_jobs_is_removed_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("hivlp.serve.jobs.KEPT", 2)

    async def script(jobs, writer):
        for _ in range(6):
            jobs.add(["/x"], prune=False)
            await settled()
            writer.end(**DONE)
            await settled()

    working(tmp_path, script)
    assert len(list(tmp_path.iterdir())) <= 6


def test_a_writer_that_says_what_is_no_answer_is_ended(tmp_path, monkeypatch):
    """As one whose report is longer than a line may be: its jobs would wait for ever."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport time\nprint('x' * 1000, flush=True)\ntime.sleep(60)\n")
    program.chmod(0o755)
    monkeypatch.setattr("hivlp.serve.writer.sys.executable", str(program))

    async def ask():
        writer = Writer(tmp_path)
        with pytest.raises(WriterDied):
            await asyncio.wait_for(writer.run("1", "job", {}), 10)
        await writer.close()

    asyncio.run(ask())


def test_who_asks_a_writer_that_is_ending_is_told_when_it_has(tmp_path, monkeypatch):
    """The event loop of uvloop raises where a pipe is closed, some time before the process is known to have ended."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    monkeypatch.setattr("hivlp.serve.writer.sys.executable", str(program))

    def closed(_):
        raise RuntimeError("the handler is closed")

    async def ask():
        writer = Writer(tmp_path)
        await writer.start()
        writer._process.stdin.write = closed
        asking = asyncio.create_task(writer.run("1", "job", {}))
        await asyncio.sleep(0)
        writer._process.kill()
        with pytest.raises(WriterDied):
            await asyncio.wait_for(asking, 10)
        await writer.close()

    asyncio.run(ask())


def test_the_end_of_one_writer_is_not_told_to_those_who_wait_for_the_next(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\nfor line in sys.stdin:\n"
        " c = json.loads(line)\n if c['do'] == 'die': sys.exit(1)\n"
        " print(json.dumps({'id': c['id'], 'result': {'ok': 1}}), flush=True)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("hivlp.serve.writer.sys.executable", str(program))

    async def ask():
        writer = Writer(tmp_path)
        dying = asyncio.create_task(writer.run("1", "die", {}))
        while writer._process is None or writer._process.returncode is None:
            await asyncio.sleep(0)
        assert await asyncio.wait_for(writer.run("2", "live", {}), 10) == {"ok": 1}
        with pytest.raises(WriterDied):
            await dying
        await writer.close()

    asyncio.run(ask())


def test_a_job_that_is_stopped_before_its_process_has_begun_with_it_stops(tmp_path):
    with Index.create(tmp_path / "index", model=FakeEncoder()):
        pass
    answers = io.BytesIO()
    worker = Worker(tmp_path / "index", answers)
    worker._stop.add("run")
    worker._carry_out({"id": "run", "do": "job", "paths": [str(tmp_path)]})
    assert json.loads(answers.getvalue()) == {"id": "run", "result": {"stopped": True}}


def test_many_hang_ups_open_the_indexes_once_more(monkeypatch):
    monkeypatch.setattr("hivlp.serve.run.RELOAD_SECONDS", 0.01)
    open_ones, most, count = 0, 0, 0

    async def reload():
        nonlocal open_ones, most, count
        open_ones, count = open_ones + 1, count + 1
        most = max(most, open_ones)
        await asyncio.sleep(0.01)
        open_ones -= 1

    async def hang_up():
        server = _Server(uvicorn.Config("none"), SimpleNamespace(service=SimpleNamespace(reload=reload)))
        for _ in range(50):
            server._hung_up()
            await asyncio.sleep(0)
        await server._reloading
        assert (count, most) == (2, 1)
        server._hung_up()
        await server._reloading
        assert count == 3

    asyncio.run(hang_up())


def test_a_job_says_all_that_it_is():
    assert Job("0" * 16, ["/x"]).to_json().keys() == {
        "id", "paths", "kind", "prune", "state", "done", "total", "path", "error", "result", "created", "tries"
    }  # fmt: skip


def test_the_writer_of_the_folder_before_ends_before_anything_is_asked_of_the_next(tmp_path, monkeypatch):
    """A change that came between the new index and its writer was told that the folder was moved."""
    write_pictures(tmp_path / "pictures", 2)

    def made():
        with Index.create(tmp_path / "index", model=FakeEncoder()) as index:
            index.add(tmp_path / "pictures")

    made()
    order = []

    async def restart(writer):
        order.append(("restart", served.index is before))

    monkeypatch.setattr(Writer, "restart", restart)
    monkeypatch.setattr(Served, "follow_uploads", lambda served: order.append(("uploads", served.index is before)))
    with asked({"index": Index.open(tmp_path / "index", FakeEncoder())}) as client:
        service = client.app.service
        served = service.indexes["index"]
        before = served.index
        until(lambda: service.ready)
        service.writer(served)
        order.clear()
        (tmp_path / "index").rename(tmp_path / "old")
        made()
        client.run(service.reload())
        assert order == [("restart", False), ("uploads", False)]
