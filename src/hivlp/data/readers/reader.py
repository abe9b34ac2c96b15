"""The interface of a reader of pairs, registered under a name or a file's suffix (``hivlp.readers``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hivlp.data.pairs import Pair


@dataclass(frozen=True)
class Source:
    """One data set, as somebody asks for it.

    Attributes:
        files: the data set's file, the shards of a folder, or the folder itself; empty for a data set with a name.
        root: folder that the shards' names start from.
        images: folder that picture paths start from; None for that of each file.
        argument: of a named data set, what follows the colon: ``5000`` of ``scenes:5000``.
        split: the one that is wanted, None for all; a reader may leave out other pairs, but need not.
    """

    files: tuple[Path, ...] = ()
    root: Path = Path()
    images: Path | None = None
    argument: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Reader:
    """One format, or one named data set.

    Attributes:
        read: its pairs, in an order that is the same every time; :class:`~hivlp.data.pairs.Pairs` if some were skipped.
        shards: suffixes of the files that make a folder a data set of this format; empty if one file is all of it.
        argument: what a named data set's name is followed by, as ``COUNT`` in ``scenes:COUNT``; empty for nothing.
        family: named data sets of one family share no picture with each other's validation and test parts; empty for
            data sets of which that is not known.
    """

    read: Callable[[Source], Sequence[Pair]]
    shards: tuple[str, ...] = ()
    argument: str = ""
    family: str = ""
