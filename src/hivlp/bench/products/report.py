"""What products come to: rows as JSON, as tables, and as a drawing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.bench.report import Report

Row = Mapping[str, Any]
SEARCHING = {
    "ms 0.95": lambda rows: rows["search 0.95"]["p50_ms"],
    "ms 0.99": lambda rows: rows["search 0.99"]["p50_ms"],
    "recall": lambda rows: rows["search 0.99"]["recall"],
    "qps 0.95": lambda rows: rows["batch 0.95"]["qps"],
    "qps 0.99": lambda rows: rows["batch 0.99"]["qps"],
    "1% first": lambda rows: rows["filter 0.01"]["first_ms"],
    "again": lambda rows: rows["filter 0.01"]["again_ms"],
    "10% first": lambda rows: rows["filter 0.1"]["first_ms"],
    "again ": lambda rows: rows["filter 0.1"]["again_ms"],
    "50% first": lambda rows: rows["filter 0.5"]["first_ms"],
    "again  ": lambda rows: rows["filter 0.5"]["again_ms"],
}
LIVING = {
    "added ms": lambda rows: rows["added"]["p50_ms"],
    "recall": lambda rows: rows["added"]["recall"],
    "in s": lambda rows: rows["added"]["change_s"],
    "removed ms": lambda rows: rows["removed"]["p50_ms"],
    "recall ": lambda rows: rows["removed"]["recall"],
    "in s ": lambda rows: rows["removed"]["change_s"],
    "open ms": lambda rows: rows["open"]["ms"],
    "cold": lambda rows: rows["open"]["cold_ms"],
    "2 threads": lambda rows: rows["threads"]["times"],
    "disk MB": lambda rows: rows["disk"]["disk_mb"],
    "memory MB": lambda rows: rows["memory"]["private_mb"],
    "build s": lambda rows: rows["build"]["build_s"],
}
"""Column -> figure of a product's rows by measure."""


@dataclass(frozen=True, kw_only=True)
class ProductsReport(Report):
    """Products beside each other.

    Attributes:
        size: ``small`` or ``real``.
        items: that are indexed before the tenth that is added.
        dim: of their vectors.
        speedup_best_product: recall wanted -> ``single``, ``batch`` -> our speed over that of the best other product.
        best_product: which that is.
        speedup_best_database: the same beside those that keep the payloads themselves.
        best_database: which that is.
        products: ``product``, ``versions``, and ``how`` it was configured.
        rows: an object for every ``product`` and ``measure``, with ``status`` ("ok", or why there are no figures).
    """

    size: str
    items: int
    dim: int
    speedup_best_product: dict[str, dict[str, float | None]]
    best_product: dict[str, dict[str, str | None]]
    speedup_best_database: dict[str, dict[str, float | None]]
    best_database: dict[str, dict[str, str | None]]
    products: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    def of(self, product: str) -> dict[str, dict[str, Any]]:
        """Rows of a product, by measure."""
        return {row["measure"]: row for row in self.rows if row["product"] == product}

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{self.items} vectors of {self.dim} dimensions, payloads returned, one thread", ""]
        for columns in (SEARCHING, LIVING):
            lines += [*self._table(columns), ""]
        for kind, gains, best in (
            ("product", self.speedup_best_product, self.best_product),
            ("database", self.speedup_best_database, self.best_database),
        ):
            for recall, ways in gains.items():
                for way, what in (("single", "one at a time"), ("batch", "many at once")):
                    if ways[way] is not None:
                        name = best[recall][way]
                        lines.append(f"recall {recall}, {what}: {ways[way]:.2f} times the best other {kind} ({name})")
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row["status"] != "ok":
                reasons.setdefault((row["product"], row["status"]), []).append(row["measure"])
        lines += [f"{product}: {', '.join(measures)}: {why}" for (product, why), measures in reasons.items()]
        return "\n".join([*lines, f"{self.seconds:.0f} s"])

    def _table(self, columns: Mapping[str, Callable[[Mapping[str, Row]], float]]) -> list[str]:
        lines = [f"{'':24s}" + "".join(f"{column.rstrip():>11s}" for column in columns)]
        for about in self.products:
            rows = self.of(about["product"])
            cells = [_shown(figure(rows, of)) for of in columns.values()]
            lines.append(f"{about['product']:24s}" + "".join(f"{cell:>11s}" for cell in cells))
        return lines


def figure(rows: Mapping[str, Row], of: Callable[[Mapping[str, Row]], float]) -> float | None:
    """One figure; None if it was not measured."""
    try:
        return of(rows)
    except KeyError:
        return None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def draw(report: ProductsReport, path: Path) -> None:
    """Bars for each product, ours darker: what searches, filters and changes take, and what an index takes up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: Sequence[tuple[str, dict[str, Callable[[Mapping[str, Row]], float]]]] = (
        ("one at a time, ms", {f"recall {at}": SEARCHING[f"ms {at}"] for at in ("0.99", "0.95")}),
        ("many at once, queries a second", {f"recall {at}": SEARCHING[f"qps {at}"] for at in ("0.99", "0.95")}),
        ("filter of 1%, ms", {"again": SEARCHING["again"], "first time": SEARCHING["1% first"]}),
        ("filter of 50%, ms", {"again": SEARCHING["again  "], "first time": SEARCHING["50% first"]}),
        ("after a tenth was added, ms", {"recall 0.99 before": LIVING["added ms"]}),
        ("private memory and disk, MB", {"disk": LIVING["disk MB"], "memory": LIVING["memory MB"]}),
    )
    names = [about["product"] for about in report.products][::-1]
    figures, axes = pyplot.subplots(2, 3, figsize=(16, 8), sharey=True)
    for axis, (title, bars) in zip(axes.flat, panels, strict=True):
        for number, (label, of) in enumerate(bars.items()):
            values = [figure(report.of(name), of) for name in names]
            places = [place + (number - (len(bars) - 1) / 2) * 0.4 for place in range(len(names))]
            shown = axis.barh(places, [value or 0 for value in values], 0.38, color=("#9ec5c2", "#2a7f7a")[number])
            shown.set_label(label)
            axis.bar_label(shown, [_shown(value) for value in values], padding=2, fontsize=7)
        if any(figure(report.of(name), of) for name in names for of in bars.values()):
            axis.set_xscale("log")
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
        axis.margins(x=0.15)
        axis.legend(fontsize=7, loc="lower right")
        axis.grid(axis="x", alpha=0.3)
    figures.suptitle(f"{report.items:,} vectors of {report.dim} dimensions with payloads, one thread")
    figures.tight_layout()
    figures.savefig(path, dpi=110)
    pyplot.close(figures)
