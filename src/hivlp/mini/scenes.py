"""Rendered scenes: a synthetic data set of any size with exact captions.

"Two small red hearts above a large blue ring": counts, sizes, colours, shapes and relations, which is what models
trained on clip-art and photographs do not learn. Some combinations of colour and shape occur in the test or validation
part only, so that recall there asks for words put together anew, not for pictures seen before.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from hivlp.data.pairs import Pair
from hivlp.data.readers.reader import Reader
from hivlp.errors import DataError

MOST = 1_000_000
SIDE = 128
RADII = {"small": 7, "large": 15}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
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
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "arrow", "hexagon")
RELATIONS = ("to the left of", "to the right of", "above", "below")
_OPPOSITE = dict(zip(RELATIONS, (RELATIONS[1], RELATIONS[0], RELATIONS[3], RELATIONS[2]), strict=True))
_SCALE = 4  # drawn this many times as large, then reduced, for smooth edges
_HELD_OUT = {0: "test", 1: "val"}  # of ten combinations of colour and shape


@dataclass(frozen=True)
class Things:
    """One to four equal shapes."""

    count: int
    size: str
    colour: str
    shape: str

    @property
    def phrase(self) -> str:
        """Such as "two small red hearts" or "a large blue ring"."""
        return f"{NUMBERS[self.count]} {self.size} {self.colour} {_plural(self.shape, self.count)}"

    def split(self) -> str:
        """The part that this combination of colour and shape belongs to: one in ten to test, one in ten to val."""
        digest = hashlib.sha256(f"{self.colour} {self.shape}".encode()).digest()
        return _HELD_OUT.get(digest[0] % 10, "train")


@dataclass(frozen=True)
class Scene:
    """Things, alone or in relation to others; ``seed`` decides where exactly they lie and what is behind them."""

    things: Things
    relation: str | None = None
    others: Things | None = None
    seed: int = 0

    @property
    def caption(self) -> str:
        """The one sentence that is true of the picture."""
        if self.others is None:
            return self.things.phrase
        return f"{self.things.phrase} {self.relation} {self.others.phrase}"

    def split(self) -> str:
        """The split of its combinations of colour and shape: ``test`` before ``val`` before ``train``."""
        parts = {self.things.split()} | ({self.others.split()} if self.others else set())
        return next(split for split in ("test", "val", "train") if split in parts)

    def read(self) -> bytes:
        """The picture as a PNG of 128×128 pixels."""
        rng = np.random.default_rng(self.seed)
        large = SIDE * _SCALE
        background = tuple(int(value) for value in rng.integers(225, 256, 3))
        image = Image.new("RGB", (large, large), background)
        draw = ImageDraw.Draw(image)
        for things, box in zip((self.things, self.others), _regions(self.relation), strict=False):
            if things is not None:
                for x, y in _places(things, box, rng):
                    _draw(draw, things, x * _SCALE, y * _SCALE)
        buffer = io.BytesIO()
        image.resize((SIDE, SIDE), Image.Resampling.BOX).save(buffer, "PNG")
        return buffer.getvalue()


def scenes(count: int, seed: int = 0) -> list[Scene]:
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
        things, others = _random_things(rng), _random_things(rng)
        relation = None if rng.random() < 0.1 else RELATIONS[rng.integers(len(RELATIONS))]
        if relation is not None and (things.colour, things.shape) == (others.colour, others.shape):
            continue  # which of them is meant would be left to their size or count
        scene = Scene(things, relation, None if relation is None else others, int(rng.integers(2**31)))
        found.setdefault(scene.caption, scene)
    return list(found.values())


def read_scenes(name: str) -> list[Pair]:
    """The pairs of ``scenes:COUNT``.

    Raises:
        DataError: if ``name`` is not a number of scenes.
    """
    if not name.isdecimal():
        raise DataError(f"scenes:{name} is no number of scenes: write, for instance, scenes:50000")
    return [
        Pair(f"{number:07}", scene, (scene.caption,), scene.split()) for number, scene in enumerate(scenes(int(name)))
    ]


def _random_things(rng: np.random.Generator) -> Things:
    sizes, colours = tuple(RADII), tuple(COLOURS)
    return Things(
        int(rng.integers(1, len(NUMBERS) + 1)),
        sizes[rng.integers(len(sizes))],
        colours[rng.integers(len(colours))],
        SHAPES[rng.integers(len(SHAPES))],
    )


def _plural(shape: str, count: int) -> str:
    if count == 1:
        return shape
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _regions(relation: str | None) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of where the things and the others lie."""
    half = SIDE // 2
    left, right = (0, 0, half, SIDE), (half, 0, SIDE, SIDE)
    top, bottom = (0, 0, SIDE, half), (0, half, SIDE, SIDE)
    first = {RELATIONS[0]: left, RELATIONS[1]: right, RELATIONS[2]: top, RELATIONS[3]: bottom}
    if relation is None:
        return [(0, 0, SIDE, SIDE)]
    return [first[relation], first[_OPPOSITE[relation]]]


def _places(things: Things, box: tuple[int, int, int, int], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of the things: in cells of a grid, so that they never touch."""
    left, top, right, bottom = box
    columns = 2 if right - left <= bottom - top else (right - left) // (SIDE // 4)
    width = (right - left) / columns
    rows = max(1, round((bottom - top) / width))
    height = (bottom - top) / rows
    radius = RADII[things.size]
    places = []
    for cell in rng.permutation(columns * rows)[: things.count]:
        slack_x, slack_y = width / 2 - radius - 1, height / 2 - radius - 1
        x = left + (cell % columns + 0.5) * width + rng.uniform(-1, 1) * max(0.0, slack_x)
        y = top + (cell // columns + 0.5) * height + rng.uniform(-1, 1) * max(0.0, slack_y)
        places.append((float(x), float(y)))
    return places


def _draw(draw: ImageDraw.ImageDraw, things: Things, x: float, y: float) -> None:
    radius, colour = RADII[things.size] * _SCALE, COLOURS[things.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if things.shape == "circle":
        draw.ellipse(box, fill=colour)
    elif things.shape == "ring":
        draw.ellipse(box, outline=colour, width=round(0.35 * radius))
    else:
        draw.polygon([(x + radius * u, y + radius * v) for u, v in _outline(things.shape)], fill=colour)


@lru_cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners within the unit circle's square, y downwards."""
    match shape:
        case "square":
            return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
        case "triangle":
            return ((0, -1), (1, 0.8), (-1, 0.8))
        case "diamond":
            return ((0, -1), (0.75, 0), (0, 1), (-0.75, 0))
        case "hexagon":
            return _round([1.0] * 6)
        case "star":
            return _round([1.0, 0.42] * 5)
        case "arrow":
            return ((-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3))
        case "cross":
            arm = 0.32
            corner = ((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm))
            return corner + tuple((-u, -v) for u, v in corner)
        case "heart":
            curve: list[tuple[float, float]] = []
            for step in range(60):
                t = 2 * math.pi * step / 60
                v = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
                curve.append((math.sin(t) ** 3, -(v + 2.5) / 15))
            return tuple(curve)
    raise ValueError(f"no outline for a {shape}")


def _round(radii: list[float]) -> tuple[tuple[float, float], ...]:
    turn = 2 * math.pi / len(radii)
    return tuple((r * math.sin(turn * number), -r * math.cos(turn * number)) for number, r in enumerate(radii))


READER = Reader(lambda source: read_scenes(source.argument), argument="COUNT", family="scenes")
