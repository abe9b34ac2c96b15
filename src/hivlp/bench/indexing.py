"""How many pictures a second ``hivlp index`` takes, and where the time goes; and how fast vectors are stored."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hivlp.bench.report import Report, forget_peak, measured, median_ms, memory_bytes
from hivlp.data.pictures import decode, prepare
from hivlp.encode.base import Encoder
from hivlp.index import AddReport, Index
from hivlp.levels import Embeddings, Level
from hivlp.store.folder import Store
from hivlp.store.making import make_store
from hivlp.store.records import About, NewItem, Stamp

SIDE = 400
SAMPLE = 64


@dataclass(frozen=True, kw_only=True)
class IndexingReport(Report):
    """How fast pictures are indexed; see :func:`run`."""

    pictures: int
    pictures_per_second: float
    runs: list[float]
    core_ms_per_picture: dict[str, float]
    peak_resident_mb: float
    append: dict[str, Any]
    model: str

    def to_text(self) -> str:
        """Tables for the terminal."""
        stages = ", ".join(f"{name} {value:.2f} ms" for name, value in self.core_ms_per_picture.items())
        machine = self.machine
        return (
            f"{self.pictures_per_second} pictures/s (median of {self.runs}), "
            f"{self.pictures} PNGs of {SIDE}×{SIDE}, {self.model}\n"
            f"one core, one picture: {stages}\n"
            f"peak resident memory {self.peak_resident_mb} MB\n"
            f"{self.append['vectors_per_second']} items/s stored if they are encoded already: batches of "
            f"{self.append['batch']}, {'+'.join(map(str, self.append['dims']))} dims\n"
            f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {machine['versions']}"
        )


def run(model: Encoder, pictures: int, repeats: int = 3) -> IndexingReport:
    """Index ``pictures`` distinct 400×400 RGBA PNGs, ``repeats`` times into new indexes.

    The pictures are the demo's, enlarged and slightly tinted, so that no two have the same content.

    Returns:
        ``pictures_per_second`` (median), the milliseconds of one core that each stage takes a picture, the peak
        resident memory while indexing in MB, and what :func:`append_rates` measures.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        folder.mkdir()
        paths = _make(folder, pictures)
        rates, peaks = [], []
        for repeat in range(repeats + 1):
            progress = tqdm(total=pictures, desc=f"run {repeat + 1}/{repeats + 1}", leave=False, disable=None)
            with Index.create(Path(scratch) / f"run{repeat}", model=model) as index, progress:
                forget_peak()
                started = time.perf_counter()
                report = index.add(folder, on_progress=partial(_advance, progress))
                seconds = time.perf_counter() - started
            if report.added != pictures:
                raise RuntimeError(f"indexed {report.added} of {pictures} pictures")
            if repeat:  # the first run opens the model and warms the caches
                rates.append(pictures / seconds)
                peaks.append(memory_bytes("VmHWM") / 1e6)
        sample = paths[:SAMPLE]
        data = [path.read_bytes() for path in sample]
        images = [decode(content, target=model.picture.size) for content in data]
        pixels = np.stack([prepare(image, model.picture) for image in images])
        stages = {
            "read": _each_ms(lambda: [path.read_bytes() for path in sample]),
            "decode": _each_ms(lambda: [decode(content, target=model.picture.size) for content in data]),
            "fit": _each_ms(lambda: [prepare(image, model.picture) for image in images]),
            "model": _each_ms(lambda: model.encode_pixels(pixels)),
        }
    return IndexingReport(
        pictures=pictures,
        pictures_per_second=round(statistics.median(rates), 1),
        runs=[round(rate, 1) for rate in rates],
        core_ms_per_picture=stages,
        peak_resident_mb=round(max(peaks), 1),
        append=append_rates(),
        model=model.name,
        **measured(began, "onnxruntime", "pillow", "numpy"),
    )


def append_rates(batches: int = 8, batch: int = 10_000, dims: Sequence[int] = (64, 768)) -> dict[str, Any]:
    """Add random vectors with new paths to an index that grows, each batch committed and on disk.

    Returns:
        ``vectors_per_second`` (median over the batches), the ``runs``, ``batch`` and ``dims``.
    """
    levels = tuple(Level(f"level{number}", dim, number, number) for number, dim in enumerate(dims, 1))
    rng = np.random.default_rng(0)
    vectors = {}
    for level in levels:
        array = rng.standard_normal((batch, level.dim), np.float32)
        vectors[level.name] = array / np.linalg.norm(array, axis=1, keepdims=True)
    facts = {"format": "JPEG", "width": 640, "height": 480}
    rates = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "index"
        make_store(place, About("numbers", "numbers", "0" * 64, levels))
        with closing(Store(place)) as index:
            for part in tqdm(range(batches), "batches", leave=False, disable=None):
                items = [
                    NewItem(
                        f"/{number % 100}/{part}-{number}.jpg", rng.bytes(32), "a caption", facts, Stamp(1, 2, 3, 4)
                    )
                    for number in range(batch)
                ]
                started = time.perf_counter()
                index.append(items, Embeddings(vectors))
                rates.append(batch / (time.perf_counter() - started))
    runs = [round(rate) for rate in rates]
    return {"vectors_per_second": round(statistics.median(rates)), "runs": runs, "batch": batch, "dims": list(dims)}


def _advance(progress: tqdm[Any], done: AddReport) -> None:
    progress.update(done.seen - progress.n)


def _make(folder: Path, count: int) -> list[Path]:
    shipped = sorted(Path(str(resources.files("hivlp") / "assets" / "pictures")).glob("*.[pw]*"))
    rng = np.random.default_rng(0)
    paths = []
    for number in tqdm(range(count), "pictures", leave=False, disable=None):
        with Image.open(shipped[number % len(shipped)]) as image:
            large = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        tinted = np.asarray(large).copy()
        tinted[..., :3] = np.clip(tinted[..., :3].astype(np.int16) + rng.integers(-12, 13, 3), 0, 255)
        path = folder / f"{number:05}.png"
        Image.fromarray(tinted).save(path)
        paths.append(path)
    return paths


def _each_ms(action: Callable[[], object], repeats: int = 5) -> float:
    """Median milliseconds of one picture."""
    return round(median_ms(lambda _: action(), range(repeats)) / SAMPLE, 3)
