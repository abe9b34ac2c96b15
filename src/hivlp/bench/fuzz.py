"""Whether a damaged or hostile index folder can do more than be refused: cases under the address sanitizer.

A crash is a process that ends by a signal or a finding of a sanitizer, a hang one that says nothing for a while, a
silent case one whose exact answers are not the true ones, or whose hits are out of order or have scores of other items.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hivlp.ann import AnnIndex, SearchParams, native
from hivlp.ann.bounds import Bounds
from hivlp.bench.fuzz_child import HUNG, PATIENCE
from hivlp.bench.report import Report, measured
from hivlp.coarse.closed import prefix
from hivlp.errors import IndexFolderError
from hivlp.index import Index
from hivlp.index.tuning import jobs
from hivlp.index.tuning.tuned_index import TunedIndex
from hivlp.levels import Vectors
from hivlp.search.likeness import Likeness, Region
from hivlp.search.operating_points import Depth, OperatingPoint, Tuned, sample
from hivlp.store.derived import keep_payloads
from hivlp.store.records import NewItem, Stamp

CHUNK = 50  # cases a process
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g")
FLAGS = ("-O1", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden")
FOUND = 86  # exit code of a sanitizer that found something
SETTINGS = SearchParams(6, 6.0, 1.0, 60, 4.0), SearchParams(4, np.inf, 0.5, 50)

# Items, dims of the vectors, of the codes, with signs, lists, copies; whether there are bounds, and rows behind them.
SHAPES = (
    (1500, 48, 48, 32, 40, 2, True, False),
    (1100, 64, 32, 32, 3, 1, True, True),
    (1300, 32, 16, 16, 17, 2, False, False),
    (1500, 48, 48, 48, 24, 1, True, False),
    (1100, 40, 32, 16, 1, 1, True, True),
)


@dataclass(frozen=True, kw_only=True)
class FuzzReport(Report):
    """What damaged and hostile index folders did; see :func:`run`."""

    cases: int
    crashes: int
    hangs: int
    silent: int
    errors: int
    refused: int
    accepted: int
    ours: int
    misled: int
    sanitizer: str
    seed: int

    def to_text(self) -> str:
        """Tables for the terminal."""
        counts = f"{self.crashes} crashes, {self.hangs} hangs, {self.silent} silent, {self.errors} errors"
        return "\n".join(
            [
                *(f"FAILED: {failure}" for failure in self.failures),
                f"{self.cases} cases: {counts}",
                f"{self.accepted} searched with the engine, {self.refused} without it, {self.ours} refused",
                f"{self.misled} with exact answers that forged sums made wrong; watched by {self.sanitizer}",
                f"{self.seconds} s",
            ]
        )


def run(cases: int, seed: int = 0) -> FuzzReport:
    """Try so many damaged indexes.

    Returns:
        ``cases``; ``crashes``, ``hangs`` and ``silent``; ``errors`` that are none of ours; ``accepted``, ``refused``
        (searched without the engine), ``ours`` (one of our errors); ``misled``: exact answers that are wrong since
        somebody changed an engine and made its sums fit; ``sanitizer``: what watched; ``failures`` as sentences.

    Raises:
        IndexFolderError: if there are no kernels.
    """
    started = time.perf_counter()
    if native.load() is None:
        raise IndexFolderError("the kernels are not compiled here, and there is nothing to try")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "indexes"
        folder.mkdir()
        for number, shape in enumerate(SHAPES):
            make_index(folder / f"index{number}", number, *shape)
        library, note = sanitized(Path(scratch))
        chunks = [list(range(start, min(start + CHUNK, cases))) for start in range(0, cases, CHUNK)]
        with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool, tqdm(total=cases, disable=None) as bar:
            done = []
            for part in pool.map(lambda chunk: _watch(folder, chunk, seed, library), chunks):
                done += part
                bar.update(len(part))
    outcomes = Counter(case["outcome"] for case in done)
    silent = [case for case in done if case.get("wrong") and not _misled(case)]
    bad = [case for case in done if case["outcome"] in ("crash", "hang", "raw")]
    return FuzzReport(
        cases=len(done),
        crashes=outcomes["crash"],
        hangs=outcomes["hang"],
        silent=len(silent),
        errors=outcomes["raw"],
        refused=outcomes["refused"],
        accepted=outcomes["accepted"],
        ours=outcomes["error"],
        misled=sum(_misled(case) for case in done),
        sanitizer=note,
        failures=[_sentence(case) for case in [*bad, *silent]],
        seed=seed,
        **measured(started, "numpy"),
    )


def make_index(
    place: Path, seed: int, items: int, width: int, dims: int, signed: int, lists: int, copies: int,
    bounded: bool, late: bool,
) -> None:  # fmt: skip
    """A tuned index, whose engine is of the shape that is wanted instead of the best one."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(30, width))
    vectors = groups[rng.integers(30, size=items)] + 0.7 * rng.normal(size=(items, width)) + 0.3
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with Index.create_from_embeddings(place, prefix(width, 8)) as index:
        built = items - 50 if late else items
        _append(index, vectors[:built], 0)
        fine, _, generation = jobs.finest(index.store)
        engine = AnnIndex.build(
            fine, queries=vectors[:1200], dims=dims, sign_dims=signed, nlist=lists, assignments=copies
        )
        bounds = Bounds.build(engine, vectors[:300]) if bounded else None
        setting = SETTINGS[seed % len(SETTINGS)]
        points = (OperatingPoint(setting, 1.0, 0.999, 0.1, 0.2), OperatingPoint(SETTINGS[0], 0.95, 0.9, 0.05, 0.1))
        ladder = tuple(point.params for point in points)
        regions = Region(0.0, (1.0, 1.0)), Region(0.0, (0.5, 1.0)), Region(0.3, (0.5, 1.0))
        likeness = Likeness(0.99, 0.6, (10 / built, 1.0), (0.4, -1.0), regions)
        tuned = Tuned(
            generation, built, built, "pairs of items", 0.99, (Depth(10, points, ladder, likeness),), sample(fine)
        )
        TunedIndex.of(engine, bounds, vectors[:200].astype(np.float16), tuned).save(index.store)
        keep_payloads(index.store, least=1)
        if late:
            _append(index, vectors[built:], built)


def _append(index: Index, vectors: Vectors, first: int) -> None:
    items = [
        NewItem(f"/p/{first + row}", row.to_bytes(32, "big"), None, {}, Stamp(0, 0, 0, 0))
        for row in range(len(vectors))
    ]
    assert index.maps is not None
    index.store.append(items, index.maps.of_items(vectors))


def sanitized(folder: Path) -> tuple[dict[str, str], str]:
    """Kernels that notice what they should not do.

    Returns:
        the environment that a process needs for them, with ``KERNELS``, a file beside them; and what watches, in words.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return {}, "nothing but the system: there is no C compiler here"
    sources, library = sorted((Path(native.__file__).parent / "c").glob("*.c")), folder / native.LIBRARY
    command = [compiler, *FLAGS, *SANITIZE, "-o", str(library), *map(str, sources), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()  # fmt: skip
    if done.returncode or not Path(runtime).is_absolute():
        return {}, "nothing but the system: the compiler has no sanitizers"
    options = f"detect_leaks=0:allocator_may_return_null=1:exitcode={FOUND}"
    settings = {
        "LD_PRELOAD": str(Path(runtime).resolve()),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:exitcode={FOUND}",
        "KERNELS": str(folder / "native.py"),
    }
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return settings, f"the address and undefined behaviour sanitizers of {version[0] if version else compiler}"


def _watch(folder: Path, numbers: list[int], seed: int, settings: dict[str, str]) -> list[dict[str, Any]]:
    """What became of some cases: a process tries them, another goes on behind the one that ended it."""
    done: list[dict[str, Any]] = []
    while numbers:
        given = [str(folder), json.dumps(numbers), str(seed), *([settings["KERNELS"]] if settings else [])]
        part, ending = child(["-m", "hivlp.bench.fuzz_child", *given], settings)
        done += [case for case in part if "case" in case]
        if ending is None:
            break
        at = part[-1]["begin"] if part and "begin" in part[-1] else numbers[min(len(part) // 2, len(numbers) - 1)]
        done.append({"case": at, "what": f"seed {seed}", **ending})
        numbers = [number for number in numbers if number > at]
    return done


def child(arguments: list[str], settings: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What a process of Python says, a line of JSON for each case, and how it ends if not well.

    Args:
        arguments: of its command line.
        settings: variables of its environment, from :func:`sanitized`.
    """
    given = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, env={**os.environ, **given, **settings}, check=False
    )
    said = [json.loads(line) for line in done.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
    if not done.returncode:
        return said, None
    told = done.stderr.decode("utf-8", "replace").splitlines()
    if any(line.startswith(HUNG) for line in told):
        return said, {"outcome": "hang", "raw": f"no end after {PATIENCE:.0f} s: " + " | ".join(told[-5:])}
    words = ("ERROR", "runtime error", "    #")
    finding = [line for line in told if any(word in line for word in words)]
    return said, {"outcome": "crash", "raw": f"code {done.returncode}: " + " | ".join(finding[:8] or told[-5:])}


def _misled(case: dict[str, Any]) -> bool:
    """Whether all that is wrong is an exact answer of an engine whose sums somebody made fit."""
    wrong = case.get("wrong") or []
    return bool(wrong) and bool(case.get("forged")) and all(said.startswith("exact answer") for said in wrong)


def _sentence(case: dict[str, Any]) -> str:
    told = case.get("raw") or "; ".join(dict.fromkeys(case.get("wrong", ())))
    return f"case {case['case']} ({case.get('base', '?')}, {case.get('what', '?')}): {case['outcome']}: {told}"
