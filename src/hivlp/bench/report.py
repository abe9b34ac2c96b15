"""What every measurement reports: a typed result, as JSON and as a table, with the machine that it was measured on."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import hivlp
from hivlp.encode.stream import default_workers

Name = TypeVar("Name")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Base of a measurement's result.

    Attributes:
        seconds: that the measurement took.
        machine: see :func:`machine`.
        command: that repeats it.
        failures: sentences on what must not happen and did; with any, the command exits with 1.
    """

    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All attributes by name."""
        return asdict(self)

    def to_text(self) -> str:
        """Tables for the terminal."""
        raise NotImplementedError


def measured(started: float, *packages: str) -> dict[str, Any]:
    """The attributes of :class:`Report`.

    Args:
        started: the measurement's beginning by :func:`time.perf_counter`.
        packages: whose versions matter.
    """
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "machine": machine(*packages), "command": " ".join(["hivlp", *sys.argv[1:]])}


def machine(*packages: str) -> dict[str, object]:
    """Processor, cores this process may use, Python, and the versions of hivlp and of the named packages."""
    versions = {"hivlp": hivlp.__version__, **{package: metadata.version(package) for package in packages}}
    return {"cpu": _cpu(), "cores": default_workers(), "python": sys.version.split()[0], "versions": versions}


def milliseconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def median_ms(action: Callable[..., object], arguments: Iterable[object]) -> float:
    """Median milliseconds of a call with each of these arguments."""
    return statistics.median(milliseconds(lambda given=given: action(given)) for given in arguments)  # type: ignore[misc]


def medians_in_turns(actions: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """Median milliseconds of each action, which are called once to warm up and then in turns.

    What else the machine does meanwhile falls on all of them alike, so that ratios stand where times do not.

    Args:
        actions: by name.
        rounds: calls of each that are timed.
    """
    for action in actions.values():
        action()
    times: dict[Name, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(milliseconds(action))
    return {name: statistics.median(each) for name, each in times.items()}


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """``p50_ms`` and ``p99_ms`` of some milliseconds."""
    return {f"p{share}_ms": round(float(np.percentile(times, share)), 3) for share in (50, 99)}


def summary(values: Sequence[float]) -> dict[str, float]:
    """``mean`` and ``spread``, the standard deviation, over runs."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 2), "spread": round(spread, 2)}


def memory_bytes(what: str = "VmRSS") -> int:
    """Bytes of this process (Linux; 0 elsewhere): ``VmRSS`` resident, ``RssAnon`` without files, ``VmHWM`` at most."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)


def forget_peak() -> None:
    """Let ``VmHWM`` begin anew (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
