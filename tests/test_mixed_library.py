"""A library of mixed files that is renamed, moved, deleted and re-added ends equal to a fresh index, within its memory.

``python tests/test_mixed_library.py 1500`` does so at full size with the model that ships.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hivlp.bench.report import memory_bytes
from hivlp.data.kinds import readable
from hivlp.index import Index

KINDS = ("jpg", "png", "webp", "tif", "bmp", "gif", "heic", "jxl", "avif")
NEEDS = {"heic": "HEIC", "jxl": "JPEG XL", "avif": "AVIF"}
BESIDE = ("notes.txt", "clip.mpeg4", "@eaDir/x.jpg", ".thumbs/y.jpg", "broken.jpg", "drawing.psd")
LARGE = (4000, 3000)
"""Pixels of one in fifty pictures; a phone's."""


def write_library(folder: Path, count: int) -> None:
    """Pictures of every kind that can be written here, a tenth of them copies, among what is no picture."""
    if readable("HEIC"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if readable("JPEG XL"):
        import pillow_jxl  # noqa: F401  (registers itself)
    kinds = [kind for kind in KINDS if readable(NEEDS.get(kind, "JPEG"))]
    last = folder
    for number in range(count):
        place = folder / f"{2015 + number % 7}" / f"trip {number % 23}"
        place.mkdir(parents=True, exist_ok=True)
        if number % 10 == 9:
            shutil.copyfile(last, place / f"copy{number}{last.suffix}")
            continue
        size = LARGE if number % 50 == 7 else (240, 160)
        small = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        kind = "jpg" if size == LARGE else kinds[number % len(kinds)]
        last = place / f"IMG_{number:05}.{kind}"
        Image.fromarray(small).resize(size).save(last)
    for name in BESIDE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8\xffno picture")


def stir(folder: Path, away: Path) -> Counter[str]:
    """Rename, move, delete, copy and exchange; gives how many of each."""
    done: Counter[str] = Counter()
    away.mkdir(exist_ok=True)
    (folder / "2016").rename(folder / "the year 2016")
    for number, path in enumerate(sorted(path for path in folder.rglob("*.*") if "IMG_" in path.name)):
        match number % 12:
            case 0:
                path.rename(path.with_name(f"renamed {path.name}"))
                done["renamed"] += 1
            case 1:
                target = folder / "sorted" / path.suffix[1:]
                target.mkdir(parents=True, exist_ok=True)
                path.rename(target / path.name)
                done["moved"] += 1
            case 2:
                path.rename(away / path.name)
                done["deleted"] += 1
            case 3:
                shutil.copyfile(path, path.with_name(f"again {path.name}"))
                done["copied"] += 1
    return done


def live(place: Path, count: int, model) -> dict[str, object]:
    """The life of a library; what each walk reported, and whether it ends as a fresh index is."""
    folder, away = place / "photos", place / "away"
    write_library(folder, count)
    reports = {}
    with Index.create(place / "x.hivlp", model=model) as index:
        reports["first"] = index.add(folder)
        encoded = getattr(model, "encoded", 0)
        done = stir(folder, away)
        reports["stirred"] = index.add(folder)
        for path in away.iterdir():  # re-added elsewhere, half of them
            if int(path.stem[-5:]) % 2:
                path.rename(folder / path.name)
        reports["re-added"] = index.add(folder)
        reports["pruned"] = index.add(folder, prune=True)
        peak = memory_bytes("VmHWM") >> 20  # getrusage counts what the parent held when it forked, too
        again = getattr(model, "encoded", 0) - encoded
        lived, whole = contents(index), index.verify().ok
    with Index.create(place / "fresh.hivlp", model=model) as fresh:
        reports["fresh"] = fresh.add(folder)
        equal = lived == contents(fresh)
    shown = {name: {key: value for key, value in report.to_json().items() if isinstance(value, (int, float))}
             for name, report in reports.items()}  # fmt: skip
    return {"done": done, "reports": shown, "equal": equal, "whole": whole, "items": len(lived), "encoded_again": again,
            "peak_mb": peak}  # fmt: skip


def contents(index: Index) -> dict[str, tuple[object, ...]]:
    """What an index holds, by path; two vectors count as equal within what a batch rounds otherwise."""
    return {
        item.path: (item.hash, item.caption, item.metadata, item.missing, Rounded(index.vectors(item.id).fine))
        for item in index.items()
    }


class Rounded:
    def __init__(self, vector: np.ndarray) -> None:
        self.vector = vector

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rounded) and np.allclose(self.vector, other.vector, atol=2e-3)

    __hash__ = None


@pytest.mark.slow
def test_a_stirred_library_ends_equal_to_a_fresh_index_with_counts(tmp_path, encoder):
    told = live(tmp_path, 200, encoder)
    reports, done = told["reports"], told["done"]
    assert told["equal"] and told["whole"]
    first, stirred, added = (reports[name] for name in ("first", "stirred", "re-added"))
    assert first["added"] == 200 and stirred["added"] == done["copied"] and stirred["updated"] == 0
    assert stirred["moved"] >= done["renamed"] + done["moved"]
    assert added["moved"] + added["missing"] == stirred["missing"] and added["added"] == 0
    assert reports["pruned"]["pruned"] == added["missing"] and reports["pruned"]["missing"] == 0
    assert told["items"] == reports["fresh"]["added"]
    assert told["encoded_again"] == 0


@pytest.mark.slow
def test_indexing_takes_less_than_a_gigabyte(tmp_path):
    command = [sys.executable, __file__, "100"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout)
    assert told["equal"] and told["peak_mb"] < 1024


if __name__ == "__main__":
    from hivlp import HiVLP

    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        result = live(Path(temporary), int(sys.argv[1]), HiVLP.from_pretrained("hivlp-mini"))
        print(json.dumps({**result, "seconds": round(time.perf_counter() - started, 1)}))
