"""An index of vectors that somebody has already: fit a coarse level to a sample of them, then store them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hivlp.coarse.choose import SAMPLE_ITEMS, SAMPLE_QUERIES, Fitted, Method, fit_coarse
from hivlp.coarse.maps import CoarseMaps, NoCoarseLevel
from hivlp.data.vectors.source import EmbeddingSource, has_texts, open_embeddings
from hivlp.encode.base import Encoder
from hivlp.errors import ArgumentError, DataError, IndexFolderError
from hivlp.index.adding.report import AddReport
from hivlp.index.index import DIMS, Index
from hivlp.search.calibration import Progress
from hivlp.store.codec import FLOAT16
from hivlp.store.fields.declared import checked_fields
from hivlp.store.making import check_free, new_or_nothing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingsReport:
    """What :func:`index_embeddings` did.

    Attributes:
        added: what was stored.
        fit: how the coarse level came about; None if the index had one, or has none.
    """

    added: AddReport
    fit: Fitted | None

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp index --embeddings --json`` prints."""
        return {**self.added.to_json(), "fit": self.fit.to_json() if self.fit else None}


def index_embeddings(
    out: Path | str,
    source: Path | str,
    *,
    column: str | None = None,
    queries: Path | str | None = None,
    dims: int | None = None,
    method: Method | Literal["none"] | None = None,
    vectors: str | None = None,
    fields: Mapping[str, str] | None = None,
    model: Encoder | None = None,
    model_source: str | None = None,
    on_fit: Callable[[int, int], None] | None = None,
    on_progress: Callable[[AddReport], None] | None = None,
    on_tune: Progress | None = None,
) -> EmbeddingsReport:
    """Make an index of given vectors, or add what is new or changed to one that exists.

    Args:
        out: the index folder.
        source: see :func:`hivlp.data.vectors.source.open_embeddings`.
        column: of parquet that holds the vectors; default ``embedding``.
        queries: vectors as they will be asked for, to fit to, in one of those formats; default the texts of a
            clip-retrieval folder, otherwise the items themselves. An existing index keeps its coarse level.
        dims: of the coarse level, default 64; an existing index must have so many.
        method: see :func:`hivlp.coarse.fit_coarse`, default ``distill``; ``none`` stores no coarse level, for an index
            that will be tuned. An existing index must have a coarse level if one is asked for, and none otherwise.
        vectors: codec of the finest level, see :meth:`hivlp.index.Index.create`; an existing index must have this one.
        fields: keys of the metadata that conditions name like columns, and their types, see
            :meth:`hivlp.index.Index.declare`; those of an existing index stay declared.
        model: that made the vectors, if texts and pictures shall be searched for without naming it again.
        model_source: how to load it again (a name or folder); default its name.
        on_fit: called with how much of the learning is done, and of how much.
        on_progress: called after each commit with what is stored by then.
        on_tune: called while the approximate index of a tuned index takes in what was added.

    Raises:
        ArgumentError: if ``dims`` or ``queries`` of a coarse level are given, and ``method`` is ``none``.
        DataError: if vectors cannot be read or do not fit, or the column of a source that has none is named.
        IndexFolderError: if an existing index is not as ``dims``, ``method`` and ``vectors`` say; see also
            :meth:`hivlp.index.Index.add_embeddings`.
    """
    if method == "none" and (dims is not None or queries is not None):
        raise ArgumentError("fit none makes no coarse level: it cannot be given with dims or queries")
    source = Path(source)
    embeddings = open_embeddings(source, column=column)
    if column is not None and not embeddings.has_columns:
        raise DataError(f"{source} holds no parquet, of which a column could be {column}")
    if Index.exists(out):
        with Index.open(out, model) as index:
            check_codec(index, vectors)
            _check_coarse(index, dims, method)
            if queries is not None or method not in (None, "none"):
                logger.warning("%s keeps the coarse level that it was made with: nothing is fitted again", out)
            index.declare(fields or {})
            return EmbeddingsReport(index.add_embeddings(embeddings, on_progress=on_progress, on_tune=on_tune), None)
    checked_fields(fields)
    check_free(Path(out))  # before minutes go into the fit
    fitted: Fitted | None = None
    maps: CoarseMaps | NoCoarseLevel = NoCoarseLevel(embeddings.dim)
    if method != "none":
        fitted = _fit(source, embeddings, column, queries, DIMS if dims is None else dims, method or "distill", on_fit)
        maps = fitted.maps
    codec = vectors or FLOAT16.name
    with (
        new_or_nothing(Path(out)),
        Index.create_from_embeddings(
            out, maps, model=model, source=model_source, vectors=codec, fields=fields
        ) as index,
    ):
        report = index.add_embeddings(embeddings, on_progress=on_progress, on_tune=on_tune)
        if report.failed and not report.items:
            first = report.failed[0]
            raise DataError(f"none of {len(report.failed)} vectors can be stored: {first.path}: {first.error}")
    return EmbeddingsReport(report, fitted)


def check_codec(index: Index, vectors: str | None) -> None:
    """Check that an index stores its finest level by the codec that was asked for, if one was.

    Raises:
        IndexFolderError: if not.
    """
    stored = index.info().vectors
    if vectors not in (None, stored):
        raise IndexFolderError(f"{index.path} stores {stored} vectors, not {vectors}: make a new index for that")


def _check_coarse(index: Index, dims: int | None, method: str | None) -> None:
    coarse = index.levels[0].dim if len(index.levels) > 1 else None
    if coarse is None and (dims is not None or method not in (None, "none")):
        raise IndexFolderError(f"{index.path} has no coarse level: make a new index for one")
    if coarse is not None and (method == "none" or dims not in (None, coarse)):
        wanted = "none" if method == "none" else dims
        raise IndexFolderError(
            f"{index.path} has a coarse level of {coarse} dims, not {wanted}: make a new index for that"
        )


def _fit(
    source: Path,
    embeddings: EmbeddingSource,
    column: str | None,
    queries: Path | str | None,
    dims: int,
    method: Method,
    on_fit: Callable[[int, int], None] | None,
) -> Fitted:
    """A coarse level for a sample of the vectors, and of the queries that will be asked."""
    if queries is None and has_texts(source):
        queries = source
    asked = None
    if queries is not None:
        asked = open_embeddings(queries, column=column, texts=has_texts(Path(queries))).sample(SAMPLE_QUERIES)
    return fit_coarse(embeddings.sample(SAMPLE_ITEMS), asked, dims=dims, method=method, on_progress=on_fit)
