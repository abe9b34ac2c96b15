"""Further positives of COCO's test pictures and captions: CxC and ECCV Caption, by their published files.

CxC (Parekh et al., 2021) has people's scores from 0 to 5: ``sits_test.csv`` with the columns ``caption``, ``image``,
``agg_score``, ``sampling_method``; a caption is ``COCO_val2014:sentid:732091``. A score of 3 or more is a positive, in
addition to COCO's own pairs. ECCV Caption (Chun et al., 2022) has two JSON objects, id -> ids, for the queries that
were annotated: 1,332 captions and 1,261 pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hivlp.data.readers.karpathy import is_file
from hivlp.errors import DataError
from hivlp.files.reading import printable, read_json, read_lines

CXC, ECCV = "sits_test.csv", ("eccv_caption_to_image.json", "eccv_image_to_caption.json")
POSITIVE = 3.0
"""Least score of a caption and a picture that belong together (CxC's paper, section 3)."""
CXC_SOURCE = "https://github.com/google-research-datasets/Crisscrossed-Captions (data/)"
ECCV_SOURCE = "https://github.com/naver-ai/eccv-caption (eccv_caption/data/)"
_COLUMNS = ["caption", "image", "agg_score", "sampling_method"]
Ids = Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Positives:
    """What belongs together beyond a picture and its own captions; ids are COCO's.

    Attributes:
        images: caption -> pictures.
        captions: picture -> captions.
    """

    images: Ids
    captions: Ids


class Rating(NamedTuple):
    """People's score of a caption and a picture, from 0 to 5."""

    caption: int
    image: int
    score: float


def find_cxc(root: Path) -> Path | None:
    """CxC's ``sits_test.csv`` in COCO's folder, or in its folder ``cxc``; None if it is not there."""
    return next((place / CXC for place in (root, root / "cxc") if is_file(place / CXC)), None)


def read_cxc(path: Path) -> list[Rating]:
    """The ratings of captions with pictures (SITS).

    Raises:
        DataError: naming file and line, if it has another layout.
    """
    rows, found = csv.reader(read_lines(path)), []
    where = printable(path)
    try:
        if (header := next(rows, None)) != _COLUMNS:
            raise DataError(f"{where}: the columns must be {', '.join(_COLUMNS)}, not {', '.join(header or [])[:100]}")
        for row in rows:
            where = f"{printable(path)}, line {rows.line_num}"
            caption, image, score, _ = row
            rating = Rating(int(caption.rpartition(":")[2]), picture_id(image), float(score))
            if not 0 <= rating.score <= 5:
                raise ValueError(f"a score of {score}")
            found.append(rating)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{where}: not in CxC's layout: {error}") from error
    return found


def cxc_positives(ratings: Iterable[Rating], own: Positives) -> Positives:
    """COCO's own pairs, and the pairs that people scored with :data:`POSITIVE` or more.

    Args:
        ratings: see :func:`read_cxc`.
        own: COCO's own pairs; ratings of others' ids are left out.
    """
    images, captions = ({key: set(ids) for key, ids in side.items()} for side in (own.images, own.captions))
    for rating in ratings:
        if rating.score >= POSITIVE and rating.caption in images and rating.image in captions:
            images[rating.caption].add(rating.image)
            captions[rating.image].add(rating.caption)
    return Positives(_frozen(images), _frozen(captions))


def find_eccv(root: Path) -> tuple[Path, Path] | None:
    """ECCV Caption's two files in COCO's folder, or in its folder ``eccv_caption``; None if they are not there.

    Raises:
        DataError: if one is there without the other.
    """
    for place in (root, root / "eccv_caption"):
        there = [is_file(place / name) for name in ECCV]
        if all(there):
            return place / ECCV[0], place / ECCV[1]
        if any(there):
            lacking = ECCV[there.index(False)]
            raise DataError(f"{printable(place)} has no {lacking}, which comes with the other from {ECCV_SOURCE}")
    return None


def read_eccv(paths: tuple[Path, Path]) -> Positives:
    """ECCV Caption's positives: of the annotated captions, and of the annotated pictures.

    Raises:
        DataError: naming the file, if it has another layout.
    """
    images, captions = (_ids(path) for path in paths)
    return Positives(images, captions)


def picture_id(name: str) -> int:
    """COCO's id in a file name, ``COCO_val2014_000000365325.jpg`` or ``000000365325.jpg``.

    Raises:
        ValueError: if there is none.
    """
    return int(name.partition(".")[0].rpartition("_")[2])


def _ids(path: Path) -> Ids:
    try:
        found = {}
        for key, ids in read_json(path).items():
            if not isinstance(ids, list) or not ids:
                raise ValueError(f"{key!r:.40} must have a list of ids")
            found[int(key)] = frozenset(int(each) for each in ids)
    except (TypeError, ValueError) as error:
        raise DataError(f"{printable(path)}: not in ECCV Caption's layout: {error}") from error
    return found


def _frozen(sets: Mapping[int, set[int]]) -> Ids:
    return {key: frozenset(ids) for key, ids in sets.items()}
