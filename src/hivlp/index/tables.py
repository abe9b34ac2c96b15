"""Vectors in memory into an index, and an index out into an Arrow table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hivlp.coarse.maps import CoarseMaps, NoCoarseLevel
from hivlp.errors import ArgumentError, MissingExtraError
from hivlp.levels import Embeddings
from hivlp.search.options import whole_number
from hivlp.store.folder import Store
from hivlp.store.reader import Reader
from hivlp.store.records import Item

if TYPE_CHECKING:
    import pyarrow as pa

    from hivlp.coarse.choose import Method
    from hivlp.data.vectors.source import EmbeddingSource

PAGE = 4096
COLUMN = "embedding"


def coarse_maps(
    source: EmbeddingSource,
    queries: Any = None,
    *,
    dims: int,
    method: Method | Literal["none"],
) -> CoarseMaps | NoCoarseLevel:
    """What makes the coarse level of given vectors, fitted to a sample of them; none where it would not be shorter.

    Args:
        source: of the vectors.
        queries: (m, d) vectors as they will be asked for; default the items themselves.
        dims: of the coarse level.
        method: see :func:`hivlp.coarse.fit_coarse`; ``none`` makes no coarse level.

    Raises:
        ArgumentError: if there is no such method, or ``dims`` is no whole number.
        DataError: if queries or ``dims`` do not fit the vectors.
    """
    from hivlp.coarse.choose import SAMPLE_ITEMS, SAMPLE_QUERIES, check_method, fit_coarse
    from hivlp.data.vectors.given import given_vectors

    if method != "none":
        check_method(method)
    if method == "none" or source.dim <= whole_number("dims", dims):
        return NoCoarseLevel(source.dim)
    asked = None if queries is None else given_vectors(queries).sample(SAMPLE_QUERIES)
    return fit_coarse(source.sample(SAMPLE_ITEMS), asked, dims=dims, method=method).maps


def temporary_folder() -> tuple[Path, Callable[[], None]]:
    """A new folder for an index that nobody wants to keep, and what removes it."""
    home = tempfile.TemporaryDirectory(prefix="hivlp-", ignore_cleanup_errors=True)
    return Path(home.name) / "index", home.cleanup


def to_arrow(store: Store, levels: Sequence[str] | None, *, where: str | None = None) -> pa.Table:
    """All items as a table; see :meth:`hivlp.index.Index.to_arrow`."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("to_arrow", "data") from error
    known = [level.name for level in store.levels]
    if not isinstance(levels, Iterable | None):
        raise ArgumentError(f"levels are called by their names, not {levels!r:.40}")
    names = known[-1:] if levels is None else [levels] if isinstance(levels, str) else list(levels)
    for name in names:
        if name not in known:
            raise ArgumentError(f"there is no level {name!r:.40}: there are {', '.join(known)}")
    items: list[Item] = []
    parts: list[Embeddings] = []
    with store.reading() as reader:
        passing = None if where is None else set(reader.rows_where(where).rows)
        page: list[Item] = []
        for item in reader.all_items():
            if passing is None or item.row in passing:
                page.append(item)
            if len(page) == PAGE:
                parts.append(_vectors(reader, page, names, known[1:]))
                items += page
                page = []
        parts.append(_vectors(reader, page, names, known[1:]))
        items += page
    columns: dict[str, Any] = {
        "id": pa.array([item.id for item in items], pa.int64()),
        "path": pa.array([item.path.encode("utf-8", "backslashreplace").decode() for item in items], pa.string()),
        "caption": pa.array([item.caption for item in items], pa.string()),
    }
    own = {*columns, COLUMN, *known}
    for key in dict.fromkeys(key for item in items for key in item.metadata):
        columns[f"metadata.{key}" if key in own else key] = _column([item.metadata.get(key) for item in items])
    for name in names:
        vectors = np.concatenate([part[name] for part in parts])
        numbers = pa.array(vectors.reshape(-1), pa.float32())
        column = COLUMN if name == known[-1] else name
        columns[column] = pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
    return pa.table(columns)


def _vectors(reader: Reader, items: Sequence[Item], names: Sequence[str], finer: Sequence[str]) -> Embeddings:
    """The vectors of some items; pending ones are refused only where a finer level is asked for."""
    return reader.embeddings([item.row for item in items], check=True, whole=bool({*names} & {*finer}))


def _column(values: list[Any]) -> Any:
    """Values of one key of the metadata; as JSON text where they are of several types."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])
