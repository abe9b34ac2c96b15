"""Sentences and titles of dictionaries and manuals that Debian carries: a million items, and what asks for them.

Two formats: dictd's (``NAME.dict.dz`` beside ``NAME.index``) and HTML.
"""

from __future__ import annotations

import gzip
import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hivlp.data.contents import content_hash
from hivlp.errors import DataError

PACKAGES = {  # Debian 12
    "dict-gcide": "dictd/gcide.index",
    "dict-foldoc": "dictd/foldoc.index",
    "linux-doc-6.1": "doc/linux-doc-6.1/html",
    "openjdk-17-doc": "doc/openjdk-17-jre-headless",
    "python3.11-doc": "doc/python3.11/html",
    "rust-web-doc": "doc/rust-web-doc/html",
    "racket-doc": "doc/racket",
    "erlang-doc": "doc/erlang-doc",
    "cppreference-doc-en-html": "cppreference/doc/html",
    "qtbase5-doc-html": "qt5/doc",
    "postgresql-doc-15": "doc/postgresql-doc-15/html",
    "sqlite3-doc": "doc/sqlite3",
    "libreoffice-help-en-us": "libreoffice/help/en-US",
    "git-doc": "doc/git-doc",
}
SENTENCE_WORDS, TITLE_WORDS = range(4, 25), range(2, 7)
LETTERS = 0.85  # of a sentence's characters at least, spaces counted
SHARES = 40  # of the titles one is for tests, one for validation

_UNREAD = re.compile(r"<!--.*?-->|<(script|style|pre)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_HEADING = re.compile(r"<(h[1-6]|title)\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"</?(?:p|li|td|th|div|section|dt|dd|tr|br|ul|ol|table|blockquote)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_NUMBER = re.compile(r"^[\d.]+\s+|¶$")
_ASIDE = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]|<[^>]*>|[{}]")  # origin or source, subject, link
_PRONOUNCED = re.compile(r"^.*\\.*$", re.MULTILINE)  # the line of a headword and its part of speech
_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z\"'(])|\n\s*\n|\s--")  # "--" before a quotation's author
_CODE = re.compile(r"[<>={}@\\]|\w\([^)]|\) - ")
_TITLE = re.compile(r"[A-Za-z][A-Za-z' -]+")
_CAMEL_CASE = re.compile(r"[a-z][A-Z]")


@dataclass(frozen=True)
class Documents:
    """Distinct texts, whatever their case, in the order of their hashes.

    Attributes:
        sentences: of 4 to 24 words; none of them is a title.
        test: titles (headings, and headwords of dictionaries) of 2 to 6 words.
        validation: other titles.
        train: other titles. Titles with the same first five letters are in the same one of the three.
    """

    sentences: list[str]
    test: list[str]
    validation: list[str]
    train: list[str]


def read_documents(folder: Path | None = None, packages: Mapping[str, str] = PACKAGES) -> Documents:
    """The texts of installed packages.

    Args:
        folder: of packages' files; default the environment's ``HIVLP_DOCUMENTS`` (``usr/share`` of packages that
            ``dpkg-deb --extract`` has unpacked), or ``/usr/share``.
        packages: by name, an ``.index`` or a folder of HTML under ``folder``.

    Raises:
        DataError: if a package is not installed.
    """
    folder = folder or Path(os.environ.get("HIVLP_DOCUMENTS") or "/usr/share")
    # A folder may be there with nothing to read in it: another package has the same one.
    missing = [package for package, place in packages.items() if next(_files(folder / place), None) is None]
    if missing:
        raise DataError(f"documents are not in {folder}: apt-get install {' '.join(missing)}")
    sentences: dict[str, str] = {}
    titles: dict[str, str] = {}
    for place in tqdm(packages.values(), desc="documents", disable=None):
        for text, headings in _read(folder / place):
            sentences |= {each.casefold(): each for each in split_sentences(text)}
            titles |= {each.casefold(): each for each in headings if is_title(each)}
    parts: list[list[str]] = [[], [], []]
    for title in _by_hash(titles.values()):
        start = "".join(filter(str.isalpha, title.casefold()))[:5]
        parts[min(int(content_hash(start.encode()), 16) % SHARES, 2)].append(title)
    return Documents(_by_hash(sentences[each] for each in sentences.keys() - titles.keys()), *parts)


def split_sentences(text: str) -> Iterator[str]:
    """Sentences of 4 to 24 words that are not code, each on one line."""
    for part in _END.split(text):
        words = part.split()
        sentence = " ".join(words)
        letters = sum(each.isalpha() or each == " " for each in sentence)
        if len(words) in SENTENCE_WORDS and letters >= LETTERS * len(sentence) and not _CODE.search(sentence):
            yield sentence


def is_title(text: str) -> bool:
    """Whether it is 2 to 6 words of letters, and no name of a program's part."""
    return bool(_TITLE.fullmatch(text)) and len(text.split()) in TITLE_WORDS and not _CAMEL_CASE.search(text)


def read_html(text: str) -> tuple[str, list[str]]:
    """The text with an empty line between blocks, without code, and its headings, which are not in it."""
    text = _UNREAD.sub(" ", text)
    headings = [_NUMBER.sub("", _plain(heading)) for _, heading in _HEADING.findall(text)]
    blocks = _BLOCK.split(_HEADING.sub("<p>", text))
    return "\n\n".join(map(_plain, blocks)), headings


def read_dictionary(index: Path) -> tuple[str, list[str]]:
    """The text of a dictionary of dictd's, without its marks, and its headwords."""
    text = gzip.decompress(index.with_suffix(".dict.dz").read_bytes()).decode(errors="replace")
    headwords = [line.partition("\t")[0] for line in index.read_text(errors="replace").splitlines()]
    return _PRONOUNCED.sub("\n", _ASIDE.sub("", text)), headwords


def _read(place: Path) -> Iterator[tuple[str, list[str]]]:
    for file in _files(place):
        yield read_dictionary(file) if file.suffix == ".index" else read_html(file.read_text(errors="replace"))


def _files(place: Path) -> Iterator[Path]:
    """A dictionary's index, or the pages in a folder."""
    if place.suffix == ".index" and place.is_file():
        yield place
    # Some documentation lies behind links between packages' folders.
    for folder, folders, names in os.walk(place, followlinks=True):
        folders.sort()  # of sentences that differ in case the last one stays: the same one everywhere
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(".html"))


def _plain(markup: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", markup)).split())


def _by_hash(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: content_hash(text.encode()))
