"""Lanes: endless, shuffled and mixed sequences of the pairs in a stream's shards, each with an exact position.

A stream is dealt out to a fixed number of lanes, and each reads shards that no other reads meanwhile. Processes and
workers take whole lanes; so what a step sees depends on the seed and the number of lanes, and not on how many read.

A lane fills a window with pairs, from its sources by their weights, and gives them in random order; then comes the next
window. All choices within it are drawn from the seed, the lane and the number of the window. So the position is small
(where each source stood when the window began, and how much of the window is taken) and exact: after a kill the window
is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.data.pairs import Pair
from hivlp.data.streams.reading import Told, pairs_of
from hivlp.data.streams.shards import Shard
from hivlp.errors import DataError

_ORDER, _WINDOW = 5, 6  # what the seed is used for, beside the uses in hivlp.train.inputs


@dataclass(frozen=True)
class Source:
    """The shards that are read as one.

    Attributes:
        shards: at least as many as there are lanes.
        weight: how many of the pairs are from here, relative to those of the other sources.
        split: that is read.
        name: for messages.
    """

    shards: tuple[Shard, ...]
    weight: float
    split: str
    name: str


@dataclass(frozen=True)
class Dealt:
    """All that lanes have in common.

    Attributes:
        sources: that are mixed.
        lanes: how many there are.
        window: pairs that a lane shuffles at a time.
        seed: of every order.
        patience: seconds for which a shard that cannot be reached is tried again.
    """

    sources: tuple[Source, ...]
    lanes: int
    window: int
    seed: int
    patience: float = 60.0


@dataclass(frozen=True)
class Position:
    """Where a lane is.

    Attributes:
        window: its number.
        taken: pairs of it that have been given.
        turns: for each source, how many shards were finished before the window began.
        places: for each source, the place in its shard where the window began.
    """

    window: int
    taken: int
    turns: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def start(cls, sources: int) -> Position:
        """Before the first pair."""
        return cls(0, 0, (0,) * sources, (0,) * sources)

    def to_json(self) -> list[Any]:
        """For a checkpoint."""
        return [self.window, self.taken, list(self.turns), list(self.places)]

    @classmethod
    def of_json(cls, data: Any, sources: int) -> Position:
        """What :meth:`to_json` gave.

        Raises:
            ValueError: if it is something else.
            TypeError: likewise.
        """
        window, taken, turns, places = data
        found = cls(int(window), int(taken), tuple(map(int, turns)), tuple(map(int, places)))
        numbers = (found.window, found.taken, *found.turns, *found.places)
        if len(found.turns) != sources or len(found.places) != sources or min(numbers) < 0:
            raise ValueError("not a position of this stream")
        return found


class Lane:
    """One lane of a stream."""

    def __init__(self, dealt: Dealt, number: int, position: Position, told: Told) -> None:
        """Begin at a position.

        Args:
            dealt: what all lanes have in common.
            number: of the lane.
            position: of its first pair; nothing is read before that is asked for.
            told: is given a sentence on each part of a shard that is passed over.
        """
        self._dealt, self._number, self._position = dealt, number, position
        self._cursors = [
            _Cursor(dealt, index, number, turn, place, told)
            for index, (turn, place) in enumerate(zip(position.turns, position.places, strict=True))
        ]
        self._window: list[Pair] | None = None

    @property
    def number(self) -> int:
        """Of the lane."""
        return self._number

    @property
    def position(self) -> Position:
        """From which on the pairs that have not been given come."""
        return self._position

    def take(self) -> tuple[Pair, NDArray[np.int64]]:
        """The next pair, and numbers that no other pair of the run has, to draw from for it.

        Raises:
            DataError: if a shard cannot be reached, or a source holds no pair.
        """
        if self._window is None:
            self._window = self._filled()
        if self._position.taken >= len(self._window):
            self._position = Position(
                self._position.window + 1,
                0,
                tuple(cursor.turn for cursor in self._cursors),
                tuple(cursor.place for cursor in self._cursors),
            )
            self._window = self._filled()
        taken = self._position.taken
        pair = self._window[taken]
        self._window[taken] = _GIVEN  # its bytes may go
        self._position = replace(self._position, taken=taken + 1)
        return pair, np.array([self._number, self._position.window, taken])

    def _filled(self) -> list[Pair]:
        dealt, window = self._dealt, self._position.window
        size = dealt.window
        if window == 0:  # a shorter one, for each lane another, so that they do not fill their windows all at once
            size = max(1, size * (self._number + 1) // dealt.lanes)
        rng = np.random.default_rng([dealt.seed, _WINDOW, self._number, window])
        weights = np.array([source.weight for source in dealt.sources])
        chosen = rng.choice(len(weights), size, p=weights / weights.sum())
        pairs = [self._cursors[source].take() for source in chosen]
        return [pairs[place] for place in rng.permutation(size)]


_GIVEN = Pair("", b"", ())


class _Cursor:
    """A lane's way through the shards of one source: pass after pass, each in another order, every manieth shard."""

    def __init__(self, dealt: Dealt, source: int, lane: int, turn: int, place: int, told: Told) -> None:
        self._dealt, self._source, self._lane, self._told = dealt, source, lane, told
        self.turn, self.place = turn, place
        self._reading: Iterator[tuple[int, Pair]] | None = None
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def take(self) -> Pair:
        source = self._dealt.sources[self._source]
        empty = 0
        while True:
            if self._reading is None:
                shard = source.shards[self._shard()]
                self._reading = pairs_of(shard, source.split, self.place, self._told, self._dealt.patience)
            found = next(self._reading, None)
            if found is not None:
                self.place = found[0]
                return found[1]
            self._reading, self.turn, self.place = None, self.turn + 1, 0
            empty += 1
            if empty > len(source.shards):
                raise DataError(f"{source.name} holds no pair of the split {source.split} that can be read")

    def _shard(self) -> int:
        count = len(self._dealt.sources[self._source].shards)
        passed, place = divmod(self._lane + self.turn * self._dealt.lanes, count)
        if self._order[0] != passed:
            rng = np.random.default_rng([self._dealt.seed, _ORDER, self._source, passed])
            self._order = passed, rng.permutation(count)
        return int(self._order[1][place])


def lanes_of(process: int, processes: int, lanes: int) -> range:
    """The lanes that a process reads: neighbours, as many as each other process."""
    return range(process * lanes // processes, (process + 1) * lanes // processes)


def shares(batch: int, lanes: int) -> Sequence[int]:
    """How many pairs of a batch come from each lane: as evenly as can be."""
    edges = np.linspace(0, batch, lanes + 1).astype(int)
    return [int(stop - start) for start, stop in pairwise(edges)]
