"""Search results: hits, how long each stage took, and what was done to find them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, overload

from hivlp.search.plan import Plan, ToldPlan, stage_text
from hivlp.search.stages import Step


class Duplicate(NamedTuple):
    """An item that is shown with another one instead of by itself."""

    id: int
    path: str

    def to_json(self) -> dict[str, Any]:
        """As in the ``duplicates`` of a hit."""
        return {"id": self.id, "path": _printable(self.path)}


class Hit(NamedTuple):
    """One found item.

    Attributes:
        rank: from 1, counted over all pages.
        id: of the item.
        path: of the picture.
        caption: what is known of it in words, if anything.
        scores: cosine with the query at each level.
        metadata: what was stored with it.
        duplicates: what was folded into it; None unless the search was asked to group.
    """

    rank: int
    id: int
    path: str
    caption: str | None
    scores: dict[str, float]
    metadata: dict[str, Any]
    duplicates: list[Duplicate] | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        path = _printable(self.path)
        data = {"rank": self.rank, "id": self.id, "path": path, "caption": self.caption, "scores": self.scores}
        if self.duplicates is not None:
            data["duplicates"] = [duplicate.to_json() for duplicate in self.duplicates]
        return data

    def _repr_html_(self) -> str:
        from hivlp.search.html import card

        return card(f"{self.rank}.", self.path, self.caption, self.scores)


class Unmade(Protocol):
    """Hits that nobody has looked at yet."""

    def __len__(self) -> int: ...

    def ids(self) -> list[int]:
        """Their ids, best first."""

    def make(self) -> list[Hit]:
        """The hits, best first; equal ones however often they are made."""


class SearchResult(Sequence[Hit]):
    """Search result of one query.

    Which items were found, and in which order, is settled by the search; what hits say of them is put together when
    they are first looked at, as it was in the commit that was searched.

    Attributes:
        timings_ms: milliseconds by stage, and in total.
        plan: stages that were carried out, each a ``stage`` with its numbers, and why one was ``widened``.
        chosen: the plan that they are of; deeper pages may need further looks of it.
    """

    __slots__ = ("_hits", "chosen", "plan", "timings_ms")

    def __init__(
        self,
        hits: list[Hit] | Unmade,
        timings_ms: dict[str, float],
        plan: Sequence[Step] = (),
        chosen: Plan | ToldPlan | None = None,
    ) -> None:
        """A result of hits, made or not."""
        self._hits, self.timings_ms, self.plan, self.chosen = hits, timings_ms, list(plan), chosen

    @property
    def hits(self) -> list[Hit]:
        """Hits, best first."""
        hits = self._hits
        if not isinstance(hits, list):
            hits = self._hits = hits.make()
        return hits

    @property
    def ids(self) -> list[int]:
        """Ids of the hits, best first: all that a caller needs who keeps paths and metadata elsewhere.

        They take less than half of the time that whole hits take.
        """
        return [hit.id for hit in self._hits] if isinstance(self._hits, list) else self._hits.ids()

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchResult):
            return NotImplemented
        return self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]  # it is as changeable as its lists

    def __repr__(self) -> str:
        return f"SearchResult(hits={self.hits!r}, timings_ms={self.timings_ms!r}, plan={self.plan!r})"

    def _repr_html_(self) -> str:
        from hivlp.search.html import MOST, card, cards

        shown = [card(f"{hit.rank}.", hit.path, hit.caption, hit.scores) for hit in self.hits[:MOST]]
        return cards(shown, len(self), ", ".join(f"{name} {value:.2f} ms" for name, value in self.timings_ms.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return SearchResult, self._values()

    def _values(self) -> tuple[Any, ...]:
        return self.hits, self.timings_ms, self.plan, self.chosen

    def to_json(self, *, explain: bool = False) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints, with ``--explain`` or without."""
        plan = [dict(step) for step in self.plan]
        data = {"hits": [hit.to_json() for hit in self.hits], "timings_ms": self.timings_ms, "plan": plan}
        return {**data, "explain": None if self.chosen is None else self.chosen.to_json()} if explain else data

    def explain(self) -> str:
        """The plan that was chosen and why, and what was carried out of it, for people."""
        carried_out = " → ".join(map(stage_text, self.plan)) or "nothing"
        times = ", ".join(f"{name} {value:.2f} ms" for name, value in self.timings_ms.items())
        return f"{self.chosen or 'plan: none'}\n  carried out: {carried_out}\n  time: {times}"

    def __str__(self) -> str:
        lines = []
        for hit in self.hits:
            scores = " ".join(f"{name} {value:.3f}" for name, value in hit.scores.items())
            caption = f"  {hit.caption}" if hit.caption else ""
            lines.append(f"{hit.rank:3}  [{hit.id}] {hit.path!r}{caption}  ({scores})")
            lines += [f"     = [{duplicate.id}] {duplicate.path!r}" for duplicate in hit.duplicates or []]
        timings = ", ".join(f"{name} {value:.2f}" for name, value in self.timings_ms.items())
        notes = [f"searched wider: the query is {step['widened']}" for step in self.plan if "widened" in step]
        notes += [
            f"of {step['pending']} pending pictures {step['left']} are ranked by the coarsest level: {step['why']}"
            for step in self.plan
            if step["stage"] == "fill" and "left" in step
        ]
        return "\n".join([*(lines or ["nothing found"]), *notes, f"ms: {timings}"])


def _printable(path: str) -> str:
    """A name that is no text is shown escaped: a JSON response must be UTF-8."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")
