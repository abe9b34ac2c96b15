"""Finding photos: a search as a person means it, over :meth:`hivlp.index.Index.search`.

Filters by words, hits whose files are there, an end where scores fall off, in the order of scores or dates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hivlp.errors import QueryError
from hivlp.index.index import Index
from hivlp.index.mixing import sample_rows
from hivlp.index.photo_filter import PhotoFilter, joined, why_nothing
from hivlp.search.options import whole_number
from hivlp.search.results import Hit, SearchResult
from hivlp.store.lookup import Shown

ORDERS = ("score", "newest", "oldest")
MOST_GONE = 200
"""Hits whose files are gone after which no others are looked for."""
CUT_MOST = 200
"""Hits among which the cut is made where nobody says how many are wanted."""
CUT_SAMPLE = 1024
_BLOCK = 1000
CUT_SHARE, CUT_SPREADS = 0.6, 2.0
"""The cut: at least so far from the collection's mean score to the best hit's, and so many standard deviations above
the mean. A flat threshold suits no query: the best score of one is below the mean of another."""


@dataclass(frozen=True)
class Found:
    """Photos that were found.

    Attributes:
        result: the hits in the order that was asked for, and how they were found; ranks are those by score.
        gone: ids of hits that are left out because their files are not there.
        cut: score below which hits were left out; None without a cut.
        hint: what to know where nothing was found.
        next_offset: ``offset`` of the next page.
    """

    result: SearchResult
    gone: tuple[int, ...] = ()
    cut: float | None = None
    hint: str | None = None
    next_offset: int = 0

    def to_json(self, *, explain: bool = False) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        data = self.result.to_json(explain=explain)
        if self.gone:
            data["gone"] = list(self.gone)
        if self.cut is not None:
            data["cut"] = round(self.cut, 4)
        return data if self.hint is None else {**data, "hint": self.hint}


def find(
    index: Index,
    query: Any = None,
    *,
    photo_filter: PhotoFilter | None = None,
    where: str | None = None,
    k: int | None = None,
    offset: int = 0,
    order: str = "score",
    cut: bool = False,
    seen: Iterable[int] = (),
    missing: bool = False,
    **options: Any,
) -> Found:
    """Find photos.

    Args:
        index: where.
        query: text, or a :class:`hivlp.index.mixing.Mix`; or ``image``, ``like`` or ``vector`` among the options. With
            none of them, all photos that meet the filters, by date.
        photo_filter: what must be known of them.
        where: a condition in SQL that they must meet besides.
        k: how many at most; default 10, with ``cut`` 200.
        offset: hits to skip.
        order: ``score``, or of the hits of this page ``newest`` or ``oldest`` first, those without a date last.
        cut: leave out hits whose scores have fallen off: those less than 0.6 of the way from the mean score of the
            collection to the best hit's, or within two standard deviations of it.
        seen: ids of items that were shown already, which are left out.
        missing: show items whose files are gone, too.
        options: as :meth:`hivlp.index.Index.search` takes them.

    Raises:
        QueryError: as :meth:`hivlp.index.Index.search`.
    """
    if order not in ORDERS:
        raise QueryError(f"order is {', '.join(ORDERS)}, not {order!r:.40}")
    count = whole_number("k", k) if k is not None else CUT_MOST if cut else 10
    shown = sorted({whole_number("seen", item) for item in seen})
    unseen = f"id NOT IN ({', '.join(map(str, shown))})" if shown else None
    filtered = joined(None if photo_filter is None else photo_filter.where, where)
    options = {**options, "where": joined(filtered, unseen), "missing": missing}
    if query is None and all(options.get(name) is None for name in ("image", "like", "vector")):
        result = _browsed(index, options["where"], count, offset, missing, order)
        hint = why_nothing(index, photo_filter) if not result and photo_filter is not None and not offset else None
        return Found(result, hint=hint, next_offset=offset + len(result))
    result = index.search(query, k=count, offset=offset, **options)
    hits, gone, place = list[Hit](), list[int](), offset
    page = result
    while True:
        place += len(page)
        checked = list(page) if missing or index.maps is not None else [_there(hit) for hit in page]
        there = [hit for hit in checked if hit is not None]
        hits += there
        gone += [hit.id for hit, found in zip(page, checked, strict=True) if found is None]
        # Files that went since the last walk: others take their places, as many as are on the same disk, or none.
        if len(hits) >= count or len(page) < count - len(hits) + len(there) or len(gone) >= MOST_GONE:
            break
        page = index.search(query, k=count - len(hits), offset=place, **options)
    least = _cut(index, query, {**options, "where": filtered}) if cut and hits else None
    if least is not None:
        hits = [hit for hit in hits if hit.scores[index.levels[-1].name] >= least]
    hint = None
    if not hits and not gone and photo_filter is not None and offset == 0:
        hint = why_nothing(index, photo_filter)
    elif gone and not hits:
        hint = "the files of all hits are gone: `hivlp relocate` tells the index where they are now"
    found = SearchResult(_ordered(hits, order), result.timings_ms, result.plan, result.chosen)
    return Found(found, tuple(gone), least, hint, place)


def _there(hit: Hit) -> Hit | None:
    """A hit as far as its files are there: one that is folded into it takes its place if its own is gone."""
    same = None if hit.duplicates is None else [each for each in hit.duplicates if os.path.lexists(each.path)]
    if os.path.lexists(hit.path):
        return hit._replace(duplicates=same)
    return hit._replace(id=same[0].id, path=same[0].path, duplicates=same[1:]) if same else None


def _ordered(hits: list[Hit], order: str) -> list[Hit]:
    if order == "score":
        return hits
    dated = [hit for hit in hits if isinstance(hit.metadata.get("taken"), str)]
    dated.sort(key=lambda hit: hit.metadata["taken"], reverse=order == "newest")
    return dated + [hit for hit in hits if hit not in dated]


def _cut(index: Index, query: Any, options: dict[str, Any]) -> float:
    """The finest score at which hits end, whatever was shown before."""
    level = index.levels[-1].name
    vector = index.query_vectors(query, **{name: options.get(name) for name in ("image", "like", "vector")})[level]
    with index.store.reading() as reader:
        scores = reader.embeddings(sample_rows(reader, CUT_SAMPLE))[level] @ vector
    best = index.search(query, k=1, **options)
    top, mean, spread = best[0].scores[level] if len(best) else 1.0, float(scores.mean()), float(scores.std())
    # As few items as have no spread to speak of are all shown that lie above the share.
    return max(mean + CUT_SHARE * (top - mean), min(mean + CUT_SPREADS * spread, top))


def _browsed(index: Index, condition: str | None, count: int, offset: int, missing: bool, order: str) -> SearchResult:
    """Photos that nothing is asked of but what is known of them, by their dates, newest first unless oldest."""
    started = time.perf_counter()
    oldest = order == "oldest"
    kept: list[tuple[tuple[bool, str, int], Shown]] = []
    with index.store.reading() as reader:
        gone = set() if missing or index.maps is not None else set(reader.missing_rows())
        rows = [row for row in reader.rows_where("1" if condition is None else condition).rows if row not in gone]
        for start in range(0, len(rows), _BLOCK):
            items = reader.shown(rows[start : start + _BLOCK]).values()
            kept += [(_dated(item), item) for item in items if missing or _is_there(index, item)]
            # Those without a date come last either way.
            kept.sort(key=lambda pair: pair[0][1:], reverse=not oldest)
            kept.sort(key=lambda pair: pair[0][0], reverse=True)
            del kept[offset + count :]
    hits = [
        Hit(rank, item.id, item.path, item.caption, {}, item.metadata)
        for rank, (_, item) in enumerate(kept[offset:], start=offset + 1)
    ]
    return SearchResult(hits, {"total": round(1000 * (time.perf_counter() - started), 3)})


def _dated(item: Shown) -> tuple[bool, str, int]:
    taken = item.metadata.get("taken")
    return isinstance(taken, str), taken if isinstance(taken, str) else "", item.id


def _is_there(index: Index, item: Shown) -> bool:
    return index.maps is not None or os.path.lexists(item.path)
