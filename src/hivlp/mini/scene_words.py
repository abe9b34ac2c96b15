"""What rendered scenes are made of, and the words for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
SIZES = ("small", "large", "huge")  # huge is what has others inside
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (240, 210, 30),
    "green": (42, 157, 60),
    "blue": (36, 84, 200),
    "purple": (125, 60, 165),
    "pink": (250, 150, 190),
    "brown": (121, 75, 40),
    "black": (25, 25, 25),
}
TEXTURES = ("plain", "striped", "spotted", "checked")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "arrow", "hexagon")
HOLLOW = ("ring", "frame")
WRITTEN = (
    *("fox", "bee", "owl", "map", "key", "tea", "sun", "ice"),
    *("zoo", "jam", "bus", "hat", "oak", "gym", "wax", "pie"),
)
OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
    "inside": "around",
}
RELATIONS = ("to the left of", "to the right of", "above", "below")
_HELD_OUT = {0: "test", 1: "val"}  # of ten combinations of colour and shape
_SIDE = {
    "to the left of": ("on the left", "on the right"),
    "to the right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
_SYNONYMS = {
    "small": "little",
    "large": "big",
    "huge": "very big",
    "purple": "violet",
    "circle": "disc",
    "square": "box",
    "cross": "plus sign",
    "diamond": "rhombus",
    "heart": "love heart",
    "spotted": "dotted",
    "checked": "chequered",
    "to the left of": "left of",
    "to the right of": "right of",
    "above": "over",
    "below": "under",
    "inside": "within",
    "around": "surrounding",
    "two": "a pair of",
}


@dataclass(frozen=True)
class Things:
    """One to four equal shapes, or one written word (a ``shape`` of :data:`WRITTEN`)."""

    count: int
    size: str
    colour: str
    shape: str
    texture: str = "plain"

    @property
    def phrase(self) -> str:
        """Such as "two small red hearts" or "a large striped blue ring"."""
        return self.worded({})

    @property
    def written(self) -> bool:
        """Whether it is a word."""
        return self.shape in WRITTEN

    def split(self) -> str:
        """The part that this combination of colour and shape belongs to: one in ten to test, one in ten to val."""
        digest = hashlib.sha256(f"{self.colour} {self.shape}".encode()).digest()
        return _HELD_OUT.get(digest[0] % 10, "train")

    def worded(self, synonyms: dict[str, str]) -> str:
        """The phrase with some of its words replaced."""

        def said(word: str) -> str:
            return synonyms.get(word, word)

        if self.written:
            return f"the word {self.shape} in {said(self.size)} {said(self.colour)} letters"
        words = [said(NUMBERS[self.count]), said(self.size), said(self.colour), _plural(said(self.shape), self.count)]
        if self.texture != "plain":
            words.insert(2, said(self.texture))
        return " ".join(words)


def caption(things: Sequence[Things], relations: Sequence[str]) -> str:
    """The sentence that is true of a scene and of no other.

    Args:
        things: one to three groups; the first is in the first relation to all others, the second in the next to the
            third.
        relations: one less, of :data:`OPPOSITE`.
    """
    return _sentences(things, relations, {})[0]


def paraphrases(
    things: Sequence[Things], relations: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[str, ...]:
    """``count`` different sentences that say the same: :func:`caption` first, then other orders and other words."""
    found = {caption(things, relations): None}
    for _ in range(20):
        if len(found) == count:
            break
        said = {word: other for word, other in _SYNONYMS.items() if rng.random() < 0.5}
        sentences = _sentences(things, relations, said)
        found.setdefault(sentences[rng.integers(len(sentences))])
    return tuple(found)


def _sentences(things: Sequence[Things], relations: Sequence[str], said: dict[str, str]) -> list[str]:
    """Ways of saying all of a scene, with some words replaced."""
    phrases = [each.worded(said) for each in things]
    first = phrases[0]
    if len(phrases) == 1:
        return [first, f"a picture of {first}", f"there {_are(things[0])} {first}"]
    relation = relations[0]
    if len(phrases) == 2:
        return _two(phrases, relation, said)
    second, third = phrases[1:]
    mine, theirs = _SIDE[relation]
    others = _two([second, third], relations[1], said)[:2]
    forward = said.get(relations[1], relations[1])
    return [
        f"{first} {said.get(relation, relation)} {second} which {_are(things[1])} {forward} {third}",
        *(f"{mine} {first}, {theirs} {each}" for each in others),
        *(f"{each}, and {mine} {first}" for each in others),
    ]


def _two(phrases: Sequence[str], relation: str, said: dict[str, str]) -> list[str]:
    first, second = phrases
    opposite = OPPOSITE[relation]
    ways = [f"{first} {said.get(relation, relation)} {second}", f"{second} {said.get(opposite, opposite)} {first}"]
    if relation in _SIDE:
        mine, theirs = _SIDE[relation]
        return [*ways, f"{first} {mine} and {second} {theirs}"]
    return [*ways, f"{second} with {first} in it"]


def _are(things: Things) -> str:
    return "is" if things.count == 1 else "are"


def _plural(shape: str, count: int) -> str:
    if count == 1:
        return shape
    return f"{shape}es" if shape.endswith(("s", "x")) else f"{shape}s"
