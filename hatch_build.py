"""Compiles the kernels of the approximate index and fetches the page's parts while the package is built.

Without a C compiler the package is pure Python and searches are exhaustive. The library is plain C that is opened with
ctypes: one wheel serves every version of Python. Without npm the page of ``hivlp serve`` is plainer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

FOLDER = Path("src/hivlp/ann")
SOURCES = ("c/kernels.c", "c/assign.c", "c/search.c", "c/bounds.c", "c/interface.c", "c/vectors.c")
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden")

LOCK = Path("npm/package-lock.json")
VENDOR = Path("src/hivlp/serve/page/vendor")
# What the page loads of each package, by the name that it has in js/parts.js.
PARTS = {
    "photoswipe": ("dist/photoswipe.esm.min.js", "dist/photoswipe.css"),
    "tinykeys": ("dist/tinykeys.mjs",),
}
NPM_SECONDS = 120


class BuildHook(BuildHookInterface):
    """Adds ``_kernels.so`` and the page's parts to the wheel if they can be had.

    ``HIVLP_KERNELS=require`` and ``HIVLP_PAGE=require`` fail where they cannot; ``HIVLP_PAGE=plain`` leaves the page's
    parts out.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before the files are collected."""
        if self.target_name != "wheel":
            return
        self._kernels(build_data)
        self._parts(build_data)

    def _kernels(self, build_data: dict[str, Any]) -> None:
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

    def _parts(self, build_data: dict[str, Any]) -> None:
        vendor = Path(self.root) / VENDOR
        wanted = os.environ.get("HIVLP_PAGE", "")
        reason = "HIVLP_PAGE=plain" if wanted == "plain" else fetch_parts(Path(self.root) / LOCK, vendor)
        if reason is None:
            build_data["artifacts"].append(f"{VENDOR}/**")
        elif wanted == "require":
            raise RuntimeError(f"the page's parts could not be fetched: {reason}")
        else:
            shutil.rmtree(vendor, ignore_errors=True)
            self.app.display_warning(f"the page of hivlp serve is plainer: {reason}")


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


def fetch_parts(lock: Path, vendor: Path) -> str | None:
    """Install what the lock file names by ``npm ci`` and copy what the page loads; why it could not be done, or None.

    The versions and digests are those of the lock file; no package's scripts are run.
    """
    stamp = vendor / "lock.sha256"
    try:
        digest = hashlib.sha256(lock.read_bytes() + repr(PARTS).encode()).hexdigest()
    except OSError as error:
        return f"no lock file ({error.strerror})"
    if stamp.exists() and stamp.read_text() == digest:
        return None
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not there"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for file in (lock, lock.with_name("package.json")):
            shutil.copy(file, scratch)
        try:
            done = subprocess.run(
                [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
                cwd=scratch, capture_output=True, text=True, check=False, timeout=NPM_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"npm ci did not end well ({type(error).__name__})"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["npm ci failed"])[0]
        shutil.rmtree(vendor, ignore_errors=True)
        listed = {}
        for part, files in PARTS.items():
            package = scratch / "node_modules" / part
            (vendor / part).mkdir(parents=True)
            licences = [file.name for file in package.iterdir() if file.name.upper().startswith("LICENSE")]
            # Servers know the media type of .js; not all know .mjs.
            names = {file: Path(file).name.replace(".mjs", ".js") for file in (*files, *licences)}
            for file, name in names.items():
                shutil.copyfile(package / file, vendor / part / name)
            listed[part] = [f"{part}/{names[file]}" for file in files]
        (vendor / "parts.json").write_text(json.dumps(listed) + "\n")
        stamp.write_text(digest)
    return None
