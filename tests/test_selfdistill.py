"""Coarse levels learnt from the finest one."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer  # noqa: E402

from hivlp.config import TowerConfig  # noqa: E402
from hivlp.data.stamps import comparable  # noqa: E402
from hivlp.errors import DataError, ModelError  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.train import selfdistill  # noqa: E402
from hivlp.train.recipe import RecipeError, SelfDistillation, load_recipe  # noqa: E402
from hivlp.train.selfdistill import distil, distil_level, ridge  # noqa: E402
from tiny import BERT, tiny_config, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HiVLPModel(
        tiny_config(
            levels=(Level("coarse", 4, 8, 1), Level("fine", 16, 8, 3)),
            image_tower=TowerConfig("efficientnet_lite", {"variant": "lite0"}, {"coarse": "projection"}),
        )
    ).eval()


def texts(count: int, seed: int) -> dict[int, torch.Tensor]:
    """Features of texts whose last layer lies near four directions that the first layer does not show linearly."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, 4))
    basis, mixing = np.random.default_rng(0).normal(size=(2, 16, 4))
    early = np.tanh(hidden @ mixing.T) * 3 + 5
    last = hidden @ basis.T + 0.05 * rng.normal(size=(count, 16))
    return {1: torch.tensor(early, dtype=torch.float32), 3: torch.tensor(last, dtype=torch.float32)}


@torch.no_grad()
def agreement(model: HiVLPModel) -> float:
    """Mean cosine between coarse text vectors and the finest ones' projection, on texts that were not seen."""
    vectors = model.project_text(texts(300, seed=9))
    aim = model.image_heads["coarse"](vectors["fine"])
    return float((vectors["coarse"] * aim).sum(1).mean())


def test_a_coarse_level_learns_to_say_early_what_the_finest_says(model):
    torch.nn.init.normal_(model.text_heads["fine"].project.weight, std=0.1)
    seen = texts(2000, seed=1)
    before = model.project_text(seen)["fine"]
    weights = torch.ones(2000)
    distil_level(model, model.config.levels[0], seen, weights, SelfDistillation(steps=1, lr=0), 0)
    start = agreement(model)
    distil_level(model, model.config.levels[0], seen, weights, SelfDistillation(steps=400, lr=3e-3, batch_size=128), 0)
    end = agreement(model)
    assert 0.8 < start < end and end > 0.97
    assert torch.equal(model.project_text(seen)["fine"], before)


def test_a_projected_level_is_the_finest_in_its_principal_directions(model):
    distil_level(model, model.config.levels[0], texts(500, 1), torch.ones(500), SelfDistillation(steps=1), 0)
    features = {8: torch.randn(7, model.image_tower.widths[7])}
    vectors = model.project_image(features)
    basis = model.image_heads["coarse"].project.weight
    assert torch.allclose(basis @ basis.T, torch.eye(4), atol=1e-4)
    expected = torch.nn.functional.normalize(vectors["fine"] @ basis.T, dim=-1)
    assert torch.allclose(vectors["coarse"], expected, atol=1e-6)


def test_a_text_that_weighs_nothing_teaches_nothing(model):
    level, config = model.config.levels[0], SelfDistillation(steps=20, batch_size=64)
    good, bad = texts(200, 1), {layer: torch.randn(200, 16) * 9 for layer in (1, 3)}
    distil_level(model, level, good, torch.ones(200), config, 0)
    both = {layer: torch.cat([good[layer], bad[layer]]) for layer in good}
    distil_level(model, level, both, torch.cat([torch.ones(200), torch.zeros(200)]), config, 0)
    mixed = agreement(model)
    distil_level(model, level, good, torch.ones(200), config, 0)
    assert abs(mixed - agreement(model)) < 0.02


def test_wordnet_teaches_too_but_nothing_that_is_tested(model, tmp_path, monkeypatch):
    write = tmp_path / "data.noun"
    words = ["red", "blue", "green circle", "square", "Paris", "a b"]
    write.write_text(
        "".join(
            f"{n:08} 03 n 01 {word.replace(' ', '_')} 0 000 | the {word} on white\n" for n, word in enumerate(words)
        )
    )
    monkeypatch.setenv("HIVLP_WORDNET", str(tmp_path))
    monkeypatch.setattr(selfdistill, "held_out_comparable", lambda: frozenset({"blue", "square on white"}))
    asked = []
    real = selfdistill.text_features
    monkeypatch.setattr(selfdistill, "text_features", lambda m, t, texts: asked.extend(texts) or real(m, t, texts))
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "t")))
    tokenizer.enable_padding()
    distil(model, tokenizer, texts(50, 1), SelfDistillation(steps=3), 0)
    bare = [comparable(text) for text in asked]
    assert {"red", "green circle", "square", "red on white", "paris on white"} <= set(bare)
    assert not {"blue", "square on white", "paris"} & set(bare)
    asked.clear()
    distil(model, tokenizer, texts(50, 1), SelfDistillation(texts=2, steps=3), 0)
    assert len(asked) == 2
    monkeypatch.setenv("HIVLP_WORDNET", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="wordnet-base"):
        distil(model, tokenizer, texts(50, 1), SelfDistillation(steps=3), 0)
    distil(model, tokenizer, texts(50, 1), SelfDistillation(texts=0, steps=3), 0)


@pytest.mark.parametrize(
    ("levels", "heads"),
    [
        ((Level("coarse", 4, 6, 1), Level("fine", 16, 8, 3)), {"coarse": "projection"}),
        ((Level("coarse", 4, 8, 1), Level("fine", 16, 8, 3)), {"fine": "projection"}),
    ],
)
def test_a_projection_is_of_the_finest_level_at_its_layer(levels, heads):
    with pytest.raises(ModelError, match="projection"):
        HiVLPModel(
            tiny_config(levels=levels, image_tower=TowerConfig("efficientnet_lite", {"variant": "lite0"}, heads))
        )


def test_other_heads_cannot_be_distilled():
    model = HiVLPModel(tiny_config())
    with pytest.raises(ModelError, match="level coarse: needs a projection head"):
        distil_level(model, model.config.levels[0], texts(50, 1), torch.ones(50), SelfDistillation(steps=1), 0)


def test_a_recipe_says_how_to_distil(tmp_path):
    recipe = {
        "name": "x",
        "levels": [{"name": "fine", "dim": 16, "image_layer": 8, "text_layer": 3}],
        "image_tower": {"kind": "efficientnet_lite"},
        "text_tower": {"kind": "bert", "options": BERT},
        "train": [{"source": "demo"}],
        "self_distillation": {"texts": 9, "steps": 7},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert load_recipe(path).self_distillation == SelfDistillation(texts=9, steps=7)
    for wrong in ({"captions": 2}, {"caption": 0.5}, 3):
        path.write_text(json.dumps({**recipe, "self_distillation": wrong}))
        with pytest.raises(RecipeError, match=r"self_distillation|caption"):
            load_recipe(path)


def test_ridge_recovers_a_linear_map():
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 6, generator=rng)
    weight, bias = torch.randn(3, 6, generator=rng), torch.randn(3, generator=rng)
    outputs = inputs @ weight.T + bias
    got_weight, got_bias = ridge(inputs, outputs, 1e-8)
    assert torch.allclose(got_weight, weight, atol=1e-3) and torch.allclose(got_bias, bias, atol=1e-3)
    outputs[300:] = 100  # rows that do not count
    weights = (torch.arange(400) < 300).float()
    got_weight, got_bias = ridge(inputs, outputs, 1e-8, weights)
    assert torch.allclose(got_weight, weight, atol=1e-3) and torch.allclose(got_bias, bias, atol=1e-3)
