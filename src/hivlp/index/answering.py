"""The read side of an index: what is asked becomes vectors, the vectors become hits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.encode.base import Encoder, Picture
from hivlp.errors import IndexFolderError, QueryError
from hivlp.fit.maps import COARSE, EMBEDDINGS, FINE, CoarseMaps
from hivlp.index.engine_scan import HEAD, EngineScanner
from hivlp.index.folder import IndexFolder
from hivlp.index.grouping import Folding, NearDuplicates, SameContent
from hivlp.index.opened_engine import OpenedEngine
from hivlp.index.ranking import Ranking, scan_together
from hivlp.index.records import State
from hivlp.index.scan import ExhaustiveScanner, Mask, Rows, Scanner
from hivlp.index.search import Duplicate, Hit, Options, Stopwatch, check_vector
from hivlp.levels import DEFAULT_SHORTLIST, Vectors

CONDITIONS = 8  # of which it is kept what they let pass
# Conditions that may hold at one time and not at another.
CHANGING = re.compile(
    r"\b((random|randomblob|date|time|datetime|julianday|unixepoch|strftime|timediff|changes|total_changes)\s*\("
    r"|current_(date|time|timestamp)\b)",
    re.IGNORECASE,
)


class AnsweringFolder(IndexFolder):
    """An index folder that can be asked; beneath :class:`hivlp.index.Index`, as the storage is beneath this."""

    def __init__(self, path: Path, model: Encoder | None = None) -> None:
        """Open; see :meth:`hivlp.index.Index.open`."""
        super().__init__(path)
        self._scanners: list[Scanner] = []
        self._opened = OpenedEngine(self.path)
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

    def attach(self, model: Encoder) -> None:
        """Use this model for queries and new pictures.

        Raises:
            IndexFolderError: if the index was made with another model.
        """
        about = self.catalog.about
        if self._coarse is not None:
            check_width(model, self._coarse)
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
        self._opened.close()
        self._passing.clear()
        super().close()

    # The vectors of what is asked.

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

    # The hits.

    def _refresh(self, state: State) -> None:
        if state != self._state:
            self._passing.clear()
            super()._refresh(state)
            self._scanners = [ExhaustiveScanner(vectors) for vectors in self._maps]
        self._opened.refresh(self._maps[-1], state.generation)

    @property
    def _engine(self) -> EngineScanner | None:
        return self._opened.scanner

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

    def _shortlists(self, shortlist: int | Sequence[int] | None) -> list[int]:
        stages = len(self.levels) - 1
        if shortlist is None or isinstance(shortlist, int):
            return [DEFAULT_SHORTLIST if shortlist is None else shortlist] * stages
        if len(shortlist) != stages:
            raise QueryError(f"{len(shortlist)} shortlists for {len(self.levels)} levels: one for each but the finest")
        return list(shortlist)

    def _plan(self, options: Options) -> tuple[Sequence[Scanner], bool]:
        """The scanners, coarse to fine, that answer, and whether they are the finest level alone."""
        if options.exact:
            exact = self._opened.exact
            return self._scanners[-1:] if exact is None else [exact], True
        engine, tuned = self._opened.scanner, self._opened.tuned
        if not options.tuned or (engine is None and options.recall is None):
            return self._scanners, False
        if engine is not None and tuned is not None:
            setting = tuned.setting(options.recall or tuned.recall)
            if setting is not None:
                engine.setting = setting
                return [engine], True
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


def check_width(model: Encoder, maps: CoarseMaps) -> None:
    """Whether a model's vectors are as long as the given ones.

    Raises:
        IndexFolderError: if not.
    """
    width, fine = maps.levels[-1].dim, model.levels[-1].dim
    if fine != width:
        raise IndexFolderError(
            f"{model.name} makes vectors of {fine} dims, the embeddings have {width}: use their model"
        )
