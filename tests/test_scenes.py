"""Rendered scenes: what the caption says is what the pixels show."""

from collections import Counter

import numpy as np
import pytest

from hivlp.data.load import load_pairs
from hivlp.data.pictures import decode
from hivlp.errors import DataError
from hivlp.mini.scenes import COLOURS, RADII, SHAPES, SIDE, Scene, Things, scenes


def shapes_of(pixels: np.ndarray, colour: str) -> list[tuple[float, float, int]]:
    """Centre (x, y) and height of each connected patch of a colour, by flood fill."""
    left = np.abs(pixels.astype(int) - COLOURS[colour]).max(2) < 12
    found = []
    while left.any():
        seed = tuple(np.argwhere(left)[0])
        patch, edge = [], [seed]
        left[seed] = False
        while edge:
            y, x = edge.pop()
            patch.append((y, x))
            for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= v < SIDE and 0 <= u < SIDE and left[v, u]:
                    left[v, u] = False
                    edge.append((v, u))
        if len(patch) > 4:  # less is an edge that happens to have the colour
            (top, low), (bottom, high) = np.min(patch, 0), np.max(patch, 0)
            found.append(((low + high) / 2, (top + bottom) / 2, max(bottom - top, high - low)))
    return found


@pytest.mark.slow
def test_the_picture_shows_what_the_caption_says():
    checked = Counter()
    for scene in scenes(300):
        if scene.others is not None and scene.others.colour == scene.things.colour:
            continue
        pixels = np.asarray(decode(scene.read()))
        assert pixels.shape == (SIDE, SIDE, 3)
        parts = [things for things in (scene.things, scene.others) if things is not None]
        patches = [shapes_of(pixels, things.colour) for things in parts]
        for things, found in zip(parts, patches, strict=True):
            assert len(found) == things.count, scene.caption
            for _, _, extent in found:
                assert (extent < sum(RADII.values())) == (things.size == "small"), scene.caption
        if scene.others is not None:
            axis = 0 if "left" in scene.relation or "right" in scene.relation else 1
            ours, theirs = ([patch[axis] for patch in found] for found in patches)
            before = scene.relation in ("to the left of", "above")
            assert max(ours) < min(theirs) if before else min(ours) > max(theirs), scene.caption
        checked[scene.relation] += 1
    assert len(checked) == 5 and min(checked.values()) > 10


def test_every_shape_looks_different():
    pictures = {
        shape: decode(Scene(Things(1, "large", "black", shape)).read()).convert("1").tobytes() for shape in SHAPES
    }
    assert len(set(pictures.values())) == len(SHAPES)


def test_the_same_scenes_every_time_and_a_longer_list_begins_with_the_shorter():
    some, more = scenes(40), scenes(80)
    assert some == more[:40] and scenes(40, seed=1) != some
    assert some[0].read() == more[0].read()
    assert len({scene.caption for scene in more}) == 80


def test_what_is_held_out_is_never_trained_on():
    pairs = load_pairs("scenes:3000")
    seen: dict[str, set[tuple[str, str]]] = {"train": set(), "val": set(), "test": set()}
    for pair in pairs:
        parts = [things for things in (pair.picture.things, pair.picture.others) if things is not None]
        assert pair.captions == (pair.picture.caption,)
        combinations = {(things.colour, things.shape) for things in parts}
        if pair.split != "train":
            combinations = {part for part in combinations if Things(1, "small", *part).split() == pair.split}
            assert combinations
        seen[pair.split] |= combinations
    assert not seen["train"] & (seen["val"] | seen["test"]) and not seen["val"] & seen["test"]
    sizes = Counter(pair.split for pair in pairs)
    assert min(sizes.values()) > 200
    # Every colour and every shape is learnt, only not together.
    assert {colour for colour, _ in seen["train"]} == set(COLOURS)
    assert {shape for _, shape in seen["train"]} == set(SHAPES)


@pytest.mark.parametrize("name", ["scenes:", "scenes:many", "scenes:0", "scenes:-5", "scenes:99999999"])
def test_a_wrong_number_is_refused_in_a_sentence(name):
    with pytest.raises(DataError, match="scenes"):
        load_pairs(name)
