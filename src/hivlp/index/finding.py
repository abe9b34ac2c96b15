"""Finding photos: a search as a person means it, over :meth:`hivlp.index.Index.search`.

Filters by words, hits whose files are there, an end where scores fall off, in the order of scores or dates.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hivlp.errors import QueryError
from hivlp.index.index import Index
from hivlp.index.mixing import sample_rows
from hivlp.index.photo_filter import PhotoFilter, joined, why_nothing
from hivlp.search.options import Options, whole_number
from hivlp.search.results import Hit, SearchResult
from hivlp.store.lookup import Shown

ORDERS = ("score", "newest", "oldest")
MOST_GONE = 200
"""Hits whose files are gone after which no others are looked for."""
CUT_MOST = 200
"""Hits among which the cut is made where nobody says how many are wanted."""
DATED_MOST = 1000
"""Hits, the best by score, that an order by date puts in order."""
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
        total: hits on all pages, where they come by date; None by score, which has no end but the collection's.
    """

    result: SearchResult
    gone: tuple[int, ...] = ()
    cut: float | None = None
    hint: str | None = None
    next_offset: int = 0
    total: int | None = None

    def to_json(self, *, explain: bool = False) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        data = self.result.to_json(explain=explain)
        if self.gone:
            data["gone"] = list(self.gone)
        if self.cut is not None:
            data["cut"] = round(self.cut, 4)
        if self.total is not None:
            data["total"] = self.total
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
        order: ``score``; or by date, ``newest`` or ``oldest`` first and those without a date last. By date come the
            1,000 best hits, or with ``cut`` or a ``threshold`` those of them that are above it, of which ``k`` and
            ``offset`` give a page.
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
    wanted = Options(
        k=whole_number("k", k) if k is not None else CUT_MOST if cut else 10, offset=whole_number("offset", offset)
    )
    shown = sorted({whole_number("seen", item) for item in seen})
    unseen = f"id NOT IN ({', '.join(map(str, shown))})" if shown else None
    filtered = joined(None if photo_filter is None else photo_filter.where, where)
    options = {**options, "where": joined(filtered, unseen), "missing": missing}
    if query is None and all(options.get(name) is None for name in ("image", "like", "vector")):
        result = _browsed(index, options["where"], wanted.k, offset, missing, order)
        hint = why_nothing(index, photo_filter) if not result and photo_filter is not None and not offset else None
        return Found(result, hint=hint, next_offset=offset + len(result))
    if order != "score":
        return _by_date(index, query, {**options, "where": filtered}, photo_filter, order, cut, wanted, {*shown})
    found = _ranked(index, query, options, wanted)
    least = _cut(index, query, {**options, "where": filtered}) if cut and found.result else None
    return _ended(index, found, least, photo_filter if not offset else None)


def _ranked(index: Index, query: Any, options: dict[str, Any], wanted: Options) -> Found:
    """A page by score of the hits whose files are there."""
    result = index.search(query, k=wanted.k, offset=wanted.offset, **options)
    hits, gone, place = list[Hit](), list[int](), wanted.offset
    page = result
    while True:
        place += len(page)
        checked = list(page) if options["missing"] or index.maps is not None else [_there(hit) for hit in page]
        there = [hit for hit in checked if hit is not None]
        hits += there
        gone += [hit.id for hit, found in zip(page, checked, strict=True) if found is None]
        # Files that went since the last walk: others take their places, as many as are on the same disk, or none.
        if len(hits) >= wanted.k or len(page) < wanted.k - len(hits) + len(there) or len(gone) >= MOST_GONE:
            break
        page = index.search(query, k=wanted.k - len(hits), offset=place, **options)
    found = SearchResult(hits, result.timings_ms, result.plan, result.chosen)
    return Found(found, tuple(gone), next_offset=place)


def _ended(index: Index, found: Found, least: float | None, photo_filter: PhotoFilter | None) -> Found:
    """The hits that the cut leaves, and what to know where there are none."""
    result, hint = found.result, None
    if least is not None:
        level = index.levels[-1].name
        result = _with_hits(result, [hit for hit in result if hit.scores.get(level, -math.inf) >= least])
    if not result and not found.gone and photo_filter is not None:
        hint = why_nothing(index, photo_filter)
    elif found.gone and not result:
        hint = "the files of all hits are gone: `hivlp relocate` tells the index where they are now"
    return replace(found, result=result, cut=least, hint=hint)


def _by_date(
    index: Index,
    query: Any,
    options: dict[str, Any],
    photo_filter: PhotoFilter | None,
    order: str,
    cut: bool,
    wanted: Options,
    shown: set[int],
) -> Found:
    """A page by date of the best hits, all of which are looked for, so that pages are parts of one list."""
    found = _ranked(index, query, options, Options(k=DATED_MOST))
    least = _cut(index, query, options) if cut and found.result else None
    found = _ended(index, found, least, photo_filter)
    hits = [hit for hit in found.result if hit.id not in shown]
    undated = [hit for hit in hits if not isinstance(hit.metadata.get("taken"), str)]
    dated = [hit for hit in hits if isinstance(hit.metadata.get("taken"), str)]
    dated.sort(key=lambda hit: hit.metadata["taken"], reverse=order == "newest")
    page = [*dated, *undated][wanted.offset : wanted.offset + wanted.k]
    return replace(found, result=_with_hits(found.result, page), next_offset=wanted.offset + len(page), total=len(hits))


def _with_hits(result: SearchResult, hits: list[Hit]) -> SearchResult:
    return SearchResult(hits, result.timings_ms, result.plan, result.chosen)


def _there(hit: Hit) -> Hit | None:
    """A hit as far as its files are there: one that is folded into it takes its place if its own is gone."""
    same = None if hit.duplicates is None else [each for each in hit.duplicates if os.path.lexists(each.path)]
    if os.path.lexists(hit.path):
        return hit._replace(duplicates=same)
    return hit._replace(id=same[0].id, path=same[0].path, duplicates=same[1:]) if same else None


def _cut(index: Index, query: Any, options: dict[str, Any]) -> float | None:
    """The finest score at which hits end, whatever was shown before; None where all items are pending."""
    level = index.levels[-1].name
    vector = index.query_vectors(query, **{name: options.get(name) for name in ("image", "like", "vector")})[level]
    with index.store.reading() as reader:
        scores = reader.embeddings(sample_rows(reader, CUT_SAMPLE))[level] @ vector
    if not len(scores):
        return None
    best = index.search(query, k=1, **options)
    top, mean, spread = best[0].scores.get(level, 1.0) if len(best) else 1.0, float(scores.mean()), float(scores.std())
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
