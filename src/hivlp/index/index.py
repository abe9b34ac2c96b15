"""The index: pictures in, hits out."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.data.embeddings import EmbeddingSource, open_embeddings
from hivlp.encode.base import Encoder, Picture
from hivlp.errors import IndexFolderError, QueryError
from hivlp.fit.maps import COARSE, EMBEDDINGS, FINE, CoarseMaps
from hivlp.index.adding import AddReport, add_pictures
from hivlp.index.adding_vectors import add_vectors
from hivlp.index.catalog import About
from hivlp.index.folder import IndexFolder
from hivlp.index.scan import ExhaustiveScanner
from hivlp.index.search import DEFAULT_SHORTLIST, Hit, SearchResult, Stopwatch, cascade, check_vector
from hivlp.levels import Vectors


class Index(IndexFolder):
    """A searchable collection of pictures.

    Any number of processes may read while one writes; readers see each commit whole, on their next search. An
    :class:`Index` itself belongs to one thread.
    """

    def __init__(self, path: Path, model: Encoder | None = None) -> None:
        """Open; see :meth:`open`."""
        super().__init__(path)
        self._model: Encoder | None = None
        self._coarse: CoarseMaps | None = None
        try:
            if self.catalog.about.model == EMBEDDINGS:
                self._coarse = self._load_maps()
            if model is not None:
                self.attach(model)
        except IndexFolderError:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path | str, *, model: Encoder, source: str | None = None) -> Index:
        """Make an empty index for a model.

        Args:
            path: a folder that does not exist yet, or is empty.
            model: its levels and fingerprint are recorded; other models will be refused.
            source: how to load the model again (a name or folder); default the model's name.

        Raises:
            IndexFolderError: if the folder holds something, or cannot be written.
        """
        if model.name == EMBEDDINGS:
            raise IndexFolderError(f"a model cannot be called {EMBEDDINGS}: that is an index without a model")
        about = About(model.name, _loaded_from(model, source), model.fingerprint, model.levels)
        cls.make(Path(path), about)
        return cls(Path(path), model)

    @classmethod
    def create_from_embeddings(
        cls, path: Path | str, maps: CoarseMaps, *, model: Encoder | None = None, source: str | None = None
    ) -> Index:
        """Make an empty index for vectors that come from elsewhere; :meth:`add_embeddings` fills it.

        Args:
            path: a folder that does not exist yet, or is empty.
            maps: what makes the coarse level (:func:`hivlp.fit.fit_coarse`); kept in the folder.
            model: that made the vectors, if texts and pictures shall be searched for; its finest level is used.
            source: how to load the model again (a name or folder); default the model's name.

        Raises:
            IndexFolderError: if the folder holds something, or cannot be written, or the model's vectors have another
                length.
        """
        if model is not None:
            _check_width(model, maps)
        about = About(EMBEDDINGS, _loaded_from(model, source) if model else "", maps.fingerprint, maps.levels)
        cls.make(Path(path), about, maps.arrays())
        return cls(Path(path), model)

    @classmethod
    def open(cls, path: Path | str, model: Encoder | None = None) -> Index:
        """Open an existing index; without a model it can be searched by item or vector only.

        Raises:
            IndexFolderError: if there is no index, it is damaged, or it was made with another model.
        """
        return cls(Path(path), model)

    def attach(self, model: Encoder) -> None:
        """Use this model for queries and new pictures.

        Raises:
            IndexFolderError: if the index was made with another model.
        """
        about = self.catalog.about
        if self._coarse is not None:
            _check_width(model, self._coarse)
            self._model = model
            return
        if model.levels != about.levels or model.fingerprint != about.fingerprint:
            same = " (the same name, but other weights or settings)" if model.name == about.model else ""
            raise IndexFolderError(
                f"{self.path} was made with model {about.model}, not {model.name}{same}: "
                "use that model, or index the pictures again into a new folder"
            )
        self._model = model

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def add(
        self,
        *paths: Path | str | Iterable[Path | str],
        captions: Mapping[str, str] | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        on_progress: Callable[[AddReport], None] | None = None,
        workers: int | None = None,
    ) -> AddReport:
        """Add pictures and folders of pictures; what is there already and unchanged is skipped.

        Args:
            paths: files and folders, or collections of them.
            captions: path -> caption; otherwise the first line of a ``.txt`` beside the picture is taken.
            metadata: path -> what else to store (JSON), beside the picture's ``format``, ``width``, ``height`` and the
                time it was ``taken``; for ``where`` to ask about.
            on_progress: called after each commit with what is stored by then.
            workers: threads that decode and encode; default one a core.

        Raises:
            IndexFolderError: if another process is writing, the index is damaged, or the folder cannot be written; what
                was reported is kept.
            DataError: if a path does not exist, or metadata is not JSON.
        """
        if self._coarse is not None:
            raise IndexFolderError(f"{self.path} holds given embeddings, not pictures: use a new index for those")
        model = self._need_model()
        roots: list[Path] = []
        for path in paths:
            roots += [Path(path)] if isinstance(path, (str, Path)) else [Path(each) for each in path]
        with self._writer():
            try:
                self.info()  # adding to a damaged index would hide the damage
                return add_pictures(
                    self, model, roots, captions=captions, metadata=metadata, on_progress=on_progress, workers=workers
                )
            except sqlite3.DatabaseError as error:
                raise IndexFolderError(f"{self.path} cannot be read: {error}") from error

    def add_embeddings(
        self, source: EmbeddingSource | Path | str, *, on_progress: Callable[[AddReport], None] | None = None
    ) -> AddReport:
        """Add vectors that come from elsewhere; those that are there already and unchanged are skipped.

        Args:
            source: a file or folder, or what :func:`hivlp.data.embeddings.open_embeddings` made of it.
            on_progress: called after each commit with what is stored by then.

        Raises:
            IndexFolderError: if the index was made with a model, another process is writing, the index is damaged, or
                the folder cannot be written; what was reported is kept.
            DataError: if there are no vectors, or not of the index's length.
        """
        if self._coarse is None:
            raise IndexFolderError(f"{self.path} was made with a model: use a new index for embeddings")
        if not isinstance(source, EmbeddingSource):
            source = open_embeddings(source)
        with self._writer():
            try:
                self.info()  # adding to a damaged index would hide the damage
                return add_vectors(self, self._coarse, source, on_progress=on_progress)
            except sqlite3.DatabaseError as error:
                raise IndexFolderError(f"{self.path} cannot be read: {error}") from error

    def search(
        self,
        query: str | None = None,
        *,
        image: Picture | str | None = None,
        like: int | None = None,
        vector: Mapping[str, Any] | None = None,
        k: int = 10,
        shortlist: int | Sequence[int] | None = None,
        exact: bool = False,
        where: str | None = None,
        offset: int = 0,
        threshold: float | None = None,
    ) -> SearchResult:
        """The items closest to a text, a picture, another item, or a vector.

        Args:
            query: text.
            image: a picture (file, bytes or PIL image).
            like: id of an item, which is itself left out.
            vector: level name -> (dim,) or (1, dim), for every level; of given embeddings ``fine`` is enough.
            k: how many hits.
            shortlist: candidates that the coarse level hands on (default 200, never less than ``k``); with more than
                two levels, one number for each level but the finest makes a funnel.
            exact: rank everything by the finest level instead.
            where: SQL condition over ``id``, ``path``, ``caption`` and ``metadata`` (JSON) that hits must meet.
            offset: hits to skip; pages of the same query and shortlist fit together.
            threshold: leave out hits whose finest score is below this.

        Raises:
            QueryError: if the query or an option makes no sense.
            PictureError: if ``image`` cannot be decoded.
        """
        shortlists = self._shortlists(shortlist)
        for name, value, least in (
            ("k", k, 1),
            ("offset", offset, 0),
            *(("shortlist", size, 1) for size in shortlists),
        ):
            if value < least:
                raise QueryError(f"{name} must be at least {least}, not {value}")
        if sum(given is not None for given in (query, image, like, vector)) != 1:
            raise QueryError("give exactly one of a text, an image, an item (like) or a vector")
        watch = Stopwatch()
        encoded = self._encode(query, image, vector)
        watch.lap("encode")
        with self.catalog.reading() as state:
            self._refresh(state)
            allowed = self._alive
            if like is not None:
                item = self.catalog.get(like)
                if item is None:
                    raise QueryError(f"{self.path} has no item {like}")
                encoded = check_vector(self._rows([item.row]), self.levels)
                allowed = _only(allowed, state.rows)
                allowed[item.row] = False
            if where is not None:
                passing = np.zeros(state.rows, bool)
                passing[self.catalog.rows_where(where)] = True
                allowed = passing if allowed is None else passing & allowed
            scanners = [ExhaustiveScanner(vectors) for vectors in self._maps]
            assert encoded is not None
            count = min(k, state.rows)
            stages = (scanners[-1:], encoded[-1:]) if exact else (scanners, encoded)
            rows = cascade(*stages, allowed, first=offset, count=count, shortlists=shortlists, watch=watch)
            if exact and len(scanners) > 1:
                watch.timings["fine"], watch.timings["coarse"] = watch.timings["coarse"], 0.0
            scores = [scanner.rescore(part, rows).tolist() for scanner, part in zip(scanners, encoded, strict=True)]
            items = self.catalog.in_rows(rows.tolist())
        hits = []
        for number, item in enumerate(items):
            by_level = {level.name: scores[at][number] for at, level in enumerate(self.levels)}
            if threshold is None or by_level[self.levels[-1].name] >= threshold:
                hits.append(Hit(offset + number + 1, item.id, item.path, item.caption, by_level, item.metadata))
        return SearchResult(hits, watch.finish())

    # Inside.

    def _shortlists(self, shortlist: int | Sequence[int] | None) -> list[int]:
        stages = len(self.levels) - 1
        if shortlist is None or isinstance(shortlist, int):
            return [DEFAULT_SHORTLIST if shortlist is None else shortlist] * stages
        if len(shortlist) != stages:
            raise QueryError(f"{len(shortlist)} shortlists for {len(self.levels)} levels: one for each but the finest")
        return list(shortlist)

    def _encode(
        self, query: str | None, image: Picture | str | None, vector: Mapping[str, Any] | None
    ) -> list[Vectors] | None:
        if query is not None:
            if not query.strip():
                raise QueryError("the query is empty")
            words = self._need_model().encode_text([query])
            return self._check(words if self._coarse is None else {FINE: words.fine})
        if image is not None:
            seen = self._need_model().encode_image([Path(image) if isinstance(image, str) else image])
            # A picture is spread as the items are: their map suits it, as it does an item that others shall be like.
            return self._check(seen if self._coarse is None else self._coarse.of_items(seen.fine))
        return None if vector is None else self._check(vector)

    def _check(self, query: Mapping[str, Any]) -> list[Vectors]:
        """The (dim,) unit vector of each level; of given embeddings the fine one tells the coarse one."""
        if self._coarse is not None and COARSE not in query:
            (fine,) = check_vector(query, self.levels[-1:])
            query = self._coarse.of_queries(fine[None])
        return check_vector(query, self.levels)

    def _need_model(self) -> Encoder:
        if self._model is None:
            raise QueryError("the index was opened without its model: Index.open(path, model=...)")
        return self._model

    def _load_maps(self) -> CoarseMaps:
        maps = CoarseMaps.load(self.path)
        if maps.fingerprint != self.catalog.about.fingerprint:
            raise IndexFolderError(f"the index is damaged: the maps in {self.path} are not those that it was made with")
        return maps


def _loaded_from(model: Encoder, source: str | None) -> str:
    place = Path(source) if source is not None and Path(source).is_dir() else None
    return str(place.resolve()) if place else source or model.name


def _check_width(model: Encoder, maps: CoarseMaps) -> None:
    width, fine = maps.levels[-1].dim, model.levels[-1].dim
    if fine != width:
        raise IndexFolderError(
            f"{model.name} makes vectors of {fine} dims, the embeddings have {width}: use their model"
        )


def _only(allowed: NDArray[np.bool_] | None, rows: int) -> NDArray[np.bool_]:
    """A mask of one's own to change."""
    return np.ones(rows, bool) if allowed is None else allowed.copy()
