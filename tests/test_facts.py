"""Facts of pictures that people filter by: dates, places, cameras and keywords, from whoever wrote them."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin

from hivlp.data import kinds
from hivlp.data.pictures import picture_facts
from hivlp.data.pictures.facts import KEYWORDS, LONG_TEXT, Facts, camera, merged, rating, text, when
from hivlp.data.pictures.iptc import iptc_of_photoshop, read_iptc
from hivlp.data.pictures.xmp import read_xmp
from hivlp.index import Index
from synthetic import write_pictures

XMP = (
    """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:aux="http://ns.adobe.com/exif/1.0/aux/" xmp:Rating="4"
  exif:DateTimeOriginal="2019-07-20T18:05:09.25+02:00" exif:GPSLatitude="48,51.5N" exif:GPSLongitude="2,17,40.2W">
 <aux:Lens>EF 50mm f/1.8</aux:Lens>
 <dc:subject><rdf:Bag><rdf:li>Zoë</rdf:li><rdf:li>beach</rdf:li><rdf:li>beach</rdf:li></rdf:Bag></dc:subject>
 <dc:title><rdf:Alt><rdf:li xml:lang="x-default">A day out</rdf:li></rdf:Alt></dc:title>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".encode()
    + b"  \0\0"
)
SAID = Facts("2019-07-20T18:05:09", None, "EF 50mm f/1.8", 48.858333, -2.2945, 4, ("Zoë", "beach"), "A day out", None)


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x010F], made[0x0110] = "NIKON CORPORATION", "NIKON D90"
    made.get_ifd(0x8769).update({0x9003: "2012:02:29 08:00:01", 0xA434: "18-105mm"})
    made.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 35.9), 3: "E", 4: (151.0, 12.0, 40.0)})
    return made


def records(*values: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack(">BBBH", 0x1C, 2, number, len(value)) + value for number, value in values)


def photoshop(iptc: bytes) -> bytes:
    other = b"8BIM\x03\xed\x03odd\0\0\0\x03abc\0"  # a resource with a name, of an odd length
    return b"Photoshop 3.0\0" + other + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(buffer, kind, **options)
    return buffer.getvalue()


def test_exif_tells_when_where_and_with_what():
    facts = picture_facts(encoded("JPEG", exif=exif()))
    assert facts == {
        "format": "JPEG", "width": 40, "height": 30, "orientation": "landscape", "taken": "2012-02-29T08:00:01",
        "camera": "NIKON D90", "lens": "18-105mm", "lat": -33.859972, "lon": 151.211111,
    }  # fmt: skip


def test_xmp_is_read_from_attributes_elements_and_lists():
    assert read_xmp(XMP) == SAID


def with_xmp(kind: str) -> bytes:
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
        return encoded("PNG", pnginfo=info)
    if kind == "TIFF":
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[700] = XMP
        info.tagtype[700] = 1
        return encoded("TIFF", tiffinfo=info)
    if kind == "JPEG XL":
        pytest.importorskip("pillow_jxl")
        return encoded("JXL", xmp=XMP, exif=exif().tobytes())
    if kind == "HEIC":
        pytest.importorskip("pillow_heif").register_heif_opener()
        return encoded("HEIF", xmp=XMP)
    return encoded(kind, xmp=XMP)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIC", "JPEG XL"])
def test_xmp_is_found_in_every_format_that_holds_it(kind):
    if not kinds.readable(kind):
        pytest.skip(f"this Pillow reads no {kind}")
    facts = picture_facts(with_xmp(kind))
    assert {"rating": 4, "keywords": ["Zoë", "beach"], "title": "A day out"}.items() <= facts.items()
    assert facts["taken"] in ("2019-07-20T18:05:09", "2012-02-29T08:00:01")


def test_iptc_is_found_in_a_jpeg():
    iptc = records((5, b"Title"), (25, "été".encode("latin-1")), (25, "été".encode()), (55, b"20051231"),
                   (60, b"235959+0100"), (120, b"Long\nago"))  # fmt: skip
    jpeg = encoded("JPEG")
    block = photoshop(iptc)
    facts = picture_facts(jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + jpeg[2:])
    assert facts["keywords"] == ["été"] and facts["title"] == "Title" and facts["description"] == "Long ago"
    assert facts["taken"] == "2005-12-31T23:59:59"
    assert read_iptc(records((55, b"20051231"))).taken == "2005-12-31"


def test_a_camera_knows_its_shot_and_people_know_its_subject():
    shot, tagged = Facts(taken="2020", rating=0, title="DSC_1"), Facts(taken="2021", rating=5, title="Ann")
    news = Facts(lens="x", lat=1.0, title="Slug")
    both = merged(shot, tagged, news)
    assert (both.taken, both.rating, both.title, both.lens) == ("2020", 5, "Ann", "x")
    assert "lat" not in both.to_metadata(), "half of a place is none"


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("2024:06:01 12:30:00", "2024-06-01T12:30:00"),
        ("2024-06-01T12:30", "2024-06-01T12:30:00"),
        ("2024-06-01T12:30:59.999Z", "2024-06-01T12:30:59"),
        ("2024", "2024"),
        ("2024-06", "2024-06"),
        ("0000:00:00 00:00:00", None),
        ("2024:13:01 00:00:00", None),
        ("2023:02:29 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("1024:06:01 12:30:00", None),
        ("20240601", None),
        (b"2024:06:01 12:30:00\0", "2024-06-01T12:30:00"),
        (None, None),
    ],
)
def test_times_are_iso_8601_or_nothing(told, meant):
    assert when(told) == meant


def test_cameras_ratings_and_texts_are_as_people_write_them():
    assert camera("Canon", "Canon EOS 5D") == "Canon EOS 5D"
    assert (
        camera("SONY", "ILCE-7M3") == "Sony ILCE-7M3" and camera(None, "X") == "X" and camera("Leica", None) == "Leica"
    )
    assert [rating(value) for value in ("5", "3.0", "-1", 0, "6", "nan", "inf", None)] == [5, 3, -1, 0] + [None] * 4
    assert text(" a\r\n\0b\u2028c ") == "a b c" and text("é".encode() * 200, 3) == "ééé" and text(b"\0") is None
    cut = ("x" + "é" * 999).encode()
    assert text(cut, 200) == "x" + "é" * 199


BOMB = b"""<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;">]><r xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>&c;&c;&c;</dc:title></r>"""
OUTSIDE = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><r xmlns:dc="http://purl.org/dc/elements/1.1/">'
OUTSIDE += b"<dc:title>&a;</dc:title></r>"
HEAD = b'<r xmlns:dc="http://purl.org/dc/elements/1.1/">'


@pytest.mark.parametrize(
    "packet",
    [
        BOMB,
        OUTSIDE,
        HEAD + b"<dc:subject>" * 100_000,
        HEAD + b"<dc:subject><a>" + b"<li>x</li>" * 90_000,
        HEAD + b"<dc:title>" + b"x" * 5_000_000,
        HEAD + b"<dc:title>" + b"x&#10;" * 200_000 + b"</dc:title></r>",
        XMP[:700],
        "<r>\ud800</r>".encode("utf-8", "surrogatepass"),
        b"<?xml version='1.0' encoding='utf-16'?><r/>",
        b"",
    ],
)
def test_hostile_xmp_costs_little_and_stops_nothing(packet):
    tracemalloc.start()
    try:
        facts = read_xmp(packet)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (
        len(facts.keywords) <= KEYWORDS and len(facts.title or "") <= 200 and len(facts.description or "") <= LONG_TEXT
    )
    assert "root:" not in str(facts) and "aaaa" not in str(facts)


@given(st.binary(max_size=400), st.integers(0, len(XMP)))
def test_any_bytes_have_facts(data, cut):
    for packet in (data, XMP[:cut] + data, XMP[:cut] + data + XMP[cut:]):
        assert isinstance(read_xmp(packet), Facts)
    for block in (data, photoshop(data)):
        assert isinstance(read_iptc(iptc_of_photoshop(block)), Facts)
    assert isinstance(read_iptc(data), Facts)


@given(st.data())
def test_damaged_exif_loses_facts_and_never_the_picture(data):
    block = bytearray(exif().tobytes())
    for _ in range(data.draw(st.integers(1, 8))):
        block[data.draw(st.integers(14, len(block) - 1))] = data.draw(st.integers(0, 255))
    facts = picture_facts(encoded("JPEG", exif=bytes(block)))
    assert facts["format"] == "JPEG" and abs(facts.get("lat", 0)) <= 90 and abs(facts.get("lon", 0)) <= 180


# In an index.


@pytest.fixture
def index(tmp_path, encoder):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encoded("JPEG", exif=exif()))
    write_pictures(folder, 2)
    with Index.create(tmp_path / "x.hivlp", model=encoder) as index:
        index.add(folder)
        yield index


def test_sidecars_are_read_changed_and_gone_without_encoding(index, encoder, tmp_path):
    path = tmp_path / "p" / "a.jpg"
    before, encoded_before = index.get(path), encoder.encoded
    assert before.metadata["taken"] == "2012-02-29T08:00:01" and "rating" not in before.metadata
    sidecar = path.with_suffix(".jpg.xmp")
    sidecar.write_bytes(XMP)
    assert index.add(tmp_path / "p").updated == 1
    told = index.get(path)
    assert told.id == before.id and (told.metadata["rating"], told.metadata["sidecar"]) == (4, "a.jpg.xmp")
    assert told.metadata["taken"] == "2019-07-20T18:05:09", "whoever wrote a sidecar knew what the file says"
    assert told.metadata["camera"] == "NIKON D90"
    sidecar.rename(path.with_suffix(".xmp"))
    path.with_suffix(".xmp").write_bytes(XMP.replace(b'Rating="4"', b'Rating="5"'))
    assert index.add(tmp_path / "p").updated == 1 and index.get(path).metadata["rating"] == 5
    path.with_suffix(".xmp").unlink()
    assert index.add(tmp_path / "p").updated == 1 and index.get(path).metadata == before.metadata
    assert encoder.encoded == encoded_before


def test_an_old_sidecar_is_not_read_again(index, tmp_path, monkeypatch):
    path = tmp_path / "p" / "a.jpg"
    path.with_suffix(".xmp").write_bytes(XMP)
    index.add(tmp_path / "p")
    monkeypatch.setattr("hivlp.index.adding.pictures.RACY_NS", -(10**18))
    monkeypatch.setattr("hivlp.index.adding.pictures.picture_facts", lambda data: pytest.fail("it was read"))
    assert index.add(tmp_path / "p").skipped == 3


def test_a_sidecar_that_is_a_link_or_a_pipe_is_left_alone(index, tmp_path):
    secret = tmp_path / "secret.xmp"
    secret.write_bytes(XMP)
    (tmp_path / "p" / "a.xmp").symlink_to(secret)
    os.mkfifo(tmp_path / "p" / "00000.xmp")
    assert index.add(tmp_path / "p").skipped == 3


def test_what_a_file_said_goes_with_its_content_and_what_people_told_stays(index, tmp_path):
    path = tmp_path / "p" / "a.jpg"
    index.add(path, metadata={str(path): {"album": "x", "rating": 2}})
    assert index.get(path).metadata["rating"] == 2
    path.write_bytes(encoded("JPEG", quality=20))
    assert index.add(path).updated == 1
    assert index.get(path).metadata == {
        "format": "JPEG", "width": 40, "height": 30, "orientation": "landscape", "album": "x"
    }  # fmt: skip


def test_an_index_of_an_earlier_version_is_told_on_request(index, encoder, tmp_path):
    path = tmp_path / "p" / "a.jpg"
    item = index.get(path)
    old = {"format": "JPEG", "width": 40, "height": 30, "album": "x"}
    index.store.append([item_of(item, old)], index.store.embeddings(item.row))
    assert index.add(tmp_path / "p").updated == 0
    before = encoder.encoded
    report = index.add(tmp_path / "p", reread=True)
    assert (report.updated, report.skipped) == (1, 2) and encoder.encoded == before
    assert index.get(path).metadata == {**item.metadata, "album": "x"}


def item_of(item, metadata):
    from hivlp.store.records import NewItem

    return NewItem(item.path, item.hash, item.caption, metadata, item.stamp)


def test_facts_of_many_pictures_are_found_by_conditions(index):
    hits = index.search("x", where="metadata ->> '$.camera' = 'NIKON D90' AND metadata ->> '$.lat' < 0")
    assert [hit.metadata["lens"] for hit in hits] == ["18-105mm"]


def test_reading_facts_takes_no_time_to_speak_of():
    data = encoded("JPEG", exif=exif(), xmp=XMP)
    start = time.perf_counter()
    for _ in range(50):
        picture_facts(data)
    assert time.perf_counter() - start < 5  # a hundred times what it takes
