"""Total time of a query by pool size, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hivlp.bench.paper.systems import BEST, TO_IMAGE


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw text to image, one query at a time, a line a system.

    Args:
        rows: of the report.
        path: of the picture, PNG or what its suffix says.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["direction"] == TO_IMAGE and row["batch"] == 1 and row["best"] == BEST:
            lines.setdefault(row["system"], []).append((row["pool"], row["total_ms"]))
    figure, axis = pyplot.subplots(figsize=(8, 5))
    for name, points in lines.items():
        ours = name.startswith("HiVLP")
        axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=name, linewidth=2 if ours else 1,
                    linestyle="-" if ours else "--")  # fmt: skip
    axis.set(xlabel="pictures in the pool", ylabel="milliseconds a query, one thread")
    axis.grid(which="both", alpha=0.2)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
