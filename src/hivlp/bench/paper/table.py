"""Rows of the speed table, ratios between them, and the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hivlp.bench.paper.systems import AIMS, BEST, CANDIDATES, INT8, LIGHTNINGDOT, SAME, SHIPPED, TO_IMAGE, UNITER
from hivlp.bench.report import Report
from hivlp.export.precision import LEAST


@dataclass(frozen=True)
class Row:
    """One system on one pool; milliseconds a query.

    Attributes:
        system: what it is.
        direction: ``text_to_image`` or ``image_to_text``.
        pool: items that are searched.
        batch: queries at once.
        encode_ms: encoding of a query; None for a fusion model, which does nothing else.
        search_ms: of the pool.
        total_ms: their sum.
        core_seconds: of a thousand queries, our measure of energy: as many as milliseconds a query, on one thread.
        best: items that are asked for.
        pairs: that a fusion model was measured on; None for others. Its time is scaled from these to the pool.
        gflop: operations of a query in the network, 10⁹; None where they were not counted.
        search_gflop: operations of an exhaustive search, 10⁹; None for others, which read codes and lists.
        item_bytes: that an item takes on disk: vectors in a flat index, all files of ours over the items.
        found: share of the exhaustive search's items that the search finds; None where it is exhaustive.
    """

    system: str
    direction: str
    pool: int
    batch: int
    encode_ms: float | None
    search_ms: float | None
    total_ms: float
    core_seconds: float
    best: int = BEST
    pairs: int | None = None
    gflop: float | None = None
    search_gflop: float | None = None
    item_bytes: int | None = None
    found: float | None = None


@dataclass(frozen=True, kw_only=True)
class PaperReport(Report):
    """Times by system and pool.

    Attributes:
        rows: see :class:`Row`.
        headline: HiVLP with LightningDOT's tower, by the fastest graph that ``hivlp export`` accepts; see
            :func:`headline`.
        ratio_uniter: system -> pool -> how many times UNITER-base's total time (text to image, one query at a time).
        ratio_lightningdot: system -> pool -> how many times LightningDOT's, for the :data:`BEST` items.
        ratio_lightningdot_ten: likewise for the :data:`FEW` best.
        published: speed-ups as published.
        reranking: what kept picture tokens save a re-ranking of :data:`CANDIDATES` by the fastest fusion model.
        left_out: pools that there was no time for.
        flat: library of the exhaustive searches.
        int8: how the int8 graph's vectors agree with float32; see :func:`hivlp.bench.paper.encoding.agreement`.
    """

    rows: list[dict[str, Any]]
    headline: dict[str, Any]
    ratio_uniter: dict[str, dict[str, float]]
    ratio_lightningdot: dict[str, dict[str, float]]
    ratio_lightningdot_ten: dict[str, dict[str, float]]
    published: dict[str, Any]
    reranking: dict[str, Any]
    left_out: list[int]
    flat: str
    int8: dict[str, float]

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{'system':36s}{'direction':14s}{'pool':>8s}{'batch':>6s}{'best':>5s}{'encode':>9s}{'search':>9s}"
                 f"{'total ms':>14s}{'found':>7s}"]  # fmt: skip
        for row in self.rows:
            parts = (row["encode_ms"], row["search_ms"])
            cells = "".join(f"{'' if value is None else f'{value:.2f}':>9s}" for value in parts)
            scaled = f"  scaled from {row['pairs']} pairs" if row["pairs"] else ""
            about = f"{row['system']:36s}{row['direction']:14s}{row['pool']:8d}{row['batch']:6d}{row['best']:5d}"
            found = "" if row["found"] is None else f"{row['found']:.3f}"
            lines.append(f"{about}{cells}{row['total_ms']:14.2f}{found:>7s}{scaled}")
        for name, ratios in (
            (UNITER, self.ratio_uniter),
            ("LightningDOT", self.ratio_lightningdot),
            ("LightningDOT, ten best", self.ratio_lightningdot_ten),
        ):
            for system, by_pool in ratios.items():
                cells = ", ".join(f"{pool}: {ratio:,.1f}" for pool, ratio in by_pool.items())
                lines.append(f"times faster than {name}, {system}: {cells}")
        over_uniter, over_dot = (self.published[f"hivlp_over_{name}"] for name in ("uniter", "lightningdot"))
        lines.append(f"published over UNITER: {over_uniter}; over LightningDOT: {over_dot}")
        again = self.reranking
        lines.append(
            f"re-ranking {CANDIDATES} candidates by {again['model']}: {again['without_ms']:.0f} ms (scaled from "
            f"{again['pictures']} pictures), {again['kept_ms']:.0f} ms with kept tokens: {again['ratio']:.1f} times "
            f"faster, and aimed at: {again['aim']:g}"
        )
        if self.left_out:
            pools = ", ".join(map(str, self.left_out))
            lines.append(f"no time for pools of {pools}: what was built is kept, so run it again")
        lines.append(
            f"int8 graph beside float32: cosine {self.int8['cosine']:.4f} (lowest {self.int8['lowest_cosine']:.4f}), "
            f"{100 * self.int8['agreement_at_10']:.1f}% of the ten nearest; two texts have {self.int8['apart']:.2f}"
        )
        aims = ", ".join(
            f"{pool}: {self.headline['ratio_lightningdot'][pool]:.1f} of {aim:g}"
            for pool, aim in self.headline["aims"].items()
        )
        lines.append(f"headline: {self.headline['system']}; times faster than LightningDOT, and aimed at: {aims}")
        return "\n".join([*lines, f"exhaustive searches by {self.flat}; one thread; {self.seconds:.0f} s"])


def ratios(rows: Sequence[Row], slower: str, best: int = BEST) -> dict[str, dict[str, float]]:
    """HiVLP's system -> pool -> how many times its total another's is, text to image, one query at a time.

    Args:
        rows: of the table.
        slower: the other system; a fusion model's time does not depend on ``best``.
        best: items that are asked for.
    """
    asked = [row for row in rows if row.direction == TO_IMAGE and row.batch == 1 and (row.best == best or row.pairs)]
    bar = {row.pool: row.total_ms for row in asked if row.system == slower}
    found: dict[str, dict[str, float]] = {}
    for row in asked:
        if row.system in (SAME, INT8, SHIPPED) and row.pool in bar:
            found.setdefault(row.system, {})[str(row.pool)] = round(bar[row.pool] / row.total_ms, 2)
    return found


def headline(rows: Sequence[Row], int8: Mapping[str, float]) -> dict[str, Any]:
    """HiVLP with LightningDOT's tower, where only graph and index differ.

    The graph is the fastest one that ``hivlp export`` accepts: int8 where its vectors agree with float32 on average to
    :data:`hivlp.export.precision.LEAST`, which is checked on texts that nothing is timed with.

    Args:
        rows: of the table.
        int8: how the int8 graph agrees with float32.

    Returns:
        ``system``, ``why``, its ratios, the ``aims`` among the pools measured, and which are ``met``.
    """
    accepted = int8["cosine"] >= LEAST
    system = INT8 if accepted else SAME
    over_dot = ratios(rows, LIGHTNINGDOT).get(system, {})
    aims = {pool: aim for pool, aim in AIMS.items() if pool in over_dot}
    return {
        "system": system,
        "why": f"int8 agrees with float32 to a cosine of {int8['cosine']}, "
        f"{'at least' if accepted else 'less than'} {LEAST}",
        "ratio_lightningdot": over_dot,
        "ratio_uniter": ratios(rows, UNITER).get(system, {}),
        "aims": aims,
        "met": {pool: over_dot[pool] >= aim for pool, aim in aims.items()},
    }
