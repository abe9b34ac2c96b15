"""The index: pictures in, hits out."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from hivlp.coarse.maps import EMBEDDINGS, CoarseMaps
from hivlp.data.vectors.source import EmbeddingSource, open_embeddings
from hivlp.encode.base import Encoder, Picture, as_texts, check_encoder
from hivlp.encode.stream import chunks
from hivlp.errors import ArgumentError, DataError, IndexFolderError, QueryError
from hivlp.index.adding import AddReport, add_pictures
from hivlp.index.adding_vectors import add_vectors
from hivlp.index.answering import AnsweringFolder, check_width
from hivlp.index.tuning import DEFAULT_RECALL, tune
from hivlp.index.tuning import Progress as TuneProgress
from hivlp.levels import Vectors
from hivlp.search.opened import stored_bytes
from hivlp.search.results import Hit, Plan, SearchResult, Stopwatch, real_number, whole_number
from hivlp.store.compacting import Progress
from hivlp.store.names import each_path, existing, folder_path
from hivlp.store.records import About
from hivlp.store.repair import RepairReport, set_damage_aside
from hivlp.store.verify import VerifyReport, verify_folder

BATCH = 256  # queries that share a pass over the vectors


class Index(AnsweringFolder):
    """A searchable collection of pictures.

    Any number of processes may read while one writes; readers see each commit whole, on their next search. An
    :class:`Index` itself belongs to one thread.
    """

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
        check_encoder(model)
        if model.name == EMBEDDINGS:
            raise IndexFolderError(f"a model cannot be called {EMBEDDINGS}: that is an index without a model")
        about = About(model.name, _loaded_from(model, source), model.fingerprint, model.levels)
        cls.make(folder_path(path), about)
        return cls(Path(path), model)

    @classmethod
    def create_from_embeddings(
        cls, path: Path | str, maps: CoarseMaps, *, model: Encoder | None = None, source: str | None = None
    ) -> Index:
        """Make an empty index for vectors that come from elsewhere; :meth:`add_embeddings` fills it.

        Args:
            path: a folder that does not exist yet, or is empty.
            maps: what makes the coarse level (:func:`hivlp.coarse.fit_coarse`); kept in the folder.
            model: that made the vectors, if texts and pictures shall be searched for; its finest level is used.
            source: how to load the model again (a name or folder); default the model's name.

        Raises:
            IndexFolderError: if the folder holds something, or cannot be written, or the model's vectors have another
                length.
        """
        if model is not None:
            check_encoder(model)
            check_width(model, maps)
        about = About(EMBEDDINGS, _loaded_from(model, source) if model else "", maps.fingerprint, maps.levels)
        cls.make(folder_path(path), about, maps.arrays())
        return cls(Path(path), model)

    @classmethod
    def open(cls, path: Path | str, model: Encoder | None = None) -> Index:
        """Open an existing index.

        Without a model, the one that it was made with is loaded when a text or a picture needs it.

        Raises:
            IndexFolderError: if there is no index, it is damaged, or it was made with another model.
        """
        return cls(folder_path(path), model)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            f"an open index cannot be pickled or copied: pass its path, and Index.open({str(self.path)!r})"
        )

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
        roots = [existing(path) for path in each_path(paths)]
        with self._writer():
            try:
                self.info()  # adding to a damaged index would hide the damage
                return add_pictures(
                    self, model, roots, captions=captions, metadata=metadata, on_progress=on_progress, workers=workers
                )
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise IndexFolderError(f"{self.path} cannot be read: {error}") from error

    def info(self) -> dict[str, Any]:
        """What the index holds, and whether its files are as long as they must be.

        ``bytes`` is what the folder takes on disk, ``engine_bytes`` the part of it that :meth:`tune` made.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        info, engine = super().info(), stored_bytes(self.path)
        return {**info, "bytes": info["bytes"] + engine, "engine_bytes": engine}

    def verify(self) -> VerifyReport:
        """Check every vector and every record against the checksum that was written with it.

        Raises:
            IndexFolderError: if a file may not be read. Damage is not raised, but reported.
        """
        return verify_folder(self)

    def repair(self, on_progress: Progress | None = None) -> RepairReport:
        """Save what can be saved of a damaged index.

        Items whose vectors are damaged are set aside, and with a model their pictures are encoded again where they
        still are; otherwise, the next :meth:`add` of the pictures brings the items back.

        Args:
            on_progress: called with how many vectors are written, and of how many.

        Raises:
            DamagedIndexError: if ``items.db`` is damaged beyond repair.
            IndexFolderError: if another process is writing, or the disk fails.
        """
        with self._writer():
            report = set_damage_aside(self, on_progress)
            there = [Path(path) for _, path in report.lost if Path(path).is_file()]
            if there and self._model is not None and self._coarse is None:
                report.failed = self.add(there).failed
                lost = self.catalog.integrity.lost()[0]
                report.restored, report.lost = len(report.lost) - len(lost), lost
                report.items = len(self)
        return report

    def add_embeddings(
        self, source: EmbeddingSource | Path | str, *, on_progress: Callable[[AddReport], None] | None = None
    ) -> AddReport:
        """Add vectors that come from elsewhere; those that are there already and unchanged are skipped.

        Args:
            source: a file or folder, or what :func:`hivlp.data.vectors.source.open_embeddings` made of it.
            on_progress: called after each commit with what is stored by then.

        Raises:
            IndexFolderError: if the index was made with a model, another process is writing, the index is damaged, or
                the folder cannot be written; what was reported is kept.
            DataError: if there are no vectors, or not of the index's length.
        """
        if self._coarse is None:
            raise IndexFolderError(f"{self.path} was made with a model: use a new index for embeddings")
        if not isinstance(source, EmbeddingSource):
            if not isinstance(source, (str, os.PathLike)):
                raise DataError(
                    f"embeddings come from a file or folder, not {type(source).__name__}: numpy.save it first"
                )
            source = open_embeddings(source)
        with self._writer():
            try:
                self.info()  # adding to a damaged index would hide the damage
                return add_vectors(self, self._coarse, source, on_progress=on_progress)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
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
        group: bool | float = False,
        recall: float | None = None,
    ) -> SearchResult:
        """The items closest to a text, a picture, another item, or a vector.

        Args:
            query: text.
            image: a picture (file, bytes or PIL image).
            like: id of an item, which is itself left out.
            vector: level name -> (dim,) or (1, dim), for every level; of given embeddings ``fine`` is enough.
            k: how many hits.
            shortlist: candidates that the coarse level hands on (default 200, or all of up to 2,000; at least ``k``);
                with more than two levels, one number for each level but the finest makes a funnel.
            exact: rank everything by the finest level instead.
            where: SQL condition over ``id``, ``path``, ``caption`` and ``metadata`` (JSON) that hits must meet. What it
                lets pass is kept until the next commit, so that asking the same again costs nothing.
            offset: hits to skip; pages of the same query are parts of one list, best first, to any depth. With a
                ``shortlist`` of one's own below ``k``, pages of the same ``k`` are.
            threshold: leave out hits whose finest score is below this.
            group: True folds hits of the same content into one; a cosine folds a hit into the first one whose finest
                vector is that close to its own. ``k`` and ``offset`` then count groups. A hit's ``duplicates`` are all
                items of its content, or the close ones among the ranks near its own.
            recall: share of the ten best of the finest level to find at least, on average and with 95% confidence, by
                what :meth:`tune` measured on this index (default: what it was tuned for). Where no setting is known to
                find so many, everything is ranked by the finest level; a query unlike those that were measured is
                searched wider, as the result's ``plan`` says. An index that was not tuned, and a search with a
                ``shortlist`` of its own, reads everything at the coarse level instead.

        Raises:
            QueryError: if the query or an option makes no sense.
            PictureError: if ``image`` cannot be decoded.
        """
        options = self._options(k, shortlist, exact, where, offset, threshold, group, recall)
        if sum(given is not None for given in (query, image, like, vector)) != 1:
            raise QueryError("give exactly one of a text, an image, an item (like) or a vector")
        watch = Stopwatch()
        encoded = self._encode(query, image, vector)
        watch.lap("encode")
        with self.catalog.reading() as state:
            self._refresh(state)
            without = None
            if like is not None:
                item = self.catalog.get(whole_number("like", like))
                if item is None:
                    raise QueryError(f"{self.path} has no item {like}")
                encoded, without = self._check(self._rows([item.row])), item.row
            assert encoded is not None
            ((hits, plan),) = self._answer([encoded], options, watch, without)
        return SearchResult(hits, watch.finish(), plan)

    def search_many(
        self,
        queries: str | Iterable[str] | None = None,
        *,
        vectors: Mapping[str, Any] | None = None,
        k: int = 10,
        shortlist: int | Sequence[int] | None = None,
        exact: bool = False,
        where: str | None = None,
        offset: int = 0,
        threshold: float | None = None,
        group: bool | float = False,
        recall: float | None = None,
    ) -> list[SearchResult]:
        """What :meth:`search` finds for each of many texts or vectors, in less time than one by one.

        Texts are encoded as one batch, and the vectors of the index are looked at once for many queries. All answers
        are of the same commit; a writer's next commit waits until the last is found. For given vectors, hits and scores
        are those of :meth:`search` to the last bit; a text's vector may be rounded otherwise in a batch than alone.

        Args:
            queries: texts; a ``str`` is one.
            vectors: level name -> (queries, dim), for every level.
            k: how many hits for each; this and what follows is as in :meth:`search`.
            shortlist: candidates that the coarse level hands on.
            exact: rank everything by the finest level instead.
            where: SQL condition that hits must meet.
            offset: hits to skip, for each query.
            threshold: leave out hits whose finest score is below this.
            group: fold hits of the same content (True), or as close as a cosine, into one.
            recall: share of the ten best to find at least.

        Returns:
            One result a query, in their order; its timings are its share of the whole batch's.

        Raises:
            QueryError: if a query or an option makes no sense.
        """
        options = self._options(k, shortlist, exact, where, offset, threshold, group, recall)
        if (queries is None) == (vectors is None):
            raise QueryError("give either texts or vectors")
        watch = Stopwatch()
        encoded = self._encode_many(queries, vectors)
        watch.lap("encode")
        answers: list[tuple[list[Hit], Plan]] = []
        with self.catalog.reading() as state:
            self._refresh(state)
            for chunk in chunks(encoded, BATCH):
                answers += self._answer(chunk, options, watch)
        share = {name: round(value / len(answers), 3) for name, value in watch.finish().items()} if answers else {}
        return [SearchResult(hits, dict(share), plan) for hits, plan in answers]

    def tune(
        self,
        queries: Path | str | Iterable[str] | Vectors | None = None,
        *,
        recall: float = DEFAULT_RECALL,
        on_progress: TuneProgress | None = None,
    ) -> dict[str, Any]:
        """Build the engine of this index, and measure on its own data what each setting finds and costs.

        Searches use it from then on; as items are added, ``hivlp index`` lets it take them in.

        Args:
            queries: what people ask: texts, a file with a text a line (a ``str`` is its path), (m, dim) vectors of the
                finest level, or a ``.npy`` of them. By default captions of the index, words that the model knows, or
                the items themselves.
            recall: what searches shall find that ask for nothing else.
            on_progress: called with what is done, how much of it, and of how much.

        Returns:
            the measured frontier (recall, its lower bound, times), what was chosen, and what it takes in memory.

        Raises:
            IndexFolderError: if the index is too small to need it, of an old format, or cannot be written.
            QueryError: if the queries make no sense.
        """
        if isinstance(queries, str):
            queries = Path(queries)
        elif isinstance(queries, Iterable) and not (isinstance(queries, np.ndarray) and queries.dtype.kind not in "UO"):
            queries = as_texts(queries)
        return tune(self, queries, recall=real_number("recall", recall), on_progress=on_progress)


def _loaded_from(model: Encoder, source: str | None) -> str:
    place = Path(source) if source is not None and Path(source).is_dir() else None
    return str(place.resolve()) if place else source or model.name
