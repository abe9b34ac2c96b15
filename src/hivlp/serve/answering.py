"""Answering searches: several at once where they ask in the same way, each as :func:`hivlp.index.find` would alone."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from hivlp.errors import QueryError
from hivlp.index import Found, Hit, Index, Mix, PhotoFilter, SearchResult, find
from hivlp.index.mixing import Part
from hivlp.index.photo_filter import joined
from hivlp.levels import DEFAULT_SHORTLIST
from hivlp.serve.browsing import Browsing
from hivlp.serve.metrics import Metrics
from hivlp.serve.models import SearchRequest, Term
from hivlp.serve.parameters import bound
from hivlp.serve.replies import encoded_json
from hivlp.serve.served import Served
from hivlp.serve.vectors import numbers

MOST_INSPECTED = 10_000
"""Hits whose moves between levels are told."""
QueryVectors = Mapping[str, Any]
"""The vectors of a term, by the names of levels."""


@dataclass
class Search:
    """A search that is to be answered.

    Attributes:
        served: the index that is asked.
        request: what is asked.
        pictures: place of a term -> the vectors of its picture, which was decoded and encoded before.
    """

    served: Served
    request: SearchRequest
    pictures: Mapping[int, QueryVectors]

    @cached_property
    def terms(self) -> list[Term]:
        """The query as terms."""
        query = self.request.query
        if query is None:
            return []
        return [Term(text=query)] if isinstance(query, str) else query

    @property
    def plain(self) -> bool:
        """Whether it takes a millisecond or two, as most do; the others have threads of their own."""
        asked = self.request
        slow = asked.where or asked.filter or asked.seen or asked.cut or asked.exact or asked.inspect or asked.missing
        near = asked.order == "relevance" and asked.k <= 200 and asked.offset <= 1000
        few = (asked.shortlist is None or asked.shortlist <= 1000) and (
            asked.group in (False, True) or asked.group > 0.9
        )
        return bool(asked.query) and not slow and near and few

    @property
    def is_vector(self) -> bool:
        """Whether its query is vectors alone, so that no model has to run."""
        query = self.request.query
        return isinstance(query, list) and all(term.vector is not None for term in query)

    def condition(self) -> str | None:
        """What the hits must meet, in SQL, the photo filter left out."""
        where, params = self.request.where, self.request.params
        if where is None:
            if params:
                raise QueryError("params go with where")
            return None
        return bound(where, params)

    def photo_filter(self) -> PhotoFilter | None:
        """What must be known of the hits."""
        asked = self.request.filter
        return None if asked is None else PhotoFilter(**msgspec.structs.asdict(asked))

    def options(self) -> dict[str, Any]:
        """Options of :meth:`hivlp.index.Index.search` and its kin."""
        asked = self.request
        names = ("exact", "shortlist", "threshold", "recall", "group")
        return {name: getattr(asked, name) for name in names}


class Answerer:
    """What answers searches of any number of indexes, in any number of threads."""

    def __init__(self, metrics: Metrics) -> None:
        """Nothing is answered yet.

        Args:
            metrics: where the stages' times are told.
        """
        self._metrics, self._browsing = metrics, Browsing()

    def answer(self, searches: Sequence[Search]) -> list[bytes | Exception]:
        """The JSON of each search's answer, or why there is none."""
        answers: list[bytes | Exception | None] = [None] * len(searches)
        started = time.perf_counter()
        queries = self._encoded(searches, answers)
        encode_ms = 1000 * (time.perf_counter() - started)
        for places in _alike(searches, queries, answers):
            self._plainly(searches, queries, places, answers, encode_ms)
        for place, search in enumerate(searches):
            if answers[place] is None:
                try:
                    answers[place] = self._one(search, queries[place], encode_ms)
                except Exception as error:
                    answers[place] = error
        return [QueryError("there is no answer") if answer is None else answer for answer in answers]

    def at_once(self, search: Search) -> bytes | None:
        """The JSON of the answer to a plain search by vectors; None where :meth:`answer` has to look closer."""
        asked, index, query = search.request, search.served.index, self._query(search, {})
        if "vector" not in query:
            return None
        result = index.search(vector=query["vector"], k=asked.k, offset=asked.offset, **search.options())
        return self._told(search, Found(result), 0.0, {}) if _is_there(index, result) else None

    # Queries.

    def _encoded(self, searches: Sequence[Search], answers: list[bytes | Exception | None]) -> list[dict[str, Any]]:
        """What each search looks for, as options of :func:`hivlp.index.find`; texts of an index are one batch."""
        texts: dict[int, list[str]] = defaultdict(list)
        for search in searches:
            texts[id(search.served)] += [term.text for term in search.terms if term.text is not None]
        known: dict[tuple[int, str], QueryVectors] = {}
        served = {id(search.served): search.served for search in searches}
        for number, words in texts.items():
            unique = list(dict.fromkeys(word for word in words if word.strip()))
            if unique:
                try:
                    encoded = served[number].text_vectors(unique)
                except Exception as error:
                    for place, search in enumerate(searches):
                        if id(search.served) == number and any(term.text is not None for term in search.terms):
                            answers[place] = error
                    continue
                known.update({(number, word): row for word, row in zip(unique, encoded, strict=True)})
        queries: list[dict[str, Any]] = []
        for place, search in enumerate(searches):
            try:
                queries.append({} if answers[place] is not None else self._query(search, known))
            except Exception as error:
                answers[place] = error
                queries.append({})
        return queries

    def _query(self, search: Search, known: Mapping[tuple[int, str], QueryVectors]) -> dict[str, Any]:
        terms, levels = search.terms, search.served.index.levels
        if isinstance(search.request.query, list) and not terms:
            raise QueryError("the query is an empty list: leave it out to browse")
        parts = []
        for place, term in enumerate(terms):
            given = [name for name in ("text", "upload", "image", "item", "vector") if getattr(term, name) is not None]
            if len(given) != 1:
                raise QueryError(f"term {place + 1} needs exactly one of text, upload, image, item and vector")
            if term.item is not None:
                parts.append(Part(term.weight, item=term.item))
                continue
            if term.text is not None:
                if not term.text.strip():
                    raise QueryError("the query is empty")
                vectors = known[id(search.served), term.text]
            elif term.vector is not None:
                by_level = term.vector if isinstance(term.vector, dict) else {levels[-1].name: term.vector}
                vectors = {name: numbers(value) for name, value in by_level.items()}
            else:
                vectors = search.pictures[place]
            parts.append(Part(term.weight, vectors=vectors))
        if not parts:
            return {}
        if len(parts) > 1 or parts[0].weight <= 0:
            return {"query": Mix(tuple(parts))}
        return {"like": parts[0].item} if parts[0].item is not None else {"vector": parts[0].vectors}

    # Answers.

    def _plainly(
        self,
        searches: Sequence[Search],
        queries: Sequence[dict[str, Any]],
        places: list[int],
        answers: list[bytes | Exception | None],
        encode_ms: float,
    ) -> None:
        """Answer plain searches that differ in their vectors alone, which need nothing that :func:`find` adds.

        What does not work out so is left to :meth:`_one`.
        """
        first = searches[places[0]]
        asked, index, vector = first.request, first.served.index, queries[places[0]]["vector"]
        options = {"k": asked.k, "offset": asked.offset, **first.options()}
        try:
            if len(places) == 1:
                results = [index.search(vector=vector, **options)]
            else:
                vectors = {name: np.stack([queries[place]["vector"][name] for place in places]) for name in vector}
                results = index.search_many(vectors=vectors, **options)
        except Exception:  # one of them may be at fault: each is told its own
            return
        for place, result in zip(places, results, strict=True):
            if _is_there(index, result):
                try:
                    answers[place] = self._told(searches[place], Found(result), encode_ms, {})
                except Exception as error:
                    answers[place] = error

    def _one(self, search: Search, query: dict[str, Any], encode_ms: float) -> bytes:
        asked, index = search.request, search.served.index
        condition = search.condition()
        if asked.inspect and asked.offset + asked.k > MOST_INSPECTED:
            raise QueryError(f"a search is inspected down to its {MOST_INSPECTED:,}th hit")
        if not query:
            return self._browsed(search, condition)
        found = find(
            index, query.get("query"), photo_filter=search.photo_filter(), where=condition, k=asked.k,
            offset=asked.offset, order="score" if asked.order == "relevance" else asked.order, cut=asked.cut,
            seen=asked.seen, missing=asked.missing, like=query.get("like"), vector=query.get("vector"),
            **search.options(),
        )  # fmt: skip
        more: dict[str, Any] = {"gone": list(found.gone)} if found.gone else {}
        more |= {} if found.cut is None else {"cut": round(found.cut, 4)}
        more |= {} if found.hint is None else {"hint": found.hint}
        if asked.inspect:
            where = joined(None if (words := search.photo_filter()) is None else words.where, condition)
            more["inspect"] = {"stages": inspected(search, query, where)}
        return self._told(search, found, encode_ms, more)

    def _browsed(self, search: Search, condition: str | None) -> bytes:
        asked = search.request
        words = search.photo_filter()
        unseen = f"id NOT IN ({', '.join(map(str, asked.seen))})" if asked.seen else None
        result, total = self._browsing.page(
            search.served.index, joined(None if words is None else words.where, condition, unseen),
            oldest=asked.order == "oldest", offset=asked.offset, k=asked.k, missing=asked.missing,
        )  # fmt: skip
        end = asked.offset + asked.k
        return encoded_json(
            {
                **result.to_json(),
                "hits": [hit_json(search.served, hit) for hit in result],
                "total": total,
                "next_offset": end if end < total else None,
            }
        )

    def _told(self, search: Search, found: Found, encode_ms: float, more: dict[str, Any]) -> bytes:
        asked, result = search.request, found.result
        hits = [hit_json(search.served, hit) for hit in result]
        timings = dict(result.timings_ms)
        if any(term.text is not None for term in search.terms):
            timings["encode"] = round(encode_ms, 3)
            timings["total"] = round(timings.get("total", 0.0) + encode_ms, 3)
        for stage, milliseconds in timings.items():
            self._metrics.stage.observe(milliseconds / 1000, stage)
        narrowed = asked.where or asked.filter or asked.seen or asked.cut or asked.group or asked.missing
        data: dict[str, Any] = {"hits": hits, "timings_ms": timings, "plan": result.plan}
        if asked.explain:
            data["explain"] = None if result.chosen is None else result.chosen.to_json()
        end = found.next_offset or asked.offset + len(hits)
        if found.total is None:
            data["total"] = None if narrowed or asked.threshold is not None else search.served.count()
            data["next_offset"] = end if len(hits) >= asked.k else None
        else:
            data["total"], data["next_offset"] = found.total, end if end < found.total else None
        return encoded_json({**data, **more})


def _is_there(index: Index, result: SearchResult) -> bool:
    """Whether all hits may be shown: :func:`find` puts others in the place of those whose files are gone."""
    return index.maps is not None or all(os.path.lexists(hit.path) for hit in result)


def _alike(
    searches: Sequence[Search], queries: Sequence[Mapping[str, Any]], answers: Sequence[object]
) -> Iterable[list[int]]:
    """Places of plain searches by vectors that are not answered yet, those together that ask in the same way."""
    plain = [
        place
        for place, search in enumerate(searches)
        if answers[place] is None and search.plain and "vector" in queries[place]
    ]
    if len(plain) < 2:
        return [plain] if plain else []
    together: dict[Any, list[int]] = defaultdict(list)
    for place in plain:
        search, asked = searches[place], searches[place].request
        key = (id(search.served.index), asked.k, asked.offset, tuple(sorted(search.options().items())))
        together[(*key, tuple(queries[place]["vector"]))].append(place)
    return together.values()


def hit_json(served: Served, hit: Hit) -> dict[str, Any]:
    """A hit as ``hivlp search --json`` prints it, with what a page needs to show it."""
    metadata, place = hit.metadata, f"/indexes/{served.name}/items/{hit.id}"
    known = metadata.get
    return {
        **hit.to_json(), "metadata": metadata, "width": known("width"), "height": known("height"),
        "taken": known("taken"), "thumbnail": f"{place}/thumbnail", "original": f"{place}/original",
    }  # fmt: skip


def inspected(search: Search, query: dict[str, Any], where: str | None) -> list[dict[str, Any]]:
    """What each level makes of the candidates of a search: id, rank by the level before, rank, score.

    The candidates are those that the coarse level hands on, so many at least as are shown.
    """
    asked, index = search.request, search.served.index
    count = max(DEFAULT_SHORTLIST, asked.offset + asked.k)
    found = index.search(
        query.get("query"), like=query.get("like"), vector=query.get("vector"), k=count, shortlist=count, where=where
    )
    stages, before = [], dict[int, int]()
    for level in index.levels:
        ordered = sorted(found.hits, key=lambda hit: -hit.scores[level.name])
        ranks = [
            [hit.id, before.get(hit.id), rank, hit.scores[level.name]] for rank, hit in enumerate(ordered, start=1)
        ]
        before = {hit.id: rank for rank, hit in enumerate(ordered, start=1)}
        stages.append({"name": level.name, "ranks": ranks})
    return stages
