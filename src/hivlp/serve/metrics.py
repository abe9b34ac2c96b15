"""Counters and histograms in the text format of Prometheus."""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import hivlp

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STARTED = time.time()
_PROC = Path("/proc/self")


class Counter:
    """A number that grows, for each set of labels."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._counts: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, by: float = 1) -> None:
        """Count one more, or several."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + by

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield from _head(self.name, self.text, "counter")
        for labels, count in sorted(self._counts.items()):
            yield f"{self.name}{_labels(self.labels, labels)} {_number(count)}"


class Histogram:
    """How often values fell below each bound, for each set of labels."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...]) -> None:
        self.name, self.text, self.bounds, self.labels = name, text, bounds, labels
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        place = bisect.bisect_left(self.bounds, value)
        with self._lock:
            counts = self._counts.get(labels)
            if counts is None:
                counts = self._counts[labels] = [0] * (len(self.bounds) + 1)
            counts[place] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it: cumulative counts."""
        yield from _head(self.name, self.text, "histogram")
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_labels((*self.labels, 'le'), (*labels, bound))} {total}"
            yield f"{self.name}_sum{_labels(self.labels, labels)} {self._sums[labels]:.6f}"
            yield f"{self.name}_count{_labels(self.labels, labels)} {total}"


class Metrics:
    """What a service counts of itself.

    Attributes:
        requests: answered ones, by route (as the description of the API has it), method and status.
        latency: seconds of a request, by route and method.
        stage: seconds of a search's stages.
        queue: seconds that a task waited.
        batch: tasks that were run together.
        refused: tasks that were told to come again.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.requests = Counter("hivlp_requests_total", "Requests.", ("route", "method", "status"))
        self.latency = Histogram("hivlp_request_seconds", "Seconds of a request.", SECONDS, ("route", "method"))
        self.stage = Histogram("hivlp_stage_seconds", "Seconds of a search by stage.", SECONDS, ("stage",))
        self.queue = Histogram("hivlp_queue_seconds", "Seconds that a task waited.", SECONDS, ("queue",))
        self.batch = Histogram("hivlp_batch_size", "Tasks that were run together.", SIZES, ("queue",))
        self.refused = Counter("hivlp_refused_total", "Tasks refused as too many waited.", ("queue",))
        self._gauges: list[tuple[str, str, tuple[str, ...], Callable[[], dict[tuple[str, ...], float]]]] = []

    def gauge(
        self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], dict[tuple[str, ...], float]]
    ) -> None:
        """Tell values that are read when somebody asks."""
        self._gauges.append((name, text, labels, read))

    def answered(self, route: str, method: str, status: int, seconds: float | None = None) -> None:
        """Count a request, and the seconds that it took, if any."""
        self.requests.add(route, method, str(status))
        if seconds is not None:
            self.latency.observe(seconds, route, method)

    def text(self) -> str:
        """All of it."""
        counted = (self.requests, self.latency, self.stage, self.queue, self.batch, self.refused)
        lines = [line for each in counted for line in each.lines()]
        for name, text, labels, read in self._gauges:
            lines += _head(name, text, "gauge")
            lines += [f"{name}{_labels(labels, values)} {_number(value)}" for values, value in sorted(read().items())]
        lines += [*_head("hivlp_build_info", "Version that runs.", "gauge")]
        lines += [f"hivlp_build_info{_labels(('version',), (hivlp.__version__,))} 1", *_of_process()]
        return "\n".join([*lines, ""])


def _of_process() -> Iterator[str]:
    """What Prometheus calls the same for every process, of the one that serves."""
    spent = os.times()
    known = [
        ("process_start_time_seconds", "gauge", "Start, in seconds since 1970.", _STARTED),
        ("process_cpu_seconds_total", "counter", "Processor time.", spent.user + spent.system),
    ]
    with suppress(OSError, ValueError, AttributeError):  # where there is /proc
        pages = int((_PROC / "statm").read_text(encoding="ascii").split()[1])
        memory, files = pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(_PROC / "fd"))  # noqa: PTH208
        known.append(("process_resident_memory_bytes", "gauge", "Resident memory.", memory))
        known.append(("process_open_fds", "gauge", "Open files and connections.", files))
    for name, kind, text, value in known:
        yield from _head(name, text, kind)
        yield f"{name} {_number(value)}"


def _number(value: float) -> str:
    """A number with all its digits: a rate is the difference of two large ones."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{told}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
