"""Pairs of one shard in order, from any place in it on; what is damaged is told and passed over."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from hivlp.data.pairs import Pair, split_of_folders, split_of_name, within
from hivlp.data.readers.arrow import arrow_errors, batches, values
from hivlp.data.readers.parquet import is_path
from hivlp.data.readers.skips import Skips
from hivlp.data.readers.table import CAPTION_COLUMNS, IMAGE_COLUMNS, SPLIT_COLUMNS, find_column, row_split
from hivlp.data.readers.values import captions_of, column_named
from hivlp.data.readers.webdataset import again, groups, samples
from hivlp.data.streams.opening import UnreachableError, check_reachable, is_url, open_file, sha256
from hivlp.data.streams.shards import Shard
from hivlp.errors import DataError, HivlpError, MissingExtraError
from hivlp.files.reading import one_line, printable, reason

logger = logging.getLogger(__name__)
ROWS = 64
"""Rows of a parquet file, pictures included, that are in memory at a time."""
_INNER = 10  # bits of a place in a tar that tell the pictures of one sample apart
LONGEST_WAIT = 16.0
"""Seconds between two tries of a file that cannot be reached."""
Told = Callable[[str], None]
Placed = tuple[int, Pair]
"""Where in the shard reading goes on after a pair, and the pair."""


class _Told(Skips):
    """Skipped parts, each told to whoever reads rather than logged."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def damage(self, problem: object) -> None:
        self._told(str(problem))

    def no_caption(self, where: str) -> None:
        self._told(f"{where}: no caption")


def pairs_of(shard: Shard, split: str, first: int, told: Told, patience: float) -> Iterator[Placed]:
    """The pairs of a split in a shard, pictures read; and after each, the place of the next.

    A file that cannot be reached is tried again, and goes on where it stopped; one that can be reached but not be
    understood is damaged: what is sound before that counts, and the rest is told of.

    Args:
        shard: to read.
        split: ``train``, ``val`` or ``test``.
        first: the place to begin at, 0 or what came with an earlier pair.
        told: is given a sentence on each part that is passed over.
        patience: seconds for which a file is tried again.

    Raises:
        UnreachableError: if the file cannot be reached for so long.
        MissingExtraError: if reading needs a package that is not installed.
    """
    waited, wait = 0.0, 0.25
    while True:
        try:
            for place, pair in _READERS[shard.kind](shard, first, told):
                first, waited, wait = place, 0.0, 0.25
                if pair.split == split:
                    yield place, pair
            return
        except MissingExtraError:
            raise
        except UnreachableError:
            if waited >= patience:
                raise
        except HivlpError as error:
            told(str(error))
            return
        except Exception as error:  # of the storage, in its own words
            try:
                check_reachable(shard.path)
            except UnreachableError:
                if waited >= patience:
                    raise
            else:
                told(f"{printable(shard.path)} is damaged: {reason(error)}; its rest is left out")
                return
        wait = min(wait, patience - waited)
        logger.warning("%s cannot be reached; trying again in %.1f s", printable(shard.path), wait)
        time.sleep(wait)
        waited, wait = waited + wait, min(2 * wait, LONGEST_WAIT)


def _checked(file: BinaryIO, shard: Shard) -> None:
    if shard.checksum and (found := sha256(file)) != shard.checksum:
        raise DataError(
            f"{printable(shard.path)} is not the file that its checksum is of ({found[:12]}…, not "
            f"{shard.checksum[:12]}…): it is left out"
        )


def _tar(shard: Shard, first: int, told: Told) -> Iterator[Placed]:
    skips, damage = _Told(told), list[str]()
    split = split_of_name(shard.name) or split_of_folders("/".join(shard.path.split("/")[-2:]))
    seen: set[int] = set()
    with open_file(shard.path) as file:
        _checked(file, shard)
        for place, (key, group) in enumerate(groups(file, damage)):
            known = len(seen)
            seen.add(hash(key))
            if place < first >> _INNER or place % shard.parts != shard.part:
                continue
            if len(seen) == known and key:
                told(again(shard.path, key))
                continue
            found = samples(file, shard.path, key, group, skips)
            for at, (stem, picture, captions, said) in enumerate(found, start=place << _INNER):
                if at < first:
                    continue
                here = said or split or split_of_folders(stem) or "train"
                file.seek(picture.offset)
                data = file.read(picture.size)
                if len(data) < picture.size:
                    raise OSError("it became shorter while it was read")
                yield at + 1, Pair(f"{shard.name}/{stem}", data, captions, here, shard.name)
    for problem in damage:
        told(f"{printable(shard.path)} is not a readable, uncompressed tar file: {problem}; samples before that count")


def _parquet(shard: Shard, first: int, told: Told) -> Iterator[Placed]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading parquet", "data") from error
    where = printable(shard.path)
    split = split_of_name(shard.name) or split_of_folders("/".join(shard.path.split("/")[-2:]))
    with open_file(shard.path) as file:
        _checked(file, shard)
        with arrow_errors(f"{where} is not a readable parquet file"):
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
        names = parquet.schema_arrow.names
        image = find_column(names, IMAGE_COLUMNS, "picture", where)
        caption = find_column(names, CAPTION_COLUMNS, "caption", where)
        column = column_named(names, SPLIT_COLUMNS)
        columns = [image, caption, *([column] if column else [])]
        place = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            begins, place = place, place + rows
            if place <= first:
                continue
            number = begins
            try:
                for batch in batches(where, parquet, columns, [group], ROWS):
                    wanted = [
                        row for row in range(len(batch))
                        if number + row >= first and (number + row) % shard.parts == shard.part
                    ]  # fmt: skip
                    cells = [values(where, batch.take(wanted), each) for each in columns] if wanted else []
                    for row, told_cells in zip(wanted, zip(*cells, strict=True), strict=True):
                        at = number + row
                        record = dict(zip(columns, told_cells, strict=True))
                        try:
                            pair = _row(shard, record, image, caption, split, at)
                        except DataError as error:
                            told(str(error))
                            continue
                        if pair is None:
                            told(f"{where}, row {at + 1}: no caption")
                            continue
                        yield at + 1, pair
                    number += len(batch)
            except DataError as error:
                told(f"{error}; the rows {number + 1} and following of group {group} are left out")


def _row(shard: Shard, record: dict[str, Any], image: str, caption: str, split: str | None, at: int) -> Pair | None:
    where = f"{printable(shard.path)}, row {at + 1}"
    captions = captions_of(record[caption], where)
    if not captions:
        return None
    picture = record[image]
    if isinstance(picture, dict):
        held = picture.get("bytes")
        picture = picture.get("path") if held is None else held
    if isinstance(picture, bytes) and is_path(picture):
        picture = picture.decode()
    named = f"{shard.name}/{at}"
    if isinstance(picture, str):
        if is_url(shard.path):
            raise DataError(f"{where}: the picture lies outside of a shard that is behind a URL")
        named = picture
        picture = within(Path(shard.path).parent, picture, where)
    if not isinstance(picture, bytes | Path):
        raise DataError(f"{where}: no picture")
    said = row_split(record, where) or split or split_of_folders(named) or "train"
    return Pair(named, picture, captions, said, shard.name if isinstance(picture, bytes) else "")


def _list(shard: Shard, first: int, _: Told) -> Iterator[Placed]:
    """A part of a list is a stretch of it."""
    with open_file(shard.path) as file, closing(file):
        count = sum(1 for _ in file)
        start, stop = (count * part // shard.parts for part in (shard.part, shard.part + 1))
        file.seek(0)
        for place, line in enumerate(islice(file, start + first, stop), start=first + 1):
            try:
                name, path, captions, split = json.loads(line.decode("utf-8", "surrogatepass"))
            except ValueError as error:
                raise DataError(f"{printable(shard.path)} is damaged: {one_line(error)}") from error
            yield place, Pair(name, Path(path), tuple(captions), split)


_READERS: dict[str, Callable[[Shard, int, Told], Iterator[Placed]]] = {"tar": _tar, "parquet": _parquet, "list": _list}
