"""Mixed queries: several texts, pictures and items, each with a weight and a sign, as one query.

The cosines of a picture with other pictures spread much wider than those of a text: added as they are, pictures would
have all the say. So each part's vector is divided by the spread of its cosines over a sample of the collection; with
equal weights, each part then moves the ranking by as much.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.data.kinds import kind_of_name
from hivlp.encode.base import Picture
from hivlp.errors import ArgumentError, QueryError
from hivlp.levels import Vectors
from hivlp.store.reader import Reader

SAMPLE = 512
"""Items over which the spread of a part's cosines is measured."""
MOST_PARTS = 32
NOT_ONLY_NOT = "a query needs a part without a minus: what shall be found, not only what not"

_TERM = re.compile(r'\s*([+-])?\s*(?:(\d+(?:\.\d+)?)\s*\*\s*)?(?:"([^"]*)"|(\S+))')
_ALONE = re.compile(r"[+-]\Z")


@dataclass(frozen=True)
class Part:
    """One part of a mixed query: exactly one of a text, an image, an item and vectors.

    Attributes:
        weight: how much it counts; below 0, results are unlike it.
        text: words.
        image: a picture (file, bytes or PIL image).
        item: id of an item.
        vectors: level name -> (dim,), as :meth:`hivlp.index.Index.search` takes a vector.
    """

    weight: float = 1.0
    text: str | None = None
    image: Picture | None = None
    item: int | None = None
    vectors: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Mix:
    """A mixed query, made of parts by ``+``, ``-`` and ``*``.

    ``Mix.of_text("a dog") + Mix.of_image("beach.jpg") - 0.5 * Mix.of_text("snow")``; a text or a :class:`pathlib.Path`
    on the other side of a sign is made a part by itself.

    Attributes:
        parts: at least one of them with a weight above 0 when it is searched for.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of_text(cls, text: str) -> Mix:
        """A query of one text."""
        return cls((Part(text=text),))

    @classmethod
    def of_image(cls, image: Picture | str) -> Mix:
        """A query of one picture."""
        return cls((Part(image=Path(image) if isinstance(image, str) else image),))

    @classmethod
    def of_item(cls, item: int) -> Mix:
        """A query of one item, by its id."""
        return cls((Part(item=item),))

    def __add__(self, other: Mix | str | Path) -> Mix:
        return Mix((*self.parts, *_mix(other).parts))

    def __radd__(self, other: str | Path) -> Mix:
        return _mix(other) + self

    def __sub__(self, other: Mix | str | Path) -> Mix:
        return self + -1.0 * _mix(other)

    def __rsub__(self, other: str | Path) -> Mix:
        return _mix(other) - self

    def __mul__(self, weight: float) -> Mix:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ArgumentError(f"a weight is a number, not {weight!r:.40}")
        return Mix(tuple(replace(part, weight=part.weight * weight) for part in self.parts))

    __rmul__ = __mul__

    def __neg__(self) -> Mix:
        return -1.0 * self

    def __str__(self) -> str:
        told = [_told(part) for part in self.parts]
        return " ".join(told).removeprefix("+ ")


def parse_mix(words: Sequence[str]) -> Mix | str:
    """A query as people type it.

    Of several words, ``+`` and ``-`` standing alone are signs; a word between them that is an existing picture's path
    is a picture, and the others are a text. A single word that has a text in double quotes is a mix in itself, such as
    ``"a dog" + beach.jpg - 0.5 * "snow"``. Anything else is one text, whatever signs it has.

    Raises:
        QueryError: if a mix makes no sense.
    """
    if len(words) == 1:
        return _parse_line(words[0]) if '"' in words[0] else words[0]
    if not any(_ALONE.match(word) for word in words):
        return " ".join(words)
    mix, sign, text = Mix(()), 1.0, list[str]()
    for word in [*words, "+"]:
        if not _ALONE.match(word):
            text.append(word)
            continue
        if text:
            mix += sign * _operand(" ".join(text))
        elif mix.parts:
            raise QueryError(f"nothing stands between two signs in {' '.join(words)!r}")
        sign, text = (1.0 if word == "+" else -1.0), []
    return _checked(mix)


def _parse_line(line: str) -> Mix | str:
    mix, place = Mix(()), 0
    if not re.match(r'\s*[+-]?\s*(?:[\d.]+\s*\*\s*)?"', line) and not re.search(r'[+-]\s*(?:[\d.]+\s*\*\s*)?"', line):
        return line  # words with a quotation in them
    while place < len(line.rstrip()):
        match = _TERM.match(line, place)
        if match is None or (mix.parts and match[1] is None):
            raise QueryError(f"a + or - is missing in {line!r}, before {line[place:].strip()!r:.40}")
        sign, weight, text, path = match.groups()
        part = Mix.of_text(text) if text is not None else _file(path)
        mix += (-1.0 if sign == "-" else 1.0) * float(weight or 1) * part
        place = match.end()
    return _checked(mix)


def _operand(text: str) -> Mix:
    weighted = re.match(r"(\d+(?:\.\d+)?)\s*\*\s*(.+)", text, re.DOTALL)
    weight, rest = (float(weighted[1]), weighted[2]) if weighted else (1.0, text)
    rest = rest[1:-1] if len(rest) > 1 and rest[0] == rest[-1] == '"' else rest
    return weight * (Mix.of_image(Path(rest)) if _is_picture(rest) else Mix.of_text(rest))


def _file(path: str) -> Mix:
    if not os.path.isfile(path):  # noqa: PTH113
        raise QueryError(f'{path} is no file; a text stands in double quotes: "{path}"')
    return Mix.of_image(Path(path))


def _is_picture(text: str) -> bool:
    path = Path(text)
    return kind_of_name(path.suffix) is not None and os.path.isfile(path)  # noqa: PTH113


def _checked(mix: Mix) -> Mix:
    if not any(part.weight > 0 for part in mix.parts):
        raise QueryError(NOT_ONLY_NOT)
    if len(mix.parts) > MOST_PARTS:
        raise QueryError(f"a query has {MOST_PARTS} parts at most, not {len(mix.parts)}")
    return mix


def _mix(value: Any) -> Mix:
    if isinstance(value, Mix):
        return value
    if isinstance(value, str):
        return Mix.of_text(value)
    if isinstance(value, Path):
        return Mix.of_image(value)
    raise ArgumentError(f"a part of a query is a text, a Path or a Mix, not {value!r:.40}")


def _told(part: Part) -> str:
    weight = "" if abs(part.weight) == 1 else f"{abs(part.weight):g} * "
    if part.text is not None:
        what = f'"{part.text}"'
    elif part.item is not None:
        what = f"item {part.item}"
    else:
        what = "a picture" if part.vectors is None else "a vector"
    return f"{'-' if part.weight < 0 else '+'} {weight}{part.image if isinstance(part.image, Path) else what}"


def mixed(parts: Sequence[tuple[float, Sequence[Vectors]]], reader: Reader) -> list[Vectors]:
    """The (dim,) unit vector of each level, coarse to fine, of a mixed query.

    Args:
        parts: weight and (dim,) unit vectors of each part.
        reader: of the commit whose items tell how far cosines spread.

    Raises:
        QueryError: if they cancel each other, or none has a weight above 0.
    """
    if not any(weight > 0 for weight, _ in parts):
        raise QueryError(NOT_ONLY_NOT)
    sample = reader.embeddings(sample_rows(reader, SAMPLE))
    vectors = []
    for place, level in enumerate(reader.about.levels):
        items = sample[level.name]
        total = np.zeros(level.dim, np.float64)
        for weight, encoded in parts:
            spread = float((items @ encoded[place]).std()) if len(items) > 1 else 0.0
            total += weight * encoded[place] / (spread if len(parts) > 1 and spread > 1e-6 else 1.0)
        length = float(np.linalg.norm(total))
        if not length > 1e-6:
            raise QueryError("the parts of the query cancel each other: nothing is left to look for")
        vectors.append((total / length).astype(np.float32))
    return vectors


def sample_rows(reader: Reader, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of whole items, so many at most, spread evenly over a collection."""
    alive, pending = reader.alive(), reader.pending()
    kept = np.ones(reader.state.rows, bool) if alive is None else alive
    rows = np.flatnonzero(kept if pending is None else kept & ~pending)
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
