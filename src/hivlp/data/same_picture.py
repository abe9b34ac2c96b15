"""Near-duplicate pictures by their edges, so that no picture is both trained on and evaluated on.

Two files show the same if their edges lie in the same places: a picture is trimmed to what differs from its border,
scaled to a square, and described by the directions of its edges in 24 × 24 cells (a histogram of oriented gradients;
Dalal & Triggs, 2005). Format, size, margins, mirroring and colouring change little of that; another drawing of the same
thing changes much.

The threshold was set by looking. Of all pairs of a held-out stamp with another stamp, a drawing of Openclipart or a
flash card, 373 have a cosine of 0.60 or more. From 0.80 on there are 39: five with nothing on them but white, five with
nothing on them but a colour, which therefore has to agree, 28 copies (ten of them Openclipart's, the others coloured
anew, or with another letter or lamp), and Uranus with Neptune. Below come one last copy (0.798, a red flag and a white
one), a road sign with an empty one (0.797), and from 0.78 on round things. Neither do the 250 pairs that an ImageNet
classifier's features hold most alike show a copy that is missed here. An open and a closed padlock with the same body
count as two drawings.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from hivlp.data.pairs import Pair
from hivlp.data.pictures import decode
from hivlp.errors import PictureError

Floats = NDArray[np.float32]

BLOCK = 256
_DECODED = 128  # pixels on the longer side of what is compared
_BACKGROUND = 24  # grey levels by which a pixel must differ from the border
_SIDE, _RIM, _CELLS, _BINS = 64, 2, 24, 6
_COLOURS = 16
_INSET = 0.03
_FAINT = 0.05  # less than this in every cell is no edge
_EMPTY = np.float32(1e-6)  # makes two pictures without colours agree
_ROUNDING = 1e-3
_FLOOR = 0.2  # cells with fewer edges than this share of the busiest count less


EDGES = 0.80
"""Least cosine of the edges of two pictures that show the same."""
COLOURS = 0.96
"""Least agreement of their colours, where these count: 1 for the same, 0 for unrelated ones."""
ASPECT = 0.15
"""Largest logarithm of the ratio between their proportions, trimmed."""


@dataclass(frozen=True)
class Looks:
    """What is compared of N pictures.

    Attributes:
        edges: (N, D) unit rows; the last entry is 1 for a picture without edges.
        colours: (N, 768) of what was trimmed, less the border's colour.
        aspect: (N,) logarithm of width by height, trimmed; NaN for a picture that cannot be read.
    """

    edges: Floats
    colours: Floats
    aspect: Floats

    def __len__(self) -> int:
        return len(self.aspect)

    def mirrored(self) -> Looks:
        """Looks of the mirror images."""
        cells = self.edges[:, :-1].reshape(-1, _BINS, _CELLS, _CELLS)
        turned = cells[:, -np.arange(_BINS) % _BINS, :, ::-1].reshape(len(self), -1)
        colours = self.colours.reshape(-1, _COLOURS, _COLOURS, 3)[:, :, ::-1].reshape(len(self), -1)
        return Looks(np.concatenate([turned, self.edges[:, -1:]], 1), colours, self.aspect)

    def rows(self, rows: NDArray[np.int64]) -> Looks:
        """Looks of some of the pictures."""
        return Looks(self.edges[rows], self.colours[rows], self.aspect[rows])


class KnownPictures:
    """M pictures to find again among others that come one by one, in other colours not: as :func:`nearest`.

    Most are ruled out by a few mean colours: two pictures differ in these by no more than in all of their colours.
    """

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        self._means, self._lengths = _means(looks.colours), (looks.colours**2).sum(1)

    def find(self, image: Image.Image) -> int:
        """The number of the picture that shows the same; -1 if none does.

        Args:
            image: RGB, decoded.
        """
        edges, colours, aspect = _look(_small(image.copy()))
        look = Looks(edges[None], colours[None], np.array([aspect], np.float32))
        near = np.flatnonzero(
            (np.abs(self._looks.aspect - aspect) <= ASPECT) & (self._near(look) | self._near(look.mirrored()))
        )
        found = nearest(look, self._looks.rows(near), colours=True) if len(near) else np.full(1, -1)
        return int(near[found[0]]) if found[0] >= 0 else -1

    def _near(self, look: Looks) -> NDArray[np.bool_]:
        """(M,) whose mean colours agree so far that all their colours may."""
        distance = ((self._means - _means(look.colours)) ** 2).sum(1)
        near: NDArray[np.bool_] = (
            distance <= (1 - COLOURS) * (self._lengths + (look.colours**2).sum() + _EMPTY) + _ROUNDING
        )
        return near


def excluding(pairs: Sequence[Pair], held_out: Looks, *, colours: bool = False) -> list[Pair]:
    """The pairs whose picture shows nothing that is held out. Pictures that cannot be read are kept.

    Args:
        pairs: of any split.
        held_out: from :func:`looks_of`.
        colours: as for :func:`nearest`.
    """
    return [pair for pair, number in zip(pairs, same_as(pairs, held_out, colours=colours), strict=True) if number < 0]


def same_as(pairs: Sequence[Pair], held_out: Looks, *, colours: bool = False) -> NDArray[np.int64]:
    """(N,) for each pair, which of the held-out pictures its own shows, as :func:`nearest`."""
    starts = range(0, len(pairs) if len(held_out) else 0, BLOCK)
    bar = tqdm(starts, "compare pictures", unit_scale=BLOCK, unit="", delay=2, disable=None)
    blocks = (looks_of(pairs[start : start + BLOCK]) for start in bar)
    found = [nearest(looks, held_out, colours=colours) for looks in blocks]
    return np.concatenate(found) if found else np.full(len(pairs), -1)


def nearest(looks: Looks, held_out: Looks, *, colours: bool = False) -> NDArray[np.int64]:
    """(N,) which of M > 0 held-out pictures shows the same, the one with the most similar edges; -1 where none does.

    Args:
        looks: N pictures.
        held_out: M pictures.
        colours: whether pictures in other colours are other pictures, as photographs are and a red square and a blue
            one. Of clip-art, a drawing comes in several.
    """
    best, found = np.full(len(looks), -np.inf), np.full(len(looks), -1)
    for side in (looks, looks.mirrored()):
        edges = side.edges @ held_out.edges.T
        same = (edges >= EDGES) & (np.abs(side.aspect[:, None] - held_out.aspect) <= ASPECT)
        same &= (_agreement(side, held_out) >= COLOURS) | (not colours and side.edges[:, -1:] == 0)
        edges = np.where(same, edges, -np.inf)
        first = edges.argmax(1)
        score = edges[np.arange(len(looks)), first]
        found = np.where(score > best, first, found)
        best = np.maximum(score, best)
    return found


def looks_of(pairs: Iterable[Pair]) -> Looks:
    """Read and describe pictures; for one that cannot be read, :attr:`Looks.aspect` is NaN, which is like nothing."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # more wait for each other: half of it is Python
        rows = list(pool.map(_look_of, pairs))
    width = _BINS * _CELLS**2 + 1
    return Looks(
        np.array([row[0] for row in rows], np.float32).reshape(-1, width),
        np.array([row[1] for row in rows], np.float32).reshape(-1, 3 * _COLOURS**2),
        np.array([row[2] for row in rows], np.float32),
    )


def joined(parts: Sequence[Looks]) -> Looks:
    """Looks of all pictures of one or more parts, in their order."""
    return Looks(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("edges", "colours", "aspect")))


def _look_of(pair: Pair) -> tuple[Floats, Floats, float]:
    try:
        image = decode(pair.read(), target=_DECODED)
    except PictureError:
        return np.zeros(_BINS * _CELLS**2 + 1, np.float32), np.zeros(3 * _COLOURS**2, np.float32), np.nan
    return _look(_small(image))


def _small(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) of an image, which is made smaller in place."""
    image.thumbnail((_DECODED, _DECODED))
    return np.asarray(image)


def _agreement(looks: Looks, held_out: Looks) -> Floats:
    """(N, M) how far colours agree: twice the inner product by the sum of both lengths (1 for two empty pictures)."""
    lengths = (looks.colours**2).sum(1)[:, None] + (held_out.colours**2).sum(1) + _EMPTY
    agreement: Floats = (2 * looks.colours @ held_out.colours.T + _EMPTY) / lengths
    return agreement


def _means(colours: Floats) -> Floats:
    """(N, 48) the (N, 768) colours in 4 × 4 cells, so scaled that distances are at most as large."""
    cells = colours.reshape(-1, 4, _COLOURS // 4, 4, _COLOURS // 4, 3)
    means: Floats = cells.mean((2, 4)).reshape(-1, 48) * np.float32(_COLOURS // 4)
    return means


def _look(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats, float]:
    """Edges, colours and aspect of an (H, W, 3) picture."""
    border = _border(pixels)
    differs = (np.abs(pixels.astype(np.int16) - border) > _BACKGROUND).any(2)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if len(rows):
        pixels = pixels[_within(rows), _within(columns)]
    border = _border(pixels)  # of a photograph in a frame, the photograph's own
    height, width = pixels.shape[:2]
    way = Image.Resampling.BOX if min(height, width) >= _SIDE else Image.Resampling.BILINEAR
    square = (np.asarray(Image.fromarray(pixels).resize((_SIDE, _SIDE), way), np.float32) - border) / 255
    # Beyond the rim all goes on as it is there: whether there is a margin, and in which colour, must not be an edge.
    edges = _edges(np.pad(square, ((_RIM, _RIM), (_RIM, _RIM), (0, 0)), mode="edge"))
    block = _SIDE // _COLOURS
    colours = square.reshape(_COLOURS, block, _COLOURS, block, 3).mean((1, 3)).ravel()
    if edges[-1]:  # nothing but a colour
        return edges, np.tile(border / np.float32(255), _COLOURS**2), 0.0
    return edges, colours, float(np.log(width / height))


def _within(places: NDArray[np.int64]) -> slice:
    """From the first to the last, less the outermost: the blurred seam to a margin is not the picture's."""
    first, stop = int(places[0]), int(places[-1]) + 1
    inset = round(_INSET * (stop - first))
    return slice(first + inset, stop - inset)


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    border: NDArray[np.int16] = np.median(rim, axis=0).astype(np.int16)
    return border


_STEP = (_SIDE + 2 * _RIM) / _CELLS
_TENTS = np.maximum(
    0,
    1 - np.abs((np.arange(_SIDE + 2 * _RIM) + 0.5) - ((np.arange(_CELLS) + 0.5) * _STEP)[:, None]) / _STEP,
).astype(np.float32)  # (cells, pixels): how much a pixel's row, or column, counts in a cell's


def _edges(picture: Floats) -> Floats:
    """(D,) unit vector: how much of each direction is in each cell, cells weighted alike unless they are nearly empty.

    The last entry is 1, and the others 0, for a picture without edges: all of these are alike, and like nothing else.

    Args:
        picture: (S, S, 3) in 0…1.
    """
    across, down = np.zeros_like(picture), np.zeros_like(picture)
    across[:, 1:-1] = picture[:, 2:] - picture[:, :-2]
    down[1:-1] = picture[2:] - picture[:-2]
    strongest = (across**2 + down**2).argmax(2)[..., None]  # the channel that shows the edge best
    across, down = (np.take_along_axis(part, strongest, 2)[..., 0] for part in (across, down))
    strength, direction = np.hypot(across, down), np.mod(np.arctan2(down, across), np.pi) * (_BINS / np.pi)
    away = np.abs(direction - np.arange(_BINS, dtype=np.float32)[:, None, None])
    shares = strength * np.maximum(0, 1 - np.minimum(away, _BINS - away))
    cells = _TENTS @ shares @ _TENTS.T
    energy = np.sqrt((cells**2).sum(0))
    edges = np.zeros(cells.size + 1, np.float32)
    if energy.max() < _FAINT:
        edges[-1] = 1
        return edges
    cells = cells / (energy + _FLOOR * energy.max())
    cells = (cells - cells.mean((1, 2), keepdims=True)).ravel()
    edges[:-1] = cells / max(np.linalg.norm(cells), 1e-6)
    return edges
