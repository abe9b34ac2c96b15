"""Generated webdataset shards: as many pairs as wanted, the pictures repeated, the captions each its own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from hivlp.files.scratch import write_whole

PICTURES = 997  # different ones
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "brown")
_SHAPES = ("circle", "square", "ring", "cross", "bar")
_END = bytes(2 * tarfile.BLOCKSIZE)


def write_shards(folder: Path, pairs: int, shards: int, size: tuple[int, int]) -> Path:
    """Tars ``00000.tar``, ``00001.tar``, … that share ``pairs`` evenly; those that are there are kept.

    Args:
        folder: to write to.
        pairs: a multiple of ``shards``.
        shards: how many.
        size: width and height of the pictures, in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    each = pairs // shards
    missing = [number for number in range(shards) if not (folder / f"{number:05}.tar").is_file()]
    if missing:
        pictures = [_picture(number, size) for number in range(PICTURES if pairs > PICTURES else pairs)]
        for shard in tqdm(missing, "shards", unit="shard", disable=None):
            numbers = range(shard * each, (shard + 1) * each)
            write_whole(folder / f"{shard:05}.tar", lambda path, these=numbers: _write(path, these, pictures))  # type: ignore[misc]
    return folder


def _write(path: Path, numbers: range, pictures: list[bytes]) -> None:
    with path.open("wb", buffering=1 << 20) as file:
        for number in numbers:
            file.write(_member(f"{number:08}.jpg", pictures[number % len(pictures)]))
            file.write(_member(f"{number:08}.txt", _caption(number).encode()))
        file.write(_END)


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _caption(number: int) -> str:
    picture = number % PICTURES
    colour, shape = _COLOURS[picture % len(_COLOURS)], _SHAPES[picture % len(_SHAPES)]
    return f"a {colour} {shape} on noise, the {number}th picture of all"


def _picture(number: int, size: tuple[int, int]) -> bytes:
    """A JPEG of a shape on smooth noise."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(96, 256, (max(2, size[1] // 8), max(2, size[0] // 8), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    side = min(size) // 4
    left, top = (int(rng.integers(0, length - side)) for length in size)
    box = (left, top, left + side, top + side)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if number % 2 else draw.rectangle)(box, fill=_COLOURS[number % len(_COLOURS)])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
