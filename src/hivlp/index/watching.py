"""Watching folders: an index that takes in what changes in them, until it is told to stop."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from hivlp.errors import DataError, HivlpError, IndexFolderError
from hivlp.index.adding.gone import holds
from hivlp.index.adding.report import AddReport
from hivlp.index.filling import FillReport
from hivlp.index.index import Index
from hivlp.store.names import existing

EVERY = 30.0
"""Seconds between two walks where nothing tells of changes."""
QUIET_MS = 2000
"""Milliseconds without a change after which changes are taken in: a copy is written bit by bit."""


def notified() -> bool:
    """Whether the system tells of changes, by the package watchfiles of the extra ``photos``."""
    return importlib.util.find_spec("watchfiles") is not None


def watch(
    index: Index,
    folders: Sequence[Path],
    *,
    exclude: Iterable[str] = (),
    prune: bool = False,
    every: float | None = None,
    stop: threading.Event | None = None,
    on_report: Callable[[AddReport], None] | None = None,
    on_complete: Callable[[FillReport], object] | None = None,
    on_error: Callable[[str], object] | None = None,
) -> None:
    """Keep an index in step with folders: :meth:`hivlp.index.Index.add` now, and again after each change.

    A change costs a walk through all folders (some seconds for 100,000 files) and the encoding of what is new. Folders
    that cannot be read for a while, as those of a disk that is not connected, and an index that another process writes,
    are waited for. Pending pictures (``lazy`` of :meth:`hivlp.index.Index.add`) are completed meanwhile.

    Args:
        index: with its model.
        folders: to watch.
        exclude: see :meth:`hivlp.index.Index.add`.
        prune: see :meth:`hivlp.index.Index.add`.
        every: seconds between two walks, instead of being told of changes; the default where watchfiles is not
            installed is :data:`EVERY`.
        stop: ends it when set.
        on_report: called after each walk.
        on_complete: called, by another thread, when pending pictures were completed.
        on_error: called with why a walk failed, or why pictures cannot be completed; it is tried again.

    Raises:
        DataError: if a folder does not exist in the beginning.
    """
    folders = [existing(folder) for folder in folders]
    for folder in folders:
        if not folder.exists():
            raise DataError(f"{folder} does not exist")
    stop = threading.Event() if stop is None else stop
    patterns = list(exclude)
    if every is None and not notified():
        every = EVERY
    told: list[Path] = []
    completing = _Completing(index, on_complete, on_error)
    try:
        for _ in _told(folders, index.path, stop) if every is None else _waited(every, stop):
            there = [folder for folder in folders if folder.exists()]
            try:
                if there:
                    # Those that are away are named: what they hold is not to be taken for gone with what is around
                    # them.
                    away = [folder for folder in folders if folder not in there and holds(index.store, folder)]
                    report = index.add(*there, *away, exclude=patterns, prune=prune)
                    if on_report is not None:
                        on_report(report)
                    if report.pending:
                        completing.begin()
                elif on_error is not None and folders != told:
                    on_error(f"{', '.join(map(str, folders))} not there: is a disk not connected?")
                told = [] if there else folders
            except (DataError, IndexFolderError) as error:
                if on_error is not None:
                    on_error(str(error))
    finally:
        completing.end()


class _Ended(Exception):
    """The watch has ended while pictures were completed."""


class _Completing:
    """What completes the pending pictures of an index in a thread of its own; what is stored by its end is kept."""

    def __init__(
        self,
        index: Index,
        on_complete: Callable[[FillReport], object] | None,
        on_error: Callable[[str], object] | None,
    ) -> None:
        """Nothing is completed yet; see :func:`watch`."""
        self._index, self._on_complete, self._on_error = index, on_complete, on_error
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Complete what is pending, unless that is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._complete, name="hivlp-complete", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop at the next commit, and wait for it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _complete(self) -> None:
        try:
            report = self._index.complete(self._check)
        except _Ended:
            return
        except HivlpError as error:
            if self._on_error is not None:
                self._on_error(str(error))
            return
        if self._on_complete is not None and report.filled:
            self._on_complete(report)

    def _check(self, _: FillReport) -> None:
        if self._ended.is_set():
            raise _Ended


def _waited(seconds: float, stop: threading.Event) -> Iterator[None]:
    while not stop.is_set():
        yield
        stop.wait(seconds)


def _told(folders: Sequence[Path], index: Path, stop: threading.Event) -> Iterator[None]:
    """An element when the system has begun to tell of changes, and for each burst of them."""
    from watchfiles import Change, watch

    own = os.path.realpath(index)
    roots = [os.path.realpath(folder) for folder in folders]

    def counts(_: Change, path: str) -> bool:
        # The index's own files change whenever it takes something in.
        if path == own or path.startswith(os.path.join(own, "")):  # noqa: PTH118
            return False
        inside = next((path[len(root) :] for root in roots if path.startswith(root)), path)
        return not any(part.startswith(".") for part in Path(inside).parts)

    while not stop.is_set():
        there = [folder for folder in folders if folder.exists()]
        begun = False
        if not there:
            stop.wait(EVERY)
            continue
        for changes in watch(
            *there, watch_filter=counts, stop_event=stop, debounce=4 * QUIET_MS, step=QUIET_MS,
            yield_on_timeout=True, rust_timeout=1000,
        ):  # fmt: skip
            if stop.is_set():
                return
            if changes or not begun:
                yield
            begun = True
            # A disk that was connected again is another folder to the system.
            if [folder for folder in folders if folder.exists()] != there:
                break
