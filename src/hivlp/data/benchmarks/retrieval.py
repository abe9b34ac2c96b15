"""Flickr30k and COCO as retrieval is compared on them: Karpathy's splits, every caption a query, ids kept.

Other readers of pairs drop a picture's repeated captions; a benchmark counts them, or its 25,010 test captions would be
fewer. Ids are COCO's own (``cocoid`` of a picture, ``sentid`` of a caption), to which CxC and ECCV Caption refer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.data.pairs import SPLITS, Pair
from hivlp.data.readers.karpathy import images_of, is_file, misfit, picture_of
from hivlp.errors import DataError
from hivlp.files.reading import printable

logger = logging.getLogger(__name__)
_KEYS = frozenset({"images", "filename", "filepath", "split", "sentences", "raw", "sentid", "imgid", "cocoid"})
_SPLITS_FILE = "caption_datasets.zip from https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it is published.

    Attributes:
        name: what people call it.
        json: Karpathy's file.
        folders: where its pictures lie below the root, as published and as mirrors name them; the first is named to
            people.
        pictures: where they are had, and what to do with it.
        counts: split -> published numbers of pictures and of captions (None: not published); restval is part of train.
    """

    name: str
    json: str
    folders: tuple[str, ...]
    pictures: str
    counts: Mapping[str, tuple[int, int | None]]

    def missing(self, root: Path, what: str) -> DataError:
        """The error for data that is not there: what to download and where it goes.

        Args:
            root: folder that was looked into.
            what: is missing.
        """
        return DataError(
            f"{printable(root)} has no {what}: download {_SPLITS_FILE} and unpack it there ({self.json}); "
            f"{self.pictures.format(root=printable(root))}"
        )


BENCHMARKS = {
    "flickr30k": Benchmark(
        "flickr30k",
        "dataset_flickr30k.json",
        ("flickr30k-images", "flickr30k_images", "images", "Images", "."),
        "ask for the pictures at https://shannon.cs.illinois.edu/DenotationGraph/ and unpack flickr30k-images.tar.gz, "
        "so that they lie in {root}/flickr30k-images",
        {"train": (29_000, None), "val": (1_014, None), "test": (1_000, 5_000)},
    ),
    "coco": Benchmark(
        "coco",
        "dataset_coco.json",
        (".", "images"),
        "unpack http://images.cocodataset.org/zips/val2014.zip there too, so that the pictures of val and test lie in "
        "{root}/val2014 (those of train: train2014.zip)",
        {"train": (113_287, None), "val": (5_000, None), "test": (5_000, 25_010)},
    ),
}
"""Benchmarks by name."""


@dataclass(frozen=True)
class RetrievalSet:
    """One split of a benchmark.

    Attributes:
        benchmark: that it is of.
        split: ``train`` (restval included), ``val`` or ``test``.
        root: the benchmark's folder.
        pairs: pictures with all their captions, in the order of the file.
        picture_ids: of each pair, ``cocoid`` or else ``imgid``.
        caption_ids: of each pair, ``sentid`` of each of its captions; empty where the file has none.
        absent: pictures whose file is missing; they are left out of ``pairs``.
        places: of each pair, its number within the split, those whose file is missing counted too.
    """

    benchmark: Benchmark
    split: str
    root: Path
    pairs: tuple[Pair, ...]
    picture_ids: tuple[int, ...]
    caption_ids: tuple[tuple[int, ...], ...]
    absent: int
    places: tuple[int, ...]

    @property
    def total(self) -> int:
        """Pictures of the split, those whose file is missing included."""
        return len(self.pairs) + self.absent

    @property
    def complete(self) -> bool:
        """Whether pictures and captions are as many as were published."""
        pictures, captions = self.benchmark.counts[self.split]
        return len(self.pairs) == pictures and captions in (None, sum(len(pair.captions) for pair in self.pairs))


def read_benchmark(name: str, root: Path, split: str = "test") -> RetrievalSet:
    """One split of a benchmark.

    Args:
        name: a key of :data:`BENCHMARKS`.
        root: folder with Karpathy's JSON (itself, or its folder ``karpathy`` or ``annotations``) and the pictures.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DataError: in one line: what to download and where it goes, if the JSON or all pictures are missing; the entry,
            if the file has another layout, or a file name or an id occurs twice.
    """
    if name not in BENCHMARKS:
        raise DataError(f"there is no benchmark {name!r:.40}: choose from {', '.join(BENCHMARKS)}")
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r:.40}: choose from {', '.join(SPLITS)}")
    benchmark = BENCHMARKS[name]
    places = [root, root / "karpathy", root / "annotations"]
    path = next((place / benchmark.json for place in places if is_file(place / benchmark.json)), None)
    if path is None:
        raise benchmark.missing(root, benchmark.json)
    entries = images_of(path, _KEYS)["images"]
    roots = [root / folder for folder in benchmark.folders]
    seen: dict[tuple[str, Any], int] = {}
    kept: list[tuple[Pair, int, tuple[int, ...], int]] = []
    total = absent = 0
    for number, entry in enumerate(entries):
        where = f"{printable(path)}, image {number}"
        file, part, candidates = picture_of(entry, roots, where)
        captions, ids = _captions(entry, where)
        picture = _number(entry, ("cocoid", "imgid"), number, where)
        once = [("filename", file), ("cocoid" if "cocoid" in entry else "imgid", picture)]
        for key in (*once, *(("sentid", each) for each in ids)):
            if (first := seen.setdefault(key, number)) != number or (key[0] == "sentid" and ids.count(key[1]) > 1):
                raise DataError(f"{where}: the {key[0]} {key[1]!r:.60} occurs twice, first in image {first}")
        if part != split:
            continue
        if not captions:
            logger.warning("skipped: %s: no caption", where)
            continue
        total += 1
        found = next((candidate for candidate in candidates if is_file(candidate)), None)
        if found is None:
            absent += 1
            continue
        kept.append((Pair(file, found, captions, split), picture, ids, total - 1))
    if not total:
        raise DataError(f"{printable(path)} has no pictures of the split {split}")
    if not kept:
        raise benchmark.missing(root, f"picture of the split {split}")
    pairs, pictures, sentences, numbers = zip(*kept, strict=True)
    if absent:
        logger.warning(
            "%d of %d pictures of %s are missing: what is measured is not the benchmark", absent, total, name
        )
    return RetrievalSet(benchmark, split, root, pairs, pictures, sentences, absent, numbers)


def _captions(entry: Any, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All captions that are not empty, repeated ones too, and their ids."""
    try:
        texts = [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise misfit(where, error) from error
    ids = [_number(sentence, ("sentid",), -1, where) for sentence in entry["sentences"]]
    there = [(text, number) for text, number in zip(texts, ids, strict=True) if text]
    known = all(number >= 0 for _, number in there)
    return tuple(text for text, _ in there), tuple(number for _, number in there if known)


def _number(entry: Any, keys: Sequence[str], default: int, where: str) -> int:
    for key in keys:
        if key in entry:
            value = entry[key]
            if type(value) is not int or value < 0:
                raise DataError(f"{where}: {key} must be a whole number, at least 0, not {value!r:.40}")
            return value
    return default
