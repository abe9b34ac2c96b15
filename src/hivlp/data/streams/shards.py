"""Shards of a stream: what patterns of paths and URLs stand for, in parts enough for all that read at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hivlp.data.load import load_pairs, shards_in
from hivlp.data.streams.opening import SUMS, checksums, expand, is_url, matching, sizes_in
from hivlp.errors import DataError
from hivlp.files.reading import printable
from hivlp.files.scratch import write_whole

logger = logging.getLogger(__name__)
Kind = Literal["tar", "parquet", "list"]
_KINDS: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet", ".pairs": "list"}
LISTED = 1000
"""Pairs in a part of a list."""


@dataclass(frozen=True)
class Shard:
    """A file of pairs, or every so-manieth pair of one.

    Attributes:
        path: of the file, or its URL.
        kind: how it is read: ``tar`` (webdataset), ``parquet``, or ``list`` (:func:`write_list`).
        size: in bytes; -1 if the storage does not tell.
        checksum: hex SHA-256 that the file must have; empty for any.
        part: which pairs: those whose place in the file is this number beyond a multiple of ``parts``.
        parts: that the file is shared out to.
    """

    path: str
    kind: Kind
    size: int = -1
    checksum: str = ""
    part: int = 0
    parts: int = 1

    @property
    def name(self) -> str:
        """The file's name without folder and suffix."""
        return self.path.rpartition("/")[2].rpartition(".")[0]


@dataclass(frozen=True)
class ShardList:
    """The shards of all sources of a stream, in their order; what a run is resumed with has to be equal.

    Attributes:
        sources: for each source its shards.
    """

    sources: tuple[tuple[Shard, ...], ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 over names, sizes and checksums."""
        return hashlib.sha256(json.dumps(self._told()).encode()).hexdigest()

    def changes(self, before: ShardList) -> str:
        """What is different since, as in ``2 shards added, 1 changed``; empty if nothing is."""
        now, then = ({row[0]: row[1:] for row in each._told()} for each in (self, before))
        counts = {
            "added": len(now.keys() - then.keys()),
            "removed": len(then.keys() - now.keys()),
            "changed": sum(now[name] != then[name] for name in now.keys() & then.keys()),
        }
        found = [f"{count} {kind}" for kind, count in counts.items() if count]
        if not found and self.digest != before.digest:
            return "the order of the shards changed"
        return f"shards: {', '.join(found)}" if found else ""

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = json.dumps(self._told())
        write_whole(path, lambda place: place.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, path: Path) -> ShardList | None:
        """What :meth:`save` wrote, as one source; None if it is not there or not whole."""
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            sources: dict[int, list[Shard]] = {}
            for name, size, checksum, source in rows:
                sources.setdefault(int(source), []).append(Shard(str(name), "list", int(size), str(checksum)))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return cls(tuple(map(tuple, sources.values())))

    def _told(self) -> list[tuple[str, int, str, int]]:
        # Where files lie may change between a kill and its resumption; what they are called and hold may not.
        return [
            (shard.path.rpartition("/")[2], shard.size, shard.checksum, number)
            for number, source in enumerate(self.sources)
            for shard in source
            if shard.part == 0
        ]


def find_shards(source: str, split: str, lists: Path) -> list[Shard]:
    """The shards that a source of a stream names.

    Args:
        source: a file, folder or URL of tars (webdataset) or parquet files, with braces and globs; or anything else
            that :func:`hivlp.data.load.load_pairs` reads whose pictures are files, such as Karpathy's JSON.
        split: that is wanted.
        lists: a folder for lists of pairs that are in no shards.

    Raises:
        DataError: if there are none, or some of them are missing.
        UnreachableError: if the storage does not answer.
    """
    paths = _in_folder(source) or [path for word in expand(source) for path in _files(word)]
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{printable(source)}: shards are all of one kind, not {', '.join(sorted(map(str, kinds)))}")
    if kinds == {None}:
        if is_url(source) or len(paths) > 1:
            raise DataError(f"{printable(source)}: shards end in .tar or .parquet")
        return [write_list(source, split, lists)]
    return _described(paths)


def _in_folder(source: str) -> list[str]:
    """The shards in a folder; none if it is not one, or holds something else."""
    if is_url(source) or not Path(source).is_dir():
        return []
    return [str(path) for path in shards_in(Path(source)) if _kind(path.name) is not None]


def _files(word: str) -> list[str]:
    """The files that a path or a glob without braces stands for."""
    if not any(letter in word for letter in "*?["):
        return [word]
    found = matching(word)
    if not found:
        raise DataError(f"no file is called like {printable(word)}")
    return found


def _kind(path: str) -> Kind | None:
    return next((kind for suffix, kind in _KINDS.items() if path.lower().endswith(suffix)), None)


def _described(paths: Sequence[str]) -> list[Shard]:
    """Shards with their sizes and checksums; all that can be known to be missing is named at once."""
    folders = {path.rpartition("/")[0] or "." for path in paths}
    sizes = {folder: sizes_in(folder) for folder in sorted(folders)}
    sums = {
        folder: checksums(folder) if f"{folder}/{SUMS}" in listed else {}
        for folder, listed in sizes.items()
    }  # fmt: skip
    shards, missing = [], []
    for path in paths:
        folder = path.rpartition("/")[0] or "."
        full = f"{folder}/{path.rpartition('/')[2]}"
        if sizes[folder] and full not in sizes[folder]:
            missing.append(path)
        kind = _kind(path)
        assert kind is not None
        shards.append(Shard(path, kind, sizes[folder].get(full, -1), sums[folder].get(full, "")))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing: {', '.join(missing[:3])}{more}")
    return shards


def in_parts(shards: Iterable[Shard], least: int) -> tuple[Shard, ...]:
    """Shards, each in so many parts that there are at least ``least``."""
    whole = list(shards)
    parts = -(-least // len(whole))
    if len(whole) == 1 and whole[0].kind == "list":
        with Path(whole[0].path).open("rb") as file:
            parts = max(parts, -(-sum(1 for _ in file) // LISTED))
    return tuple(replace(shard, part=part, parts=parts) for shard in whole for part in range(parts))


def write_list(source: str, split: str, folder: Path) -> Shard:
    """A list of the pairs of a data set without shards: a line of JSON a pair, read in parts from then on.

    Raises:
        DataError: if the data set cannot be read, or its pictures are no files of their own.
    """
    pairs = load_pairs(source, split)
    lines = []
    for pair in pairs:
        if not isinstance(pair.picture, Path):
            raise DataError(f"{source}: pictures of a stream lie in shards or in files of their own")
        lines.append(json.dumps([pair.id, str(pair.picture.resolve()), pair.captions, pair.split]) + "\n")
    content = "".join(lines).encode("utf-8", "surrogatepass")
    name = hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"{name}.pairs"
    if not path.is_file():
        write_whole(path, lambda place: place.write_bytes(content))
    return Shard(str(path), "list", len(content))
