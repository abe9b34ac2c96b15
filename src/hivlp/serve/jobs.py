"""Jobs: folders that are indexed one after another, on disk, so that they go on when the service is started again."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hivlp.data.walk import count_pictures
from hivlp.files.scratch import write_whole
from hivlp.serve.errors import RequestError, not_found
from hivlp.serve.writer import Writer, WriterDied, WriterRestarted

logger = logging.getLogger(__name__)
ENDED = ("done", "failed", "cancelled")
KEPT = 100
"""Jobs that have ended and are still told of."""
MOST_WAITING = 100
TRIES = 3
"""Times that a job is tried whose process dies of it."""
ALIVE_SECONDS = 15.0
"""Seconds after which a listener is sent a sign of life."""


@dataclass
class Job:
    """A job.

    Attributes:
        id: of it.
        paths: folders and files to index.
        kind: ``index``.
        prune: remove items whose files are gone.
        state: ``queued``, ``running``, ``paused``, ``done``, ``failed`` or ``cancelled``.
        done: pictures dealt with.
        total: pictures that there are; None until that is known.
        path: that is being indexed.
        error: why it failed.
        result: what ``hivlp index --json`` prints.
        created: seconds since 1970.
        tries: times that its process died.
    """

    id: str
    paths: list[str]
    kind: str = "index"
    prune: bool = False
    state: str = "queued"
    done: int = 0
    total: int | None = None
    path: str | None = None
    error: str | None = None
    result: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)
    tries: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it is told and kept."""
        return asdict(self)


class Jobs:
    """The jobs of one index; each is run by one service, whichever holds its lock."""

    def __init__(self, folder: Path, writer: Writer) -> None:
        """Jobs that are kept in a folder."""
        self._folder, self._writer = folder, writer
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._running: str | None = None
        self._ending = False

    def resume(self) -> None:
        """Go on with the jobs that had not ended when the last service did."""
        for file in sorted(self._folder.glob("*.json")):
            try:
                job = Job(**json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s is no job: %s", file, error)
                continue
            self._jobs[job.id] = job
            if job.state == "running":
                job.state = "queued"
        self._work()

    def all(self) -> list[Job]:
        """Jobs, the newest first."""
        return sorted(self._jobs.values(), key=lambda job: -job.created)

    def get(self, number: str) -> Job:
        """A job by its id.

        Raises:
            RequestError: if there is none.
        """
        if number not in self._jobs:
            raise not_found(f"there is no job {number!r:.80}")
        return self._jobs[number]

    def add(self, paths: list[str], *, prune: bool) -> Job:
        """A new job, which starts when those before it have ended.

        Raises:
            RequestError: if too many wait.
        """
        if sum(job.state not in ENDED for job in self._jobs.values()) >= MOST_WAITING:
            raise RequestError(429, "busy", f"{MOST_WAITING} jobs are waiting already", {"Retry-After": "60"})
        for old in [job for job in self.all() if job.state in ENDED][KEPT:]:
            del self._jobs[old.id]
            self._file(old).unlink(missing_ok=True)
        job = Job(uuid.uuid4().hex[:16], paths, prune=prune)
        self._jobs[job.id] = job
        self._keep(job)
        self._work()
        return job

    async def steer(self, job: Job, how: str) -> Job:
        """Pause, resume or cancel a job.

        Raises:
            RequestError: if it has ended.
        """
        if job.state in ENDED:
            raise RequestError(409, "ended", f"the job is {job.state}")
        job.state = {"pause": "paused", "resume": "queued", "cancel": "cancelled"}[how]
        if how == "resume" and self._running == job.id:
            job.state = "running"
        self._keep(job)
        if how != "resume":
            await self._writer.stop(job.id)
        self._work()
        return job

    async def events(self, job: Job) -> AsyncIterator[bytes]:
        """Server-sent events: the job now, and whenever it has come further, until it or the service ends."""
        told = None
        while True:
            changed = self._changed
            now = json.dumps(job.to_json())
            if now != told:
                told = now
                yield f"data: {now}\n\n".encode()
            if job.state in ENDED or self._ending:
                return
            try:
                await asyncio.wait_for(changed.wait(), ALIVE_SECONDS)
            except TimeoutError:
                yield b": alive\n\n"

    def end_events(self) -> None:
        """Let those go who follow a job: a service that ends would wait for them."""
        self._ending = True
        self._tell()

    async def close(self) -> None:
        """Stop working; what has not ended goes on when the service is started again."""
        if self._working is not None:
            self._working.cancel()
            with suppress(asyncio.CancelledError):
                await self._working

    def _work(self) -> None:
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._run_all())

    async def _run_all(self) -> None:
        while queued := [job for job in reversed(self.all()) if job.state == "queued"]:
            job = queued[0]
            lock = FileLock(self._file(job).with_suffix(".lock"), timeout=0)
            try:
                lock.acquire()
            except Timeout:  # another service of this index runs it
                await asyncio.sleep(1)
                with suppress(OSError, ValueError, TypeError):
                    vars(job).update(json.loads(self._file(job).read_text(encoding="utf-8")))
                    if job.state == "running":
                        job.state = "queued"
                continue
            except OSError as error:
                self._end(job, "failed", str(error))
                continue
            try:
                self._running = job.id
                await self._run(job)
            finally:
                self._running = None
                lock.release()

    async def _run(self, job: Job) -> None:
        job.state, job.path, job.done = "running", job.paths[0], 0
        self._keep(job)
        counting = asyncio.create_task(self._count(job))
        kept = time.monotonic()

        def follow(message: dict[str, Any]) -> None:
            nonlocal kept
            job.done = message["done"]
            if time.monotonic() - kept > 1:
                kept = time.monotonic()
                self._keep(job)
            else:
                self._tell()

        try:
            result = await self._writer.run(job.id, "job", {"paths": job.paths, "prune": job.prune}, follow)
        except WriterDied as error:
            job.tries += not isinstance(error, WriterRestarted)
            if job.tries >= TRIES:
                self._end(job, "failed", str(error))
            elif job.state == "running":
                job.state = "queued"
                self._keep(job)
            return
        finally:
            counting.cancel()
        if "is being written" in result.get("error", ""):
            job.state = "queued" if job.state == "running" else job.state
            self._keep(job)
            await asyncio.sleep(1)
        elif "error" in result:
            self._end(job, "failed", result["error"])
        elif result.get("stopped"):
            self._keep(job)
        else:
            job.result = result
            job.done = job.total = sum(result[name] for name in ("added", "updated", "moved", "skipped")) + len(
                result["failed"]
            )
            self._end(job, "done")

    async def _count(self, job: Job) -> None:
        total = await asyncio.to_thread(count_pictures, [Path(path) for path in job.paths])
        job.total = total
        self._tell()

    def _end(self, job: Job, state: str, error: str | None = None) -> None:
        job.state, job.error = state, error
        self._keep(job)

    def _keep(self, job: Job) -> None:
        text = json.dumps(job.to_json())
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(job), lambda place: place.write_text(text, encoding="utf-8"))
        self._tell()

    def _tell(self) -> None:
        """Wake all who follow a job."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _file(self, job: Job) -> Path:
        return self._folder / f"{job.id}.json"
