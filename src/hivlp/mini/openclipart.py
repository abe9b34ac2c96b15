"""Openclipart 0.18 as Debian packages it (openclipart-png, openclipart-svg): public-domain drawings with titles.

The titles were written by hundreds of people for their own use, so most of this module is about telling a caption from
a file name, a theme's name or a signature. What is left is training data only; whatever shares its title or its drawing
with a held-out stamp, and the pictures of the demonstration, are left out, these in other colours too.
"""

from __future__ import annotations

import html
import importlib.resources
import json
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hivlp.data.pairs import Pair
from hivlp.data.pictures import picture_size
from hivlp.data.readers.reader import Reader
from hivlp.data.same_picture import excluding, looks_of
from hivlp.errors import DataError, PictureError
from hivlp.mini import stamps

DEFAULT_ROOT = Path("/usr/share/openclipart")

_METADATA_LIMIT = 1 << 16
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_PUBLIC_DOMAIN = re.compile(r"/publicdomain/?$", re.IGNORECASE)

# A title on more pictures than this names a collection, or was left over from the drawing before.
_MOST_OF_A_TEXT = 3
_NO_TITLE = re.compile(
    r"^part of the|theme|icon ?set|collection|clip ?art|submission|untitled|unnamed|@|https?:", re.IGNORECASE
)
_SIGNATURE = re.compile(r"clipart by nicu buculei\s*-\s*", re.IGNORECASE)
_NO_KEYWORDS = frozenset(
    {"hash", "unsorted", "icons", "icon", "theme", "clipart", "openclipart", "shape", "shapes", "symbol", "symbols"}
    | {"signs and symbols", "computer", "mapsym", "map symbol", "special", "miscellany", "stock", "creation", "svg"}
)
# A few hundred drawings have Italian or French titles beside English keywords; nearly all are these two authors'.
_FOREIGN_AUTHORS = ("architetto francesco rollandin", "yves guillou")
_MOST_KEYWORDS = 8
# Descriptions that speak about the file, the author or another language's words, rather than about the picture.
_NO_DESCRIPTION = re.compile(
    r"@|https?:|\b(part of|clip ?art|collection|derivative|svg|inkscape|gimp|image|file|version|draft|design|drawn|made"
    r"|submission|created|i|my|you|your|di|della|del|il|con|per|una|de|la|le|les|du|des|et|pour|sur|el|los|und|der|mit)\b",
    re.IGNORECASE,
)
_DESCRIPTION_WORDS = range(2, 17)


@dataclass(frozen=True)
class _Record:
    """What the RDF of one drawing says."""

    license: str
    title: str
    description: str
    keywords: tuple[str, ...]
    author: str


def read_openclipart(root: Path | None = None) -> list[Pair]:
    """Read the pictures that have a title worth the name, ordered by path; all are ``train``.

    The first caption is the title; a short English description and the keywords, separated by commas, may follow.

    Args:
        root: the folder with ``png`` and ``svg``; by default the environment's ``HIVLP_OPENCLIPART``, or where Debian
            puts it.

    Raises:
        DataError: if Openclipart is not installed.
    """
    root = root or Path(os.environ.get("HIVLP_OPENCLIPART") or DEFAULT_ROOT)
    if not ((root / "png").is_dir() and (root / "svg").is_dir()):
        raise DataError(
            f"no Openclipart at {root}: apt-get install openclipart-png openclipart-svg, or set HIVLP_OPENCLIPART"
        )
    records = {name: record for name in _pictures(root) if (record := _record(root / "svg" / name)) is not None}
    records = {name: record for name, record in records.items() if _PUBLIC_DOMAIN.search(record.license)}
    titles = Counter(_folded(record.title) for record in records.values())
    descriptions = Counter(_folded(record.description) for record in records.values())
    held_out = stamps.held_out_comparable()
    demo, shown = _demo_pictures(root)
    pairs = []
    for name, record in records.items():
        path = (root / "png" / name).with_suffix(".png")
        if titles[_folded(record.title)] > _MOST_OF_A_TEXT or os.path.realpath(path) in demo:
            continue
        captions = _captions(record, with_description=descriptions[_folded(record.description)] <= _MOST_OF_A_TEXT)
        if captions and held_out.isdisjoint(map(_folded, (record.title, *captions))) and _is_decodable(path):
            pairs.append(Pair(name.with_suffix(".png").as_posix(), path, captions))
    return stamps.without_held_out_pictures(excluding(pairs, looks_of(shown)))


def clean_title(title: str) -> str:
    """A title as words: no markup, signature, serial numbers, underscores or CamelCase; empty if it is no caption."""
    text = _SIGNATURE.sub("", _plain(title))
    if _NO_TITLE.search(text):
        return ""
    text = re.sub(r"\.svg\b", "", text, flags=re.IGNORECASE)
    text = re.sub(r"[_#\-]+", " ", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    text = re.sub(r"\(?\bb ?(?:w|(?:and|&) ?w)\b\)?", "in black and white", text, flags=re.IGNORECASE)
    text = re.sub(r"\b0\d+\b|[\s\d]+$|(?<=[^\W\d]{3})\d+\b", " ", text)
    text = " ".join(text.split()).strip(" .,-")
    return text if len(re.findall(r"[^\W\d_]", text)) >= 3 else ""


def _pictures(root: Path) -> list[Path]:
    """Paths below ``png``, ending in ``.svg``; links are other names of pictures that are met anyway."""
    folder = root / "png"
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if name.endswith(".png") and not path.is_symlink():
                found.append(path.relative_to(folder).with_suffix(".svg"))
    return sorted(found)


def _record(svg: Path) -> _Record | None:
    """Read the RDF at the head of an SVG, None if there is none."""
    parser: ET.XMLPullParser[Any] = ET.XMLPullParser(events=("end",))
    try:
        with svg.open("rb") as file:
            head = file.read(_METADATA_LIMIT)
        parser.feed(head[: head.find(b"metadata>", head.find(b"Work>")) + 9])  # drawings follow, and they are long
        events = cast("Iterator[tuple[str, ET.Element]]", parser.read_events())
        work = next(element for _, element in events if element.tag.endswith("}Work"))
    except (OSError, ET.ParseError, StopIteration):
        return None
    rights = next((e.get(f"{_RDF}resource", "") for e in work if e.tag.endswith("}license")), "")
    return _Record(
        license=rights,
        title=work.findtext(f"{_DC}title") or "",
        description=work.findtext(f"{_DC}description") or "",
        keywords=tuple(item.text or "" for item in work.iterfind(f"{_DC}subject//{_RDF}li")),
        author=work.findtext(f"{_DC}creator//{_DC}title") or "",
    )


def _captions(record: _Record, *, with_description: bool) -> tuple[str, ...]:
    """Title, description and keywords, as far as they are captions; none if the title is not."""
    title = clean_title(record.title)
    if not title:
        return ()
    keywords = _keywords(record)
    if record.author.casefold() in _FOREIGN_AUTHORS:
        return (", ".join(keywords),) if len(keywords) > 1 else ()
    captions = [title]
    if with_description and (description := _description(record, title, keywords)):
        captions.append(description)
    if len(keywords) > 1:
        captions.append(", ".join(keywords))
    return tuple({_folded(caption): caption for caption in reversed(captions)}.values())[::-1]


def _keywords(record: _Record) -> list[str]:
    """The keywords that say what is to be seen: not the categories of the collection, nor the author."""
    words = (" ".join(_plain(word).replace("_", " ").split()) for word in record.keywords)
    author = record.author.casefold()
    kept = (word for word in words if len(word) > 2 and not word.isdigit() and word.casefold() != author)
    return list(dict.fromkeys(word for word in kept if word.casefold() not in _NO_KEYWORDS))[:_MOST_KEYWORDS]


def _description(record: _Record, title: str, keywords: list[str]) -> str | None:
    """The description, if it is short and about the picture: English as far as simple means can tell."""
    text = _plain(record.description).strip(" .-_")
    words = re.findall(r"[a-z]+", text.casefold())
    if len(words) not in _DESCRIPTION_WORDS or not text.isascii() or _NO_DESCRIPTION.search(text):
        return None
    # Descriptions in other languages seldom share a word with the title and the keywords, which are English.
    known = set(re.findall(r"[a-z]{3,}", " ".join([title, *keywords]).casefold())) | {"the", "with", "and", "of"}
    return text if known.intersection(words) else None


def _plain(text: str) -> str:
    """Without markup, entities, and the ``HASH(0x…)`` that a Perl script left behind, on one line."""
    text = html.unescape(html.unescape(text))
    text = re.sub(r"hash\(0x[0-9a-f]+\)", " ", text, flags=re.IGNORECASE)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def _folded(caption: str) -> str:
    """The caption as it is compared with others."""
    return stamps.comparable(_plain(caption))


def _demo_pictures(root: Path) -> tuple[frozenset[str], list[Pair]]:
    """The pictures that ship with hivlp for its demonstration, which is to be an honest one.

    Returns:
        The real paths of those that they were made from, and the pictures themselves.
    """
    folder = importlib.resources.files("hivlp") / "assets" / "pictures"
    table = folder / "captions.jsonl"
    if not table.is_file():
        return frozenset(), []
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines() if line]
    shown = [Pair(row["file"], Path(str(folder / row["file"])), (row["file"],)) for row in rows]
    return frozenset(os.path.realpath(root / "png" / row["source"]) for row in rows), shown


def _is_decodable(path: Path) -> bool:
    """Whether the header is a picture's and within the limit."""
    try:
        picture_size(path)
    except PictureError:
        return False
    return True


READER = Reader(lambda _: read_openclipart(), family=stamps.FAMILY)
