"""The index: pictures in, hits out."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hivlp.data.embeddings import EmbeddingSource, open_embeddings
from hivlp.encode.base import Encoder, Picture
from hivlp.encode.stream import chunks
from hivlp.engine import bounds, native
from hivlp.errors import IndexFolderError, QueryError
from hivlp.fit.maps import COARSE, EMBEDDINGS, FINE, CoarseMaps
from hivlp.index.adding import AddReport, add_pictures
from hivlp.index.adding_vectors import add_vectors
from hivlp.index.catalog import About, State
from hivlp.index.engine_scan import HEAD, EngineScanner
from hivlp.index.exact_scan import ExactScanner
from hivlp.index.folder import IndexFolder, Progress
from hivlp.index.grouping import Folding, NearDuplicates, SameContent
from hivlp.index.ranking import Ranking, scan_together
from hivlp.index.repair import RepairReport, set_damage_aside
from hivlp.index.scan import ExhaustiveScanner, Mask, Rows, Scanner
from hivlp.index.search import DEFAULT_SHORTLIST, Duplicate, Hit, Options, SearchResult, Stopwatch, check_vector
from hivlp.index.tuning import DEFAULT_RECALL, Tuned, tune
from hivlp.index.tuning import FOLDER as ENGINE_FOLDER
from hivlp.index.tuning import Progress as TuneProgress
from hivlp.index.verify import VerifyReport, verify_folder
from hivlp.levels import Vectors

BATCH = 256  # queries that share a pass over the vectors
CONDITIONS = 8  # of which it is kept what they let pass
# Conditions that may hold at one time and not at another.
CHANGING = re.compile(
    r"\b((random|randomblob|date|time|datetime|julianday|unixepoch|strftime|timediff|changes|total_changes)\s*\("
    r"|current_(date|time|timestamp)\b)",
    re.IGNORECASE,
)


class Index(IndexFolder):
    """A searchable collection of pictures.

    Any number of processes may read while one writes; readers see each commit whole, on their next search. An
    :class:`Index` itself belongs to one thread.
    """

    def __init__(self, path: Path, model: Encoder | None = None) -> None:
        """Open; see :meth:`open`."""
        super().__init__(path)
        self._scanners: list[Scanner] = []
        self._engine: EngineScanner | None = None
        self._exact: ExactScanner | None = None
        self._tuned: Tuned | None = None
        self._passing: dict[str, Mask] = {}  # the least recently asked first
        self._model: Encoder | None = None
        self._coarse: CoarseMaps | None = None
        try:
            if self.catalog.about.model == EMBEDDINGS:
                self._coarse = CoarseMaps.load(self.path, self.catalog.about.fingerprint)
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

    def close(self) -> None:
        """Let go of the files."""
        self._scanners = []
        self._passing.clear()
        super().close()

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
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise IndexFolderError(f"{self.path} cannot be read: {error}") from error

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
            shortlist: candidates that the coarse level hands on (default 200, never less than ``k``); with more than
                two levels, one number for each level but the finest makes a funnel.
            exact: rank everything by the finest level instead.
            where: SQL condition over ``id``, ``path``, ``caption`` and ``metadata`` (JSON) that hits must meet. What it
                lets pass is kept until the next commit, so that asking the same again costs nothing.
            offset: hits to skip; pages of the same query, ``k`` and shortlist fit together, to any depth.
            threshold: leave out hits whose finest score is below this. The list ends with the first shortlist in which
                no hit reaches it.
            group: True folds hits of the same content into one; a cosine folds a hit into the first one whose finest
                vector is that close to its own. ``k`` and ``offset`` then count groups. A hit's ``duplicates`` are all
                items of its content, or the close ones from its own shortlist.
            recall: share of the ten best of the finest level to find at least, on average and with 95% confidence, by
                what :meth:`tune` measured on this index (default: what it was tuned for). Where no setting is known to
                find so many, everything is ranked by the finest level. An index that was not tuned, and a search with a
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
                item = self.catalog.get(like)
                if item is None:
                    raise QueryError(f"{self.path} has no item {like}")
                encoded, without = self._check(self._rows([item.row])), item.row
            assert encoded is not None
            (hits,) = self._answer([encoded], options, watch, without)
        return SearchResult(hits, watch.finish())

    def search_many(
        self,
        queries: Sequence[str] | None = None,
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
            queries: texts.
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
        answers: list[list[Hit]] = []
        with self.catalog.reading() as state:
            self._refresh(state)
            for chunk in chunks(encoded, BATCH):
                answers += self._answer(chunk, options, watch)
        share = {name: round(value / len(answers), 3) for name, value in watch.finish().items()} if answers else {}
        return [SearchResult(hits, dict(share)) for hits in answers]

    def tune(
        self,
        queries: Path | Sequence[str] | Vectors | None = None,
        *,
        recall: float = DEFAULT_RECALL,
        on_progress: TuneProgress | None = None,
    ) -> dict[str, Any]:
        """Build the engine of this index, and measure on its own data what each setting finds and costs.

        Searches use it from then on; as items are added, ``hivlp index`` lets it take them in.

        Args:
            queries: what people ask: texts, a file with a text a line, (m, dim) vectors of the finest level, or a
                ``.npy`` of them. By default captions of the index, words that the model knows, or the items themselves.
            recall: what searches shall find that ask for nothing else.
            on_progress: called with what is done, how much of it, and of how much.

        Returns:
            the measured frontier (recall, its lower bound, times), what was chosen, and what it takes in memory.

        Raises:
            IndexFolderError: if the index is too small to need it, of an old format, or cannot be written.
            QueryError: if the queries make no sense.
        """
        return tune(self, queries, recall=recall, on_progress=on_progress)

    # Inside.

    def _refresh(self, state: State) -> None:
        if state != self._state:
            self._passing.clear()
            super()._refresh(state)
            self._scanners = [ExhaustiveScanner(vectors) for vectors in self._maps]
            self._engine, self._exact, self._tuned = None, None, Tuned.load(self.path)
            usable = native.load() is not None  # without kernels, reading everything is the faster way
            if usable and self._tuned is not None and self._tuned.generation == state.generation:
                # An engine that has just been replaced, or is damaged, is done without until the next commit.
                with suppress(IndexFolderError):
                    vectors = np.asarray(self._maps[-1])
                    engine, bound = bounds.load(self.path / ENGINE_FOLDER, vectors)
                    self._engine = EngineScanner(engine, len(engine.arrays.nibbles), vectors)
                    self._exact = None if bound is None else ExactScanner(self._engine, bound, vectors)

    def _forget(self) -> None:
        """Open everything again at the next search."""
        self._state = None

    def _options(
        self,
        k: int,
        shortlist: int | Sequence[int] | None,
        exact: bool,
        where: str | None,
        offset: int,
        threshold: float | None,
        group: bool | float,
        recall: float | None,
    ) -> Options:
        if recall is not None and (exact or shortlist is not None):
            raise QueryError("recall chooses how to search: it cannot be given with exact or a shortlist")
        tuned = not exact and shortlist is None
        return Options(k, self._shortlists(shortlist), exact, where, offset, threshold, group, recall, tuned)

    def _plan(self, options: Options) -> tuple[Sequence[Scanner], bool]:
        """The scanners, coarse to fine, that answer, and whether they are the finest level alone."""
        if options.exact:
            return self._scanners[-1:] if self._exact is None else [self._exact], True
        if not options.tuned or (self._engine is None and options.recall is None):
            return self._scanners, False
        if self._engine is not None and self._tuned is not None:
            setting = self._tuned.setting(options.recall or self._tuned.recall)
            if setting is not None:
                self._engine.setting = setting
                return [self._engine], True
        return self._scanners[-1:], True

    def _answer(
        self, queries: Sequence[Sequence[Vectors]], options: Options, watch: Stopwatch, without: int | None = None
    ) -> list[list[Hit]]:
        """The hits of each query, (dim,) a level; called inside a read transaction, after :meth:`_refresh`."""
        assert self._state is not None
        allowed = self._alive if options.where is None else self._where(options.where)
        scanners, finest = self._plan(options)
        stage = "fine" if finest and scanners[0] is not self._engine and len(self._scanners) > 1 else "coarse"
        first, count = options.offset, min(options.k, self._state.rows)
        shortlists = [max(shortlist, count) for shortlist in options.shortlists] or [max(DEFAULT_SHORTLIST, count)]
        if scanners[0] is self._engine:
            shortlists = [max(HEAD, count)]
        rankings = [
            Ranking(
                scanners,
                query[-len(scanners) :],
                allowed,
                block=shortlists[0],
                shortlists=shortlists[1:],
                total=self._state.rows,
                without=without,
                stage=stage,
                watch=watch,
            )
            for query in queries
        ]
        in_blocks = options.threshold is not None or options.group is not False
        last = first + count
        whole_blocks = -(-last // shortlists[0]) * shortlists[0]
        scan_together(rankings, whole_blocks if in_blocks or len(scanners) > 1 else last, stage, watch)
        pages: list[Rows] = []
        folded: list[list[Sequence[int]] | None] = []
        for ranking in rankings:
            if not in_blocks:
                pages.append(ranking.rows(first, last))
                folded.append(None)
                continue
            folding = self._folding(options.group, allowed, without)
            page = ranking.listed(last, options.threshold, folding)[first:]
            pages.append(page)
            folded.append(None if folding is None else [folding.duplicates(row) for row in page.tolist()])
        return self._hits(queries, pages, folded, first)

    def _hits(
        self,
        queries: Sequence[Sequence[Vectors]],
        pages: Sequence[Rows],
        folded: Sequence[Sequence[Sequence[int]] | None],
        first: int,
    ) -> list[list[Hit]]:
        """What is known of the rows of each page, and of those folded into them."""
        wanted = {row for page in pages for row in page.tolist()}
        wanted.update(row for groups in folded for group in groups or () for row in group)
        items = {item.row: item for item in self.catalog.in_rows(list(wanted))}
        answers = []
        for query, page, groups in zip(queries, pages, folded, strict=True):
            scores = [scanner.rescore(part, page).tolist() for scanner, part in zip(self._scanners, query, strict=True)]
            hits = []
            for place, row in enumerate(page.tolist()):
                item = items[row]
                by_level = {level.name: scores[at][place] for at, level in enumerate(self.levels)}
                same = None if groups is None else [Duplicate(items[r].id, items[r].path) for r in groups[place]]
                hits.append(Hit(first + place + 1, item.id, item.path, item.caption, by_level, item.metadata, same))
            answers.append(hits)
        return answers

    def _where(self, condition: str) -> Mask:
        """(rows,) bool: the items for which a condition holds, worked out once a commit."""
        passing = self._passing.pop(condition, None)
        if passing is None:
            assert self._state is not None
            passing = np.zeros(self._state.rows, bool)
            passing[self.catalog.rows_where(condition)] = True
        if not CHANGING.search(condition):
            self._passing[condition] = passing
            if len(self._passing) > CONDITIONS:
                del self._passing[next(iter(self._passing))]
        return passing

    def _folding(self, group: bool | float, allowed: Mask | None, without: int | None) -> Folding | None:
        if group is False:
            return None
        if group is True:
            return SameContent(self.catalog, allowed, without)
        return NearDuplicates(lambda rows: self._maps[-1][rows], group)

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
            return self._encode_many([query], None)[0]
        if image is not None:
            picture = Path(image) if isinstance(image, str) else image
            seen = self._need_model().encode_image([picture])
            # A picture is spread as the items are: their map suits it, as it does an item that others shall be like.
            return self._check(seen if self._coarse is None else self._coarse.of_items(seen.fine))
        return None if vector is None else self._check(vector)

    def _encode_many(self, queries: Sequence[str] | None, vectors: Mapping[str, Any] | None) -> list[list[Vectors]]:
        if queries is not None:
            for number, query in enumerate(queries, start=1):
                if not query.strip():
                    raise QueryError("the query is empty" if len(queries) == 1 else f"query {number} is empty")
            if not queries:
                return []
            words = self._need_model().encode_text(list(queries))
            vectors = words if self._coarse is None else {FINE: words.fine}
        assert vectors is not None
        try:
            shapes = {name: np.shape(array) for name, array in vectors.items()}
        except (TypeError, ValueError) as error:
            raise QueryError("vectors must be (queries, dim) arrays of numbers") from error
        sizes = {shapes[level.name][:1] for level in self.levels if level.name in shapes}
        if len(sizes) != 1 or sizes == {()}:
            raise QueryError(f"every level needs a row for each query, not {shapes}")
        ((count,),) = sizes
        return [self._check({name: array[number] for name, array in vectors.items()}) for number in range(count)]

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


def _loaded_from(model: Encoder, source: str | None) -> str:
    place = Path(source) if source is not None and Path(source).is_dir() else None
    return str(place.resolve()) if place else source or model.name


def _check_width(model: Encoder, maps: CoarseMaps) -> None:
    width, fine = maps.levels[-1].dim, model.levels[-1].dim
    if fine != width:
        raise IndexFolderError(
            f"{model.name} makes vectors of {fine} dims, the embeddings have {width}: use their model"
        )
