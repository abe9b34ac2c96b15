"""What services come to: rows as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hivlp.bench.report import Report

Row = Mapping[str, Any]
FIGURES = {
    "qps": "qps",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "cpu_ms": "cpu ms",
    "recall": "recall",
}
MEMORY = {"memory_before_mb": "MB before", "memory_after_mb": "MB after"}


@dataclass(frozen=True, kw_only=True)
class ServeReport(Report):
    """Services beside each other.

    Attributes:
        size: ``small`` or ``real``.
        items: that are indexed.
        dim: of their vectors.
        shared_core: whether services and the load generator had one core together.
        services: ``service``, ``versions``, and ``how`` it is made.
        rows: an object for every ``service``, ``kind``, ``recall_wanted`` and number of ``clients``, with ``status``
            ("ok", or why there are no figures). ``cpu_ms`` is what the service computes for a request, which other
            programs on its core change little.
        ceiling: by number of clients, what the load generator gets from a server that does nothing: ``qps``, and
            ``us``, microseconds of its own a request.
        ahead: for every kind, recall and number of clients, our throughput over that of the best other service and its
            p99 over ours, and which services these are.
        goodput_overload: see :func:`hivlp.bench.serve.overload.overload`.
        rss_drift: see :func:`hivlp.bench.serve.overload.drift`.
    """

    size: str
    items: int
    dim: int
    shared_core: bool
    services: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    ceiling: list[dict[str, Any]]
    ahead: list[dict[str, Any]]
    goodput_overload: dict[str, Any]
    rss_drift: dict[str, Any]

    def to_text(self) -> str:
        """Tables for the terminal."""
        where = "; services and the load generator share one core" if self.shared_core else ""
        lines = [f"{self.items} vectors of {self.dim} dimensions, {self.machine.get('cpu', '')}{where}"]
        for kind, wanted in dict.fromkeys((row["kind"], row["recall_wanted"]) for row in self.rows):
            lines += ["", f"{kind}, recall {wanted}" if wanted else kind, *self._table(kind, wanted)]
        lines += ["", *self._about(), *(f"{row['service']}: {row['status']}" for row in self._wrong())]
        return "\n".join([*lines, f"{self.seconds:.0f} s"])

    def _table(self, kind: str, wanted: float | None) -> list[str]:
        columns = {"clients": "clients", **FIGURES, **MEMORY}
        lines = [f"{'':24s}" + "".join(f"{column:>11s}" for column in columns.values())]
        for row in self.rows:
            if (row["kind"], row["recall_wanted"]) == (kind, wanted) and row["status"] == "ok":
                cells = "".join(f"{_shown(row.get(name)):>11s}" for name in columns)
                lines.append(f"{row['service']:24s}{cells}")
        return lines

    def _about(self) -> list[str]:
        lines = [
            f"load generator, {row['clients']} clients: {row['qps']:.0f} a second at most, {row['us']:.0f} us each"
            for row in self.ceiling
        ]
        told = {"overload": self.goodput_overload, "memory": self.rss_drift}
        return lines + [
            f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items())
            for name, figures in told.items()
        ]  # fmt: skip

    def _wrong(self) -> list[Row]:
        return list({(row["service"], row["status"]): row for row in self.rows if row["status"] != "ok"}.values())


def ahead(rows: Sequence[Row], ours: str) -> list[dict[str, Any]]:
    """Ours beside the best other service, cell by cell; what nobody else answers is left out."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            cells.setdefault((row["kind"], row["recall_wanted"], row["clients"]), []).append(row)
    told = []
    for (kind, wanted, clients), found in cells.items():
        mine = next((row for row in found if row["service"] == ours), None)
        others = [row for row in found if row["service"] != ours]
        if mine is None or not others:
            continue
        quick = max(others, key=lambda row: row["qps"])
        steady = min(others, key=lambda row: row["p99_ms"])
        told.append(
            {
                "kind": kind, "recall_wanted": wanted, "clients": clients,
                "qps": round(mine["qps"] / quick["qps"], 2), "next_by_qps": quick["service"],
                "p99": round(steady["p99_ms"] / mine["p99_ms"], 2), "next_by_p99": steady["service"],
            }
        )  # fmt: skip
    return told


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
