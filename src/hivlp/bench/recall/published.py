"""Published recalls on Flickr30k (1K test) and COCO (5K test), and open_clip's table, as rows beside measured ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hivlp.errors import DataError
from hivlp.evaluate.results import CUTOFFS, Recalls
from hivlp.files.reading import printable, read_lines

METER_NOTE = "its checkpoint was chosen on the test split: the split that its code calls val is test"
UNITER_NOTE = ("as its paper gives it; the released script counts up to K queries too many in text→image R@K, since "
               "it takes row numbers of nonzero() for hits, too")  # fmt: skip
HIVLP_NOTE = "recalls not published; AR implied by the published gain over LightningDOT (+3.8 Flickr30k, +4.9 COCO)"
OPEN_CLIP = "zero-shot, from open_clip's table; tasks of its evaluation, whose caption lists may differ"
_SIDES = {"text_to_image": "image retr.", "image_to_text": "text retr."}
_SETS = {"flickr30k": "Flickr", "coco": "MSCOCO"}


@dataclass(frozen=True)
class PublishedRow:
    """One system on one benchmark as published.

    Attributes:
        dataset: ``flickr30k`` or ``coco``.
        model: the system.
        how: ``fine-tuned`` or ``zero-shot``, and ``every pair``, ``dual encoder`` or what it is.
        recalls: in percent; None where they were not published.
        average: mean of the six recalls (AR), in percent.
        source: where it was read.
        note: what a careful reader wants to know.
    """

    dataset: str
    model: str
    how: str
    recalls: Recalls | None
    average: float
    source: str
    note: str = ""


def _row(dataset: str, model: str, how: str, to_text: str, to_image: str, source: str, note: str = "") -> PublishedRow:
    """A row from ``R@1/R@5/R@10`` of both directions."""
    sides = (
        {f"R@{cutoff}": float(value) for cutoff, value in zip(CUTOFFS, given.split("/"), strict=True)}
        for given in (to_image, to_text)
    )
    recalls = Recalls(*sides)
    return PublishedRow(dataset, model, how, recalls, recalls.average, source, note)


_PAIRS, _DUAL = "fine-tuned, every pair", "fine-tuned, dual encoder"
_DOT, _UNITER, _METER, _VILT = (
    "README of intersun/LightningDOT",
    "UNITER's paper (ECCV 2020)",
    "METER's paper (CVPR 2022)",
    "EVAL.md of dandelin/ViLT",
)
_HIVLP = "HiVLP, arXiv 2205.12105"
PUBLISHED = (
    PublishedRow("flickr30k", "HiVLP", _DUAL, None, 93.1, _HIVLP, HIVLP_NOTE),
    _row("flickr30k", "LightningDOT", _DUAL, "83.9/97.2/98.6", "69.9/91.1/95.18", _DOT),
    _row("flickr30k", "LightningDOT", "zero-shot, dual encoder", "68.2/89.1/94.0", "53.32/80.58/88.04", _DOT),
    _row("flickr30k", "UNITER large", _PAIRS, "87.3/98.0/99.2", "75.6/94.1/96.8", _UNITER, UNITER_NOTE),
    _row("flickr30k", "METER CLIP-B/16", _PAIRS, "94.3/99.6/99.9", "82.2/96.3/98.4", _METER, METER_NOTE),
    _row("flickr30k", "ViLT", _PAIRS, "83.6/96.8/98.6", "64.54/88.86/93.92", _VILT, METER_NOTE),
    PublishedRow("coco", "HiVLP", _DUAL, None, 78.4, _HIVLP, HIVLP_NOTE),
    _row("coco", "LightningDOT", _DUAL, "60.04/85.16/91.72", "45.77/74.53/83.79", _DOT),
    _row("coco", "UNITER large", _PAIRS, "65.7/88.6/93.8", "52.9/79.9/88.0", _UNITER, UNITER_NOTE),
    _row("coco", "METER CLIP-B/16", _PAIRS, "76.16/93.16/96.82", "57.08/82.66/90.07", _METER, METER_NOTE),
    _row("coco", "ViLT", _PAIRS, "61.62/86.32/92.7", "42.99/72.84/83.07", _VILT, METER_NOTE),
)  # fmt: skip
"""Rows that were read in the sources that they name."""


def read_open_clip(path: Path) -> list[PublishedRow]:
    """The rows of open_clip's ``docs/openclip_retrieval_results.csv``: two a model, Flickr30k and COCO.

    Its columns are ``name``, ``pretrained``, and twelve shares such as ``Flickr image retr. R@1`` (text to image) and
    ``MSCOCO text retr. R@10`` (image to text); others are passed over.

    Raises:
        DataError: naming file, line and column, if it has another layout.
    """
    where = printable(path)
    rows = csv.DictReader(read_lines(path))
    found: list[PublishedRow] = []
    try:
        for row in rows:
            where = f"{printable(path)}, line {rows.line_num}"
            found += _of_open_clip(row)
    except (KeyError, ValueError, csv.Error) as error:
        raise DataError(f"{where}: not open_clip's table of retrieval: {error}") from error
    if not found:
        raise DataError(f"{where} holds no models")
    return found


def _of_open_clip(row: Mapping[str, str]) -> Iterator[PublishedRow]:
    for dataset, prefix in _SETS.items():
        sides = {direction: {f"R@{cutoff}": _percent(row, f"{prefix} {side} R@{cutoff}") for cutoff in CUTOFFS}
                 for direction, side in _SIDES.items()}  # fmt: skip
        recalls = Recalls(**sides)
        name, pretrained = (row[column] or "?" for column in ("name", "pretrained"))
        yield PublishedRow(dataset, f"{name} ({pretrained})", "zero-shot, dual encoder", recalls, recalls.average,
                           "open_clip, docs/openclip_retrieval_results.csv", OPEN_CLIP)  # fmt: skip


def _percent(row: Mapping[str, str], column: str) -> float:
    share = float(row[column] or "nan")
    if not 0 <= share <= 1:
        raise ValueError(f"{column} is {row[column]!r:.20}, no share")
    return round(100 * share, 2)
