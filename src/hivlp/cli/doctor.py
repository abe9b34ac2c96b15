"""The verb that says what is wrong with an installation."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hivlp.cli.models import DEFAULT_MODEL, load_model
from hivlp.cli.output import fail, print_result
from hivlp.errors import EXTRAS, PACKAGES, HivlpError, install_command

if TYPE_CHECKING:
    from hivlp.index import Index

SAMPLE = 200
"""Pictures of an index that are looked for in their places."""
LEAST_FREE = 1 << 30
"""Bytes of a disk below which it is said to be nearly full."""


@dataclass(frozen=True)
class Finding:
    """What one look at an installation found.

    Attributes:
        what: was looked at.
        state: ``ok``, ``note`` (slower or less than it could be) or ``wrong``.
        text: what was found, and what to do.
    """

    what: str
    state: str
    text: str


def run_doctor(arguments: argparse.Namespace) -> int:
    """``hivlp doctor``: exit 1 if something is wrong."""
    looks: list[Callable[[], Finding]] = [_python, _kernels, _model, _sqlite, _cache, _service]
    looks += [lambda path=path: _index(path) for path in arguments.indexes]  # type: ignore[misc]
    found = [*_each(looks), *_extras()]
    wrong = [finding for finding in found if finding.state == "wrong"]
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    print_result(
        arguments,
        lambda: {"ok": not wrong, "findings": [asdict(finding) for finding in found]},
        lambda: "\n".join(f"{marks[finding.state]}  {finding.what}: {finding.text}" for finding in found),
    )
    return fail("one thing is wrong" if len(wrong) == 1 else f"{len(wrong)} things are wrong") if wrong else 0


def _each(looks: list[Callable[[], Finding]]) -> Iterator[Finding]:
    for look in looks:
        try:
            yield look()
        except (HivlpError, OSError, ImportError, sqlite3.Error) as error:
            yield Finding(look.__name__.strip("_<>").replace("lambda", "index"), "wrong", str(error))


def _python() -> Finding:
    told = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "wrong", told)


def _kernels() -> Finding:
    from hivlp.ann import native

    if native.load() is not None:
        return Finding("kernels", "ok", "compiled")
    why = "searches read everything, more slowly: install a C compiler, then hivlp again"
    return Finding("kernels", "note", f"not compiled; {why}")


def _model() -> Finding:
    import onnxruntime

    vectors = load_model(DEFAULT_MODEL).encode_text(["a photo"])
    dims = ", ".join(f"{name} {rows.shape[1]}" for name, rows in vectors.items())
    return Finding("model", "ok", f"{DEFAULT_MODEL} runs on ONNX Runtime {onnxruntime.__version__} ({dims})")


def _sqlite() -> Finding:
    with sqlite3.connect(":memory:") as db:
        db.execute("SELECT json_group_array(json_extract('{\"a\": 1}', '$.a')), '{}' ->> '$.a', pow(2, 3)").fetchone()
    db.close()
    return Finding("sqlite", "ok", sqlite3.sqlite_version)


def _cache() -> Finding:
    from hivlp.files.digests import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"{folder} cannot be made: {(error.strerror or str(error)).lower()}; HIVLP_CACHE names another folder"
        return Finding("cache", "wrong", told)
    if not os.access(folder, os.W_OK):
        return Finding("cache", "note", f"{folder} cannot be written: thumbnails are made anew each time (HIVLP_CACHE)")
    free = shutil.disk_usage(folder).free
    state = "ok" if free > LEAST_FREE else "note"
    return Finding("cache", state, f"{folder}, {free >> 20:,} MB free")


def _service() -> Finding:
    page = Path(importlib.util.find_spec("hivlp.serve").origin or "").parent / "page"  # type: ignore[union-attr]
    if not all((page / name).exists() for name in ("index.html", "page.css", "js/app.js")):
        return Finding("service", "wrong", "the page's files are missing: install hivlp again")
    if not (page / "vendor" / "parts.json").is_file():
        return Finding("service", "note", "with a plainer page: install npm, then hivlp again")
    slow = [name for name in ("uvloop", "httptools") if importlib.util.find_spec(name) is None]
    if slow:
        return Finding("service", "note", f"faster with {' and '.join(slow)}: pip install {' '.join(slow)}")
    return Finding("service", "ok", "with its page")


def _index(path: Path) -> Finding:
    from hivlp.index import Index

    what = f"index {path}"
    try:
        with Index.open(path) as index:
            info = index.info()
            gone = _gone(index)
            if index.model_source:
                index.attach(index.model_source)
    except HivlpError as error:
        return Finding(what, "wrong", str(error))
    told = f"{info.items} items of {info.model}"
    if info.missing:
        return Finding(what, "note", f"{told}, the files of {info.missing} are not there: index their folders again")
    if info.tuned is not None and info.tuned["tune_again"]:
        return Finding(what, "note", f"{told}; hivlp tune would help: {info.tuned['tune_again']}")
    if gone:
        away = f"{told}, but {gone[0]} is not there" + (f", nor are {len(gone) - 1} others" if gone[1:] else "")
        return Finding(
            what, "note", f"{away}: no search shows them; is their disk connected? hivlp relocate if they moved"
        )
    if not os.access(path, os.W_OK):
        return Finding(what, "note", f"{told}; this user cannot write it: it is searched, and served, as it is")
    return Finding(what, "ok", told)


def _gone(index: Index) -> list[str]:
    """Of the first items those whose pictures are not in their places; none of an index of given vectors."""
    if index.store.about.model == "embeddings":
        return []
    return [item.path for item in islice(index, SAMPLE) if not os.path.lexists(item.path)]


def _extras() -> list[Finding]:
    """What each extra lacks."""
    modules = {package: module for module, package in PACKAGES.items()}
    found = []
    for extra in ("photos", "data", "hub", "train"):
        names = {name: modules.get(name, name.replace("-", "_")) for name in EXTRAS[extra].split()}
        names |= {"pillow-jxl-plugin": "pillow_jxl"} if "pillow-jxl-plugin" in names else {}
        lacking = [name for name, module in names.items() if importlib.util.find_spec(module) is None]
        told = f"without {', '.join(lacking)}: {install_command(extra)}" if lacking else "installed"
        found.append(Finding(f"extra {extra}", "note" if lacking else "ok", told))
    return found
