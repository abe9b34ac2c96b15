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
from hivlp.train.recipe import Recipe, RecipeError, SelfDistillation, load_recipe  # noqa: E402
from hivlp.train.selfdistill import (  # noqa: E402
    DistillationData,
    distil,
    distil_level,
    ridge,
    score_directions,
)
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


def data(count: int, weights: torch.Tensor | None = None) -> DistillationData:
    rng = np.random.default_rng(2)
    basis = np.random.default_rng(0).normal(size=(2, 16, 4))[0]
    pictures = torch.tensor(rng.normal(size=(300, 4)) @ basis.T + 0.05 * rng.normal(size=(300, 16)))
    pictures = torch.nn.functional.normalize(pictures.float(), dim=1)
    return DistillationData(texts(count, seed=1), torch.ones(count) if weights is None else weights, pictures)


def recipe(**settings) -> Recipe:
    config = tiny_config()
    distillation = SelfDistillation(**{"texts": 0, "batch_size": 64, **settings})
    return Recipe("x", config.levels, config.image_tower, config.text_tower, (), self_distillation=distillation)


@torch.no_grad()
def agreement(model: HiVLPModel) -> float:
    """Mean cosine between coarse text vectors and the finest ones' projection, on texts that were not seen."""
    vectors = model.project_text(texts(300, seed=9))
    aim = model.image_heads["coarse"](vectors["fine"])
    return float((vectors["coarse"] * aim).sum(1).mean())


def test_a_coarse_level_learns_to_say_early_what_the_finest_says(model):
    torch.nn.init.normal_(model.text_heads["fine"].project.weight, std=0.1)
    lesson = data(2000)
    before = model.project_text(lesson.texts)["fine"]
    distil_level(model, model.config.levels[0], lesson, recipe(steps=1, lr=0))
    start = agreement(model)
    distil_level(model, model.config.levels[0], lesson, recipe(steps=400, lr=3e-3))
    end = agreement(model)
    assert 0.8 < start < end and end > 0.97
    assert torch.equal(model.project_text(lesson.texts)["fine"], before)


def test_a_projected_level_is_the_finest_in_fewer_directions(model):
    distil_level(model, model.config.levels[0], data(500), recipe(steps=1))
    features = {8: torch.randn(7, model.image_tower.widths[7])}
    vectors = model.project_image(features)
    basis = model.image_heads["coarse"].project.weight
    assert torch.allclose(basis @ basis.T, torch.eye(4), atol=1e-4)
    expected = torch.nn.functional.normalize(vectors["fine"] @ basis.T, dim=-1)
    assert torch.allclose(vectors["coarse"], expected, atol=1e-6)


def test_score_directions_span_the_left_factor_of_all_scores():
    """Against the singular value decomposition of the scores themselves."""
    rng = torch.Generator().manual_seed(0)
    texts = torch.randn(300, 8, generator=rng) * torch.tensor([9.0, 5, 1, 1, 1, 1, 1, 0.1])
    pictures = torch.randn(200, 8, generator=rng) @ torch.randn(8, 8, generator=rng)
    weights = torch.rand(300, generator=rng)
    basis = score_directions(texts, weights, pictures, 3)
    assert torch.allclose(basis.T @ basis, torch.eye(3), atol=1e-5)
    scores = (texts * weights.sqrt()[:, None]) @ pictures.T
    right = torch.linalg.svd(scores, full_matrices=False).Vh[:3]
    # Pictures' side of the best rank-3 approximation: right = (pictures @ expected).T, up to a mixing of its columns.
    expected = torch.linalg.qr(torch.linalg.lstsq(pictures, right.T).solution).Q
    assert torch.allclose(basis @ basis.T, expected @ expected.T, atol=1e-3)


def test_a_text_that_weighs_nothing_teaches_nothing(model):
    good, settings = data(200), recipe(steps=20)
    distil_level(model, model.config.levels[0], good, settings)
    alone = agreement(model)
    bad = {layer: torch.cat([good.texts[layer], torch.randn(200, 16) * 9]) for layer in (1, 3)}
    weights = torch.cat([torch.ones(200), torch.zeros(200)])
    distil_level(model, model.config.levels[0], DistillationData(bad, weights, good.pictures), settings)
    assert abs(agreement(model) - alone) < 0.02


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
    views = [{8: torch.randn(9, model.image_tower.widths[7])}] * 2
    distil(model, tokenizer, texts(50, 1), views, recipe(texts=99, steps=3))
    bare = [comparable(text) for text in asked]
    assert {"red", "green circle", "square", "red on white", "paris on white"} <= set(bare)
    assert not {"blue", "square on white", "paris"} & set(bare)
    asked.clear()
    distil(model, tokenizer, texts(50, 1), views, recipe(texts=2, steps=3))
    assert len(asked) == 2
    monkeypatch.setenv("HIVLP_WORDNET", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="wordnet-base"):
        distil(model, tokenizer, texts(50, 1), views, recipe(texts=99, steps=3))
    distil(model, tokenizer, texts(50, 1), views, recipe(texts=0, steps=3))


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
        distil_level(model, model.config.levels[0], data(50), recipe(steps=1))


def test_a_recipe_says_how_to_distil(tmp_path):
    content = {
        "name": "x",
        "levels": [{"name": "fine", "dim": 16, "image_layer": 8, "text_layer": 3}],
        "image_tower": {"kind": "efficientnet_lite"},
        "text_tower": {"kind": "bert", "options": BERT},
        "train": [{"source": "demo"}],
        "self_distillation": {"texts": 9, "steps": 7},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    assert load_recipe(path).self_distillation == SelfDistillation(texts=9, steps=7)
    for wrong in ({"captions": 2}, {"caption": 0.5}, 3):
        path.write_text(json.dumps({**content, "self_distillation": wrong}))
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
