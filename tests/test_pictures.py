"""Decoding hostile and odd pictures, fitting them, and finding them in folders."""

from __future__ import annotations

import inspect
import io
import os
import struct
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.data import kinds
from hivlp.data.exclude import Exclude
from hivlp.data.pictures import (
    MAX_PIXELS,
    Found,
    Unreadable,
    decode,
    find_pictures,
    load_pixels,
    picture_facts,
    picture_size,
    prepare,
)
from hivlp.data.walk import NotRead
from hivlp.errors import DataError, PictureError

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def corners(size: tuple[int, int] = (32, 16)) -> Image.Image:
    """Red left, blue right, with a green top-left quarter: every orientation looks different."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    image.paste(GREEN, (0, 0, size[0] // 4, size[1] // 2))
    return image


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


# --- what is decoded


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "ICO"])
def test_lossless_formats_keep_their_pixels(format: str) -> None:
    image = corners((32, 32))
    decoded = decode(encoded(image, format))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_keep_their_pixels_nearly(format: str) -> None:
    if format == "AVIF" and "AVIF" not in Image.SAVE:
        Image.init()
        if "AVIF" not in Image.SAVE:
            pytest.skip("this Pillow has no AVIF")
    decoded = np.asarray(decode(encoded(corners((64, 64)), format, quality=95))).astype(int)
    assert abs(decoded[4, 4] - GREEN).max() < 12
    assert abs(decoded[60, 4] - RED).max() < 12
    assert abs(decoded[30, 60] - BLUE).max() < 12


def test_cmyk_jpeg() -> None:
    decoded = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = decoded.getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


def test_alpha_is_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    assert np.asarray(decode(encoded(image))).tolist() == [[list(RED), list(WHITE), [127, 127, 127]]]


def test_grey_with_alpha_is_over_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 255), (0, 0)])
    assert np.asarray(decode(encoded(image))).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_palette_transparency_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *RED])
    image.putdata([0, 1])
    assert np.asarray(decode(encoded(image, transparency=0))).tolist() == [[list(WHITE), list(RED)]]
    assert np.asarray(decode(encoded(image, "GIF", transparency=1))).tolist() == [[list(BLUE), list(WHITE)]]


def test_a_transparent_colour_is_white() -> None:
    colour = Image.new("RGB", (2, 1), BLUE)
    colour.putpixel((1, 0), RED)
    assert np.asarray(decode(encoded(colour, transparency=RED))).tolist() == [[list(BLUE), list(WHITE)]]
    grey = Image.new("L", (2, 1), 90)
    grey.putpixel((1, 0), 10)
    assert np.asarray(decode(encoded(grey, transparency=10))).tolist() == [[[90, 90, 90], list(WHITE)]]


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(decode(encoded(image))).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 257 * 50, 257 * 128, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        decoded = np.asarray(decode(encoded(Image.fromarray(grey), format)))
        assert decoded[0, :, 0].tolist() == [0, 50, 128, 255]


@pytest.mark.parametrize(
    ("values", "grey"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 60.0, 255.0], [0, 60, 255]), ([-3.0, -2.0, -1.0], [0, 128, 255])],
)
def test_float_tiff_is_scaled(values: list[float], grey: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert np.asarray(decode(encoded(image, "TIFF")))[0, :, 0].tolist() == grey


def test_float_tiff_with_nothing_finite() -> None:
    image = Image.fromarray(np.array([[np.nan, np.inf]], dtype=np.float32))
    assert decode(encoded(image, "TIFF")).size == (2, 1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    # How a viewer must turn what is stored; stored is the inverse of that, applied to the upright picture.
    turns = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: np.rot90(a, 1),
    ]
    stored = corners()
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = np.asarray(decode(encoded(stored, format, exif=exif)))
    assert np.array_equal(decoded, turns[orientation - 1](np.asarray(stored)))


def test_a_rotated_jpeg_stands_upright_at_any_scale() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored top is the right-hand side
    data = encoded(corners((640, 320)), "JPEG", exif=exif, quality=95)
    for target in (None, 40):
        image = decode(data, target=target)
        width, height = image.size
        assert height == 2 * width
        red, green, blue = image.getpixel((width - 4, 4))
        assert green > 200 and red < 60 and blue < 60
        assert image.getpixel((width // 2, height - 4))[2] > 200


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(corners(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(np.asarray(decode(data)), np.asarray(corners()))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(1000, 700), (333, 2001), (64, 64), (10, 300)])
def test_target_is_a_lower_bound(format: str, size: tuple[int, int]) -> None:
    image = decode(encoded(corners(size), format), target=64)
    assert min(image.size) >= min(64, *size)
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.05)


def test_a_reduced_picture_with_transparency_equals_the_mean() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (640, 320, 4), dtype=np.uint8)
    data = encoded(Image.fromarray(rgba))
    full = np.asarray(decode(data)).astype(float)
    small = np.asarray(decode(data, target=16)).astype(float)
    factor = 640 // len(small)
    assert factor == 10
    means = full.reshape(64, factor, 32, factor, 3).mean(axis=(1, 3))
    assert np.abs(small - means).max() <= 1


def test_a_path_and_its_bytes_decode_alike(tmp_path: Path) -> None:
    path = tmp_path / "a picture \N{WATER WAVE}\n.png"
    path.write_bytes(encoded(corners()))
    assert np.array_equal(np.asarray(decode(path)), np.asarray(corners()))
    assert picture_size(path) == (32, 16)


def test_facts_need_no_pixels() -> None:
    facts = picture_facts(encoded(corners())[:60])
    assert facts == {"format": "PNG", "width": 32, "height": 16, "orientation": "landscape"}
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = picture_facts(encoded(corners(), exif=exif))
    assert facts == {"format": "PNG", "width": 16, "height": 32, "orientation": "portrait"}


def test_facts_survive_damaged_exif() -> None:
    data = encoded(corners(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 30)
    assert picture_facts(data) == {"format": "JPEG", "width": 32, "height": 16, "orientation": "landscape"}


# --- what is refused


def truncated(format: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "format"),
        (b"BM and more text", "BMP|damaged"),
        (b"P", "format|sound"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format"),
        (truncated("PNG"), "truncated"),
        (truncated("JPEG"), "truncated"),
        (truncated("TIFF"), "damaged"),
        (png_claiming(60_000, 60_000), "claims 60000x60000 pixels"),
        (png_claiming(64, 64), "damaged"),
        (b"\x89PNG\r\n\x1a\n", "PNG|damaged"),
        (b"\xff\xd8\xff", "JPEG|damaged"),
    ],
)
def test_bad_pictures_are_refused_with_a_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for picture in (data, path):
        with pytest.raises(PictureError, match=reason) as caught:
            decode(picture)
        assert len(str(caught.value).splitlines()) == 1


def test_the_size_limit_holds_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    for height, refused in ((MAX_PIXELS // 10_000, False), (MAX_PIXELS // 10_000 + 1, True)):
        data = png_claiming(10_000, height)
        if refused:
            with pytest.raises(PictureError, match="over the limit"):
                picture_size(data)
        else:
            assert picture_size(data) == (10_000, height)
    assert not recwarn.list


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "missing.png", tmp_path / "pipe.png", Path("nul\0.png")):
        with pytest.raises(PictureError):
            decode(path)


SAMPLES = [
    encoded(corners()),
    encoded(corners().convert("P"), transparency=3),
    encoded(Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32))),
    encoded(corners(), "JPEG"),
    encoded(Image.new("CMYK", (16, 16)), "JPEG"),
    encoded(corners(), "GIF", save_all=True, append_images=[Image.new("RGB", (32, 16))]),
    encoded(corners(), "WEBP"),
    encoded(corners(), "BMP"),
    encoded(corners(), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"),
    encoded(corners(), "PPM"),
    encoded(corners((16, 16)), "ICO"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=400)
@given(st.data())
def test_mutated_pictures_decode_or_are_refused(draw: st.DataObject) -> None:
    content = bytearray(draw.draw(st.sampled_from(SAMPLES)))
    # Headers matter most, so half of the changes go there.
    places = st.one_of(st.integers(0, min(63, len(content) - 1)), st.integers(0, len(content) - 1))
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place] = value
    content = content[: draw.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    try:
        pixels = load_pixels(bytes(content), PictureConfig(size=8))
    except PictureError:
        return
    assert pixels.shape == (8, 8, 3)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_are_refused(content: bytes) -> None:
    try:
        decode(content)
    except PictureError as error:
        assert str(error)


# --- fitting


def test_pad_centres_between_white_bars() -> None:
    pixels = prepare(Image.new("RGB", (40, 20), RED), PictureConfig(size=8, fit="pad"))
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert (pixels[:2] == WHITE).all() and (pixels[6:] == WHITE).all()
    assert (pixels[2:6] == RED).all()


def test_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (10, 0, 30, 20))
    # The filter's edge reaches a pixel or two beyond the square.
    assert (prepare(image, PictureConfig(size=8, fit="crop"))[:, 1:-1] == GREEN).all()


def test_stretch_uses_the_whole_square() -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (20, 0, 40, 20))
    pixels = prepare(image, PictureConfig(size=8, fit="stretch"))
    assert (pixels[:, 0] == RED).all() and (pixels[:, -1] == GREEN).all()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["pad", "crop", "stretch"]), st.integers(1, 40))
def test_any_size_fits(width: int, height: int, how: str, size: int) -> None:
    pixels = load_pixels(encoded(Image.new("RGB", (width, height), RED), "BMP"), PictureConfig(size=size, fit=how))
    assert pixels.shape == (size, size, 3)
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    assert (pixels == RED).all(axis=-1).any()
    if how != "pad":
        assert (pixels == RED).all()


def test_transparent_edges_do_not_darken() -> None:
    # Black below full transparency must not bleed into the scaled edge.
    image = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    image.paste((*WHITE, 255), (100, 100, 300, 300))
    assert (load_pixels(encoded(image), PictureConfig(size=30)) == 255).all()


# --- finding


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(*roots: Path) -> list[Path]:
    return [item.path for item in find_pictures(roots) if isinstance(item, Found)]


def test_pictures_are_found_in_order_whatever_their_names(tmp_path: Path) -> None:
    names = ["a b.JPG", "b/c/new\nline.webp", "b/\N{WATER WAVE}.png", "c.tiff", os.fsdecode(b"d\xff.gif")]
    paths = [touch(tmp_path / name) for name in names]
    for name in ("notes.txt", "png", ".hidden.png", ".hidden/a.png", "old.hivlp/items.db", "old.hivlp/a.png"):
        touch(tmp_path / name)
    assert found(tmp_path) == paths


def test_what_photo_programs_cache_and_what_a_pattern_names_is_passed_over(tmp_path: Path) -> None:
    keep = ["a.jpg", "album/b.jpg", "thumbs.jpg", "trip/2020/c.jpg", "Lib.photoslibrary/originals/d.jpg"]
    caches = [
        "@eaDir/a.jpg/x.jpg",
        "album/@EADIR/b.jpg",
        "Lib.photoslibrary/resources/e.jpg",
        "My Previews.lrdata/f.jpg",
    ]
    named = ["raw/g.jpg", "album/RAW/h.jpg", "trip/2021/i.jpg", "x.tmp.png"]
    for name in (*keep, *caches, *named, "._a.jpg", ".trash/j.jpg"):
        touch(tmp_path / name)
    exclude = Exclude(["raw/", "trip/2021", "*.TMP.png"])
    walked = list(find_pictures([tmp_path], exclude))
    assert sorted(item.path for item in walked if isinstance(item, Found)) == sorted(tmp_path / name for name in keep)
    kinds_of = Counter(item.kind for item in walked if isinstance(item, NotRead))
    assert kinds_of == {
        "excluded by raw/": 2, "excluded by trip/2021": 1, "excluded by *.TMP.png": 1, "hidden": 1,
        "excluded by @eaDir/": 2, "excluded by **/*.photoslibrary/resources/": 1, "excluded by *.lrdata/": 1,
    }  # fmt: skip
    assert found(tmp_path / "@eaDir") == [tmp_path / "@eaDir" / "a.jpg" / "x.jpg"], "a root of its own is walked"
    for pattern in ("", "/", 3):
        with pytest.raises(DataError, match="exclude"):
            Exclude([pattern])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("cache", "a/cache", True),
        ("cache", "a/caches", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/x/y/c", True),
        ("a/**/c", "b/a/c", False),
        ("**/c", "x/c", True),
        ("/top", "top", True),
        ("/top", "x/top", False),
        ("[ab]?.jpg", "x/A1.jpg", True),
        ("*.(x)", "q.(x)", True),
    ],
)
def test_exclude_patterns_are_globs(pattern: str, path: str, matches: bool) -> None:
    assert (Exclude([pattern], defaults=False).match(path, folder=False) == pattern) is matches


def test_a_file_is_a_root_whatever_its_suffix(tmp_path: Path) -> None:
    path = touch(tmp_path / ".odd")
    assert found(path) == [path]


def test_a_missing_root_is_an_error_at_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    with pytest.raises(DataError, match="does not exist") as caught:
        find_pictures([tmp_path, tmp_path / "no\nsuch"])
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        find_pictures([Path("nul\0")])


def test_links_neither_leave_nor_loop(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", touch(tmp_path / "outside" / "secret.png")
    inside = touch(root / "sub" / "a.png")
    (root / "again.png").symlink_to(inside)
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "leak.png").symlink_to(outside)
    (root / "leakdir").symlink_to(outside.parent)
    (root / "sub" / "loop").symlink_to(root)
    items = list(find_pictures([root]))
    assert [item.path for item in items if isinstance(item, Found)] == [root / "again.png", inside]
    assert {item.path.name: item.error for item in items if isinstance(item, Unreadable)} == {
        "broken.png": "is a broken link",
        "leak.png": "is a link that leaves the folder",
    }


def test_overlapping_roots_are_walked_once(tmp_path: Path) -> None:
    a, b = touch(tmp_path / "a.png"), touch(tmp_path / "sub" / "b.png")
    assert found(tmp_path / "sub", tmp_path, tmp_path) == [b, a]


def test_a_linked_root_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert found(tmp_path / "link") == [tmp_path / "link" / "a.png"]


def test_what_cannot_be_read_is_reported_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = touch(tmp_path / "z.png")
    closed = touch(tmp_path / "closed" / "a.png").parent
    os.mkfifo(tmp_path / "pipe.png")
    scandir = os.scandir

    def refusing(path: Path) -> object:  # permission bits do not bind root, who may run the tests
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    items = list(find_pictures([tmp_path]))
    assert items == [
        Unreadable(closed, "Permission denied"),
        Unreadable(tmp_path / "pipe.png", "is not a regular file", replaced=True),
        Found(last),
    ]


def test_an_index_as_root_is_reported(tmp_path: Path) -> None:
    touch(tmp_path / "items.db")
    touch(tmp_path / "a.png")
    assert [type(item) for item in find_pictures([tmp_path])] == [Unreadable]


def test_folders_nested_deeper_than_the_stack(tmp_path: Path) -> None:
    path = touch(tmp_path.joinpath(*"d" * 300, "a.png"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        assert found(tmp_path) == [path]
    finally:
        sys.setrecursionlimit(limit)


def test_every_format_is_known_in_a_new_process(tmp_path):
    """Saving a picture makes Pillow load its plug-ins, so only a process that saves nothing shows what we load."""
    import subprocess
    import sys

    image = Image.new("RGB", (8, 8), "red")
    names = ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif", "a.ppm", "a.ico"]
    for name in names:
        image.save(tmp_path / name)
    script = (
        "import sys; from pathlib import Path; from hivlp.data.pictures import decode\n"
        "for name in sys.argv[1:]: assert decode(Path(name)).size == (8, 8), name"
    )
    source = str(Path(__file__).parent.parent / "src")
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in names)]
    subprocess.run(command, check=True, env={"PYTHONPATH": source})


def test_what_is_not_read_is_told_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "readable", lambda kind: kind not in kinds.EXTRA)
    touch(tmp_path / "elsewhere" / "a.png")
    root = tmp_path / "root"
    names = ["a.heic", "b.HEIF", "c.jxl", "d.cr2", "e.NEF", "f.dng", "g.mp4", "h.MOV", "i.svg", "j.psd", "k.jp2"]
    for name in (*names, "Thumbs.db", "notes.txt", ".hidden.heic"):
        touch(root / name)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root / "loop")
    (root / "linked.txt").symlink_to(tmp_path / "elsewhere" / "a.png")
    passed = {item.path.name: (item.kind, item.why) for item in find_pictures([root]) if isinstance(item, NotRead)}
    assert set(passed) == {*names, "linked", ".hidden.heic"}
    assert {kind for kind, _ in passed.values()} == {
        *("HEIC", "JPEG XL", "RAW", "video", "SVG", "Photoshop", "JPEG 2000", "linked folder", "hidden")
    }
    assert all("pip install pillow-heif " in passed[name][1] for name in ("a.heic", "e.NEF"))
    assert not [item for item in find_pictures([root]) if isinstance(item, Found | Unreadable)]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf", "AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "RAW"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp41", "video"),
        (b"II*\0\x10\0\0\0CR\2\0", "RAW"),
        (b"\xff\x0a\x7f", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xef\xbb\xbf <svg xmlns=''>", "SVG"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"hello", None),
    ],
)
def test_content_tells_what_a_file_is_whatever_its_name(start: bytes, kind: str | None) -> None:
    assert kinds.kind_of_content(start) == kind
    if kind in kinds.EXTRA | {"video": "", "Photoshop": "", "SVG": ""}:
        with pytest.raises(PictureError):
            decode(start)


def test_a_heic_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "readable", lambda kind: kind not in kinds.EXTRA)
    starts = (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\xff\x0a\x7f\0", b"II*\0\x10\0\0\0CR\2\0")
    for start in starts:
        with pytest.raises(PictureError, match="pip install pillow-heif "):
            decode(start)
