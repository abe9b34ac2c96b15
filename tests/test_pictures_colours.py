"""Grey and colour values: whatever depth, order, profile or damage a file has, pixels come first and are right."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from hivlp.data.pictures import decode
from hivlp.data.pictures.source import Source
from hivlp.data.pictures.whole import _jxl_size

PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> list[list[int]]:
    return np.asarray(decode(data)).reshape(-1, 3).tolist()


def greys(data: bytes) -> list[int]:
    values = np.asarray(decode(data)).reshape(-1, 3)
    assert (values == values[:, :1]).all()
    return values[:, 0].tolist()


# --- TIFF


def tiff(
    width: int, samples: bytes, bits: int, white: int, *, kind=1, order="<", packed=False, count=1, extra=None
) -> bytes:
    """One row of a TIFF; ``white`` is 0 where zero is white, and 1 where it is black."""
    stored = zlib.compress(samples) if packed else samples
    tags: list[tuple[int, int, list[int]]] = [
        *((256, 4, [width]), (257, 4, [1]), (258, 3, [bits] * count), (259, 3, [8 if packed else 1])),
        *((262, 3, [white]), (273, 4, [0]), (277, 3, [count]), (278, 4, [1]), (279, 4, [len(stored)])),
        *([(338, 3, [extra])] if extra is not None else []),
        (339, 3, [kind] * count),
    ]
    apart, place = b"", 8 + 2 + 12 * len(tags) + 4
    start = place + sum(2 * len(values) for _, code, values in tags if code == 3 and len(values) > 2)
    table = b""
    for tag, code, values in tags:
        raw = struct.pack(f"{order}{len(values)}{'H' if code == 3 else 'I'}", *values)
        if tag == 273:
            raw = struct.pack(order + "I", start)
        if len(raw) > 4:
            raw, apart = struct.pack(order + "I", place + len(apart)), apart + raw
        table += struct.pack(order + "HHI", tag, code, len(values)) + raw.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    return head + table + bytes(4) + apart + stored


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_zero_is_white_or_black_as_a_tiff_says_at_every_depth(order: str, packed: bool) -> None:
    depths = [
        (3, b"\x40", 1, 1, [0, 255, 0]),
        (4, b"\x1b", 2, 1, [0, 85, 170, 255]),
        (3, b"\x0f\x80", 4, 1, [0, 255, 136]),
        (3, b"\0\x32\xff", 8, 1, [0, 50, 255]),
        (3, struct.pack(order + "3H", 0, 257 * 50, 65535), 16, 1, [0, 50, 255]),
        (3, struct.pack(order + "3I", 0, 257 * 50, 65535), 32, 1, [0, 50, 255]),
        (3, struct.pack(order + "3I", 0, 1 << 31, (1 << 32) - 1), 32, 1, [0, 128, 255]),
        (3, struct.pack(order + "3i", 0, 257 * 50, 65535), 32, 2, [0, 50, 255]),
        (3, struct.pack(order + "3f", 0, 0.2, 1), 32, 3, [0, 51, 255]),
    ]
    for width, samples, bits, kind, black in depths:
        given = {"kind": kind, "order": order, "packed": packed}
        assert greys(tiff(width, samples, bits, 1, **given)) == black, bits
        assert greys(tiff(width, samples, bits, 0, **given)) == [255 - value for value in black], bits


def test_twelve_bits_are_scaled_by_twelve_bits() -> None:
    assert greys(tiff(2, b"\xff\xf0\0", 12, 1)) == [255, 0]
    assert greys(tiff(2, b"\xff\xf0\0", 12, 0)) == [0, 255]


@pytest.mark.parametrize(
    ("samples", "white", "extra", "colours"),
    [
        (b"\0\x80", 1, 2, [[127] * 3]),  # grey, over white
        (b"\xff\x80", 0, 2, [[127] * 3]),
        (b"\xff\0\0\x80", 2, 2, [[255, 127, 127]]),
        (b"\x80\0\0\x80", 2, 1, [[255, 127, 127]]),  # premultiplied
        (b"\xff\0\0\x80", 2, 0, [[255, 0, 0]]),  # a fourth sample that means nothing
    ],
)
def test_transparency_of_a_tiff_is_over_white(samples: bytes, white: int, extra: int, colours: list[list[int]]) -> None:
    assert pixels(tiff(1, samples, 8, white, count=len(samples), extra=extra)) == colours


def test_lab_becomes_rgb() -> None:
    red = pixels(tiff(1, bytes([136, 81, 70]), 8, 8, count=3))[0]
    assert np.abs(np.array(red) - [255, 0, 0]).max() <= 6
    assert min(pixels(tiff(1, bytes([255, 0, 0]), 8, 8, count=3))[0]) >= 254


# --- PNG


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    row: bytes, width: int = 1, *, depth: int = 8, colour: int = 2, before: bytes = b"", after: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    return PNG + header + before + chunk(b"IDAT", zlib.compress(b"\0" + row)) + after + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(50_000_000))
DAMAGED = {
    "a long text": chunk(b"tEXt", b"k\0" + b"x" * 3_000_000),
    "a compressed text that explodes": chunk(b"zTXt", b"k\0\0" + BOMB),
    "an international text that explodes": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "a text with a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "a text without a keyword's end": chunk(b"zTXt", b"k"),
    "many texts": chunk(b"tEXt", b"a\0b") * 5000,
    "a profile that explodes": chunk(b"iCCP", b"k\0\0" + BOMB),
    "a profile of rubbish": chunk(b"iCCP", b"k\0\0" + zlib.compress(b"rubbish" * 99)),
    "a profile that cannot be decompressed": chunk(b"iCCP", b"k\0\0rubbish"),
    "a profile of an unknown compression": chunk(b"iCCP", b"k\0\7" + zlib.compress(b"abc")),
    "an empty profile": chunk(b"iCCP", b""),
    "a profile with a wrong checksum": chunk(b"iCCP", b"k\0\0" + zlib.compress(b"abc"))[:-1] + b"?",
    "a short gamma": chunk(b"gAMA", b"a"),
    "a gamma of nothing": chunk(b"gAMA", bytes(4)),
    "short resolution": chunk(b"pHYs", b"a"),
    "damaged EXIF data": chunk(b"eXIf", b"MM\0*" + b"\xff" * 40),
    "an animation that is none": chunk(b"acTL", b"\xff" * 8) + chunk(b"fcTL", bytes(26)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_nothing_beside_the_pixels_of_a_png_costs_the_picture(name: str) -> None:
    assert pixels(png(b"\x80\x40\x20", before=DAMAGED[name])) == [[128, 64, 32]]
    assert pixels(png(b"\x80\x40\x20", after=DAMAGED[name])) == [[128, 64, 32]]


@pytest.mark.parametrize(
    ("row", "width", "depth", "colour", "transparent", "colours"),
    [
        (b"\x40", 2, 1, 0, [1], [0, 255]),
        (b"\x40", 2, 1, 0, [0], [255, 255]),
        (b"\x1b", 4, 2, 0, [1], [0, 255, 170, 255]),
        (b"\x12", 2, 4, 0, [2], [17, 255]),
        (b"\x12\x13", 2, 8, 0, [0x12], [255, 0x13]),
        (b"\x12\x34\x80\x80", 2, 16, 0, [0x1234], [255, 128]),
        (b"\x12\x12\x12\x13\x13\x13", 2, 8, 2, [0x12] * 3, [255, 0x13]),
        (struct.pack(">6H", *[0x1212] * 3, *[0x8080] * 3), 2, 16, 2, [0x1212] * 3, [255, 128]),
    ],
)
def test_a_transparent_colour_is_found_at_every_depth(
    row: bytes, width: int, depth: int, colour: int, transparent: list[int], colours: list[int]
) -> None:
    named = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    assert greys(png(row, width, depth=depth, colour=colour, before=named)) == colours


def test_sixteen_bits_a_channel() -> None:
    assert pixels(png(struct.pack(">3H", 65535, 257 * 50, 0), depth=16)) == [[255, 50, 0]]
    assert pixels(png(struct.pack(">2H", 0, 0x8080), depth=16, colour=4)) == [[127] * 3]
    assert pixels(png(struct.pack(">4H", 65535, 0, 0, 0x8080), depth=16, colour=6)) == [[255, 127, 127]]


def test_a_gamma_is_applied_unless_something_better_is_known() -> None:
    linear, usual = (chunk(b"gAMA", struct.pack(">I", value)) for value in (100_000, 45_455))
    assert greys(png(b"\x80" * 3, before=linear)) == [188]
    assert greys(png(b"\x80" * 3, before=usual)) == [128]
    assert greys(png(b"\x80" * 3, before=linear + chunk(b"sRGB", b"\0"))) == [128]


def test_exif_data_that_imagemagick_wrote_turns_a_png() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    text = b"\nexif\n" + str(len(exif)).encode().rjust(8) + b"\n" + exif.hex().encode() + b"\n"
    raw = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    assert decode(png(b"\1\2\3\4\5\6", 2, before=raw)).size == (1, 2)


# --- colour profiles

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """A profile in which red and green are exchanged."""
    profile = bytearray(SRGB)
    places = {}
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        name, place, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        places[name] = (136 + 12 * number, place)
    for to, of in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"rXYZ")):
        struct.pack_into(">I", profile, places[to][0], places[of][1])
    return bytes(profile)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_are_converted_by_their_profile(format: str) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    red = Image.new("RGB", (8, 8), (200, 30, 30))

    def shown(profile: bytes, image: Image.Image = red) -> list[int]:
        return pixels(encoded(image, format, icc_profile=profile, **options))[0]

    assert np.abs(np.array(shown(swapped())) - [30, 200, 30]).max() <= 3
    for useless in (SRGB, b"rubbish" * 40, swapped()[:300], swapped() + bytes(5 << 20)):
        if format == "JPEG" and len(useless) > 1 << 20:
            continue  # a JPEG cannot hold it
        assert np.abs(np.array(shown(useless)) - [200, 30, 30]).max() <= 3
    grey = Image.new("L", (8, 8), 100)
    assert shown(swapped(), grey)[0] in range(98, 103) if format != "WEBP" else True


def test_a_profile_goes_with_transparency_and_with_a_target() -> None:
    data = encoded(Image.new("RGBA", (640, 640), (200, 30, 30, 255)), "PNG", icc_profile=swapped())
    for target in (None, 64):
        assert np.abs(np.array(decode(data, target=target).getpixel((5, 5))) - [30, 200, 30]).max() <= 2


# --- what the `photos` extra reads


def test_heic_is_read_whatever_its_name_is() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the photos extra is not installed")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), (200, 30, 30))
    data = encoded(image, "HEIF", quality=95, exif=exif.tobytes())
    decoded = decode(data)
    assert decoded.size == (32, 64)  # turned once, by the file's own box
    assert np.abs(np.array(decoded.getpixel((5, 5))) - [200, 30, 30]).max() < 9


@pytest.mark.slow
def test_jpeg_xl_is_read_and_its_size_known_before() -> None:
    pytest.importorskip("pillow_jxl", reason="the photos extra is not installed")
    for size in ((1, 1), (8, 8), (7, 300), (1000, 500), (640, 480), (1920, 1080), (3000, 3)):
        for container in (False, True):
            data = encoded(Image.new("RGB", size, (9, 99, 199)), "JXL", lossless=True, use_container=container)
            assert _jxl_size(Source.of(data)) == size
            assert decode(data).size == size
    assert decode(data).getpixel((1, 1)) == (9, 99, 199)


def test_reading_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(png(b"\x80\x40\x20", before=DAMAGED["damaged EXIF data"]))
        decode(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
