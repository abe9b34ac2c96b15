"""Time of a search by stage."""

from __future__ import annotations

import time


class Stopwatch:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.timings: dict[str, float] = {"encode": 0.0, "coarse": 0.0, "fine": 0.0}

    def lap(self, stage: str) -> None:
        """Charge the time since the last lap to a stage."""
        now = time.perf_counter()
        self.timings[stage] = self.timings.get(stage, 0.0) + (now - self._last) * 1000
        self._last = now

    def finish(self) -> dict[str, float]:
        """All stages, and the total since the watch was made."""
        total = (time.perf_counter() - self._started) * 1000
        return {name: round(value, 3) for name, value in {**self.timings, "total": total}.items()}
