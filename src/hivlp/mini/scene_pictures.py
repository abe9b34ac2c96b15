"""Drawing of rendered scenes: where the things lie, what they look like, and what is behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hivlp.mini.scene_words import COLOURS, WRITTEN, Things

SIDE = 128
RADII = {"small": 7, "large": 15, "huge": 30}
LETTERS = {"small": 15, "large": 27}
"""Pixels of a letter's em."""
_SCALE = 4  # sprites are drawn this many times as large, then reduced, for smooth edges
_LIGHT = (250, 250, 250)
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placed:
    """One thing in the picture: the centre of it, in pixels, and the number of its group."""

    things: Things
    group: int
    x: int
    y: int


def place(things: Sequence[Things], relations: Sequence[str], rng: np.random.Generator) -> list[Placed]:
    """Where all things of a scene lie; none touches another, but for those that are inside."""
    found: list[Placed] = []
    for group, (each, box) in enumerate(zip(things, _regions(relations, (0, 0, SIDE, SIDE)), strict=True)):
        held = bool(relations) and relations[-1] == "inside" and group >= len(things) - 2
        if held:
            centre = _centre(box)
            places = [centre] if each.size == "huge" else _ring(centre, each, rng)
        else:
            places = _cells(each, box, rng)
        found += [Placed(each, group, round(x), round(y)) for x, y in places]
    return found


def draw(placed: Sequence[Placed], rng: np.random.Generator, *, clutter: bool) -> Image.Image:
    """The picture, SIDE × SIDE; ``clutter`` puts a background with marks of its own behind the things."""
    image = _background(rng) if clutter else Image.new("RGB", (SIDE, SIDE), tuple(map(int, rng.integers(225, 256, 3))))
    for each in placed:
        things = each.things
        body, marks = _sprite(things.shape, things.size, things.texture)
        corner = each.x - body.width // 2, each.y - body.height // 2
        image.paste(COLOURS[things.colour], (*corner, corner[0] + body.width, corner[1] + body.height), body)
        if marks is not None:
            image.paste(_LIGHT, (*corner, corner[0] + body.width, corner[1] + body.height), marks)
    return image


def _regions(relations: Sequence[str], box: Box) -> list[Box]:
    """Left, top, right, bottom of where each group lies: the first in one half, all others in the other half."""
    if not relations:
        return [box]
    left, top, right, bottom = box
    x, y = (left + right) // 2, (top + bottom) // 2
    halves = {
        "to the left of": ((left, top, x, bottom), (x, top, right, bottom)),
        "to the right of": ((x, top, right, bottom), (left, top, x, bottom)),
        "above": ((left, top, right, y), (left, y, right, bottom)),
        "below": ((left, y, right, bottom), (left, top, right, y)),
        "inside": (box, box),
    }
    first, rest = halves[relations[0]]
    return [first, *_regions(relations[1:], rest)]


def _centre(box: Box) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def _ring(centre: tuple[float, float], things: Things, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Places inside a huge hollow shape: the middle for one thing, else corners of a turned polygon."""
    x, y = centre
    if things.count == 1:
        return [centre]
    turn = rng.uniform(0, 2 * math.pi)
    angles = [turn + 2 * math.pi * number / things.count for number in range(things.count)]
    return [(x + 11 * math.cos(angle), y + 11 * math.sin(angle)) for angle in angles]


def _cells(things: Things, box: Box, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of the things in cells of a grid, so that they never touch; a word is in the middle."""
    left, top, right, bottom = box
    if things.written:
        width, height = _sprite(things.shape, things.size, "plain")[0].size
        rows = columns = 1
    else:
        width = height = 2 * RADII[things.size] + 2
        columns = 2 if right - left <= bottom - top else (right - left) // (SIDE // 4)
        rows = max(1, round((bottom - top) / ((right - left) / columns)))
    cell_width, cell_height = (right - left) / columns, (bottom - top) / rows
    places = []
    for cell in rng.permutation(columns * rows)[: things.count]:
        slack_x, slack_y = max(0.0, (cell_width - width) / 2), max(0.0, (cell_height - height) / 2)
        x = left + (cell % columns + 0.5) * cell_width + rng.uniform(-1, 1) * slack_x
        y = top + (cell // columns + 0.5) * cell_height + rng.uniform(-1, 1) * slack_y
        places.append((float(x), float(y)))
    return places


def _background(rng: np.random.Generator) -> Image.Image:
    """Two pale colours that run into each other, or a quilt of their blends, with grey lines and specks."""
    cells = int(rng.integers(2, 9))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    way = Image.Resampling.BILINEAR if rng.random() < 0.7 else Image.Resampling.NEAREST
    one, other = (tuple(map(int, colour)) for colour in rng.integers(190, 256, (2, 3)))
    image = Image.new("RGB", (SIDE, SIDE), one)
    image.paste(other, (0, 0, SIDE, SIDE), coarse.resize((SIDE, SIDE), way))
    pen = ImageDraw.Draw(image)
    for x, y, u, v in rng.integers(0, SIDE, (int(rng.integers(4)), 4)).tolist():
        pen.line((x, y, u, v), fill=(int(rng.integers(140, 200)),) * 3)
    for x, y, radius, grey in rng.integers((0, 0, 1, 130), (SIDE, SIDE, 4, 200), (int(rng.integers(12)), 4)).tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(grey, grey, grey))
    return image


@cache
def _sprite(shape: str, size: str, texture: str) -> tuple[Image.Image, Image.Image | None]:
    """Coverage of a thing, and of the light marks that its texture puts on it; None for none."""
    if shape in WRITTEN:
        font = ImageFont.load_default(LETTERS[size])
        left, top, right, bottom = font.getbbox(shape.upper())
        word = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
        ImageDraw.Draw(word).text((1 - left, 1 - top), shape.upper(), fill=255, font=font, stroke_width=0.4)
        return word, None
    radius = RADII[size] * _SCALE
    side = 2 * (RADII[size] + 1)
    body = Image.new("L", (side * _SCALE,) * 2)
    pen, middle = ImageDraw.Draw(body), side * _SCALE / 2
    box = (middle - radius, middle - radius, middle + radius, middle + radius)
    width = round((0.16 if size == "huge" else 0.35) * radius)
    if shape == "circle":
        pen.ellipse(box, fill=255)
    elif shape == "ring":
        pen.ellipse(box, outline=255, width=width)
    elif shape == "frame":
        inset = 0.08 * radius
        pen.rectangle((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), outline=255, width=width)
    else:
        pen.polygon([(middle + radius * u, middle + radius * v) for u, v in _outline(shape)], fill=255)
    coverage = np.asarray(body.reduce(_SCALE))
    if texture == "plain":
        return Image.fromarray(coverage), None
    y, x = np.mgrid[:side, :side] - side // 2
    marks = {
        "striped": (x + y) % 8 < 4,
        "spotted": (x % 7 - 3) ** 2 + (y % 7 - 3) ** 2 <= 4,
        "checked": (x // 4 + y // 4) % 2 == 0,
    }[texture]
    return Image.fromarray(coverage), Image.fromarray(np.where(marks, coverage, 0).astype(np.uint8))


@cache
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
