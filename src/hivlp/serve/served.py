"""An index as it is served: opened, its model loaded once, and what is known of its last commit."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hivlp.coarse.maps import FINE
from hivlp.encode.base import Encoder
from hivlp.errors import HivlpError, IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.levels import Vectors
from hivlp.serve.settings import Settings
from hivlp.serve.uploads import HOME, follow_uploads, uploads_of

logger = logging.getLogger(__name__)
SMALL_ITEMS = 50_000
"""Up to which a search by vector is brief, tuned or not."""


class Served:
    """An index as it is served.

    Attributes:
        name: in addresses.
        index: that is open now.
        home: folder for uploads and jobs.
        roots: folders below which originals may be shown and pictures may be indexed by their paths.
        seconds: that a request may take.
        told_fields: what was told of the fields of the last commit, and which that was.
    """

    def __init__(self, name: str, index: Index, settings: Settings) -> None:
        """An index that is open; one that is to be served read-only is opened so in its place, if it was not."""
        self.name, self.index = name, index
        if settings.read_only and not index.store.read_only:
            self.index = Index.open(index.path, index.model, read_only=True)
            index.close()
        self.home = index.path / HOME
        roots = (os.path.realpath(root) for root in (*settings.roots, *settings.watch))
        self.roots: tuple[Path, ...] = (*map(Path, roots), self.uploads)
        self._lock = threading.Lock()
        self._counted: tuple[Index, bytes, int] | None = None
        self.seconds = settings.seconds
        self.told_fields: tuple[Any, bytes] | None = None

    @property
    def uploads(self) -> Path:
        """Folder of pictures that were uploaded; a link in its place leads out of the roots."""
        return uploads_of(self.index.path)

    def is_beneath_roots(self, path: str) -> bool:
        """Whether the real path of a file or folder lies beneath a root."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(root) for root in self.roots)

    @property
    def writable(self) -> bool:
        """Whether items may be added and removed."""
        return not self.index.store.read_only and os.access(self.index.path, os.W_OK)

    @property
    def has_model(self) -> bool:
        """Whether there is a model for texts and pictures."""
        return self.index.model is not None or bool(self.index.model_source)

    def model(self) -> Encoder:
        """The index's model, loaded when it is first needed.

        Raises:
            QueryError: if the index knows none.
        """
        index = self.index
        if index.model is None:
            if not index.model_source:
                raise QueryError(f"{self.name} was made of embeddings alone: search by vector or item")
            with self._lock:
                if index.model is None:
                    index.attach(index.model_source)
        assert index.model is not None
        return index.model

    def follow_uploads(self) -> None:
        """Give uploaded pictures their paths of now, where the index folder was renamed and may be written."""
        if self.writable:
            try:
                if moved := follow_uploads(self.index):
                    logger.warning("%s was renamed: %d uploads have their new paths", self.index.path, moved)
            except IndexFolderError as error:  # another process writes it: the next start does
                logger.warning("%s: its uploads were not looked at: %s", self.name, error)

    def text_vectors(self, texts: list[str]) -> list[Mapping[str, Vectors]]:
        """The vectors of texts as :meth:`hivlp.index.Index.search` takes them, encoded as one batch."""
        if any(not text.strip() for text in texts):
            raise QueryError("the query is empty")
        words = self.model().encode_text(texts)
        if self.index.maps is not None:
            return [{FINE: row} for row in words.fine]
        return [{name: rows[place] for name, rows in words.items()} for place in range(len(texts))]

    def picture_vectors(self, pixels: Any) -> list[Mapping[str, Vectors]]:
        """The vectors of prepared pictures, (n, size, size, 3) uint8, as searches take them, encoded as one batch."""
        seen = self.model().encode_pixels(pixels)
        maps = self.index.maps
        known: Mapping[str, Any] = seen if maps is None else maps.of_items(seen.fine)
        return [{name: rows[place] for name, rows in known.items()} for place in range(len(pixels))]

    def count(self) -> int:
        """Items that searches can find, counted once a commit."""
        index = self.index
        changes = index.store.changes()
        counted = self._counted
        if counted is not None and counted[0] is index and counted[1] == changes:
            return counted[2]
        with index.store.reading() as reader:
            count = reader.count() - reader.missing()
        self._counted = index, changes, count
        return count

    @property
    def is_small(self) -> bool:
        """Whether it had few items when last counted, so that a search by vector takes tenths of a millisecond."""
        return self._counted is not None and self._counted[2] <= SMALL_ITEMS

    def opened_anew(self) -> Index:
        """The folder opened anew, as after another one was put in its place, its model loaded and its last commit read.

        Raises:
            IndexFolderError: if there is no index, or it is damaged; the one that is open stays.
        """
        before = self.index
        model, read_only = before.model, before.store.read_only
        try:
            after = Index.open(before.path, model, read_only=read_only)
        except Exception:
            after = Index.open(before.path, read_only=read_only)
            if model is not None and after.model_source:
                with suppress(HivlpError):  # said to whoever asks
                    after.attach(after.model_source)
        try:
            after.snapshot()
        except Exception:
            after.close()
            raise
        return after

    def state(self) -> dict[str, Any]:
        """What ``/api/state`` says of it."""
        index = self.index
        info = index.store.about
        model = info.source if info.model == "embeddings" else info.model
        return {
            "name": self.name,
            "items": self.count(),
            "model": model or None,
            "levels": [{"name": level.name, "dim": level.dim} for level in index.levels],
            "tuned": index.snapshot().ann is not None,
            "fields": index.fields,
            "roots": [str(root) for root in self.roots],
            "can_encode": {"text": self.has_model, "image": self.has_model},
            "writable": self.writable,
        }
