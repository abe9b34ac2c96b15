"""Filling: the finer levels of pictures that were added lazily, those first that searches want."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hivlp.data.pictures import load_pixels
from hivlp.encode.base import Encoder
from hivlp.encode.stream import encode_stream
from hivlp.errors import BusyIndexError, HivlpError, IndexFolderError, PictureError
from hivlp.files.reading import reason
from hivlp.index.adding.pictures import COMMIT_ITEMS, COMMIT_SECONDS, PictureJob, check_file, read_content
from hivlp.index.adding.report import Failure
from hivlp.index.queries import QueryEncoder
from hivlp.levels import Embeddings
from hivlp.search.stages import Step
from hivlp.store.folder import Store
from hivlp.store.records import Item, NewItem, Stamp

logger = logging.getLogger(__name__)
LOCK, WANTED = "lock.fill", "wanted"
"""Files in an index folder: held by who computes all that is pending; ids of items that searches want."""
MOST_WANTED = 1 << 20
"""Bytes of ids that wait in the file, at most."""
AHEAD = 8
"""Pictures that are chosen at once: what a search wants comes next after them."""
TOGETHER = 2
"""Pictures that a search computes at once: few, so that it ends in time."""
RETRY_SECONDS = 0.1
_NO_LINK = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))


@dataclass
class FillReport:
    """What :meth:`hivlp.index.Index.complete` did.

    Attributes:
        filled: pictures that got the vectors of their finer levels.
        failed: pictures that are gone, have changed or cannot be decoded; they stay pending.
        pending: items that are pending still, those of other runs among them.
        busy: whether another process does this already, so that nothing was done.
        seconds: how long it took.
    """

    filled: int = 0
    failed: list[Failure] = field(default_factory=list)
    pending: int = 0
    busy: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As in what ``hivlp index --json`` prints."""
        return {
            "filled": self.filled,
            "failed": [{"path": failure.path, "error": failure.error} for failure in self.failed],
            "pending": self.pending,
            "busy": self.busy,
            "seconds": round(self.seconds, 3),
        }


class Filler:
    """What fills the pending rows of one index, for searches and for whoever has time."""

    def __init__(self, store: Store, encoder: QueryEncoder) -> None:
        """Nothing is filled yet.

        Args:
            store: of the index.
            encoder: has its model.
        """
        self._store, self._encoder = store, encoder
        self._failed: set[bytes] = set()  # contents that searches need not try again
        self._without: str | None = None  # why there is no model

    def for_search(self, items: Sequence[Item], most: int, seconds: float) -> Step:
        """Fill pending items of a shortlist, within a budget; stored if that is possible at once, else in memory alone.

        Args:
            items: pending ones, most wanted first.
            most: pictures, at most.
            seconds: after which no other picture is begun; one or two are computed in any case.

        Returns:
            What was done: ``pending`` ones of the shortlist, how many of them were ``filled``, and what is ``left``,
            with the reason.
        """
        wanted = [item for item in {item.hash: item for item in items}.values() if item.hash not in self._failed]
        chosen = wanted[: max(most, 0)] if seconds > 0 else []
        contents: set[bytes] = set()
        stored, why = True, self._without
        if chosen and why is None:
            try:
                contents, stored = self._fill_in_time(self._encoder.need_model(), chosen, seconds)
            except HivlpError as error:
                why = self._without = str(error)
        filled = sum(item.hash in contents for item in items)
        left = len(items) - filled
        later = [item.id for item in wanted if item.hash not in self._failed and not (stored and item.hash in contents)]
        if later and not self._store.read_only:
            note_wanted(self._store.path, later)
        step = {"stage": "fill", "level": self._store.levels[-1].name, "pending": len(items), "filled": filled}
        if not left:
            return step
        if why is None:
            broken = sum(item.hash in self._failed for item in items)
            why = f"{broken} cannot be read" if broken == left else "the budget is spent"
        return {**step, "left": left, "why": why}

    def now(self, items: Sequence[Item]) -> None:
        """Fill pending items, however long it takes.

        Raises:
            PictureError: naming the first that cannot be.
        """
        failed: list[tuple[Item, HivlpError]] = []
        contents, parts = [], []
        for batch in self._encoded(self._encoder.need_model(), items, failed, TOGETHER):
            contents += [item.hash for item in batch[0]]
            parts.append(batch[1])
        for item, error in failed:
            raise PictureError(f"{item.path} {error}: it is pending, of the coarsest level alone")
        if parts:
            self._keep(contents, Embeddings.concatenate(parts))

    def complete(
        self, on_progress: Callable[[FillReport], None] | None = None, workers: int | None = None
    ) -> FillReport:
        """The job behind :meth:`hivlp.index.Index.complete`."""
        started = time.perf_counter()
        self._store.check_writable()
        report = FillReport(pending=self._store.settle_pending())
        if not report.pending:
            return report
        lock = FileLock(self._store.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report.busy = True
            return report
        except OSError as error:
            raise IndexFolderError(f"{self._store.path} cannot be written: {error.strerror}") from error
        try:
            self._complete(report, on_progress, workers)
        finally:
            lock.release()
        report.pending = self._store.settle_pending()
        report.seconds = time.perf_counter() - started
        return report

    def _complete(
        self, report: FillReport, on_progress: Callable[[FillReport], None] | None, workers: int | None
    ) -> None:
        model = self._encoder.need_model()
        contents: list[bytes] = []
        parts: list[Embeddings] = []
        failed: list[tuple[Item, HivlpError]] = []
        committed = time.monotonic()

        def commit() -> None:
            nonlocal committed
            while contents:
                try:
                    report.filled += self._store.fill(contents, Embeddings.concatenate(parts))
                    contents.clear()
                    parts.clear()
                except BusyIndexError:
                    time.sleep(RETRY_SECONDS)
            report.failed = [Failure(_printable(item.path), str(error)) for item, error in failed]
            committed = time.monotonic()
            if on_progress is not None:
                on_progress(report)

        for items, embeddings in self._encoded(model, self._most_wanted(), failed, 8, workers):
            contents += [item.hash for item in items]
            parts.append(embeddings)
            if len(contents) >= COMMIT_ITEMS or time.monotonic() - committed > COMMIT_SECONDS:
                commit()
        commit()

    def _most_wanted(self) -> Iterator[Item]:
        """Pending items, each content once: those that searches want, then the others in the order of their rows."""
        tried: set[bytes] = set()
        last, generation = -1, -1
        while True:
            wanted = take_wanted(self._store.path)
            with self._store.reading() as reader:
                if reader.state.generation != generation:  # rows have other numbers now
                    last, generation = -1, reader.state.generation
                pending, alive = reader.integrity.pending(), reader.alive()
                live = pending if alive is None else pending[alive[pending]]
                asked = [item for item_id in wanted if (item := reader.get(item_id)) is not None]
                chosen = [item for item in asked if item.row in live]
                if not chosen:
                    rows = live[live > last][:AHEAD].tolist()
                    if not rows:
                        return
                    chosen, last = reader.in_rows(rows), rows[-1]
            for item in {item.hash: item for item in chosen}.values():
                if item.hash not in tried:
                    tried.add(item.hash)
                    yield item

    def _fill_in_time(self, model: Encoder, chosen: Sequence[Item], seconds: float) -> tuple[set[bytes], bool]:
        """Contents of the pictures that were filled, and whether for others, too."""
        started, done = time.monotonic(), 0

        def in_time() -> Iterator[Item]:
            for number, item in enumerate(chosen):
                spent = time.monotonic() - started
                if number >= TOGETHER and spent + TOGETHER * spent / max(done, 1) > seconds:
                    return
                yield item

        failed: list[tuple[Item, HivlpError]] = []
        contents: list[bytes] = []
        parts: list[Embeddings] = []
        for items, embeddings in self._encoded(model, in_time(), failed, TOGETHER):
            contents += [item.hash for item in items]
            parts.append(embeddings)
            done += len(items)
        self._failed |= {item.hash for item, _ in failed}
        return {*contents}, not parts or self._keep(contents, Embeddings.concatenate(parts))

    def _keep(self, contents: Sequence[bytes], embeddings: Embeddings) -> bool:
        """Store what was computed, whether that is possible at once; or else use it in this process alone."""
        try:
            self._store.fill(contents, embeddings, wait=False)
        except IndexFolderError as error:
            logger.info("what was filled is kept in memory: %s", error)
            self._store.lend(contents, embeddings)
            return False
        return True

    def _encoded(
        self,
        model: Encoder,
        items: Iterable[Item],
        failed: list[tuple[Item, HivlpError]],
        together: int,
        workers: int | None = None,
    ) -> Iterator[tuple[list[Item], Embeddings]]:
        """Items with their vectors of every level; those that cannot be read are added to ``failed``."""

        def load(item: Item) -> NDArray[np.uint8]:
            return _pixels(item, model)

        for batch in encode_stream(model, items, load, batch_size=together, workers=workers):
            failed += batch.failures
            if batch.jobs:
                yield batch.jobs, batch.embeddings


def _pixels(item: Item, model: Encoder) -> NDArray[np.uint8]:
    """A picture as the model takes it, if its file is still what was indexed.

    Raises:
        PictureError: if it is gone, has changed or cannot be decoded.
    """
    try:
        job = PictureJob(NewItem(item.path, item.hash, None, {}, Stamp.of(check_file(item.path))), None, None)
        job.data, content = read_content(item.path)
    except (OSError, ValueError) as error:
        raise PictureError(reason(error)) from error
    if content != item.hash:
        raise PictureError("has changed since it was indexed")
    data = job.take()
    pixels = load_pixels(data, model.picture)
    if isinstance(data, Path):
        job.check()
    return pixels


def note_wanted(folder: Path, ids: Sequence[int]) -> None:
    """Ask whoever fills pending rows to begin with these items; a hint, which may be lost."""
    with suppress(OSError), _open_wanted(folder, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        if os.fstat(file.fileno()).st_size < MOST_WANTED:
            file.write(np.array(ids, "<i8").tobytes())


def take_wanted(folder: Path) -> list[int]:
    """Ids that searches have asked for since the last time, the latest first, each once."""
    data = b""
    with suppress(OSError), _open_wanted(folder, os.O_RDWR) as file:
        data = file.read(MOST_WANTED + 8)
        file.truncate(0)
    ids = np.frombuffer(data[: len(data) // 8 * 8], "<i8")
    return list(dict.fromkeys(ids[ids > 0][::-1].tolist()))


def _open_wanted(folder: Path, flags: int) -> FileIO:
    """The file of wanted ids; raises OSError for a link, which may lead out of the folder, a pipe, and so on."""
    file = FileIO(os.open(folder / WANTED, flags | _NO_LINK, 0o666), "r+")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{WANTED} is no file")
    return file


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
