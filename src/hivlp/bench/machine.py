"""What a measurement ran on."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

import hivlp
from hivlp.encode.stream import default_workers


def describe(*packages: str) -> dict[str, object]:
    """Processor, cores this process may use, Python, and the versions of hivlp and of the named packages."""
    versions = {"hivlp": hivlp.__version__, **{package: metadata.version(package) for package in packages}}
    return {"cpu": _cpu(), "cores": default_workers(), "python": sys.version.split()[0], "versions": versions}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
