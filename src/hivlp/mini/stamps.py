"""Tux Paint's stamps: about 930 photo cut-outs and drawings with short captions (Debian: tuxpaint-stamps-default).

**The split is fixed for ever**, so that numbers from different times can be compared:

1. An item is a stamp with a text of its own (``X.png`` or ``X.svg`` beside ``X.txt``, PNG before SVG) whose picture is
   readable. SVGs that give their size in physical units (``pt``, ``mm``, ...) count as unreadable, because resvg
   refuses them unless it is told a resolution; these are 16.
2. The caption is the first line of the text, in English, stripped.
3. Candidates are the items outside ``symbols/`` whose caption occurs once among all items.
4. Ordered by the SHA-256 of the caption in UTF-8, the first 200 candidates are ``test``, the next 100 ``val``. Those of
   ``val`` that show the same drawing as one of ``test`` are left out (:mod:`hivlp.data.same_picture`; there is one).
5. All other items are ``train``, except those that share a caption (in folded case) or a drawing with one of ``test``
   or ``val``: these are left out.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hivlp.data.pairs import Pair
from hivlp.data.readers.reader import Reader
from hivlp.data.same_picture import Looks, excluding, looks_of
from hivlp.errors import DataError, PictureError

logger = logging.getLogger(__name__)
DEFAULT_ROOT = Path("/usr/share/tuxpaint/stamps")
TEST_SIZE, VAL_SIZE = 200, 100

_DRAWN_SIDE = 512
_SVG_HEAD = 1 << 16
_MAX_SVG_BYTES = 16 << 20
# A number with a unit that needs no resolution.
_LENGTH = re.compile(r"\s*\+?(?P<number>\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?)\s*(px|em|ex|%)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Drawing:
    """An SVG file that is drawn when it is read."""

    path: Path

    def read(self) -> bytes:
        """The drawing as an encoded PNG with transparency, 512 pixels on its longer side.

        Raises:
            PictureError: if it cannot be drawn.
        """
        import resvg_py

        try:
            if self.path.stat().st_size > _MAX_SVG_BYTES:
                raise PictureError(f"is a drawing of over {_MAX_SVG_BYTES >> 20} MB")
            # Both sides are given, and the drawing fits inside: from a hostile size of its own, resvg would abort the
            # process for want of memory.
            return bytes(resvg_py.svg_to_bytes(svg_path=str(self.path), width=_DRAWN_SIDE, height=_DRAWN_SIDE))
        except (ValueError, OSError) as error:
            raise PictureError(f"cannot be drawn: {error}") from error


def read_stamps(root: Path | None = None, split: str | None = None) -> list[Pair]:
    """Read the stamps with the split that the module describes, ordered by path.

    Args:
        root: the ``stamps`` folder; by default the environment's ``HIVLP_STAMPS``, or where Debian puts it.
        split: the only one that is wanted. For ``test`` no picture is opened; otherwise all are compared, in seconds.

    Raises:
        DataError: if the stamps are not installed.
    """
    by_caption = _split_by_caption(root)
    pairs = [pair for pair in by_caption if split in (None, pair.split)]
    kept = {pair.id for pair in pairs if pair.split == "test"}
    for part, apart_from in (("val", ("test",)), ("train", ("test", "val"))):
        mine = [pair for pair in pairs if pair.split == part]
        if mine:
            looks = _looks(tuple(pair for pair in by_caption if pair.split in apart_from))
            kept |= {pair.id for pair in excluding(mine, looks)}
    return [pair for pair in pairs if pair.id in kept]


def held_out_captions(root: Path | None = None) -> frozenset[str]:
    """The captions of ``test`` and ``val``, case-folded: nothing that carries one may be trained on.

    Raises:
        DataError: if the stamps are not installed.
    """
    return frozenset(pair.captions[0].casefold() for pair in _split_by_caption(root) if pair.split != "train")


def without_held_out_pictures(pairs: list[Pair]) -> list[Pair]:
    """The pairs of another data set that show no drawing of ``test`` or ``val``; all where there are no stamps."""
    try:
        held_out = tuple(pair for pair in _split_by_caption() if pair.split != "train")
    except DataError:
        return pairs
    kept = excluding(pairs, _looks(held_out))
    logger.info("left out %d pictures that show a held-out stamp", len(pairs) - len(kept))
    return kept


def comparable(caption: str) -> str:
    """A caption as it is compared with those of other data sets: folded case, without article and full stop."""
    return re.sub(r"^(a|an|the)\s+", "", caption.casefold().strip(" .!"))


def held_out_comparable() -> frozenset[str]:
    """:func:`comparable` captions of ``test`` and ``val``; none where there are no stamps to be evaluated on."""
    try:
        return frozenset(map(comparable, held_out_captions()))
    except DataError:
        return frozenset()


def stamps_root(root: Path | None = None) -> Path:
    """The folder of the stamps.

    Raises:
        DataError: if it does not exist.
    """
    root = root or Path(os.environ.get("HIVLP_STAMPS") or DEFAULT_ROOT)
    if not root.is_dir():
        raise DataError(f"no Tux Paint stamps at {root}: apt-get install tuxpaint-stamps-default, or set HIVLP_STAMPS")
    return root


def assign_splits(items: list[tuple[str, str]]) -> list[str | None]:
    """Apply the rule to (top-level folder, caption) of all items; None for an item that is left out."""
    counts = Counter(caption for _, caption in items)
    candidates = [caption for folder, caption in items if folder != "symbols" and counts[caption] == 1]
    candidates.sort(key=lambda caption: hashlib.sha256(caption.encode()).hexdigest())
    held_out = dict.fromkeys(candidates[:TEST_SIZE], "test")
    held_out |= dict.fromkeys(candidates[TEST_SIZE : TEST_SIZE + VAL_SIZE], "val")
    folded = {caption.casefold() for caption in held_out}
    return [held_out.get(caption) or (None if caption.casefold() in folded else "train") for _, caption in items]


def drawable(path: Path) -> bool:
    """Whether resvg draws an SVG, told from its root element: its size must be positive and not in physical units."""
    parser: ET.XMLPullParser[Any] = ET.XMLPullParser(events=("start",))
    try:
        with path.open("rb") as file:
            parser.feed(file.read(_SVG_HEAD))
        _, element = next(cast("Iterator[tuple[str, ET.Element]]", parser.read_events()))
    except (OSError, ET.ParseError, StopIteration):
        return False
    lengths = [_LENGTH.fullmatch(element.get(side, "1")) for side in ("width", "height")]
    return element.tag.endswith("}svg") and all(match and float(match["number"]) > 0 for match in lengths)


def _split_by_caption(root: Path | None = None) -> list[Pair]:
    """All pairs, without a look at their pictures."""
    root = stamps_root(root)
    items = _items(root)
    splits = assign_splits([(path.parts[0], caption) for path, caption in items])
    return [
        Pair(path.as_posix(), Drawing(root / path) if path.suffix == ".svg" else root / path, (caption,), split)
        for (path, caption), split in zip(items, splits, strict=True)
        if split is not None
    ]


@functools.lru_cache(maxsize=4)
def _looks(pairs: tuple[Pair, ...]) -> Looks:
    """What the held-out pictures look like, once for all data sets that are compared with them."""
    return looks_of(pairs)


def _items(root: Path) -> list[tuple[Path, str]]:
    """Path below the root and caption of every item, ordered by path."""
    items = []
    for text in sorted(root.rglob("*.txt")):
        picture = text.with_suffix(".png")
        if not picture.is_file():
            picture = text.with_suffix(".svg")
            if not (picture.is_file() and drawable(picture)):
                continue
        try:
            with text.open(encoding="utf-8") as file:
                caption = file.readline().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{text} cannot be read: {error}") from error
        if caption:
            items.append((picture.relative_to(root), caption))
    return items


FAMILY = "stamps"
"""Of data sets that keep what the stamps' validation and test parts show out of their own training part."""
READER = Reader(lambda source: read_stamps(split=source.split), family=FAMILY)
