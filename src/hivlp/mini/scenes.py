"""Rendered scenes: a synthetic data set of any size with exact captions, in two levels of difficulty.

``scenes:COUNT`` shows one or two groups of equal shapes: "two small red hearts above a large blue ring". In
``scenes:COUNT:hard`` there are up to three, with textures, written words and things inside others, before a background
with marks that no caption names; each picture has three captions that say the same in different orders and words.

What a picture shows is counts, sizes, colours, shapes and relations, which is what models trained on clip-art and
photographs do not learn. Some combinations of colour and shape (or word) occur in the test or validation part only, so
that recall there asks for words put together anew, not for pictures seen before.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from hivlp.data.pairs import Pair
from hivlp.data.readers.reader import Reader
from hivlp.errors import DataError
from hivlp.mini.scene_pictures import Placed, draw, place
from hivlp.mini.scene_words import (
    COLOURS,
    HOLLOW,
    NUMBERS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WRITTEN,
    Things,
    caption,
    paraphrases,
)

MOST = 1_000_000
CAPTIONS = 3
"""Of a hard scene."""
FACTS = ("colours", "relation", "count", "size", "texture", "word")
T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """Things, alone or in relation to others.

    Attributes:
        things: one to three; the first is in the first relation to all others, the second in the next to the third.
        relations: one less.
        seed: decides where exactly the things lie and what is behind them.
        hard: whether what is behind them distracts, and captions vary.
    """

    things: tuple[Things, ...]
    relations: tuple[str, ...] = ()
    seed: int = 0
    hard: bool = False

    @property
    def caption(self) -> str:
        """The one sentence that is true of this picture alone."""
        return caption(self.things, self.relations)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption, and for a hard scene two that say the same in other words."""
        if not self.hard:
            return (self.caption,)
        return paraphrases(self.things, self.relations, CAPTIONS, np.random.default_rng([self.seed, 1]))

    def split(self) -> str:
        """The split of its combinations of colour and shape: ``test`` before ``val`` before ``train``."""
        parts = {each.split() for each in self.things}
        return next(split for split in ("test", "val", "train") if split in parts)

    def placed(self) -> list[Placed]:
        """Where each single thing lies."""
        return place(self.things, self.relations, np.random.default_rng(self.seed))

    def read(self) -> bytes:
        """The picture as an uncompressed BMP of 128×128 pixels, which is written and read in no time."""
        buffer = io.BytesIO()
        draw(self.placed(), np.random.default_rng([self.seed, 2]), clutter=self.hard).save(buffer, "BMP")
        return buffer.getvalue()

    def twin(self, fact: str) -> Scene | None:
        """The scene with one fact changed, whose caption is false of this picture; None where that is not possible.

        Args:
            fact: one of :data:`FACTS`: ``colours`` exchanges those of the first two groups, ``relation`` turns the
                first one round; the others change that property of one group.
        """
        first, *rest = self.things
        match fact:
            case "colours" if rest and first.colour != rest[0].colour:
                swapped = replace(first, colour=rest[0].colour), replace(rest[0], colour=first.colour)
                return replace(self, things=(*swapped, *rest[1:]))
            case "relation" if rest and self.relations[0] in RELATIONS:
                return replace(self, relations=(OPPOSITE[self.relations[0]], *self.relations[1:]))
            case "count":
                return self._changed("count", NUMBERS, lambda it: not it.written and it.size != "huge")
            case "size":
                return self._changed("size", SIZES[:2], lambda it: it.size != "huge" and it.texture == "plain")
            case "texture":
                return self._changed("texture", TEXTURES, lambda it: not it.written and it.size != "small")
            case "word":
                return self._changed("shape", WRITTEN, lambda it: it.written)
        return None

    def meaning(self, unseen: str | None = None) -> tuple[Any, ...]:
        """What its captions say, equal for two scenes that every caption of the one fits as well as of the other.

        Args:
            unseen: one of :data:`FACTS` that is left out, so that a scene and its twin in that fact mean the same.
        """
        things, relations = self.things, self.relations
        colours: tuple[str, ...] = ()
        match unseen:
            case "colours":
                colours = tuple(sorted(each.colour for each in things))
                things = tuple(replace(each, colour="") for each in things)
            case "relation":
                relations = tuple(min(each, OPPOSITE[each]) for each in relations)
            case "count":
                things = tuple(replace(each, count=1) for each in things)
            case "size":
                things = tuple(replace(each, size="") for each in things)
            case "texture":
                things = tuple(replace(each, texture="") for each in things)
            case "word":
                things = tuple(replace(each, shape=WRITTEN[0]) if each.written else each for each in things)
        if not relations:
            return (colours, things)
        *before, one, other = things
        way = relations[-1]
        back = way if unseen == "relation" else OPPOSITE[way]
        return (colours, tuple(before), relations[:-1], min((one, way, other), (other, back, one), key=repr))

    def _changed(self, name: str, values: Iterable[Any], possible: Callable[[Things], bool]) -> Scene | None:
        """With another value of one property in one of the groups for which that is possible."""
        rng = np.random.default_rng([self.seed, 3])
        groups = [number for number, each in enumerate(self.things) if possible(each)]
        if not groups:
            return None
        group = _any(rng, groups)
        others = [value for value in values if value != getattr(self.things[group], name)]
        things = list(self.things)
        things[group] = replace(things[group], **{name: _any(rng, others)})
        return replace(self, things=tuple(things))


def scenes(count: int, seed: int = 0, *, hard: bool = False) -> list[Scene]:
    """``count`` scenes with captions that occur once, in a fixed order.

    A longer list begins with the shorter one.

    Raises:
        DataError: if ``count`` is not between 1 and a million.
    """
    if not 1 <= count <= MOST:
        raise DataError(f"scenes come in 1 to {MOST} pictures, not {count}")
    rng = np.random.default_rng(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = _hard_scene(rng) if hard else _easy_scene(rng)
        combinations = {(each.colour, each.shape) for each in scene.things}
        if len(combinations) == len(scene.things):  # else it is left to size or count which of them is meant
            found.setdefault(scene.caption, scene)
    return list(found.values())


def read_scenes(name: str) -> list[Pair]:
    """The pairs of ``scenes:COUNT`` or ``scenes:COUNT:hard``.

    Raises:
        DataError: if ``name`` is not a number of scenes.
    """
    count, colon, level = name.partition(":")
    if not count.isdecimal() or (colon and level != "hard"):
        raise DataError(f"scenes:{name} is no number of scenes: write, for instance, scenes:50000 or scenes:50000:hard")
    made = scenes(int(count), hard=level == "hard")
    return [Pair(f"{number:07}", scene, scene.captions, scene.split()) for number, scene in enumerate(made)]


def _any(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _easy_scene(rng: np.random.Generator) -> Scene:
    things, others = _easy_things(rng), _easy_things(rng)
    relations = () if rng.random() < 0.1 else (_any(rng, RELATIONS),)
    return Scene((things, others)[: 1 + len(relations)], relations, int(rng.integers(2**31)))


def _easy_things(rng: np.random.Generator) -> Things:
    count = int(rng.integers(1, len(NUMBERS) + 1))
    return Things(count, _any(rng, SIZES[:2]), _any(rng, tuple(COLOURS)), _any(rng, SHAPES))


def _hard_scene(rng: np.random.Generator) -> Scene:
    number = 1 + int(np.searchsorted((0.1, 0.5), rng.random()))
    things = [_hard_things(rng) for _ in range(number)]
    relations = [_any(rng, RELATIONS) for _ in range(number - 1)]
    if number == 3:  # the other two lie across, so that each has room
        across = RELATIONS[2:] if relations[0] in RELATIONS[:2] else RELATIONS[:2]
        relations[1] = _any(rng, across)
    if number > 1 and rng.random() < 0.25:
        relations[-1] = "inside"
        things[-1] = replace(things[-1], count=1, size="huge", shape=_any(rng, HOLLOW))
        if things[-2].written or things[-2].count > 1:
            things[-2] = replace(things[-2], count=min(3, things[-2].count), size="small", texture="plain")
    return Scene(tuple(things), tuple(relations), int(rng.integers(2**31)), hard=True)


def _hard_things(rng: np.random.Generator) -> Things:
    size, colour = _any(rng, SIZES[:2]), _any(rng, tuple(COLOURS))
    if rng.random() < 0.15:
        return Things(1, size, colour, _any(rng, WRITTEN))
    texture = _any(rng, TEXTURES) if size == "large" and rng.random() < 0.8 else "plain"  # none that is too fine to see
    return Things(int(rng.integers(1, len(NUMBERS) + 1)), size, colour, _any(rng, (*SHAPES, "frame")), texture)


READER = Reader(lambda source: read_scenes(source.argument), argument="COUNT", family="scenes")
