"""From folders to items: what is new or changed is read once, decoded, encoded, and committed a batch at a time."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.data.exclude import Exclude
from hivlp.data.kinds import PICTURE_SUFFIXES
from hivlp.data.pictures import MAX_FILE_BYTES, load_pixels, picture_facts
from hivlp.data.pictures.facts import FACTS
from hivlp.data.sidecar import Sidecar, find_sidecar, with_sidecar
from hivlp.data.walk import Found, NotRead, Unreadable, find_pictures
from hivlp.encode.base import Encoder
from hivlp.encode.stream import encode_stream
from hivlp.errors import PictureError
from hivlp.files.reading import open_file, reason
from hivlp.index.adding.gone import COPIES, Walked, holds
from hivlp.index.adding.report import AddReport, Failure, NotReadKind
from hivlp.index.adding.told import Told, told_captions, told_metadata
from hivlp.levels import Embeddings
from hivlp.store.folder import Store
from hivlp.store.names import stored_path
from hivlp.store.records import Item, NewItem, Stamp

COMMIT_ITEMS = 256
COMMIT_SECONDS = 2.0
# Files up to this size wait for their turn in memory; a larger one is opened again when it is decoded.
HELD_BYTES = 1 << 20
# A file changed within this time of being read may change again without its time stamp showing it (git's "racy" rule).
RACY_NS = 2_000_000_000
CAPTION_CHARACTERS = 1000
AWAY = "is a disk not connected? If it is gone for good, `hivlp remove` it"


@dataclass
class PictureJob:
    """A picture to encode, whose content is known."""

    item: NewItem
    data: bytes | None  # None for a large file, which is opened again
    sidecar: Sidecar | None

    def take(self) -> bytes | Path:
        """The content, or where it lies, once: the file is let go of as soon as it is decoded."""
        data, self.data = self.data, None
        return Path(self.item.path) if data is None else data

    def check(self) -> None:
        """Make sure that a file that was opened again is still the one whose content is known.

        Raises:
            PictureError: if it has changed.
        """
        try:
            now = Stamp.of(os.stat(self.item.path))  # noqa: PTH116
        except OSError as error:
            raise PictureError(f"was changed while it was read: {error.strerror}") from error
        if not now.same_file(self.item.stamp):
            raise PictureError("was changed while it was read")


def add_pictures(
    store: Store,
    encoder: Encoder,
    roots: Iterable[Path],
    *,
    captions: Mapping[str, str] | None = None,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    exclude: Iterable[str] = (),
    prune: bool = False,
    reread: bool = False,
    lazy: bool = False,
    on_progress: Callable[[AddReport], None] | None = None,
    workers: int | None = None,
) -> AddReport:
    """The job behind :meth:`hivlp.index.Index.add`."""
    levels = [encoder.levels[0].name] if lazy and why_not_lazy(encoder) is None else None
    started = time.perf_counter()
    left_out = Exclude(exclude)
    given = dict.fromkeys(roots)
    away = [root for root in given if not os.path.exists(root) and holds(store, root)]  # noqa: PTH110
    there = given.keys() - away if len(away) < len(given) else given
    outermost = _outermost(root for root in given if root in there)
    walked = Walked(store, outermost, given)
    adding = _Adding(store, walked, told_captions(captions), told_metadata(metadata), reread, on_progress)
    jobs = adding.jobs(find_pictures(outermost, left_out, walked.disk))

    def load(job: PictureJob) -> NDArray[np.uint8]:
        job.item = _with_facts(job.item, job.data, job.sidecar)
        data = job.take()
        pixels = load_pixels(data, encoder.picture)
        if isinstance(data, Path):
            job.check()
        return pixels

    for batch in encode_stream(encoder, jobs, load, workers=workers, levels=levels):
        for job, error in batch.failures:
            adding.fail(job.item.path, str(error))
            walked.replaced(job.item.path)  # if it is an item, then of another content
        adding.store([job.item for job in batch.jobs], batch.embeddings)
    adding.commit()
    adding.report.missing, adding.report.pruned, spared = walked.settle(left_out, prune=prune)
    for folder in spared:
        adding.fail(folder, f"holds no picture any more, so none of it was pruned: {AWAY}")
    for root in away:
        if os.path.realpath(root) not in spared:
            adding.fail(os.fspath(root), f"is not there, so nothing of it was pruned: {AWAY}")
    adding.commit()
    adding.report.items, adding.report.pending = len(store), store.settle_pending()
    adding.report.seconds = time.perf_counter() - started
    return adding.report


class _Adding:
    """What has been found since the last commit, and the report of what was committed."""

    def __init__(
        self,
        store: Store,
        walked: Walked,
        captions: Told[str],
        metadata: Told[dict[str, Any]],
        reread: bool,
        on_progress: Callable[[AddReport], None] | None,
    ) -> None:
        self._store, self._walked = store, walked
        self._captions, self._metadata, self._reread, self._on_progress = captions, metadata, reread, on_progress
        self.report = AddReport()
        self._items: list[NewItem] = []
        self._vectors: list[Embeddings] = []
        self._restamp: list[tuple[int, Stamp]] = []
        self._moves: list[tuple[int, str, Stamp]] = []
        # Rows of contents that were replaced in this run: their vectors are still there, should a file of it turn up.
        self._replaced: dict[bytes, int] = {}
        self._skipped = 0
        self._failed: list[Failure] = []
        self._committed = time.monotonic()

    def jobs(self, pictures: Iterable[Found | Unreadable | NotRead]) -> Iterator[PictureJob]:
        """Pictures to encode. Those known by their path or content are dealt with here, without decoding them."""
        for found in pictures:
            if time.monotonic() - self._committed > COMMIT_SECONDS:
                self.commit()
            if isinstance(found, NotRead):
                self._pass_over(found)
                continue
            if not isinstance(found, Found):
                self.fail(stored_path(found.path), found.error)
                if found.replaced:
                    self._walked.replaced(stored_path(found.path))
                continue
            path = stored_path(found.path)
            try:
                job = self._job(path)
            except (OSError, ValueError) as error:
                self.fail(path, reason(error))
                continue
            except PictureError as error:
                self.fail(path, str(error))
                continue
            if job is not None:
                yield job

    def _job(self, path: str) -> PictureJob | None:
        """What is left to do for one picture; None if nothing is."""
        status = check_file(path)
        self._walked.found(path)
        with self._store.reading() as reader:
            before = reader.at(path)
        if before is not None:
            self._walked.met(before)
        sidecar, caption, told = find_sidecar(path), self._caption(path), self._metadata.get(path) or {}
        if before is not None and caption is None:
            caption = before.caption  # what is known of a picture outlives its content
        reread = before is not None and (self._reread or _sidecar_changed(before, sidecar))
        stamp = Stamp.of(status)
        unchanged = before is not None and _unchanged(before.stamp, stamp)
        if before is not None and unchanged and not reread:
            stamp, data, content = before.stamp, None, before.hash
        else:
            data, content = read_content(path)
        if before is not None and before.hash == content:
            known = {**_facts(path, data, sidecar), **_of_people(before)} if reread else before.metadata
            item = NewItem(path, content, caption, {**known, **told}, stamp)
            if (before.caption, before.metadata) != (item.caption, item.metadata):
                self.store([item], self._store.embeddings(before.row))
                return None
            self._skipped += 1
            if stamp != before.stamp:
                self._restamp.append((before.id, stamp))
            return None
        item = NewItem(path, content, caption, {**(_of_people(before) if before else {}), **told}, stamp)
        with self._store.reading() as reader:
            copies = reader.copies(content, COPIES)
        if before is not None:
            self._replaced[before.hash] = before.row
        elif (moved := self._walked.moved_to(path, copies)) is not None:
            self._move(moved, item, data, sidecar)
            return None
        row = copies[0].row if copies else self._replaced.get(content)
        if row is None:
            return PictureJob(item, data, sidecar)
        self.store([_with_facts(item, data, sidecar)], self._store.embeddings(row))
        return None

    def _move(self, moved: Item, item: NewItem, data: bytes | None, sidecar: Sidecar | None) -> None:
        """Give a moved file's item its new path, and what is told of it there."""
        self._moves.append((moved.id, item.path, item.stamp))
        known = moved.metadata
        if sidecar is not None or "sidecar" in known:
            known = {**_facts(item.path, data, sidecar), **_of_people(moved)}
        caption, metadata = moved.caption if item.caption is None else item.caption, {**known, **item.metadata}
        if (caption, metadata) != (moved.caption, moved.metadata):
            item = item._replace(caption=caption, metadata=metadata)
            self.store([item], self._store.embeddings(moved.row))

    def fail(self, path: str, error: str) -> None:
        """Note a failure."""
        self._failed.append(Failure(_printable(path), error))

    def _pass_over(self, found: NotRead) -> None:
        passed = self.report.not_read.setdefault(
            found.kind, NotReadKind(0, found.why, _printable(os.fspath(found.path)))
        )
        passed.count += 1

    def store(self, items: list[NewItem], embeddings: Embeddings) -> None:
        """Note encoded items, and commit when there are enough."""
        if items:
            self._items += items
            self._vectors.append(embeddings)
        if len(self._items) >= COMMIT_ITEMS:
            self.commit()

    def commit(self) -> None:
        """Make all that was noted durable, then report it."""
        updated = 0
        if self._items or self._restamp or self._moves:
            vectors, pending = self._joined()
            updated = self._store.append(
                self._items, vectors, restamp=self._restamp, moves=self._moves, pending=pending
            )
        moved = {path for _, path, _ in self._moves}
        self.report.added += len(self._items) - updated
        self.report.updated += updated - sum(item.path in moved for item in self._items)
        self.report.moved += len(moved)
        self.report.skipped += self._skipped
        self.report.failed += self._failed
        self._items, self._vectors, self._restamp, self._moves = [], [], [], []
        self._skipped, self._failed = 0, []
        self._committed = time.monotonic()
        if self._on_progress is not None:
            self._on_progress(self.report)

    def _joined(self) -> tuple[Embeddings | None, NDArray[np.bool_] | None]:
        """The vectors of all noted items, and which have the coarsest level's alone, and zeros in place of others."""
        if not self._vectors:
            return None, None
        levels = self._store.levels
        if all(len(part) == len(levels) for part in self._vectors):
            return Embeddings.concatenate(self._vectors), None
        whole = [
            {level.name: part.get(level.name, np.zeros((part.count, level.dim), np.float32)) for level in levels}
            for part in self._vectors
        ]
        pending = np.concatenate([np.full(part.count, len(part) < len(levels)) for part in self._vectors])
        return Embeddings.concatenate([Embeddings(part) for part in whole]), pending

    def _caption(self, path: str) -> str | None:
        """The given caption, or the first line of a text file beside the picture."""
        told = self._captions.get(path)
        if told is not None:
            return told
        beside = Path(path).with_suffix(".txt")
        try:
            # A link could show any file of this machine as a caption; a pipe would never end.
            if not stat.S_ISREG(beside.lstat().st_mode):
                return None
            with io.TextIOWrapper(open_file(beside), "utf-8-sig", "replace") as file:
                return file.readline(CAPTION_CHARACTERS).strip() or None
        except (OSError, ValueError):
            return None


def why_not_lazy(encoder: Encoder) -> str | None:
    """Why a model's coarsest level costs as much as all levels do; None if it is cheaper."""
    levels = encoder.levels
    if len(levels) == 1:
        return f"{encoder.name} has one level, and no coarser one to search by meanwhile"
    if levels[0].image_layer == levels[-1].image_layer:
        return f"all levels of {encoder.name} read layer {levels[0].image_layer}, the last: none of them is cheaper"
    return None


def check_file(path: str) -> os.stat_result:
    """Status of a picture file.

    Raises:
        OSError: if it is none, or too large.
    """
    status = os.stat(path)  # noqa: PTH116 (a Path for every file is slow)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(f"is larger than {MAX_FILE_BYTES >> 20} MB")
    return status


def read_content(path: str) -> tuple[bytes | None, bytes]:
    """A file's content, None if it is too large to be kept, and its SHA-256."""
    with open_file(Path(path)) as file:
        start = file.read(HELD_BYTES + 1)
        digest = hashlib.sha256(start)
        if len(start) <= HELD_BYTES:
            return start, digest.digest()
        while block := file.read(HELD_BYTES):
            digest.update(block)
    return None, digest.digest()


def _facts(path: str, data: bytes | None, sidecar: Sidecar | None) -> dict[str, Any]:
    """What a file, whose content may be at hand, and its sidecar say."""
    return with_sidecar(picture_facts(Path(path) if data is None else data), sidecar)


def _with_facts(item: NewItem, data: bytes | None, sidecar: Sidecar | None) -> NewItem:
    return item._replace(metadata={**_facts(item.path, data, sidecar), **item.metadata})


def _of_people(item: Item) -> dict[str, Any]:
    """Metadata of an item that was not read from its file."""
    return {name: value for name, value in item.metadata.items() if name not in FACTS}


def _sidecar_changed(item: Item, sidecar: Sidecar | None) -> bool:
    """Whether a sidecar came, went, or changed since an item's file was looked at."""
    known = item.metadata.get("sidecar")
    if sidecar is None:
        return known is not None
    return known != os.path.basename(sidecar.path) or sidecar.changed > item.stamp.checked - RACY_NS  # noqa: PTH119


def _unchanged(before: Stamp, now: Stamp) -> bool:
    return now.same_file(before) and before.checked - max(before.mtime, before.ctime) > RACY_NS


def _outermost(roots: Iterable[Path]) -> list[Path]:
    """The roots without those that are met when another one is walked, so that no picture is met twice."""
    kept: dict[Path, Path] = {}
    for root in roots:
        kept.setdefault(Path(os.path.abspath(root)), root)  # noqa: PTH100 (links stay as they are)
    return [
        root
        for place, root in kept.items()
        if not any(outer in kept and _is_met(place, outer) for outer in place.parents)
    ]


def _is_met(place: Path, outer: Path) -> bool:
    """Whether walking ``outer`` comes by ``place`` in it, which hidden names, links and odd suffixes prevent."""
    inside = place.relative_to(outer)
    if any(part.startswith(".") for part in inside.parts):
        return False
    if Path(os.path.realpath(place)) != Path(os.path.realpath(outer)) / inside:
        return False
    return place.is_dir() or place.suffix.lower() in PICTURE_SUFFIXES


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
