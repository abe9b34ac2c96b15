"""The read side of an index: what is asked becomes vectors, the vectors become hits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.coarse.maps import COARSE, EMBEDDINGS, FINE, CoarseMaps
from hivlp.encode.base import Encoder, Picture, as_picture, as_texts, check_encoder, unpacked
from hivlp.errors import ArgumentError, DamagedIndexError, IndexFolderError, MissingExtraError, ModelError, QueryError
from hivlp.levels import DEFAULT_SHORTLIST, Embeddings, Vectors
from hivlp.search.ann_scan import EngineScanner
from hivlp.search.ann_tier import EngineTier
from hivlp.search.grouping import Folding, NearDuplicates, SameContent
from hivlp.search.opened import OpenedEngine
from hivlp.search.ranking import Exact, Ranking, Tier, cascades, reach_together
from hivlp.search.results import (
    Duplicate,
    Hit,
    Options,
    Plan,
    Stopwatch,
    check_vector,
    real_number,
    whole_number,
    yes_or_no,
)
from hivlp.search.scan import ExhaustiveScanner, Mask, Rows, Scanner
from hivlp.store.codec import Stored
from hivlp.store.folder import Store
from hivlp.store.reader import Reader
from hivlp.store.records import NewItem, Stamp
from hivlp.store.vectors import Rows as RowsOfLevel

FARTHEST = 1 << 40  # offset; no index has so many items
FEW = 2_000  # items that are ranked exactly in the time of a shortlist, unless one is asked for
CONDITIONS = 8  # of which it is kept what they let pass


class AnsweringFolder:
    """A store that can be asked; beneath :class:`hivlp.index.Index`."""

    def __init__(self, path: Path, model: Encoder | None = None) -> None:
        """Open; see :meth:`hivlp.index.Index.open`."""
        self._store = Store(path)
        self.path, self.levels = self._store.path, self._store.levels
        self._reader: Reader | None = None
        self._maps: tuple[Stored, ...] = ()
        self._scanners: list[Scanner] = []
        self._opened = OpenedEngine(self.path)
        self._passing: dict[str, Mask] = {}  # the least recently asked first
        self._model: Encoder | None = None
        self._coarse: CoarseMaps | None = None
        try:
            if self._store.about.model == EMBEDDINGS:
                self._coarse = CoarseMaps.load(self.path, self._store.about.fingerprint)
            if model is not None:
                self.attach(model)
        except (IndexFolderError, ArgumentError):
            self.close()
            raise

    def attach(self, model: Encoder) -> None:
        """Use this model for queries and new pictures.

        Raises:
            IndexFolderError: if the index was made with another model.
        """
        check_encoder(model)
        about = self._store.about
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
        self._maps, self._reader = (), None
        self._store.close()

    def append(
        self,
        items: Sequence[NewItem],
        embeddings: Embeddings | Mapping[str, RowsOfLevel] | None,
        *,
        restamp: Iterable[tuple[int, Stamp]] = (),
        new: bool = False,
    ) -> int:
        """Commit items with their vectors; see :meth:`hivlp.store.folder.Store.append`."""
        return self._store.append(items, embeddings, restamp=restamp, new=new)

    def embeddings(self, row: int) -> Embeddings:
        """The stored vectors of one row, (1, dim) float32 a level."""
        return self._store.embeddings(row)

    @property
    def model_source(self) -> str:
        """Name or folder from which the index's model can be loaded again."""
        return self._store.about.source

    def __len__(self) -> int:
        return len(self._store)

    # The vectors of what is asked.

    def _encode(
        self, query: str | None, image: Picture | str | None, vector: Mapping[str, Any] | None
    ) -> list[Vectors] | None:
        query = unpacked(query)
        if query is not None:
            if not isinstance(query, str):
                many = " (search_many takes many)" if isinstance(query, Iterable) else ""
                raise ArgumentError(f"a query is one text, not {type(query).__name__}{many}")
            return self._encode_many(query, None)[0]
        if image is not None:
            picture = as_picture(image)
            seen = self._need_model().encode_image([picture])
            # A picture is spread as the items are: their map suits it, as it does an item that others shall be like.
            return self._check(seen if self._coarse is None else self._coarse.of_items(seen.fine))
        return None if vector is None else self._check(self._by_level(vector))

    def _by_level(self, vectors: Any) -> Mapping[str, Any]:
        """What was given as vectors, by level; where the finest one is enough, it need not be named."""
        if isinstance(vectors, Mapping):
            return vectors
        if self._coarse is not None or len(self.levels) == 1:
            return {self.levels[-1].name: vectors}
        names = ", ".join(level.name for level in self.levels)
        raise ArgumentError(f"vectors are given by level ({names}), as in {{'{self.levels[-1].name}': …}}")

    def _encode_many(self, queries: str | Iterable[str] | None, vectors: Any) -> list[list[Vectors]]:
        if queries is not None:
            texts = as_texts(queries)
            for number, query in enumerate(texts, start=1):
                if not query.strip():
                    raise QueryError("the query is empty" if len(texts) == 1 else f"query {number} is empty")
            if not texts:
                return []
            words = self._need_model().encode_text(texts)
            vectors = words if self._coarse is None else {FINE: words.fine}
        vectors = self._by_level(vectors)
        try:
            shapes = {name: np.shape(array) for name, array in vectors.items()}
        except (TypeError, ValueError, RuntimeError) as error:
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
            return [self._coarse.of_queries(fine[None])[COARSE][0], fine]
        return check_vector(query, self.levels)

    def _need_model(self) -> Encoder:
        """The model; of an index that was opened without, the one that it was made with, loaded now.

        Raises:
            QueryError: if the index knows none, or it cannot be loaded.
            IndexFolderError: if it has changed since.
        """
        if self._model is None:
            from hivlp.encode.hub import HiVLP

            if not self.model_source:
                raise QueryError(
                    f"{self.path} was made of embeddings alone: search by vector or item, "
                    "or give their model: Index.open(path, model=...)"
                )
            try:
                self.attach(HiVLP.from_pretrained(self.model_source))
            except (ModelError, MissingExtraError) as error:
                raise QueryError(
                    f"the model of {self.path} cannot be loaded: {error}; or give it: Index.open(path, model=...)"
                ) from error
            assert self._model is not None
        return self._model

    # The hits.

    def _refresh(self, reader: Reader) -> None:
        self._reader = reader
        maps = reader.vectors()
        if maps is not self._maps:
            self._passing.clear()
            self._maps = maps
            self._scanners = [ExhaustiveScanner(vectors) for vectors in maps]
        self._opened.refresh(self._maps[-1], reader.state.generation)

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
        if where is not None and not isinstance(where, str):
            raise ArgumentError(f"where must be a condition in SQL, not {where!r:.40}")
        return Options(
            k=whole_number("k", k),
            shortlists=self._shortlists(shortlist),
            exact=yes_or_no("exact", exact),
            where=where,
            offset=min(whole_number("offset", offset), FARTHEST),
            threshold=None if threshold is None else real_number("threshold", threshold),
            group=bool(group) if isinstance(group, (bool, np.bool_)) else real_number("group", group),
            recall=None if recall is None else real_number("recall", recall),
            tuned=not exact and shortlist is None,
        )

    def _shortlists(self, shortlist: int | Sequence[int] | None) -> list[int]:
        stages = len(self.levels) - 1
        if not isinstance(shortlist, Iterable) or np.ndim(shortlist) == 0:
            size = DEFAULT_SHORTLIST if shortlist is None else whole_number("shortlist", shortlist)
            return [size] * stages
        sizes = [whole_number("shortlist", size) for size in shortlist]
        if len(sizes) != stages:
            raise QueryError(f"{len(sizes)} shortlists for {len(self.levels)} levels: one for each but the finest")
        return sizes

    def _tiers(self, options: Options, rows: int, passing: int, watch: Stopwatch) -> list[Tier]:
        """How the collection is looked at, ever further; see :mod:`hivlp.search.ranking`.

        Args:
            options: what is asked for.
            rows: of the commit.
            passing: of them, those that may be found.
            watch: which is charged.
        """
        opened = self._opened
        stage = "fine" if len(self._scanners) > 1 else "coarse"
        everything: Callable[[], Scanner] = lambda: opened.exact or self._scanners[-1]  # noqa: E731
        exact = Exact(everything, stage, watch)
        if options.exact or options.k >= passing:
            return [exact]
        if options.tuned and opened.scanner is not None and opened.tuned is not None:
            recall = options.recall or opened.tuned.recall
            setting = opened.tuned.setting(recall)
            if setting is None:
                return [exact]
            return [EngineTier(opened.scanner, opened.tuned, recall, setting, everything, watch), exact]
        if options.recall is not None or len(self._scanners) == 1 or (options.tuned and passing <= FEW):
            return [exact]
        shortlists = options.shortlists
        if options.tuned:  # nobody said how many: of the usual ones, those are shown that few others would be among
            return [*cascades(self._scanners, shortlists, shortlists[0] // 4, rows, watch), exact]
        shortlists = [min(max(size, options.k), rows) for size in shortlists]
        return [*cascades(self._scanners, shortlists, shortlists[0], rows, watch), exact]

    def _answer(
        self, queries: Sequence[Sequence[Vectors]], options: Options, watch: Stopwatch, without: int | None = None
    ) -> list[tuple[list[Hit], Plan]]:
        """The hits of each query, (dim,) a level, and how they were found.

        Called inside a read transaction, after :meth:`_refresh`.
        """
        assert self._reader is not None
        allowed = self._reader.alive() if options.where is None else self._where(options.where)
        total = self._reader.state.rows
        passing = total if allowed is None else int(np.count_nonzero(allowed))
        tiers = self._tiers(options, total, passing, watch)
        plain = options.threshold is None and options.group is False
        rankings = [
            Ranking(tiers, query, allowed, total=total, passing=passing, without=without, overlooked=plain)
            for query in queries
        ]
        first, last = options.offset, options.offset + min(options.k, total)
        block = max([*(options.shortlists or [DEFAULT_SHORTLIST])[:1], options.k])
        if rankings:
            reach_together(rankings, last)
        pages: list[tuple[Rows, Vectors]] = []
        folded: list[list[Sequence[int]] | None] = []
        for ranking in rankings:
            if plain:
                pages.append(ranking.page(first, last))
                folded.append(None)
                continue
            folding = self._folding(options.group, allowed, without)
            rows, scores = ranking.listed(last, options.threshold, folding, block)
            pages.append((rows[first:], scores[first:]))
            folded.append(None if folding is None else [folding.duplicates(row) for row in rows[first:].tolist()])
        plans = [ranking.steps for ranking in rankings]
        return list(zip(self._hits(queries, pages, folded, first), plans, strict=True))

    def _hits(
        self,
        queries: Sequence[Sequence[Vectors]],
        pages: Sequence[tuple[Rows, Vectors]],
        folded: Sequence[Sequence[Sequence[int]] | None],
        first: int,
    ) -> list[list[Hit]]:
        """What is known of the rows of each page, and of those folded into them."""
        wanted = {row for page, _ in pages for row in page.tolist()}
        wanted.update(row for groups in folded for group in groups or () for row in group)
        assert self._reader is not None
        items = {item.row: item for item in self._reader.in_rows(list(wanted))}
        answers = []
        for query, (page, finest), groups in zip(queries, pages, folded, strict=True):
            coarser = zip(self._scanners[:-1], query[:-1], strict=True)
            scores = [*(scanner.rescore(part, page).tolist() for scanner, part in coarser), finest.tolist()]
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
        changing = False
        if passing is None:
            assert self._reader is not None
            rows, changing = self._reader.rows_where(condition)
            passing = np.zeros(self._reader.state.rows, bool)
            if not all(isinstance(row, int) and 0 <= row < len(passing) for row in rows):
                raise DamagedIndexError(f"{self.path} is damaged: an item has no vectors; run `hivlp repair`")
            passing[rows] = True
        if not changing:
            self._passing[condition] = passing
            if len(self._passing) > CONDITIONS:
                del self._passing[next(iter(self._passing))]
        return passing

    def _folding(self, group: bool | float, allowed: Mask | None, without: int | None) -> Folding | None:
        if group is False:
            return None
        if group is True:
            assert self._reader is not None
            return SameContent(self._reader, allowed, without)
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
