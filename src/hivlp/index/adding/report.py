"""Report of an addition: what was added, updated, moved, missing, pruned, not read, and what failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from hivlp.data.walk import EXCLUDED, HIDDEN


@dataclass(frozen=True)
class Failure:
    """A file or folder that could not be indexed, and why."""

    path: str
    error: str


@dataclass
class NotReadKind:
    """How many files or folders of a kind were passed over, why, and the first of them."""

    count: int
    why: str
    first: str


@dataclass
class AddReport:
    """What :meth:`hivlp.index.Index.add` did.

    Attributes:
        added: new items.
        updated: items of which the picture, caption or metadata changed.
        moved: items whose files have another path now; they keep their id, caption and vectors.
        skipped: pictures that the index knows already.
        missing: items of the walked folders whose files are not there; searches leave them out.
        pruned: items that were removed because their files are not there, or are excluded now.
        failed: files and folders that could not be read.
        not_read: what was passed over because of its kind or name: videos, linked and hidden folders, pictures that
            need an extra, what is excluded.
        pending: items of the index that have the coarsest level's vector alone (``lazy``).
        items: the size of the index afterwards.
        seconds: how long it took.
    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    skipped: int = 0
    missing: int = 0
    pruned: int = 0
    failed: list[Failure] = field(default_factory=list)
    not_read: dict[str, NotReadKind] = field(default_factory=dict)
    pending: int = 0
    items: int = 0
    seconds: float = 0.0

    @property
    def seen(self) -> int:
        """Pictures dealt with, whatever became of them."""
        return self.added + self.updated + self.moved + self.skipped + len(self.failed)

    @property
    def useless(self) -> bool:
        """Whether there was something, and nothing of it could be read."""
        unread = any(kind != HIDDEN and not kind.startswith(EXCLUDED) for kind in self.not_read)
        return not self.added + self.updated + self.moved + self.skipped and bool(self.failed or unread)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp index --json`` prints."""
        failed = [{"path": failure.path, "error": failure.error} for failure in self.failed]
        return {
            "added": self.added,
            "updated": self.updated,
            "moved": self.moved,
            "skipped": self.skipped,
            "missing": self.missing,
            "pruned": self.pruned,
            "failed": failed,
            "not_read": {kind: asdict(passed) for kind, passed in self.not_read.items()},
            **({"pending": self.pending} if self.pending else {}),
            "items": self.items,
            "seconds": round(self.seconds, 3),
        }
