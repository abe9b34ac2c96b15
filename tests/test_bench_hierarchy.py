"""The ablation of the hierarchy: runs that are kept, and what a row says of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from hivlp.bench import hierarchy
from hivlp.bench.hierarchy import ALONE, APART, OURS, ceiling, gain, kept_run, recipes, run
from hivlp.bench.scenes import hard_recipe
from hivlp.data.load import load_pairs
from hivlp.evaluate.results import Evaluation, Recalls, Scores
from hivlp.mini.scenes import FACTS
from hivlp.train.publish import TrainResult
from hivlp.train.recipe.schema import load_recipe

pytestmark = pytest.mark.train
RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bench" / "hierarchy"


def small(names=(ALONE, APART)):
    """Ways that train and are measured in two seconds."""
    sets = {"validation": "scenes:300:hard:val", "test": "scenes:300:hard:test", "shortlist": 5}
    ways = recipes(scenes=250, epochs=1)
    return {name: replace(ways[name], **sets) for name in names}


def test_a_coarse_level_whose_gradient_stops_costs_the_finest_nothing_at_all(cache, tmp_path):
    """Nothing of it reaches the towers, so that the finest is the one of a run without it, bit for bit."""
    result = run(seeds=1, ways=small(), plot=tmp_path / "plot.png")
    alone, apart = result.rows
    assert alone["test"]["fine"] == apart["test"]["fine"] and alone["twins"] == apart["twins"]
    assert result.gain == {} and result.chosen == APART
    assert "coarse" not in alone["test"] and set(hierarchy.COLUMNS) == set(apart["test"]) == set(apart["validation"])
    assert set(apart["twins"]) == set(FACTS) and all(0 <= cell["mean"] <= 100 for cell in apart["twins"].values())
    assert (tmp_path / "plot.png").stat().st_size > 5_000
    assert "validation chooses: early" in result.to_text()
    # What is finished is kept, without its weights and pictures, and read back.
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".json"]
    again = run(seeds=1, ways=small())
    assert again.rows == result.rows and again.seconds < result.seconds


def test_what_was_stopped_goes_on_and_what_was_finished_is_not_done_again(monkeypatch, cache):
    asked = []

    def stopped_at_the_third(recipe, folder, *, resume):
        assert resume and folder.parent == cache
        folder.mkdir(parents=True, exist_ok=True)
        asked.append((recipe.seed, len(recipe.levels)))
        if len(asked) == 3:
            raise KeyboardInterrupt
        recalls = Recalls.of_ranks(np.arange(20), np.arange(20))
        scores = Scores({level.name: recalls for level in recipe.levels}, recalls, 5)
        found = Evaluation("m", 20, 20, 0, scores)
        return TrainResult(folder, {"validation": found, "test": found}, 0.0, 1, None, {})

    monkeypatch.setattr(hierarchy, "train_on_scenes", stopped_at_the_third)
    monkeypatch.setattr(hierarchy, "told_from_twins", lambda *_: {"count": 50.0})
    monkeypatch.setattr(hierarchy.HiVLP, "from_pretrained", lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
        run(seeds=2, ways=small())
    assert asked == [(0, 1), (0, 2), (1, 1)]
    result = run(seeds=2, ways=small())
    assert asked[3:] == [(1, 1), (1, 2)] and [row["seeds"] for row in result.rows] == [2, 2]
    assert result.rows[1]["test"]["text_to_image"] == {"mean": 5.0, "spread": 0.0}
    assert result.rows[1]["test"]["kept"] == {"mean": 100.0, "spread": 0.0}
    kept_run(small()[ALONE], fresh=True)
    assert asked[5:] == [(0, 1)]


def test_what_a_second_level_gains_is_that_of_the_fine_level_on_the_test_set():
    rows = [
        {"way": way, "test": {"fine": {"mean": mean, "spread": spread}}}
        for way, mean, spread in ((ALONE, 60.0, 0.5), (OURS, 63.0, 1.5), (APART, 10.0, 9.0))
    ]
    assert gain(rows) == {"points": 3.0, "spreads": 2.0} and gain(rows[1:]) == {}


def test_who_reads_all_of_a_scene_finds_it_and_who_misses_a_fact_guesses_among_equals():
    found = ceiling("scenes:1500:hard:test")
    assert list(found) == ["nothing", *FACTS] and found.pop("nothing") == 100.0
    assert all(90 < share <= 100 for share in found.values()) and min(found.values()) < 100


def test_the_ways_have_the_towers_and_settings_of_the_recipe_at_half_its_rate():
    recipe = load_recipe(RECIPES / "scenes_hard_cpu.yaml")
    ours = hard_recipe(60_000, 5)
    for name in ("levels", "image_tower", "text_tower", "text", "picture", "train", "validation", "test", "shortlist"):
        assert getattr(recipe, name) == getattr(ours, name), name
    slower = {name: getattr(recipe.optim, name) / 2 for name in ("lr", "text_lr", "tower_lr")}
    assert replace(recipe.optim, **slower) == ours.optim
    assert recipe.objective == ours.objective and recipe.augment == ours.augment
    assert len(load_pairs("scenes:4600:hard", "test")) * 0.05 >= recipe.shortlist


def test_the_ways_differ_in_what_they_are_named_for():
    ways = recipes(scenes=250, epochs=1)
    ours, apart, late = ways[OURS], ways[APART], ways["late, towers apart"]
    assert ours.optim.tower_gradient == {"coarse": 1.0} and replace(apart, optim=ours.optim) == ours
    assert apart.optim.tower_gradient == {}
    depth = ours.levels[-1].image_layer
    assert ours.levels[0].image_layer <= depth / 2 and late.levels[0].image_layer == depth
    assert ours.levels[0].dim == late.levels[0].dim and ours.levels[1] == late.levels[1] == ways[ALONE].levels[0]
    assert replace(apart, levels=late.levels) == late
    untaught = ways["apart, no distillation"]
    assert untaught.objective.distillation == 0 and replace(untaught, objective=apart.objective) == apart
