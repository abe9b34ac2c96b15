"""All products on one collection, phase after phase; what a killed run has measured is not measured again."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import hivlp
from hivlp.bench.ann.kept import Kept, workplace
from hivlp.bench.ann.real import TESTED, TRAINED_FROM, bench_folder, encode_texts, read_real, read_wordnet
from hivlp.bench.child import ONE_THREAD, listen
from hivlp.bench.products import child as child_process
from hivlp.bench.products.child import PHASES, WANTED
from hivlp.bench.products.collection import Collection, write_collection
from hivlp.bench.products.report import ProductsReport, draw
from hivlp.bench.products.rivals import PRODUCTS, Product
from hivlp.bench.report import machine, measured
from hivlp.encode import HiVLP
from hivlp.errors import MissingExtraError

SMALL_ITEMS, SMALL_GLOSSES = 10_000, 6_000
TIMEOUTS = {"small": 120.0, "real": 3600.0}
"""Seconds of a phase."""
DEADLINE = 285.0  # seconds of the small size, after which nothing more is tried
LEAST = 5.0  # seconds in which a phase can say anything
OPENED = 2  # times, in a process of its own, with its files in the page cache, and as many without
LIBRARIES = ("numpy", "onnxruntime", "pyarrow")


@dataclass(frozen=True)
class Run:
    """A run that may have been killed before.

    Attributes:
        collection: what is indexed and asked.
        folder: of what products build and of what was measured; nothing is left there when all is done.
        timeout: seconds of a phase.
        deadline: by :func:`time.perf_counter`, when all must be done.
    """

    collection: Collection
    folder: Path
    timeout: float
    deadline: float = float("inf")

    def measure(self, product: type[Product], bar: Any) -> list[dict[str, Any]]:
        """A row for every measure of a product: its figures, or a ``status`` that says why there are none."""
        rows: list[dict[str, Any]] = []
        efforts: dict[str, Any] = {}
        built: str = "ok"
        for phase, measures in PHASES.items():
            bar.set_postfix_str(f"{product.name}, {phase}")
            said: dict[str, Any] = {"status": built}
            if built == "ok":
                said = self._phase(product, phase, efforts)
            if phase == "build":
                built = said["status"]
            efforts = said.get("efforts", efforts)
            found = {each["measure"]: each for each in said.get("rows", [])}
            why = said["status"] if said["status"] != "ok" else "said nothing"
            rows += [
                {"product": product.name, **found.get(measure, {"measure": measure, "status": why})}
                for measure in measures
            ]  # fmt: skip
            bar.update()
        return rows

    def _phase(self, product: type[Product], phase: str, efforts: Mapping[str, Any]) -> dict[str, Any]:
        """What a phase says, now or before a run was killed."""
        folder = self.folder / product.__name__
        code = own_code() if "hivlp" in product.packages else None
        bench = self.timeout, inspect.getsource(child_process)
        about = [versions(product.packages), code, machine(*_installed(LIBRARIES)), *bench]
        kept, engine = Kept(folder / phase, {"about": about}), f"{product.__module__}:{product.__name__}"
        found = kept.read(engine)
        if found is not None and (phase != "build" or (folder / "index").is_dir()):
            return found
        left = min(self.timeout, self.deadline - time.perf_counter())
        if left < LEAST:
            return {"status": "no time left"}
        found = self._carried_out(product.__name__, phase, folder, efforts, left)
        kept.write(engine, found)
        return found

    def _carried_out(
        self, name: str, phase: str, folder: Path, efforts: Mapping[str, Any], left: float
    ) -> dict[str, Any]:
        def listened(where: Path, threads: Mapping[str, str] = ONE_THREAD) -> dict[str, Any]:
            given = [name, phase, str(where), str(self.collection.folder), "--efforts", json.dumps(efforts)]
            return listen("hivlp.bench.products.child", given, left, {**threads, **QUIET})

        match phase:
            case "build":
                shutil.rmtree(folder / "index", ignore_errors=True)
                (folder / "index").mkdir(parents=True)
                said = listened(folder / "index", threads=PATIENT)
                if said["status"] != "ok":
                    shutil.rmtree(folder / "index")
                return said
            case "open":
                opened = []
                for number in range(2 * OPENED):
                    if number < OPENED:
                        forget(folder / "index")
                    opened.append(listened(folder / "index"))
                return _opened(opened[:OPENED], opened[OPENED:])
            case "change":
                shutil.rmtree(folder / "changed", ignore_errors=True)
                shutil.copytree(folder / "index", folder / "changed")
                said = listened(folder / "changed")
                shutil.rmtree(folder / "changed")
                return said
        return listened(folder / "index")


def run(
    size: str, model: HiVLP, plot: Path | None = None, products: Sequence[type[Product]] = PRODUCTS
) -> ProductsReport:
    """Measure all products, one after another, each phase in a process of its own.

    Args:
        size: ``small``, 10,000 words of WordNet, at most five minutes; ``real``, all 148,730, half an hour.
        model: encodes them.
        plot: where to draw the rows.
        products: that are measured, ours first.

    Raises:
        DataError: if WordNet is not there.
        HivlpError: if another run of the same size is under way.
        MissingExtraError: if matplotlib is not installed, for a plot.
    """
    if plot is not None and not _installed(["matplotlib"]):
        raise MissingExtraError("`hivlp bench products --plot`", "bench-products")
    started = time.perf_counter()
    collection = collection_of(size, model)
    deadline = started + DEADLINE if size == "small" else float("inf")
    folder = collection.folder.parent / f"{collection.folder.name}-run"
    with workplace(folder, f"hivlp bench products --size {size}"):
        report = compare(Run(collection, folder, TIMEOUTS[size], deadline), products, started, size)
        if plot is not None:
            draw(report, plot)
    return report


def compare(run: Run, products: Sequence[type[Product]], started: float, size: str = "") -> ProductsReport:
    """The report of a run."""
    rows, about = [], []
    with tqdm(total=len(products) * len(PHASES), desc="products", disable=None) as bar:
        for product in products:
            rows += run.measure(product, bar)
            about.append({"product": product.name, "versions": versions(product.packages), "how": product.how})
    ours, *others = products
    speedup, best = speedups(rows, ours.name, [other.name for other in others])
    databases = [other.name for other in others if other.keeps_payloads]
    over_database, database = speedups(rows, ours.name, databases)
    return ProductsReport(
        size=size,
        items=run.collection.later(),
        dim=run.collection.read("items").shape[1],
        speedup_best_product=speedup,
        best_product=best,
        speedup_best_database=over_database,
        best_database=database,
        products=about,
        rows=rows,
        **measured(started, *_installed(LIBRARIES)),
    )


def collection_of(size: str, model: HiVLP) -> Collection:
    """Words of WordNet, asked for by its glosses: all of them, or random ones."""
    words, glosses = read_wordnet()
    folder = bench_folder() / f"products-{size}-{model.fingerprint[:16]}"
    if size == "real":
        real = read_real(model)
        queries = np.asarray(real.glosses[: 2 * TESTED])
        return write_collection(folder, real.words, words, queries, np.asarray(real.glosses[TRAINED_FROM:]))
    if not (folder / "remove.npy").is_file():
        some = np.sort(np.random.default_rng(0).permutation(len(words))[:SMALL_ITEMS])
        words = [words[number] for number in some]
        asked = encode_texts(model, glosses[:SMALL_GLOSSES], "glosses")
        items = encode_texts(model, words, "words")
        return write_collection(folder, items, words, asked[: 2 * TESTED], asked[TRAINED_FROM:])
    return Collection(folder)


def speedups(
    rows: Sequence[Mapping[str, Any]], ours: str, others: Sequence[str]
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, str | None]]]:
    """By recall, ``single`` and ``batch``: how many times as fast as the best of other products ours is, and which.

    One at a time the median counts, at once the throughput; None where ours, or no other, reaches the recall.
    """
    speedup: dict[str, dict[str, float | None]] = {}
    best: dict[str, dict[str, str | None]] = {}
    for wanted in map(str, WANTED):
        compared = {ours, *others}
        there = {
            (row["measure"], row["product"]): row
            for row in rows
            if row["status"] == "ok" and row["product"] in compared
        }
        speeds = {
            "single": {name: 1 / row["p50_ms"] for (of, name), row in there.items() if of == f"search {wanted}"},
            "batch": {name: row["qps"] for (of, name), row in there.items() if of == f"batch {wanted}"},
        }
        speedup[wanted], best[wanted] = {}, {}
        for way, of in speeds.items():
            mine = of.pop(ours, None)
            best[wanted][way] = name = max(of, key=lambda product: of[product], default=None)
            speedup[wanted][way] = round(mine / of[name], 2) if mine is not None and name is not None else None
    return speedup, best


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of packages by their names; None for what is not installed."""
    result: dict[str, str | None] = {}
    for package in packages:
        try:
            result[package] = hivlp.__version__ if package == "hivlp" else metadata.version(package)
        except metadata.PackageNotFoundError:
            result[package] = None
    return result


@functools.cache
def own_code() -> str:
    """A digest of hivlp's Python and kernels, which change more often than its version does."""
    digest = hashlib.sha256()
    for path in sorted(Path(hivlp.__file__).parent.rglob("*")):
        if path.suffix in (".py", ".so"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache (Linux; nothing elsewhere)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _opened(cold: Sequence[dict[str, Any]], warm: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer out of several processes that opened the same files: the least disturbed figures."""
    wrong = next((said for said in [*cold, *warm] if said["status"] != "ok"), None)
    if wrong is not None:
        return {"status": wrong["status"]}
    first, memory = [[said["rows"][number] for said in warm] for number in (0, 1)]
    opened = {
        "measure": "open", "status": "ok", "ms": min(each["ms"] for each in first),
        "cold_ms": min(said["rows"][0]["ms"] for said in cold),
    }  # fmt: skip
    return {"status": "ok", "rows": [opened, min(memory, key=lambda each: each["private_mb"])]}


def _installed(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if _version(package) is not None]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Threads that build wait for each other asleep: where other programs run, too, spinning takes their time a hundredfold.
PATIENT = {"OMP_WAIT_POLICY": "passive"}
# Some products report home.
QUIET = {"ANONYMIZED_TELEMETRY": "False", "TOKENIZERS_PARALLELISM": "false"}
