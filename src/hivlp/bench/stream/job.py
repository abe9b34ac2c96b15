"""A training job in a process of its own, watched from outside: its steps, its memory, and its end by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hivlp.errors import HivlpError

LIMIT = 300.0
"""Seconds without a step after which a job is given up."""


class Job:
    """``hivlp train`` of one recipe, with all its processes."""

    def __init__(self, recipe: Path, out: Path, *, resume: bool = False) -> None:
        command = [sys.executable, "-m", "hivlp", "train", str(recipe), "-o", str(out)]
        self._log, self._out = out.with_suffix(".log"), out
        self.started = time.perf_counter()
        self.peak = 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *(["--resume"] if resume else [])], stdout=log, stderr=log, start_new_session=True
            )

    def steps(self) -> int:
        """How many steps have been logged since the job, or its predecessor, began."""
        path = self._out / "run" / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def wait_for(self, steps: int) -> float:
        """Wait for so many steps, and give the seconds since the job began.

        Raises:
            HivlpError: if the job ends before, or nothing happens.
        """
        last, since = -1, time.perf_counter()
        while True:
            found = self.steps()
            self._measure()
            now = time.perf_counter()
            if found >= steps:
                return now - self.started
            if found != last:
                last, since = found, now
            if self._process.poll() is not None or now - since > LIMIT:
                raise HivlpError(f"the job came to {found} of {steps} steps: {self.log()}")
            time.sleep(0.005)

    def finished(self) -> None:
        """Wait for the end.

        Raises:
            HivlpError: if it is an error.
        """
        if self._process.wait(LIMIT):
            raise HivlpError(f"the job failed: {self.log()}")

    def log(self) -> str:
        """The last line that it wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "it said nothing"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let all its processes run, and stop them again."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGSTOP)

    def pause(self) -> None:
        """Stop all its processes."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Kill all its processes, as a machine that fails would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _measure(self) -> None:
        """Keep the largest resident memory of any of its processes, in bytes (Linux)."""
        for process in _family(self._process.pid):
            try:
                lines = Path(f"/proc/{process}/status").read_text().splitlines()
            except OSError:
                continue
            found = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
            self.peak = max(self.peak, found)


def losses(out: Path) -> list[float]:
    """The loss of each step that a run has logged."""
    path = out / "run" / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(float(json.loads(line)["loss"]))
        except (ValueError, KeyError):
            continue
    return rows


def _family(process: int) -> list[int]:
    found = [process]
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found
