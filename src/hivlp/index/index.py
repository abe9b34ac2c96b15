"""Index: pictures or vectors in, hits out; the face that joins store, search, encoder and jobs."""

from __future__ import annotations

import logging
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

import numpy as np

from hivlp.coarse.maps import EMBEDDINGS, CoarseMaps, NoCoarseLevel, load_maps
from hivlp.encode import as_encoder
from hivlp.encode.base import Encoder, Picture, as_texts
from hivlp.errors import ArgumentError, DataError, IndexFolderError, NoItemError, PictureError, QueryError
from hivlp.index.answering import Answering
from hivlp.index.info import IndexInfo
from hivlp.index.mixing import Mix, mixed
from hivlp.index.queries import GivenVectors, QueryEncoder, check_width
from hivlp.index.reranking import search_reranked
from hivlp.index.snapshots import Snapshot
from hivlp.levels import Embeddings, Level, Vectors, check_levels
from hivlp.search.fusion import Reranker
from hivlp.search.opened import stored_bytes
from hivlp.search.operating_points import DEFAULT_RECALL, Tuned
from hivlp.search.options import FILL, FILL_SECONDS, Options, real_number, whole_number
from hivlp.search.results import SearchResult
from hivlp.search.stages import Query
from hivlp.search.timing import Stopwatch
from hivlp.store.codec import CODECS
from hivlp.store.compacting import Progress
from hivlp.store.derived import keep_columns, keep_derived
from hivlp.store.fields.declared import checked_fields
from hivlp.store.folder import Store
from hivlp.store.names import composed, each_item, each_path, existing, folder_path
from hivlp.store.reader import Reader
from hivlp.store.records import About, Item

if TYPE_CHECKING:
    import pyarrow as pa

    from hivlp.coarse.choose import Method
    from hivlp.data.vectors.source import EmbeddingSource
    from hivlp.index.adding.report import AddReport
    from hivlp.index.asking import SearchOptions
    from hivlp.index.filling import Filler, FillReport
    from hivlp.index.repair import RepairReport
    from hivlp.index.tuning.jobs import Renumbering
    from hivlp.index.tuning.report import TuneReport
    from hivlp.search.calibration import Progress as TuneProgress
    from hivlp.store.verify import VerifyReport

logger = logging.getLogger(__name__)
DIMS = 64
"""Of the coarse level of given vectors."""
SHOWN = 12
"""Items that a notebook shows of an index."""
PAGE = 1000
"""Items that are listed from one commit."""
LAST_ID = (1 << 63) - 1
"""The largest id that SQLite can hold."""


class Index:
    """A searchable collection of pictures.

    One index serves any number of threads: searches run side by side, and one writer beside them; a second writer waits
    for the first. Any number of processes may read while one writes. Readers see each commit whole, on their next
    search.

    Attributes:
        store: the folder on disk, for whoever stores and reads items by other ways than these.
    """

    def __init__(self, path: Path | str, model: Encoder | str | Path | None = None, *, read_only: bool = False) -> None:
        """Open an existing index.

        Args:
            path: of its folder.
            model: that it was made with, loaded or by its name or folder; without, it is loaded when a text or a
                picture needs it.
            read_only: write nothing into the folder: changes are refused, and the finer levels of pending pictures that
                a search computes are kept in memory alone.

        Raises:
            IndexFolderError: if there is no index, it is damaged, or it was made with another model.
        """
        loaded = None if model is None else as_encoder(model)
        self.store = Store(folder_path(path), read_only=read_only)
        self._remove: weakref.finalize[[], Index] | None = None
        self._answering = Answering(self.store, self._filler)
        self._fills: Filler | None = None
        try:
            about = self.store.about
            given = about.model == EMBEDDINGS
            maps = load_maps(self.store.path, about.levels, about.fingerprint) if given else None
            self._queries = QueryEncoder(self.store.path, about, maps)
            if loaded is not None:
                self.attach(loaded)
        except (IndexFolderError, ArgumentError):
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        model: Encoder | str | Path,
        source: str | None = None,
        vectors: str = "float16",
        fields: Mapping[str, str] | None = None,
        relative: bool = False,
    ) -> Index:
        """Make an empty index for a model.

        Args:
            path: a folder that does not exist yet, or is empty.
            model: loaded, or its name, hub id or folder (:meth:`hivlp.HiVLP.from_pretrained`); its levels and
                fingerprint are recorded, and other models will be refused.
            source: how to load the model again (a name or folder); default what it was loaded from, a model of the hub
                with its commit.
            vectors: codec of the finest level: ``float16``, ``float32``, or ``int8``, which takes half the room of
                float16 and finds about 0.995 of its ten best. An index of float32 vectors is not tuned.
            fields: keys of the items' metadata that conditions (``where``) name like columns, and their types:
                ``int``, ``float``, ``str`` or ``bool``; see :meth:`declare`.
            relative: store the paths of pictures below the folder that the index lies in without that folder, so that
                both can be moved together, as on a disk that is mounted elsewhere. Items have whole paths all the same.

        Raises:
            IndexFolderError: if the folder holds something, or cannot be written.
            ArgumentError: if there is no such codec, a field cannot be declared, or the model's levels are none.
        """
        model = as_encoder(model)
        if model.name == EMBEDDINGS:
            raise IndexFolderError(f"a model cannot be called {EMBEDDINGS}: that is an index without a model")
        try:
            levels = check_levels(model.levels)
        except (ValueError, TypeError, AttributeError) as error:
            raise ArgumentError(f"the levels of {model.name} are none: {error}") from error
        about = About(model.name, _loaded_from(model, source), model.fingerprint, levels)
        codec, declared = checked_codec(vectors), checked_fields(fields)
        return cls._made(path, model, about, codec=codec, fields=declared, relative=relative)

    @classmethod
    def create_from_embeddings(
        cls,
        path: Path | str,
        maps: CoarseMaps | NoCoarseLevel,
        *,
        model: Encoder | str | Path | None = None,
        source: str | None = None,
        vectors: str = "float16",
        fields: Mapping[str, str] | None = None,
    ) -> Index:
        """Make an empty index for vectors that come from elsewhere; :meth:`add_embeddings` fills it.

        Args:
            path: a folder that does not exist yet, or is empty.
            maps: what makes the coarse level (:func:`hivlp.coarse.fit_coarse`), kept in the folder; or
                :class:`hivlp.coarse.NoCoarseLevel`, for an index that will be tuned, which never reads one.
            model: that made the vectors, if texts and pictures shall be searched for; its finest level is used.
            source: how to load the model again (a name or folder); default what it was loaded from.
            vectors: codec of the finest level, ``float16``, ``float32`` or ``int8``: see :meth:`create`.
            fields: keys of the items' metadata that conditions name like columns, and their types: see :meth:`create`.

        Raises:
            IndexFolderError: if the folder holds something, or cannot be written, or the model's vectors have another
                length.
            ArgumentError: if there is no such codec, or a field cannot be declared.
        """
        encoder = None if model is None else as_encoder(model)
        if encoder is not None:
            check_width(encoder, maps)
        about = About(EMBEDDINGS, _loaded_from(encoder, source) if encoder else "", maps.fingerprint, maps.levels)
        codec, declared = checked_codec(vectors), checked_fields(fields)
        return cls._made(path, encoder, about, arrays=maps.arrays(), codec=codec, fields=declared)

    @classmethod
    def _made(cls, path: Path | str, model: Encoder | None, about: About, **options: Any) -> Index:
        """A new index, opened; none is left where that fails."""
        from hivlp.store.making import make_store, remove_store  # searches do without

        place = folder_path(path)
        make_store(place, about, **options)
        try:
            return cls(place, model)
        except BaseException:
            remove_store(place)
            raise

    @classmethod
    def open(cls, path: Path | str, model: Encoder | str | Path | None = None, *, read_only: bool = False) -> Index:
        """Open an existing index: ``Index(path)`` by another name.

        Without a model, the one that it was made with is loaded when a text or a picture needs it.

        Raises:
            IndexFolderError: if there is no index, it is damaged, or it was made with another model.
        """
        return cls(path, model, read_only=read_only)

    @classmethod
    def open_or_create(
        cls,
        path: Path | str,
        *,
        model: Encoder | str | Path | None = None,
        vectors: str = "float16",
        fields: Mapping[str, str] | None = None,
        relative: bool = False,
    ) -> Index:
        """Open an index, or make an empty one where there is none.

        Args:
            path: of its folder.
            model: see :meth:`create`; by default that of the index, and for a new one ``hivlp-mini``, which ships
                with the package.
            vectors: codec of the finest level of a new index.
            fields: that are declared if they are not yet; see :meth:`declare`.
            relative: store paths relative to the folder that the index lies in, see :meth:`create`.

        Raises:
            IndexFolderError: if the index is damaged, was made with another model, or stores whole paths where relative
                ones are wanted, or the folder cannot be written.
            ArgumentError: if there is no such codec, or a field cannot be declared.
        """
        if not cls.exists(folder_path(path)):
            from hivlp.hub.names import SHIPPED

            model = SHIPPED if model is None else model
            return cls.create(path, model=model, vectors=vectors, fields=fields, relative=relative)
        index = cls(path, model)
        try:
            index.check_relative(relative)
            index.declare(fields or {})
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def from_vectors(
        cls,
        data: Any,
        path: Path | str | None = None,
        *,
        ids: Iterable[str | int] | None = None,
        captions: Iterable[str | None] | None = None,
        metadata: Any = None,
        column: str | None = None,
        model: Encoder | str | Path | None = None,
        queries: Any = None,
        dims: int = DIMS,
        fit: Method | Literal["none"] = "distill",
        vectors: str = "float16",
        fields: Mapping[str, str] | None = None,
        on_progress: Callable[[AddReport], None] | None = None,
    ) -> Index:
        """Make an index of vectors in memory.

        Args:
            data: (n, d) array or tensor of floats; or a table of pandas, polars or Arrow with a column of lists of
                floats, whose other columns are taken as those of parquet are (see :meth:`add_embeddings`).
            path: a folder that does not exist yet, or is empty; default a temporary one, removed when the index is
                closed.
            ids: n texts or whole numbers. They become the items' paths, as text: ``index["7"]`` is the item of the id
                7, while ``index[7]`` is the item that hivlp itself numbered so. Default the row's number.
            captions: n texts.
            metadata: n mappings, a mapping of name -> n values, or a table of n rows; for ``where`` to ask about. What
                is missing (None, NaN) is left out.
            column: of a table that holds the vectors; default ``embedding``, or the only one that can.
            model: that made the vectors, if texts and pictures shall be searched for.
            queries: (m, d) vectors as they will be asked for, to fit the coarse level to; default the items.
            dims: of the coarse level.
            fit: how it is made, see :func:`hivlp.coarse.fit_coarse`; ``none`` stores none.
            vectors: codec of the finest level, see :meth:`create`.
            fields: keys of the metadata that conditions name like columns, see :meth:`declare`.
            on_progress: called after each commit with what is stored by then.

        Raises:
            ArgumentError: if ``dims`` or ``fit`` is none.
            DataError: if these are no vectors, one has no direction, ids are not all different, or metadata are not
                JSON. Whatever is raised, no folder is left.
            IndexFolderError: if the folder holds something, or cannot be written.
            MissingExtraError: if a table is given and pyarrow is not installed.
        """
        from hivlp.data.vectors.given import given_vectors
        from hivlp.index.tables import coarse_maps, temporary_folder
        from hivlp.store.making import parents_of, remove_store

        source = given_vectors(data, ids=ids, captions=captions, metadata=metadata, column=column)
        maps = coarse_maps(source, queries, dims=dims, method=fit)
        place, remove = (path, None) if path is not None else temporary_folder()
        with parents_of(folder_path(place)), ExitStack() as undo:
            if remove is not None:
                undo.callback(remove)
            index = cls.create_from_embeddings(place, maps, model=model, vectors=vectors, fields=fields)
            undo.callback(remove_store, index.path)
            undo.callback(index.close)
            report = index.add_embeddings(source, on_progress=on_progress)
            if report.failed:
                what = f"{len(report.failed)} of {source.rows} vectors cannot be stored"
                raise DataError(f"{what}: {report.failed[0].error}")
            undo.pop_all()
        if remove is not None:
            index._remove = weakref.finalize(index, remove)
        return index

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is an index in this folder.

        Raises:
            ArgumentError: if it is no path.
        """
        return Store.exists(folder_path(path))

    def attach(self, model: Encoder | str | Path) -> None:
        """Use this model, given loaded or by its name or folder, for queries and new pictures.

        Raises:
            IndexFolderError: if the index was made with another model.
        """
        self._queries.attach(as_encoder(model))

    def snapshot(self) -> Snapshot:
        """The last commit as searches see it: its collection, and the approximate index that it is searched with."""
        with self.store.reading() as reader:
            return self._answering.snapshots.of(reader)

    def close(self) -> None:
        """Let go of the files; nothing is wrong with doing so twice."""
        self._answering.snapshots.close()
        self.store.close()
        if self._remove is not None:
            self._remove()

    @property
    def path(self) -> Path:
        """Of the folder, absolute."""
        return self.store.path

    @property
    def levels(self) -> tuple[Level, ...]:
        """Coarse to fine."""
        return self.store.levels

    @property
    def model(self) -> Encoder | None:
        """The model that queries and pictures are encoded with, if one is loaded."""
        return self._queries.model

    @property
    def model_source(self) -> str:
        """Name or folder from which the index's model can be loaded again."""
        return self.store.about.source

    def check_relative(self, wanted: bool = True) -> None:
        """Check that paths are stored relative to the folder that the index lies in, if that is ``wanted``.

        Raises:
            IndexFolderError: if not.
        """
        if wanted and self.store.paths.base is None:
            raise IndexFolderError(
                f"{self.path} stores whole paths: make a new index with relative ones, and merge this one into it"
            )

    @property
    def fields(self) -> dict[str, str]:
        """Declared fields: name -> type."""
        with self.store.reading() as reader:
            return {field.name: field.type for field in reader.state.fields}

    def declare(self, fields: Mapping[str, str]) -> None:
        """Declare fields: keys of the items' metadata that conditions (``where``) name like columns.

        ``index.declare({"year": "int"})``, then ``index.search("a red car", where="year >= 2010")``. The value of a
        field is what the metadata have under its name, if it is of the field's type, and NULL otherwise. Comparisons
        of fields with constants, ``BETWEEN``, ``IN``, ``IS NULL``, ``LIKE`` and ``GLOB``, and those under ``AND``,
        ``OR`` and ``NOT``, are answered from columns, in well under a millisecond for 100,000 items; anything else by
        SQLite, with the same result.

        Args:
            fields: name -> ``int`` (64 bits), ``float``, ``str`` or ``bool``; they are added to those that there are,
                and one that is declared again gets its new type.

        Raises:
            ArgumentError: if a name cannot stand in a condition, or there is no such type.
            IndexFolderError: if another process is writing, or the folder cannot be written.
        """
        with self.store.writer():
            self.store.declare(checked_fields(fields))
            keep_columns(self.store)

    @property
    def maps(self) -> CoarseMaps | NoCoarseLevel | None:
        """What makes the levels of given vectors; None where a model does."""
        return self._queries.maps

    def __len__(self) -> int:
        return len(self.store)

    def __iter__(self) -> Iterator[Item]:
        """All items, by id."""
        return self.items()

    def __getitem__(self, item: int | str | Path) -> Item:
        """The item of an id (a number) or a path.

        Raises:
            NoItemError: if there is none; a ``KeyError``, too.
            QueryError: if a path could mean several items.
        """
        found = self.get(item)
        if found is None:
            raise NoItemError(f"{self.path} has no item {item!r:.80}")
        return found

    def __contains__(self, item: object) -> bool:
        """Whether there is an item of an id or path."""
        return isinstance(item, (int, str, Path)) and self.get(item) is not None

    def __repr__(self) -> str:
        model = "given vectors" if self.maps is not None else self.store.about.model
        levels = ", ".join(f"{level.name} {level.dim}" for level in self.levels)
        try:
            count = f"{len(self):,} items"
        except IndexFolderError:
            count = "closed"
        return f"<Index {str(self.path)!r}: {count}, {model}, {levels}>"

    def _repr_html_(self) -> str:
        from hivlp.search.html import card, cards

        shown: list[str] = []
        with suppress(IndexFolderError):  # closed
            shown = [card("", item.path, item.caption, {}) for item in self.items(limit=SHOWN)]
        return cards(shown, 0, repr(self))

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
        exclude: Iterable[str] = (),
        prune: bool = False,
        reread: bool = False,
        lazy: bool = False,
        on_progress: Callable[[AddReport], None] | None = None,
        on_tune: TuneProgress | None = None,
        workers: int | None = None,
    ) -> AddReport:
        """Add pictures and folders of pictures; what is there already and unchanged is skipped.

        A file that was moved or renamed is known again by its content, and keeps its item. Items of these folders whose
        files are gone are marked as missing, which searches leave out; when such a file comes back, so does its item.

        An index of a model with one level is tuned (:meth:`tune`) as soon as it has more than 50,000 items: it has no
        coarse level that would make searches fast.

        Args:
            paths: files and folders, or collections of them.
            captions: path -> caption; otherwise the first line of a ``.txt`` beside the picture is taken.
            metadata: path -> what else to store (JSON), beside what the file and its sidecar (``.xmp``) say:
                ``format``, ``width``, ``height``, ``orientation``, ``taken``, ``camera``, ``lens``, ``lat``, ``lon``,
                ``rating``, ``keywords``, ``title``, ``description``; for ``where`` to ask about.
            exclude: globs of files and folders to pass over, beside :data:`hivlp.data.exclude.DEFAULTS`.
            prune: remove items whose files are gone, and those that a pattern excludes, instead of marking them; not
                from one of ``paths`` that is not there, or in which no picture is left: its disk may not be connected.
            reread: read what unchanged files say once more, as for an index of an earlier version.
            lazy: compute the coarsest level alone, by the model's early layers: pictures are found sooner, and are
                pending until :meth:`complete` computes the others. For a model whose coarsest level is no cheaper,
                all levels are computed at once.
            on_progress: called after each commit with what is stored by then.
            on_tune: called while the approximate index of a tuned index takes in what was added, as :meth:`tune` calls.
            workers: threads that decode and encode; default one a core.

        Raises:
            IndexFolderError: if another process is writing, the index is damaged, or the folder cannot be written; what
                was reported is kept.
            DataError: if a path does not exist, or metadata is not JSON.
            ModelError: if the model has no graph that stops at the coarsest level (``lazy``).
        """
        from hivlp.index.adding.pictures import add_pictures

        if self.maps is not None:
            raise IndexFolderError(f"{self.path} holds given embeddings, not pictures: use a new index for those")
        model = self._queries.need_model()
        roots = [existing(path) for path in each_path(paths)]
        with self._adding():
            report = add_pictures(
                self.store, model, roots, captions=captions, metadata=metadata, exclude=exclude, prune=prune,
                reread=reread, lazy=lazy, on_progress=on_progress, workers=workers,
            )  # fmt: skip
            self._keep_up(on_tune, first=True)
        return report

    def complete(
        self,
        on_progress: Callable[[FillReport], None] | None = None,
        on_tune: TuneProgress | None = None,
        workers: int | None = None,
    ) -> FillReport:
        """Compute the finer levels of pending pictures, those first that searches want; see ``lazy`` of :meth:`add`.

        Other threads may search and write meanwhile: it writes for a moment every few seconds. Whatever it has
        reported is stored; stopped at any point, another call goes on. Pictures that are gone or have changed are
        reported, and stay pending until :meth:`add` looks at their files again.

        Args:
            on_progress: called after each commit with what is done by then.
            on_tune: called while the approximate index of a tuned index takes them in, as :meth:`tune` calls.
            workers: threads that decode and encode; default one a core.

        Returns:
            What was filled, what failed, and what is pending still; with ``busy`` set if another process is at it.

        Raises:
            QueryError: if the model cannot be loaded.
            IndexFolderError: if the folder cannot be written.
        """
        report = self._filler().complete(on_progress, workers)
        if report.filled:
            self._keep_up(on_tune)
        return report

    @property
    def why_not_lazy(self) -> str | None:
        """Why ``lazy`` of :meth:`add` computes all levels at once with this index's model; None where it does not."""
        from hivlp.index.adding.pictures import why_not_lazy

        return why_not_lazy(self._queries.need_model())

    def _filler(self) -> Filler:
        if self._fills is None:
            from hivlp.index.filling import Filler  # searches of a whole index do without

            self._fills = Filler(self.store, self._queries)
        return self._fills

    def _whole(self, items: Iterable[Any], name: str = "item") -> None:
        """Compute the finer levels of those of some items that are pending.

        Raises:
            QueryError: if there is no such item, or it cannot be.
        """
        with self.store.reading() as reader:
            if reader.pending() is None:
                return
            found = [self._item(reader, name, item) for item in items]
            waiting = [item for item in found if reader.are_pending([item.row])[0]]
        if waiting:
            try:
                self._filler().now(waiting)
            except PictureError as error:
                raise QueryError(str(error)) from error

    def info(self) -> IndexInfo:
        """What the index holds, and whether its files are as long as they must be.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        return IndexInfo.of(self.store, stored_bytes(self.path), Tuned.load(self.path))

    def get(self, item: int | str | Path) -> Item | None:
        """An item by its id (a number) or its path; None if there is none.

        Raises:
            QueryError: if a path could mean several items.
        """
        if isinstance(item, (str, Path)):
            name = composed(Path(item).name)
            return next((found for found in self.named(str(item)) if composed(Path(found.path).name) == name), None)
        with self.store.reading() as reader:
            return reader.get(whole_number("item", item))

    def named(self, path: str) -> list[Item]:
        """The item that a person calls by this path, or the items in the folder of that name.

        Raises:
            QueryError: if it could mean several.
        """
        return self.store.named(path)

    def items(self, *, after: int = 0, limit: int | None = None) -> Iterator[Item]:
        """Items by id, ascending.

        Args:
            after: id that they come after; of the last item seen, it gives the next page.
            limit: how many at most; None for all.
        """
        left = whole_number("limit", limit) if limit is not None else None
        after = min(max(whole_number("after", after), 0), LAST_ID)
        while left is None or left > 0:
            with self.store.reading() as reader:
                page = reader.items(after, PAGE if left is None else min(PAGE, left))
            if not page:
                return
            yield from page
            after = page[-1].id
            left = None if left is None else left - len(page)

    def vectors(self, items: int | str | Path | Iterable[int | str | Path]) -> Embeddings:
        """The stored vectors of items, given by id or path, (n, dim) float32 a level; of one item n is 1.

        Raises:
            QueryError: if there is no such item.
            DamagedIndexError: if they are not as they were written.
        """
        items = list(each_item(items))
        self._whole(items)
        with self.store.reading() as reader:
            rows = [self._item(reader, "item", item).row for item in items]
            return reader.embeddings(rows, check=True)

    def to_arrow(self, levels: str | Sequence[str] | None = None, *, where: str | None = None) -> pa.Table:
        """The items with their vectors as an Arrow table, which pandas and polars read.

        Columns: ``id``, ``path``, ``caption``, one for each key of the metadata (``metadata.KEY`` where the name is
        taken), ``embedding`` with the vectors of the finest level, and one of its name for any other level. Written to
        parquet, it can be indexed again.

        Args:
            levels: names of levels, default the finest; none for a table without vectors.
            where: condition that the items must meet, as in :meth:`search`.

        Raises:
            ArgumentError: if there is no such level.
            MissingExtraError: if pyarrow is not installed.
            DamagedIndexError: if an item or a vector is not as it was written.
        """
        from hivlp.index.tables import to_arrow

        return to_arrow(self.store, levels, where=where)

    def remove(self, items: int | str | Path | Iterable[int | str | Path]) -> int:
        """Remove items by id or path; a folder's path removes everything in it.

        Args:
            items: ids, which are numbers, and paths, which are text: ``"3"`` is a path. A path finds what was stored
                under this very name, or else under another spelling of it in Unicode.

        Returns:
            How many were removed.

        Raises:
            QueryError: if one is not in the index, or a path could mean several; then nothing is removed.
        """
        with self.store.writer():
            removed = self.store.remove(items)
            self._keep_up(mend=False)
        return removed

    def relocate(self, old: Path | str, new: Path | str) -> tuple[int, int]:
        """Give all items of a folder that was moved as a whole their new paths; no file is read.

        Args:
            old: the folder's path as the index knows it, or a file's.
            new: its path now. Where an item has the new path already, that one is kept.

        Returns:
            How many items have new paths, and how many were removed because the new path has its own item.

        Raises:
            QueryError: if there is no item at or below ``old``.
        """
        from hivlp.index.adding.gone import relocate

        with self.store.writer():
            moved, replaced = relocate(self.store, os.fspath(old), os.fspath(new))
            keep_derived(self.store)
        if not moved + replaced:
            raise QueryError(f"{self.path} has no item in {old}")
        return moved, replaced

    def compact(self, on_progress: Progress | None = None, on_tune: TuneProgress | None = None) -> int:
        """Rewrite the vector files without tombstones: the rows of removed and replaced items.

        A new generation of files is written and synced, the catalog switches to it in one commit, and the old files go
        last; a crash at any point leaves one generation that is whole. Vectors kept in float32 since format 1 become
        float16.

        Args:
            on_progress: called with how many vectors are written, and of how many.
            on_tune: called while the approximate index of a tuned index leaves those rows out, as :meth:`tune` calls.

        Returns:
            How many rows were given back.

        Raises:
            DamagedIndexError: if a vector or a record that it would copy is not as it was written.
        """
        from hivlp.index.tuning.jobs import before_renumbering

        with self.store.writer():
            before = before_renumbering(self.store)
            freed = self.store.compact(on_progress)
            self._keep_up(on_tune, before)
            keep_derived(self.store)
        return freed

    def merge(self, other: Path | str, on_progress: Progress | None = None, on_tune: TuneProgress | None = None) -> int:
        """Add another index's items, except those whose path is here already.

        Args:
            other: the index folder that is read.
            on_progress: called with how many of its items are dealt with, and of how many.
            on_tune: called while the approximate index of a tuned index takes them in, as :meth:`tune` calls.

        Returns:
            How many were added.

        Raises:
            IndexFolderError: if the other index was made with another model, or is this one.
        """
        from hivlp.store.merging import merge

        with self.store.writer():
            added = merge(self.store, folder_path(other), on_progress)
            self._keep_up(on_tune)
            keep_derived(self.store)
        return added

    def refresh(self, on_progress: TuneProgress | None = None) -> bool:
        """Let the approximate index of a tuned index take in what was added, if that is worth it.

        :meth:`add`, :meth:`add_embeddings`, :meth:`merge`, :meth:`remove` and :meth:`compact` do so by themselves, from
        256 rows or 1/500 of all on; until then, searches scan them. What was learnt stays, the codes of all other rows
        too, and the recall of the operating points in use is measured again: one that falls short gives way to a slower
        one that does not, and :meth:`info` says so where there is none left. An index of twice the rows that it was
        trained on is tuned anew. One that is damaged, of an earlier format, or of rows that were renumbered is built
        again.

        Returns:
            Whether there was something to do.

        Raises:
            IndexFolderError: if it cannot be written; the old one is there still.
        """
        from hivlp.index.tuning.jobs import refresh

        refreshed = refresh(self.store, on_progress)
        self._answering.snapshots.look_again()
        return refreshed

    def _keep_up(
        self,
        on_progress: TuneProgress | None = None,
        renumbering: Renumbering | None = None,
        *,
        mend: bool = True,
        first: bool = False,
    ) -> None:
        """Refresh after a change that is committed, or tune for the ``first`` time where that is due.

        What goes wrong here does not undo the change, and is told by the log.
        """
        from hivlp.index.tuning.jobs import refresh, tune_first

        try:
            if not refresh(self.store, on_progress, renumbering, mend=mend) and first:
                tune_first(self.store, self._queries, on_progress)
        except IndexFolderError as error:
            logger.warning("the approximate index has not taken in what has changed: %s", error)
        self._answering.snapshots.look_again()

    def verify(self, on_progress: Progress | None = None) -> VerifyReport:
        """Check every vector and every record against the checksum that was written with it.

        Raises:
            IndexFolderError: if a file may not be read. Damage is not raised, but reported.
        """
        from hivlp.index.verify import verify_index

        return verify_index(self.store, on_progress)

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
        from hivlp.index.repair import set_damage_aside

        with self.store.writer():
            report = set_damage_aside(self.store, on_progress)
            self._keep_up()
            there = [Path(path) for _, path in report.lost if Path(path).is_file()]
            if there and self.model is not None and self.maps is None:
                report.failed = self.add(there).failed
                with self.store.reading() as reader:
                    lost = reader.integrity.lost()[0]
                report.restored, report.lost = len(report.lost) - len(lost), lost
                report.items = len(self)
            keep_derived(self.store)
        return report

    def add_embeddings(
        self,
        source: EmbeddingSource | Path | str,
        *,
        on_progress: Callable[[AddReport], None] | None = None,
        on_tune: TuneProgress | None = None,
    ) -> AddReport:
        """Add vectors that come from elsewhere; those that are there already and unchanged are skipped.

        Args:
            source: a file or folder, or what :func:`hivlp.data.vectors.source.open_embeddings` made of it.
            on_progress: called after each commit with what is stored by then.
            on_tune: called while the approximate index of a tuned index takes in what was added, as :meth:`tune` calls.

        Raises:
            IndexFolderError: if the index was made with a model, another process is writing, the index is damaged, or
                the folder cannot be written; what was reported is kept.
            DataError: if there are no vectors, or not of the index's length.
        """
        from hivlp.data.vectors.source import EmbeddingSource, open_embeddings
        from hivlp.index.adding.vectors import add_vectors

        maps = self.maps
        if maps is None:
            raise IndexFolderError(f"{self.path} was made with a model: use a new index for embeddings")
        if not isinstance(source, EmbeddingSource):
            if not isinstance(source, (str, os.PathLike)):
                raise DataError(
                    f"embeddings come from a file or folder, not {type(source).__name__}: numpy.save it first"
                )
            source = open_embeddings(source)
        with self._adding():
            report = add_vectors(self.store, maps, source, on_progress=on_progress)
            self._keep_up(on_tune)
        return report

    @contextmanager
    def _adding(self) -> Iterator[None]:
        with self.store.writer():
            try:
                self.store.info()  # adding to a damaged index would hide the damage
                self.store.respell()
                yield
                keep_derived(self.store)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise IndexFolderError(f"{self.path} cannot be read: {error}") from error

    @overload
    def search(self, query: str | Mix | None = None, **options: Unpack[SearchOptions]) -> SearchResult: ...

    @overload
    def search(self, query: list[str] | tuple[str, ...], **options: Unpack[SearchOptions]) -> list[SearchResult]: ...

    def search(
        self,
        query: str | Mix | list[str] | tuple[str, ...] | None = None,
        *,
        image: Picture | str | None = None,
        like: int | str | Path | None = None,
        vector: GivenVectors | None = None,
        k: int = 10,
        shortlist: int | Sequence[int] | None = None,
        exact: bool = False,
        where: str | None = None,
        offset: int = 0,
        threshold: float | None = None,
        group: bool | float = False,
        recall: float | None = None,
        missing: bool = False,
        rerank: Reranker | None = None,
        rerank_depth: int | None = None,
        fill: int = FILL,
        fill_seconds: float = FILL_SECONDS,
    ) -> SearchResult | list[SearchResult]:
        """The items closest to a text, a picture, another item, a vector, or a mix of them.

        Args:
            query: text, or a :class:`hivlp.index.mixing.Mix` of texts, pictures and items with weights and signs; or
                several texts, as a list, for a list of results (:meth:`search_many`).
            image: a picture (file, bytes or PIL image).
            like: id or path of an item, which is itself left out.
            vector: level name -> (dim,) or (1, dim), for every level. Of given embeddings or one level, the
                vector of the finest level is enough, by itself: ``vector=array``.
            k: how many hits.
            shortlist: candidates that the coarse level hands on (default 200, or all of up to 10,000; at least ``k``);
                with more than two levels, one number for each level but the finest makes a funnel.
            exact: rank everything by the finest level instead.
            where: SQL condition over ``id``, ``path``, ``caption``, ``metadata`` (JSON) and declared fields (see
                :meth:`declare`) that hits must meet. What it lets pass is kept until the next commit, so that asking
                the same again costs nothing.
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
            missing: find items whose files are gone, too (see :meth:`add`).
            rerank: a fusion model (:mod:`hivlp.systems.fusion`) that orders the first ranks again by what it makes of
                the text and each picture together; ``threshold`` and ``group`` still go by the finest level.
            rerank_depth: how many ranks it orders (default: as many as the model is made for).
            fill: pending pictures (see ``lazy`` of :meth:`add`) on the coarsest level's shortlist whose finer levels
                are computed now, at most. What is pending still comes after everything else, by the coarsest level's
                score alone, and not at all with a ``threshold``; the result's ``plan`` says how many there are.
            fill_seconds: after which no other picture is begun.

        Raises:
            QueryError: if the query or an option makes no sense.
            PictureError: if ``image`` cannot be decoded.
        """
        if isinstance(query, (list, tuple)):
            if any(given is not None for given in (image, like, vector)):
                raise QueryError("give exactly one of a text, an image, an item (like) or a vector")
            return self.search_many(
                query, k=k, shortlist=shortlist, exact=exact, where=where, offset=offset, threshold=threshold,
                group=group, recall=recall, missing=missing, rerank=rerank, rerank_depth=rerank_depth, fill=fill,
                fill_seconds=fill_seconds,
            )  # fmt: skip
        options = Options.of(
            self.levels, k=k, shortlist=shortlist, exact=exact, where=where, offset=offset, threshold=threshold,
            group=group, recall=recall, missing=missing, fill=fill, fill_seconds=fill_seconds,
        )  # fmt: skip
        if sum(given is not None for given in (query, image, like, vector)) != 1:
            raise QueryError("give exactly one of a text, an image, an item (like) or a vector")
        if rerank is not None:
            if isinstance(query, Mix):
                raise QueryError("a fusion model compares one text with pictures: it cannot be given a mix")
            return search_reranked(
                self.search_many, query, rerank, rerank_depth, k=k, shortlist=shortlist, exact=exact, where=where,
                offset=offset, threshold=threshold, group=group, recall=recall, missing=missing, fill=fill,
                fill_seconds=fill_seconds,
            )[0]  # fmt: skip
        watch = Stopwatch()
        encoded = None
        if isinstance(query, Mix):
            encoded = self._mixed(query)
        elif like is None:
            encoded = self._queries.of_one(query, image, vector)
        watch.lap("encode")
        if encoded is not None:
            plan, ((hits, steps),) = self._answering.answer([encoded], options, watch)
        else:
            self._whole([like], "like")
            with self.store.reading() as reader:
                row = self._item(reader, "like", like).row
                encoded = self._queries.of_vectors(reader.embeddings([row]))
                if reader.pending() is None:
                    plan, ((hits, steps),) = self._answering.answer_in(reader, [encoded], options, watch, row)
                    return SearchResult(hits, watch.finish(), steps, plan)
            filled = self._answering.fill([encoded], options, watch) or ()
            with self.store.reading() as reader:
                row = self._item(reader, "like", like).row
                plan, ((hits, steps),) = self._answering.answer_in(reader, [encoded], options, watch, row, filled)
        return SearchResult(hits, watch.finish(), steps, plan)

    async def asearch(self, query: str | Mix | None = None, **options: Unpack[SearchOptions]) -> SearchResult:
        """What :meth:`search` finds, without keeping an event loop waiting."""
        import asyncio

        return await asyncio.to_thread(lambda: self.search(query, **options))

    def search_many(
        self,
        queries: str | Iterable[str] | None = None,
        *,
        vectors: GivenVectors | None = None,
        k: int = 10,
        shortlist: int | Sequence[int] | None = None,
        exact: bool = False,
        where: str | None = None,
        offset: int = 0,
        threshold: float | None = None,
        group: bool | float = False,
        recall: float | None = None,
        missing: bool = False,
        rerank: Reranker | None = None,
        rerank_depth: int | None = None,
        fill: int = FILL,
        fill_seconds: float = FILL_SECONDS,
    ) -> list[SearchResult]:
        """What :meth:`search` finds for each of many texts or vectors, in less time than one by one.

        Texts are encoded as one batch, and the vectors of the index are looked at once for many queries. All answers
        are of the same commit; a writer's next commit waits until the last is found. For given vectors, hits and scores
        are those of :meth:`search` to the last bit; a text's vector may be rounded otherwise in a batch than alone.

        Args:
            queries: texts; a ``str`` is one.
            vectors: level name -> (queries, dim), for every level; or a (queries, dim) array, as in :meth:`search`.
            k: how many hits for each; this and what follows is as in :meth:`search`.
            shortlist: candidates that the coarse level hands on.
            exact: rank everything by the finest level instead.
            where: SQL condition that hits must meet.
            offset: hits to skip, for each query.
            threshold: leave out hits whose finest score is below this.
            group: fold hits of the same content (True), or as close as a cosine, into one.
            recall: share of the ten best to find at least.
            missing: find items whose files are gone, too.
            rerank: a fusion model that orders the first ranks of each text again.
            rerank_depth: how many ranks it orders.
            fill: pending pictures whose finer levels are computed now, at most, for all queries together.
            fill_seconds: after which no other picture is begun.

        Returns:
            One result a query, in their order; its timings are its share of the whole batch's.

        Raises:
            QueryError: if a query or an option makes no sense.
        """
        options = Options.of(
            self.levels, k=k, shortlist=shortlist, exact=exact, where=where, offset=offset, threshold=threshold,
            group=group, recall=recall, missing=missing, fill=fill, fill_seconds=fill_seconds,
        )  # fmt: skip
        if (queries is None) == (vectors is None):
            raise QueryError("give either texts or vectors")
        if rerank is not None:
            return search_reranked(
                self.search_many, queries, rerank, rerank_depth, k=k, shortlist=shortlist, exact=exact, where=where,
                offset=offset, threshold=threshold, group=group, recall=recall, missing=missing, fill=fill,
                fill_seconds=fill_seconds,
            )  # fmt: skip
        watch = Stopwatch()
        encoded = self._queries.of_many(queries, vectors)
        watch.lap("encode")
        plan, answers = self._answering.answer(encoded, options, watch)
        share = {name: round(value / max(1, len(answers)), 3) for name, value in watch.finish().items()}
        return [SearchResult(hits, dict(share), steps, plan) for hits, steps in answers]

    def query_vectors(
        self,
        query: str | Mix | None = None,
        *,
        image: Picture | str | None = None,
        like: int | str | Path | None = None,
        vector: GivenVectors | None = None,
    ) -> dict[str, Vectors]:
        """The (dim,) float32 unit vector of a query at each level, by its name; see :meth:`search`."""
        if isinstance(query, Mix):
            encoded = self._mixed(query)
        elif like is None:
            encoded = self._queries.of_one(query, image, vector)
        else:
            self._whole([like], "like")
            with self.store.reading() as reader:
                encoded = self._queries.of_vectors(reader.embeddings([self._item(reader, "like", like).row]))
        return dict(zip((level.name for level in self.levels), encoded, strict=True))

    def _mixed(self, mix: Mix) -> Query:
        """The vectors of a mixed query; what is no item is encoded before the index is read."""
        known: dict[int, Query] = {}
        for place, part in enumerate(mix.parts):
            if part.item is None:
                known[place] = self._queries.of_one(part.text, part.image, part.vectors)
        self._whole([part.item for part in mix.parts if part.item is not None])
        with self.store.reading() as reader:
            for place, part in enumerate(mix.parts):
                if part.item is not None:
                    rows = [self._item(reader, "item", part.item).row]
                    known[place] = self._queries.of_vectors(reader.embeddings(rows))
            vectors = mixed([(part.weight, known[place]) for place, part in enumerate(mix.parts)], reader)
        return self._queries.of_vectors(
            {level.name: vector for level, vector in zip(self.levels, vectors, strict=True)}
        )

    def _item(self, reader: Reader, name: str, item: Any) -> Item:
        if isinstance(item, (str, Path)):
            named = reader.named(str(item))
            if not named:
                raise ArgumentError(f"{name} must be a whole number, or the path of an item, not {str(item)!r:.80}")
            if len(named) > 1:
                raise QueryError(f"{self.path} has {len(named)} items in {item}: name one of them")
            return named[0]
        found = reader.get(whole_number(name, item))
        if found is None:
            raise QueryError(f"{self.path} has no item {item}")
        return found

    def tune(
        self,
        queries: Path | str | Iterable[str] | Vectors | None = None,
        *,
        recall: float = DEFAULT_RECALL,
        on_progress: TuneProgress | None = None,
    ) -> TuneReport:
        """Build the approximate index of this index, and measure on its own data what search parameters find and cost.

        Searches use it from then on; as items are added, it takes them in (see :meth:`refresh`). Tuning again without
        ``queries`` reuses those of the last time, what was learnt, codes and exact neighbours, and measures all search
        parameters; it trains anew where these do not reach the recall, and from twice the rows on.

        Args:
            queries: what people ask: texts, a file with a text a line (a ``str`` is its path), (m, dim) vectors of the
                finest level, or a ``.npy`` of them. By default those of the last time, or else captions of the index,
                words that the model knows, or the items, up to 5,000 of them sums of pairs.
            recall: what searches shall find that ask for nothing else.
            on_progress: called with what is done, how much of it, and of how much.

        Returns:
            The measured operating points (recall, its lower bound, times), which was chosen, and what it takes in
            memory.

        Raises:
            IndexFolderError: if the index is too small to need it, of an old format, or cannot be written.
            QueryError: if the queries make no sense.
        """
        if isinstance(queries, str):
            queries = Path(queries)
        elif isinstance(queries, Iterable) and not (isinstance(queries, np.ndarray) and queries.dtype.kind not in "UO"):
            queries = as_texts(queries)
        recall = real_number("recall", recall)
        from hivlp.index.tuning.jobs import tune

        report = tune(self.store, self._queries, queries, recall=recall, on_progress=on_progress)
        keep_derived(self.store)
        self._answering.snapshots.look_again()
        return report


def checked_codec(name: str) -> str:
    """The name of a codec.

    Raises:
        ArgumentError: if there is none of this name.
    """
    if name not in CODECS:
        raise ArgumentError(f"vectors are stored as {', '.join(CODECS)}, not {name!r:.40}")
    return name


def _loaded_from(model: Encoder, source: str | None) -> str:
    place = Path(source) if source is not None and Path(source).is_dir() else None
    return str(place.resolve()) if place else source or getattr(model, "source", "") or model.name
