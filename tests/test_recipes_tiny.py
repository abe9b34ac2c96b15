"""The tiny variant of every recipe, end to end, on generated data of the format that the recipe reads."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from hivlp.config import HiVLPConfig  # noqa: E402
from hivlp.train.job import train  # noqa: E402
from hivlp.train.recipe.plan import plan  # noqa: E402
from hivlp.train.recipe.schema import load_recipe  # noqa: E402
from synthetic import write_benchmark, write_tars  # noqa: E402

pytestmark = pytest.mark.train

RECIPES = Path(__file__).parent.parent / "recipes"
STREAMED = ("clip_b32_levels", "coco", "flickr30k", "hivlp_base_4m")
SPLITS = [("train", 5)] * 10 + [("val", 5)] * 2 + [("test", 5)] * 2


@pytest.fixture
def data(tmp_path, monkeypatch):
    """``data/`` with few pairs of everything that the recipes read, as the working directory has it."""
    for name in ("flickr30k", "coco"):
        write_benchmark(tmp_path / "data" / name, name, SPLITS)
    for name in ("vg", "sbu", "cc3m"):
        write_tars(tmp_path / "data" / name, 2, 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", STREAMED)
def test_the_tiny_variant_of_a_recipe_runs_end_to_end(data, name):
    result = train(load_recipe(RECIPES / f"{name}.yaml", tiny=True), data / "model")
    assert result is not None and set(result.recalls) == {"validation", "test"}
    assert result.recalls["test"].images == 2
    losses = [json.loads(line) for line in (data / "model" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in losses if "loss" in line]) == 2
    assert [level.name for level in HiVLPConfig.load(data / "model").levels] == ["coarse", "fine"]


def test_the_tiny_variant_of_the_hard_scenes_runs_end_to_end(tmp_path):
    result = train(load_recipe(RECIPES / "scenes_hard_cpu.yaml", tiny=True), tmp_path / "model")
    assert result is not None and set(result.recalls) == {"validation", "test"}
    found = result.recalls["test"]
    assert found.captions == 3 * found.images and list(found.scores.levels) == ["coarse", "fine"]


@pytest.mark.parametrize("name", STREAMED)
def test_a_recipe_is_planned_without_its_data(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    planned = plan(recipe, tmp_path / "out", measured=False)
    assert planned.missing and planned.steps == -(-recipe.stream.epoch // recipe.optim.batch_size) * recipe.optim.epochs
    assert planned.parameters > 150_000_000 and "not here" in planned.to_text() and not (tmp_path / "out").exists()
    lines = [line for line in planned.to_text().splitlines() if line.startswith("learns")]
    told = sum(int(line.split()[1].replace(",", "")) for line in lines)
    assert told == sum(group.parameters for group in planned.learning) and len(lines) < 8


def test_a_plan_measures_what_a_step_costs(data):
    planned = plan(load_recipe(RECIPES / "hivlp_base_4m.yaml", tiny=True), data / "out")
    cost = planned.to_json()["cost"]
    assert not planned.missing and cost["flops"] > 1e6 and cost["samples_per_second"] > 0 and planned.hours is not None
    parts = {name: value for name, value in cost["memory_gb"].items() if name != "total"}
    assert set(parts) == {"weights", "gradients", "moments", "activations", "loss"}
    assert "over 10 steps of" in planned.to_text() and "to the end" in planned.to_text()
