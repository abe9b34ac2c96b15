"""A measurement in a process of its own, which may be slow, large or crash, and says a line of JSON for every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def listen(
    module: str, arguments: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a module says when Python runs it as a program.

    Args:
        module: that is run.
        arguments: of its command line.
        timeout: seconds after which it is stopped; what it said by then is kept.
        environment: variables beside those of this process.

    Returns:
        Everything that it said with :func:`say`; lists under the same name are joined. ``status``: "ok" unless it said
        otherwise, "timeout", or what went wrong.
    """
    command = [sys.executable, "-m", module, *arguments]
    result: dict[str, Any] = {"status": "ok"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(environment or {})},
            check=False,
        )  # fmt: skip
        output = done.stdout
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]
            # What a library says before it crashes is seldom the reason.
            result["status"] = f"killed by signal {-done.returncode}" if done.returncode < 0 else last
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or b""
        output = partial.decode() if isinstance(partial, bytes) else partial
        result["status"] = "timeout"
    for line in output.splitlines():
        if not line.startswith("{"):  # libraries write lines of their own
            continue
        try:
            said = json.loads(line)
        except ValueError:
            continue
        for name, value in said.items():
            result[name] = result.get(name, []) + value if isinstance(value, list) else value
    return result


def say(what: Mapping[str, Any]) -> None:
    """Tell the process that listens."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
