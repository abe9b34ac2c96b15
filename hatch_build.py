"""Compiles the kernels of the approximate index while the package is built, where there is a C compiler.

Without one the package is pure Python and searches are exhaustive. The library is plain C that is opened with ctypes:
one wheel serves every version of Python.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

FOLDER = Path("src/hivlp/ann")
SOURCES = ("c/kernels.c", "c/assign.c", "c/search.c", "c/bounds.c", "c/interface.c", "c/vectors.c")
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden")


class KernelBuildHook(BuildHookInterface):
    """Adds ``_kernels.so`` to the wheel if it can be made; ``HIVLP_KERNELS=require`` fails where it cannot."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before the files are collected."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        library = folder / "_kernels.so"
        reason = compile_library([folder / name for name in SOURCES], library)
        if reason is None:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{next(sys_tags()).platform}"
            build_data["artifacts"].append(str(FOLDER / library.name))
        elif os.environ.get("HIVLP_KERNELS") == "require":
            raise RuntimeError(f"the kernels could not be compiled: {reason}")
        else:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"hivlp searches without compiled kernels: {reason}")


def compile_library(sources: list[Path], library: Path) -> str | None:
    """Compile; returns why it could not be done, or None."""
    if sys.platform == "win32":
        return "not on Windows yet"
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or "clang"]
    scratch = library.with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(scratch), *map(str, sources), "-lm"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        return f"no C compiler ({error})"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{compiler[0]} failed"
    scratch.replace(library)
    return None
