"""Rendered scenes: what the caption says is what the pixels show."""

from collections import Counter

import numpy as np
import pytest

from hivlp.data.load import load_pairs
from hivlp.data.pictures import decode
from hivlp.errors import DataError
from hivlp.mini.scene_pictures import RADII, SIDE
from hivlp.mini.scene_words import COLOURS, HOLLOW, OPPOSITE, RELATIONS, SHAPES, TEXTURES, WRITTEN, Things
from hivlp.mini.scenes import CAPTIONS, FACTS, Scene, scenes


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
        colours = [things.colour for things in scene.things]
        if len(set(colours)) < len(colours):
            continue
        pixels = np.asarray(decode(scene.read()))
        assert pixels.shape == (SIDE, SIDE, 3)
        patches = [shapes_of(pixels, colour) for colour in colours]
        for things, found in zip(scene.things, patches, strict=True):
            assert len(found) == things.count, scene.caption
            for _, _, extent in found:
                assert (extent < RADII["small"] + RADII["large"]) == (things.size == "small"), scene.caption
        for relation in scene.relations:
            axis = 0 if "left" in relation or "right" in relation else 1
            ours, theirs = ([patch[axis] for patch in found] for found in patches)
            before = relation in ("to the left of", "above")
            assert max(ours) < min(theirs) if before else min(ours) > max(theirs), scene.caption
        checked[scene.relations] += 1
    assert len(checked) == 5 and min(checked.values()) > 10


def test_hard_things_lie_as_their_relations_say_and_do_not_touch():
    holds = {
        "to the left of": lambda a, b: a.x < b.x,
        "to the right of": lambda a, b: a.x > b.x,
        "above": lambda a, b: a.y < b.y,
        "below": lambda a, b: a.y > b.y,
        "inside": lambda a, b: max(abs(a.x - b.x), abs(a.y - b.y)) < RADII["huge"] - RADII["small"],
    }
    seen = Counter()
    for scene in scenes(600, hard=True):
        placed = scene.placed()
        groups = [[each for each in placed if each.group == group] for group in range(len(scene.things))]
        assert [len(group) for group in groups] == [things.count for things in scene.things]
        for number, relation in enumerate(scene.relations):
            seen[relation] += 1
            later = [each for group in groups[number + 1 :] for each in group]
            assert all(holds[relation](one, other) for one in groups[number] for other in later), scene.caption
        shapes = [each for each in placed if not each.things.written and each.things.size != "huge"]
        for number, one in enumerate(shapes):
            for other in shapes[:number]:
                apart = max(abs(one.x - other.x), abs(one.y - other.y))
                assert apart >= RADII[one.things.size] + RADII[other.things.size] - 1, scene.caption
    assert set(seen) == set(OPPOSITE) - {"around"} and min(seen.values()) > 50


def test_a_hard_picture_shows_every_thing_in_its_colour_before_a_pale_background():
    for scene in scenes(60, hard=True):
        pixels = np.asarray(decode(scene.read())).astype(int)
        for each in scene.placed():
            reach = RADII[each.things.size]
            near = pixels[max(0, each.y - reach) : each.y + reach, max(0, each.x - reach) : each.x + reach]
            coloured = (np.abs(near - COLOURS[each.things.colour]).max(2) < 40).mean()
            assert coloured > (0.05 if each.things.written or each.things.size == "huge" else 0.1), scene.caption


def test_hard_scenes_have_all_that_they_can_show():
    things = [each for scene in scenes(2000, hard=True) for each in scene.things]
    shapes = {*SHAPES, *HOLLOW, *WRITTEN}
    for name, values in (
        ("shape", shapes),
        ("texture", set(TEXTURES)),
        ("colour", set(COLOURS)),
        ("count", {1, 2, 3, 4}),
    ):
        assert {getattr(each, name) for each in things} == values
    assert Counter(len(scene.things) for scene in scenes(2000, hard=True)).keys() == {1, 2, 3}


@pytest.mark.parametrize("hard", [False, True])
def test_every_shape_looks_different(hard):
    shapes = (*SHAPES, "frame", *WRITTEN) if hard else SHAPES
    pictures = {
        shape: decode(Scene((Things(1, "large", "black", shape),)).read()).convert("1").tobytes() for shape in shapes
    }
    assert len(set(pictures.values())) == len(shapes)


def test_every_texture_looks_different():
    pictures = {decode(Scene((Things(1, "large", "black", "circle", each),)).read()).tobytes() for each in TEXTURES}
    assert len(pictures) == len(TEXTURES)


@pytest.mark.parametrize("hard", [False, True])
def test_the_same_scenes_every_time_and_a_longer_list_begins_with_the_shorter(hard):
    some, more = scenes(40, hard=hard), scenes(80, hard=hard)
    assert some == more[:40] and scenes(40, seed=1, hard=hard) != some
    assert some[0].read() == more[0].read() and some[0].captions == more[0].captions
    assert len({scene.caption for scene in more}) == 80


def test_paraphrases_differ_within_a_picture_and_never_fit_another():
    owner: dict[str, Scene] = {}
    for scene in scenes(1500, hard=True):
        assert len(set(scene.captions)) == CAPTIONS and scene.captions[0] == scene.caption
        for caption in scene.captions:
            assert owner.setdefault(caption, scene) == scene


def test_a_paraphrase_turns_the_relation_round_or_says_where_each_is():
    fox, hearts = Things(1, "small", "red", "fox"), Things(2, "large", "purple", "heart", "spotted")
    said = {each for seed in range(60) for each in Scene((fox, hearts), ("above",), seed, hard=True).captions}
    assert "the word fox in small red letters above two large spotted purple hearts" in said
    assert any(each.endswith("below the word fox in small red letters") for each in said)
    assert any("at the top" in each and "at the bottom" in each for each in said)
    assert any("a pair of" in each for each in said) and any("violet" in each for each in said)


def test_a_twin_differs_in_one_fact_alone():
    made = Counter()
    for scene in scenes(300, hard=True):
        for fact in FACTS:
            twin = scene.twin(fact)
            if twin is None:
                continue
            made[fact] += 1
            assert twin.caption != scene.caption and scene.twin(fact) == twin
            words, others = Counter(scene.caption.split()), Counter(twin.caption.split())
            if fact == "colours":
                assert sorted(each.colour for each in twin.things) == sorted(each.colour for each in scene.things)
                assert words == others
            if fact == "relation":
                assert twin.things == scene.things and twin.relations[0] == OPPOSITE[scene.relations[0]]
                assert scene.relations[0] in RELATIONS
    assert min(made[fact] for fact in FACTS) > 50


def test_twins_mean_the_same_but_for_the_fact_in_which_they_differ():
    for scene in scenes(300, hard=True):
        for fact in FACTS:
            if (twin := scene.twin(fact)) is not None:
                assert twin.meaning(fact) == scene.meaning(fact) and twin.meaning() != scene.meaning()


def test_a_scene_told_the_other_way_round_means_the_same():
    fox, stars, ring = (
        Things(1, "small", "red", "fox"),
        Things(2, "large", "pink", "star"),
        Things(1, "huge", "blue", "ring"),
    )
    above = Scene((fox, stars), ("above",))
    assert (
        above.meaning()
        == Scene((stars, fox), ("below",), seed=5).meaning()
        != Scene((stars, fox), ("above",)).meaning()
    )
    inside = Scene((fox, stars, ring), ("above", "inside")).meaning()
    assert inside != Scene((stars, fox, ring), ("above", "inside")).meaning()


@pytest.mark.parametrize("name", ["scenes:3000", "scenes:3000:hard"])
def test_what_is_held_out_is_never_trained_on(name):
    pairs = load_pairs(name)
    seen: dict[str, set[tuple[str, str]]] = {"train": set(), "val": set(), "test": set()}
    for pair in pairs:
        assert pair.captions == pair.picture.captions
        combinations = {(things.colour, things.shape) for things in pair.picture.things}
        if pair.split != "train":
            combinations = {part for part in combinations if Things(1, "small", *part).split() == pair.split}
            assert combinations
        seen[pair.split] |= combinations
    assert not seen["train"] & (seen["val"] | seen["test"]) and not seen["val"] & seen["test"]
    sizes = Counter(pair.split for pair in pairs)
    assert min(sizes.values()) > 200
    # Every colour and every shape is learnt, only not together.
    assert {colour for colour, _ in seen["train"]} == set(COLOURS)
    assert {shape for _, shape in seen["train"]} == ({*SHAPES, "frame", *WRITTEN} if "hard" in name else set(SHAPES))


@pytest.mark.parametrize(
    "name", ["scenes:", "scenes:many", "scenes:0", "scenes:-5", "scenes:99999999", "scenes:5:easy", "scenes:5:hard:"]
)
def test_a_wrong_number_is_refused_in_a_sentence(name):
    with pytest.raises(DataError, match="scenes"):
        load_pairs(name)
