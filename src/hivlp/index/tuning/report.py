"""What `hivlp tune` measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.ann import AnnIndex
from hivlp.ann.bounds import Bounds
from hivlp.search.likeness import K
from hivlp.search.operating_points import OperatingPoint, Tuned


@dataclass(frozen=True)
class TuneReport:
    """What :meth:`hivlp.index.Index.tune` measured.

    Attributes:
        index: folder.
        tuned: operating points, and what they were measured with.
        nlist: inverted lists.
        dims: of the codes.
        bytes_per_vector: held in memory, beside the stored vectors.
        memory_mb: the same of all vectors, in 10^6 bytes.
        seconds: that it took.
    """

    index: str
    tuned: Tuned
    nlist: int
    dims: int
    bytes_per_vector: float
    memory_mb: float
    seconds: float

    @classmethod
    def of(cls, path: Path, index: AnnIndex, bounds: Bounds | None, tuned: Tuned, seconds: float) -> TuneReport:
        """The report on an approximate index, and the bounds beside it."""
        held = index.bytes_per_vector + (0 if bounds is None else bounds.bytes_per_vector)
        memory = round(held * tuned.rows / 1e6, 1)
        return cls(str(path), tuned, index.nlist, index.dims, round(held, 1), memory, round(seconds, 1))

    @property
    def frontier(self) -> tuple[OperatingPoint, ...]:
        """Operating points worth using for the first ranks, fastest first."""
        return self.tuned.depths[0].frontier

    @property
    def chosen(self) -> OperatingPoint | None:
        """The one that searches use which ask for no other recall; None where such searches are exact."""
        params = self.tuned.depths[0].params(self.tuned.recall)
        return next((point for point in self.frontier if point.params == params), None)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp tune --json`` prints."""
        known = {name: value for name, value in self.tuned.to_json().items() if name != "sample"}
        return {
            "index": self.index,
            **known,
            "frontier": [point.to_json() for point in self.frontier],
            "chosen": None if self.chosen is None else self.chosen.to_json(),
            "nlist": self.nlist,
            "dims": self.dims,
            "bytes_per_vector": self.bytes_per_vector,
            "memory_mb": self.memory_mb,
            "seconds": self.seconds,
        }

    def plot(self, path: Path) -> None:
        """Draw recall over time of the operating points into a picture."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        times, recalls = [p.p50_ms for p in self.frontier], [p.recall for p in self.frontier]
        axes.fill_between(times, [p.at_least for p in self.frontier], recalls, alpha=0.2, label="95% sure")
        axes.plot(times, recalls, marker="o", label="measured")
        axes.axhline(self.tuned.recall, linestyle=":", color="grey", label=f"asked for: {self.tuned.recall}")
        axes.set(
            xscale="log",
            xlabel="milliseconds a search (median, one thread)",
            ylabel=f"recall@{K}",
            title=f"{self.tuned.rows:,} items",
        )
        axes.legend(loc="lower right")
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)

    def __str__(self) -> str:
        lines = [f"{'recall':>8} {'at least':>9} {'p50 ms':>8} {'p99 ms':>8}   nprobe margin slack rerank"]
        for point in self.frontier:
            mark, params = "  <- chosen" if point == self.chosen else "", point.to_json()
            lines.append(
                f"{point.recall:8.4f} {point.at_least:9.4f} {point.p50_ms:8.3f} {point.p99_ms:8.3f}"
                f"   {params['nprobe']:6} {_shown(params['margin']):>6} {_shown(params['slack']):>5}"
                f" {params['rerank']:6}{mark}"
            )
        if self.chosen is None:
            lines.append(f"no search parameters are known to reach {self.tuned.recall}: such searches are exact")
        lines.append(
            f"{self.tuned.rows:,} items, {self.nlist} lists, {self.bytes_per_vector} bytes a vector "
            f"({self.memory_mb} MB); queries: {self.tuned.queries}; {self.seconds} s"
        )
        return "\n".join(lines)


def _shown(number: float | None) -> str:
    return "all" if number is None else str(number)
