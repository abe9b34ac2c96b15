"""Jobs: folders that are indexed one after another, on disk, so that they go on when the service is started again."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
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
KEEP_SECONDS = 1.0
"""Seconds after which the progress of a job is written down again."""
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
    state: Literal["queued", "running", "paused", "done", "failed", "cancelled"] = "queued"
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

    def __init__(self, folder: Path, writer: Writer, allowed: Callable[[str], bool]) -> None:
        """Jobs that are kept in a folder.

        Args:
            folder: where they are kept; a stranger may have filled it.
            writer: that indexes.
            allowed: whether a path may be indexed, asked whenever a job begins.
        """
        self._folder, self._writer, self._allowed = folder, writer, allowed
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._running: tuple[str, str] | None = None  # the job, and what the writer calls this run of it
        self._ending = False

    def resume(self) -> None:
        """Go on with the jobs that had not ended when the last service did."""
        for file in sorted(self._folder.glob("*.json")):
            try:
                job = _read(file)
            except (OSError, msgspec.DecodeError, RecursionError) as error:
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
            RequestError: if too many wait, or it cannot be kept.
        """
        if sum(job.state not in ENDED for job in self._jobs.values()) >= MOST_WAITING:
            raise RequestError(429, "busy", f"{MOST_WAITING} jobs are waiting already", {"Retry-After": "60"})
        for old in [job for job in self.all() if job.state in ENDED][KEPT:]:
            del self._jobs[old.id]
            for left in (self._file(old), self._file(old).with_suffix(".lock")):
                left.unlink(missing_ok=True)
        job = Job(uuid.uuid4().hex[:16], paths, prune=prune)
        self._keep(job)
        self._jobs[job.id] = job
        self._work()
        return job

    async def steer(self, job: Job, how: str) -> Job:
        """Pause, resume or cancel a job.

        Raises:
            RequestError: if it has ended, or that cannot be kept.
        """
        if job.state in ENDED:
            raise RequestError(409, "ended", f"the job is {job.state}")
        before, run = job.state, self._running[1] if self._running and self._running[0] == job.id else None
        if how == "resume":
            job.state = "queued" if run is None else "running"
        else:
            job.state = "paused" if how == "pause" else "cancelled"
        try:
            self._keep(job)
        except RequestError:
            job.state = before
            raise
        if how != "resume" and run is not None:
            await self._writer.stop(run)
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
                with suppress(OSError, msgspec.DecodeError, RecursionError):
                    vars(job).update(vars(_read(self._file(job))))
                    if job.state == "running":
                        job.state = "queued"
                continue
            except OSError as error:
                self._end(job, "failed", str(error))
                continue
            self._running = job.id, uuid.uuid4().hex
            try:
                await self._run(job, self._running[1])
            except Exception as error:  # the jobs behind it go on
                logger.exception("job %s failed", job.id)
                self._end(job, "failed", f"something is wrong with the service: {type(error).__name__}")
            finally:
                self._running = None
                lock.release()

    async def _run(self, job: Job, run: str) -> None:
        if elsewhere := [path for path in job.paths if not self._allowed(path)]:
            self._end(job, "failed", f"{elsewhere[0]!r:.200} is not beneath the roots")
            return
        job.state, job.path, job.done = "running", job.paths[0], 0
        self._note(job)
        counting = asyncio.create_task(self._count(job))
        kept = time.monotonic()

        def follow(message: dict[str, Any]) -> None:
            nonlocal kept
            job.done = message["done"]
            if time.monotonic() - kept > KEEP_SECONDS:
                kept = time.monotonic()
                self._note(job)
            else:
                self._tell()

        try:
            result = await self._writer.run(run, "job", {"paths": job.paths, "prune": job.prune}, follow)
        except WriterDied as error:
            job.tries += not isinstance(error, WriterRestarted)
            if job.tries >= TRIES:
                self._end(job, "failed", str(error))
            elif job.state == "running":
                job.state = "queued"
                self._note(job)
            return
        finally:
            counting.cancel()
        if "is being written" in result.get("error", ""):
            job.state = "queued" if job.state == "running" else job.state
            self._note(job)
            await asyncio.sleep(1)
        elif "error" in result:
            self._end(job, "failed", result["error"])
        elif result.get("stopped"):
            job.state = "queued" if job.state == "running" else job.state  # resumed before it had stopped
            self._note(job)
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

    def _end(self, job: Job, state: Literal["done", "failed"], error: str | None = None) -> None:
        job.state, job.error = state, error
        self._note(job)

    def _keep(self, job: Job) -> None:
        """Write a job down, and tell who follows it.

        Raises:
            RequestError: if it cannot be written.
        """
        text = json.dumps(job.to_json())
        try:
            if self._folder.is_symlink() or self._folder.parent.is_symlink():
                raise OSError(None, "its folder is a link")
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(job), lambda place: place.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise RequestError(507, "not_stored", f"the job cannot be kept: {error.strerror}") from error
        self._tell()

    def _note(self, job: Job) -> None:
        """Write down how far a job is; one that cannot be written down goes on."""
        try:
            self._keep(job)
        except RequestError as error:
            logger.warning("%s: %s", job.id, error)
            self._tell()

    def _tell(self) -> None:
        """Wake all who follow a job."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _file(self, job: Job) -> Path:
        return self._folder / f"{job.id}.json"


def _read(file: Path) -> Job:
    """A job that was kept.

    Raises:
        OSError: if it cannot be read.
        msgspec.DecodeError: if it is none.
    """
    if not file.is_file():
        raise OSError(None, "it is no file")
    job = msgspec.json.decode(file.read_bytes(), type=Job)
    if job.id != file.stem or not re.fullmatch("[0-9a-f]{16}", job.id) or not job.paths:
        raise msgspec.ValidationError("it is of another name, or of no paths")
    return job
