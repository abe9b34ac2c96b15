"""Plan of a search: which stages look at the collection, in which order, and for which ranks.

A plan is chosen once for a kind of search, from what the collection has and what is asked; it does not depend on the
query. Its *looks* rank the collection ever further. Each is a list of stages, of which the first finds candidates and
each later one re-ranks them; each look but the last shows the ranks up to its ``reach`` and looks at more of the
collection than the one before. Which look is carried out when is :mod:`hivlp.search.paging`'s business.

=========================================================  ==========================================================
the collection, and what is asked                          looks
=========================================================  ==========================================================
``exact``, or as many hits as there are rows that pass     exact
an approximate index, and a recall that it reaches         approximate search for ranks up to 10, 50, 200; exact
an approximate index that is not known to reach it         exact
one level, or a recall without an approximate index        exact
up to :data:`FEW` rows that pass                           exact
a ``shortlist`` of the caller's                            scan of the coarse level, re-ranked by each finer one; then
                                                           wider ones, four times as many ranks each; exact
anything else                                              such cascades, the first of which shows a quarter of its
                                                           shortlist
=========================================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hivlp.levels import Level
from hivlp.search.collection import Collection
from hivlp.search.fusion import Fuse
from hivlp.search.options import Options
from hivlp.search.stages import Ann, Asked, Candidates, Exact, Rerank, Scan, Stage
from hivlp.search.timing import Stopwatch

FEW = 10_000
"""Rows that are ranked exactly in about the time of a shortlist: half a millisecond more at most."""
SHOWN = 4
"""Candidates of a shortlist for each rank that it shows, where nobody chose the shortlist."""


@dataclass(frozen=True)
class Look:
    """One look at the collection.

    Attributes:
        stages: the first finds candidates, each later one re-ranks them.
        reach: last rank that it shows; None for the exact ranking of everything.
    """

    stages: tuple[Stage, ...]
    reach: int | None

    def run(self, collection: Collection, asked: Asked, watch: Stopwatch) -> list[Candidates]:
        """Carry the stages out for a batch of queries.

        Args:
            collection: that is searched.
            asked: queries, how many ranks of each, filter.
            watch: that each stage's time is charged to.
        """
        found: list[Candidates] = []
        for stage in self.stages:
            found = stage.run(collection, asked, found)
            watch.lap(stage.clock)
        return found

    def to_json(self) -> dict[str, Any]:
        """The ranks that it shows, and its stages."""
        return {"ranks": self.reach, "stages": [stage.to_json() for stage in self.stages]}


@dataclass(frozen=True)
class Plan:
    """Looks at the collection, each further than the one before, and why these were chosen; then a fusion model's."""

    looks: tuple[Look, ...]
    why: str
    fusion: Fuse | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``hivlp search --explain --json`` prints."""
        fusion = {} if self.fusion is None else {"fusion": self.fusion.to_json()}
        return {"why": self.why, "looks": [look.to_json() for look in self.looks], **fusion}

    def __str__(self) -> str:
        text = str(ToldPlan(self.to_json()))
        return text if self.fusion is None else f"{text}\n  {self.fusion}"


@dataclass(frozen=True)
class ToldPlan:
    """A plan as a service tells it: what :meth:`Plan.to_json` gave there."""

    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What ``hivlp search --explain --json`` prints."""
        return dict(self.data)

    def __str__(self) -> str:
        lines, first = [f"plan: {self.data['why']}"], 1
        for look in self.data["looks"]:
            reach = look["ranks"]
            ranks = f"ranks {first}–{reach}" if reach is not None else f"ranks from {first}"
            lines.append(f"  {ranks}: " + " → ".join(map(stage_text, look["stages"])))
            first = (reach or 0) + 1
        return "\n".join(lines)


def stage_text(step: Mapping[str, Any]) -> str:
    """A stage in a line: its name, its level and its numbers."""
    numbers = [f"{name} {value}" for name, value in step.items() if name not in ("stage", "level", "widened")]
    level = f" {step['level']}" if "level" in step else ""
    widened = f" (widened: the query is {step['widened']})" if "widened" in step else ""
    return f"{step['stage']}{level}{' (' + ', '.join(numbers) + ')' if numbers else ''}{widened}"


def choose(collection: Collection, options: Options, passing: int) -> Plan:
    """The plan for one kind of search; the only place where one is chosen.

    Args:
        collection: that is searched.
        options: what is asked.
        passing: rows that pass the filter, or all that there are.
    """
    levels, ann = collection.levels, collection.ann
    exact = Look((Exact(levels[-1].name, "fine" if len(levels) > 1 else "coarse"),), None)
    if options.exact:
        return Plan((exact,), "the exact ranking was asked for")
    if not passing:
        return Plan((exact,), "no item passes")
    if options.k >= passing:
        return Plan((exact,), f"all {passing} items that pass were asked for")
    free = not options.own_shortlist
    if free and ann is not None:
        recall = options.recall or ann.tuned.recall
        near: list[Look] = []
        for depth in ann.tuned.depths:
            params = depth.params(recall)
            if params is None:
                break
            near.append(Look((Ann(levels[-1].name, recall, params, depth),), depth.ranks))
        if not near:
            return Plan((exact,), f"no search parameters are known to find {recall} of the ten best")
        return Plan((*near, exact), f"tuned on {ann.tuned.rows} rows to find {recall} of the best")
    if options.recall is not None:
        return Plan((exact,), "a recall was asked for, and there is no approximate index: `hivlp tune` makes one")
    if len(levels) == 1:
        return Plan((exact,), "there is one level, and no approximate index")
    if free and passing <= FEW:
        return Plan((exact,), f"{passing} items are ranked exactly in about the time of a shortlist")
    if free:
        sizes = options.shortlists
        looks = cascades(levels, sizes, sizes[0] // SHOWN, collection.rows)
        return Plan((*looks, exact), "there is no approximate index: the coarse level is scanned")
    sizes = tuple(min(max(size, options.k), collection.rows) for size in options.shortlists)
    return Plan((*cascades(levels, sizes, sizes[0], collection.rows), exact), "a shortlist was asked for")


def cascade(levels: Sequence[Level], shortlists: Sequence[int]) -> tuple[Stage, ...]:
    """Stages of a cascade: a scan of the coarsest level, thinned out by each level between, ordered by the finest.

    Args:
        levels: at least two, coarse to fine.
        shortlists: candidates that each of them but the last hands on.
    """
    between = zip(levels[1:-1], shortlists[1:], strict=True)
    thinned = (Rerank(level.name, size) for level, size in between)
    return (Scan(levels[0].name, shortlists[0]), *thinned, Rerank(levels[-1].name))


def cascades(levels: Sequence[Level], shortlists: Sequence[int], reach: int, rows: int) -> tuple[Look, ...]:
    """Cascades that look ever further, each at four times as many rows as it shows, until that would be all.

    Args:
        levels: at least two, coarse to fine.
        shortlists: of the first cascade, one for each level but the finest.
        reach: last rank that the first cascade shows.
        rows: of the collection.
    """
    looks = [Look(cascade(levels, shortlists), reach)]
    while SHOWN * SHOWN * reach < rows:
        reach *= SHOWN
        looks.append(Look(cascade(levels, [max(SHOWN * reach, size) for size in shortlists]), reach))
    return tuple(looks)
