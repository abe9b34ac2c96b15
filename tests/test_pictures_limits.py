"""What a picture may cost: thin, endless and repetitive files are refused, or decoded within the limit."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.data.pictures import MAX_BYTES, decode, load_pixels, picture_facts
from hivlp.data.pictures.limits import MAX_SCANS, Budget
from hivlp.errors import PictureError

PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"", before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def scanned_jpeg(width: int, height: int, scans: int) -> bytes:
    """A progressive grey JPEG, all of one grey, with so many scans that say nothing."""
    table = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    codes = b"".join(b"\xff\xc4\0\x15" + bytes([kind, 0, 2, *[0] * 14, 0, last]) for kind, last in ((0, 1), (16, 0xE0)))
    blocks = -(-width // 8) * -(-height // 8)
    first = b"\xff\xda\0\x08\1\1\0\0\0\0" + bytes(-(-blocks // 8))
    ends = "".join("01" + "0" * 14 for _ in range(-(-blocks // (1 << 14))))
    more = b"\xff\xda\0\x08\1\1\0\1\x3f\0" + int(ends, 2).to_bytes(len(ends) // 8, "big")
    return b"\xff\xd8" + table + frame + codes + first + more * (scans - 1) + b"\xff\xd9"


def tiff(tags: list[tuple[int, int, int, int | bytes]], pixels: bytes) -> bytes:
    """A little-endian TIFF; tag 273 or 324 is set to the place of ``pixels``, bytes are stored apart."""
    tags = sorted(tags)
    apart, place = b"", 8 + 2 + 12 * len(tags) + 4
    start = place + sum(len(value) for *_, value in tags if isinstance(value, bytes))
    table = b""
    for tag, kind, count, value in tags:
        if isinstance(value, bytes):
            value, apart = place + len(apart), apart + value
        elif tag in (273, 324):
            value = start
        table += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4) + apart + pixels


def strip(width: int, height: int, *, bits: int = 8, compression: int = 1, size: int = 0) -> list:
    shape = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1)]
    return [*shape, (273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size)]


def webp_canvas(width: int, height: int) -> bytes:
    def part(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body

    frame = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    shown = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + frame
    body = b"WEBP" + part(b"VP8X", b"\2\0\0\0" + sides) + part(b"ANIM", bytes(6)) + part(b"ANMF", shown)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, compression: int, body: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body


def icon(content: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(content), 22) + content


JPEG = encoded(Image.new("RGB", (64, 64), (255, 0, 0)), "JPEG", quality=95)
GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"

ENDLESS = {
    "a PNG of one column": (png(1, 178_000_000, colour=0), "side over the limit"),
    "a PNG of one row": (png(178_000_000, 1, colour=0), "side over the limit"),
    "a PNG of 169 million colours": (png(13_000, 13_000), "memory to decode"),
    "a PNG within an icon": (icon(png(13_000, 13_000, colour=6)), "memory to decode"),
    "a bitmap within an icon": (icon(struct.pack("<Iii", 40, 20_000, 40_000) + bytes(99)), "claims"),
    "a PNG of a million chunks": (png(8, 8, before=chunk(b"tEXt", b"a\0b") * 150_000), "chunks"),
    "a PNG of empty data": (png(8, 8, before=chunk(b"IDAT", b"") * 150_000), "chunks"),
    "a WebP canvas": (webp_canvas(13_000, 13_000), "memory to decode|pixels"),
    "a JPEG of too many scans": (scanned_jpeg(64, 64, MAX_SCANS + 1), "scans"),
    "a JPEG of large scans": (scanned_jpeg(8000, 8000, 60), "scans"),
    "a JPEG of many segments": (JPEG[:2] + b"\xff\xe5\0\4ab" * 150_000 + JPEG[2:], "segments"),
    "a JPEG of many tables": (JPEG[:2] + JPEG[20:89] * 1000 + JPEG[2:], "tables"),
    "a JPEG of junk": (JPEG[:2] + b"\xff\xe5\0\4ab" + bytes(1 << 20) + JPEG[2:], "marker"),
    "a JPEG of fill bytes": (JPEG[:2] + b"\xff" * (1 << 20) + JPEG[2:], "marker"),
    "a JPEG that claims 4 gigapixels": (JPEG.replace(b"\0\x40\0\x40", b"\xff\xdc\xff\xdc"), "over the limit"),
    "a JPEG without height": (JPEG.replace(b"\0\x40\0\x40", b"\0\0\0\x40"), "no pixels"),
    "a GIF of comments": (GIF_HEAD + b"!\xfe\1a\0" * 150_000 + GIF_FRAME, "blocks"),
    "a GIF frame off its screen": (GIF_HEAD + GIF_FRAME.replace(bytes(4), b"\xff" * 4, 1), "pixels"),
    "a bitmap of short runs": (bmp(9000, 9000, 1, b"\1\1" * 5_000_000), "run lengths"),
    "a bitmap upside down": (bmp(100, -(2**31), 0, b""), "pixels"),
    "a PPM of a long comment": (b"P5\n#" + b"x" * (1 << 20) + b"\n1 1 255 a", "header"),
    "a PPM of text": (b"P3 13000 13000 255 " + b"1 " * 99, "as text"),
    "a PPM of an odd depth": (b"P6 13000 13000 99 " + b"1 " * 99, "odd depth"),
    "a TIFF tile larger than its picture": (
        tiff(
            [
                *[each for each in strip(10, 10, compression=8) if each[0] not in (273, 278, 279)],
                (322, 4, 1, 40_000),
                (323, 4, 1, 40_000),
                (324, 4, 1, 0),
                (325, 4, 1, 9),
            ],
            zlib.compress(bytes(999)),
        ),
        "memory to decode",
    ),
    "a TIFF of floats": (tiff([*strip(12_000, 12_000, bits=32, compression=8), (339, 3, 1, 3)], b""), "memory"),
    "a TIFF of a million strips": (
        tiff([*strip(1, 99)[:5], (273, 4, 10**6, bytes(4 * 10**6)), *strip(1, 99)[6:]], bytes(99)),
        "tag 273",
    ),
    "a TIFF that says its depth twice": (
        tiff([*strip(8, 8), (258, 3, 1 << 20, bytes(2 << 20))], bytes(64)),
        "twice",
    ),
    "a TIFF of overlapping tags": (
        tiff([*strip(8, 8), *((30_000 + n, 7, 100_000, 8) for n in range(2000))], bytes(100_000)),
        "more than the file",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_costs_too_much_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    data, reason = ENDLESS[name]
    path = tmp_path / "endless"
    path.write_bytes(data)
    for picture in (data, path):
        with pytest.raises(PictureError, match=reason):
            load_pixels(picture, PictureConfig(size=32))


EXIF = b"\xff\xe1\xff\xff" + b"Exif\0\0MM\0*" + bytes(65_523)
CYCLIC = tiff(strip(8, 8, size=64), bytes(64)).replace(bytes(4) + bytes(64), b"\x08\0\0\0" + bytes(64))

HARMLESS = {
    "a GIF of many frames": GIF_HEAD + GIF_FRAME * 100_000 + b";",
    "a TIFF that is its own next page": tiff(strip(8, 8), bytes(64)).replace(
        bytes(4) + bytes(64), b"\x08\0\0\0" + bytes(64)
    ),
    "a JPEG of many EXIF segments": JPEG[:2]
    + (b"\xff\xe1\xff\xff" + b"Exif\0\0MM\0*" + bytes(65_523)) * 200
    + JPEG[2:],
    "a JPEG of 250 scans": scanned_jpeg(64, 64, 250),
    "a PNG with more data than pixels": png(8, 8, rows=bytes(50_000_000)),
    "a thin PNG within the limits": png(2, 100_000, rows=bytes(700_000)),
    "a grey PNG of 100 megapixels": png(10_000, 10_000, depth=1, colour=0, rows=bytes(12_510_000)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_endless_is_decoded(name: str) -> None:
    assert load_pixels(HARMLESS[name], PictureConfig(size=32)).shape == (32, 32, 3)


def test_exif_data_that_points_at_itself_is_not_multiplied() -> None:
    entries = b"".join(struct.pack(">HHII", 0x9000 + n, 7, 60_000, 0) for n in range(4000))
    block = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 4000) + entries
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + JPEG[2:]
    facts = picture_facts(data)
    assert (facts["format"], facts["width"], facts["height"]) == ("JPEG", 64, 64)
    assert sum(len(str(value)) for value in facts.values()) < 20_000


CHILD = """
import sys
from pathlib import Path
from hivlp.config import PictureConfig
from hivlp.data.pictures import load_pixels
load_pixels(b"P5 1 1 255 a", PictureConfig(size=64))
sizes = [load_pixels(Path(name), PictureConfig(size=64)).shape for name in sys.argv[1:]]
# Not ru_maxrss: that begins with what the process held that this one was forked from.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)
"""


def peak(*paths: Path) -> int:
    """MB that a process takes to decode pictures one after the other."""
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    result = subprocess.run(command, check=True, capture_output=True, env=environment)
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_file_is_never_in_memory_whole_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bmp" for number in range(3)]
    header = struct.pack("<IiiHHIIiiII", 40, 6000, 5000, 1, 24, 0, 0, 0, 0, 0, 0)
    for path in paths:
        with path.open("wb") as file:
            file.write(b"BM" + struct.pack("<IHHI", 54 + 90_000_000, 0, 0, 54) + header)
            file.truncate(54 + 90_000_000)
    assert peak(*paths) < 60 + 30 * 4 + 60


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_photograph_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (12_000, 9_000), (9, 99, 199)).save(path)
    assert peak(path) < 120


def test_threads_share_one_budget_first_come_first_served() -> None:
    budget, at_once, most = Budget(100), [0], [0]
    lock = threading.Lock()

    def work(amount: int) -> None:
        with budget.hold(amount):
            with lock:
                at_once[0] += amount
                most[0] = max(most[0], at_once[0])
            threading.Event().wait(0.002)
            with lock:
                at_once[0] -= amount

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (60, 30, 100, 10, 50) * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    assert 60 <= most[0] <= 100
    with budget.hold(10**12):  # more than there is: the whole, alone
        pass


def test_no_estimate_is_above_the_limit_for_ordinary_large_pictures() -> None:
    # 100 megapixels of PNG, 200 of JPEG, and one bit each for a sheet of paper one metre long.
    panorama = png(20_000, 5_000, rows=b"")
    with pytest.raises(PictureError, match=r"truncated|damaged"):
        decode(panorama, target=64)
    photo = JPEG.replace(b"\0\x40\0\x40", struct.pack(">HH", 12_240, 16_320))
    assert min(decode(photo, target=64).size) >= 64
    assert MAX_BYTES < 1 << 30
    assert np.asarray(decode(tiff(strip(9000, 9000, bits=1, size=10_125_000), bytes(10_125_000)), target=64)).max() == 0
