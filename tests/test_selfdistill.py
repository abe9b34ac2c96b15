"""Coarse levels learnt from the finest one."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from hivlp.config import TextConfig, TowerConfig  # noqa: E402
from hivlp.data.texts import TextTokenizer  # noqa: E402
from hivlp.errors import DataError, ModelError, RecipeError  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.linalg import lean_vec  # noqa: E402
from hivlp.mini.stamps import comparable  # noqa: E402
from hivlp.model.heads import build_head  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.objective.codes import quantize  # noqa: E402
from hivlp.train.distillation import self_distillation  # noqa: E402
from hivlp.train.distillation.closed_form import ridge, score_directions, sign_rotation  # noqa: E402
from hivlp.train.distillation.level import Side, distill_level, neighbours  # noqa: E402
from hivlp.train.distillation.self_distillation import distil  # noqa: E402
from hivlp.train.recipe.schema import Recipe, SelfDistillation, load_recipe  # noqa: E402
from synthetic import BERT, tiny_config, write_tokenizer  # noqa: E402

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


def lesson(model: HiVLPModel, count: int, extra: torch.Tensor | None = None, code: str = "float", **settings) -> None:
    """Fit the coarse level to ``count`` texts, and to ``extra`` ones that have no weight."""
    rng = np.random.default_rng(2)
    basis = np.random.default_rng(0).normal(size=(2, 16, 4))[0]
    pictures = torch.tensor(rng.normal(size=(300, 4)) @ basis.T + 0.05 * rng.normal(size=(300, 16)))
    pictures = torch.nn.functional.normalize(pictures.float(), dim=1)
    features, weights = texts(count, seed=1), torch.ones(count)
    if extra is not None:
        features = {layer: torch.cat([part, extra]) for layer, part in features.items()}
        weights = torch.cat([weights, torch.zeros(len(extra))])
    with torch.no_grad():
        teacher = model.text_heads["fine"](features[3])
    distill_level(
        model.image_heads["coarse"],
        model.text_heads["coarse"],
        Side(pictures, pictures, torch.ones(300)),
        Side(features[1], teacher, weights),
        SelfDistillation(batch_size=64, code=code, **settings),
        seed=0,
    )


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
    before = model.project_text(texts(50, 1))["fine"]
    lesson(model, 2000, steps=0)
    start = agreement(model)
    lesson(model, 2000, steps=400, lr=3e-3)
    end = agreement(model)
    assert 0.8 < start < end and end > 0.97
    assert torch.equal(model.project_text(texts(50, 1))["fine"], before)


@pytest.mark.parametrize("settings", [{}, {"shortlist": 0.5, "neighbours": True}, {"learn_projections": True}])
def test_every_way_of_learning_ranks_more_like_the_finest(model, settings):
    def lost() -> float:
        fine = model.project_text(texts(300, seed=9))["fine"]
        features = {8: torch.randn(200, model.image_tower.widths[7], generator=torch.Generator().manual_seed(3))}
        vectors = model.project_image(features)
        coarse = model.project_text(texts(300, seed=9))["coarse"]
        wanted = (fine @ vectors["fine"].T).topk(10).indices
        found = (coarse @ vectors["coarse"].T).topk(20).indices
        return float((wanted[:, :, None] != found[:, None, :]).all(2).float().mean())

    with torch.no_grad():
        lesson(model, 1000, steps=0)
        start = lost()
    lesson(model, 1000, steps=300, lr=3e-3, **settings)
    with torch.no_grad():
        assert lost() < start


def test_a_level_that_is_stored_as_signs_learns_signs_that_rank():
    """Vectors most of whose spread is in a few directions, which signs alone would count as much as any other."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.arange(1, 33).float() ** -0.7
    pictures, texts, queries = (
        torch.nn.functional.normalize(torch.randn(n, 32, generator=rng) * spread, dim=1) for n in (400, 1000, 300)
    )
    sides = Side(pictures, pictures, torch.ones(400)), Side(texts, texts, torch.ones(1000))

    @torch.no_grad()
    def kept(heads) -> float:
        wanted = (queries @ pictures.T).topk(5).indices
        found = (heads[1](queries) @ quantize(heads[0](pictures), "binary").T).topk(20).indices
        return float((wanted[:, :, None] == found[:, None, :]).any(2).float().mean())

    results = {}
    for code, steps in (("float", 0), ("binary", 0), ("binary", 300)):
        heads = build_head("projection", 32, 16), build_head("projection", 32, 16)
        settings = SelfDistillation(steps=steps, batch_size=128, code=code, learn_projections=True, shortlist=0.3)
        distill_level(*heads, *sides, settings, seed=0)
        results[code, steps] = kept(heads)
    assert results["float", 0] < results["binary", 0] < results["binary", 300]


def test_neighbours_are_those_that_the_finest_ranks_first():
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.nn.functional.normalize(torch.randn(n, 6, generator=rng), dim=1) for n in (1500, 40))
    sides = [Side(vectors, vectors, torch.ones(len(vectors))) for vectors in (one, other)]
    near = neighbours(*sides, count=3)
    assert near.shape == (1500, 3)
    for row in (0, 1023, 1024, 1499):
        assert near[row].tolist() == (other @ one[row]).argsort(descending=True)[:3].tolist()
    assert neighbours(*sides[::-1], count=2000).shape == (40, 1500)


def test_a_projected_level_is_the_finest_in_fewer_directions(model):
    lesson(model, 500, steps=1)
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


def test_lean_vec_gives_the_best_low_rank_scores():
    rng = torch.Generator().manual_seed(0)
    texts = torch.randn(300, 8, generator=rng, dtype=torch.float64) * torch.tensor([9.0, 5, 1, 1, 1, 1, 1, 0.1])
    pictures = torch.randn(200, 8, generator=rng, dtype=torch.float64) @ torch.randn(8, 8, generator=rng).double()
    maps = lean_vec((pictures.T @ pictures / 200).numpy(), (texts.T @ texts / 300).numpy())
    image_map, text_map = (torch.from_numpy(matrix[:, :3]) for matrix in maps)
    left, values, right = torch.linalg.svd(texts @ pictures.T, full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    assert torch.allclose((texts @ text_map) @ (pictures @ image_map).T, best, atol=1e-6 * best.abs().max())


def test_a_sign_rotation_is_a_rotation_that_brings_vectors_to_their_signs():
    vectors = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5, 3, 2, 1, 1, 1, 1])
    rotation = sign_rotation(vectors)
    assert torch.allclose(rotation @ rotation.T, torch.eye(8), atol=1e-4)

    def loss(rotated: torch.Tensor) -> float:
        return float((rotated - torch.where(rotated >= 0, 1.0, -1.0)).square().mean())

    assert loss(vectors @ rotation) < loss(vectors @ sign_rotation(vectors, rounds=0)) - 1e-3


def test_a_text_that_weighs_nothing_teaches_nothing(model):
    lesson(model, 200, steps=20)
    alone = agreement(model)
    lesson(model, 200, extra=torch.randn(200, 16) * 9, steps=20)
    assert abs(agreement(model) - alone) < 0.1  # its spread still sets the units that the head learns in


def test_wordnet_teaches_too_but_nothing_that_is_tested(model, tmp_path, monkeypatch):
    write = tmp_path / "data.noun"
    words = ["red", "blue", "green circle", "square", "Paris", "a b"]
    write.write_text(
        "".join(
            f"{n:08} 03 n 01 {word.replace(' ', '_')} 0 000 | the {word} on white\n" for n, word in enumerate(words)
        )
    )
    monkeypatch.setenv("HIVLP_WORDNET", str(tmp_path))
    monkeypatch.setattr("hivlp.mini.phrases.held_out_comparable", lambda: frozenset({"blue", "square on white"}))
    asked = []
    real = self_distillation.text_features
    monkeypatch.setattr(
        self_distillation, "text_features", lambda m, t, texts: asked.extend(texts) or real(m, t, texts)
    )
    tokenizer = TextTokenizer(write_tokenizer(tmp_path / "t"), TextConfig())
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


def test_other_heads_cannot_be_fitted():
    model = HiVLPModel(tiny_config(levels=(Level("coarse", 16, 8, 3), Level("fine", 16, 8, 3)),
        text_tower=TowerConfig("bert", BERT, {"coarse": "residual"})))  # fmt: skip
    side = Side(torch.randn(9, 16), torch.randn(9, 16), torch.ones(9))
    with pytest.raises(ModelError, match="a ResidualHead cannot be fitted"):
        distill_level(model.image_heads["coarse"], model.text_heads["coarse"], side, side, SelfDistillation(), 0)


@pytest.mark.parametrize("kind", ["linear", "mlp", "projection"])
def test_a_head_starts_as_a_linear_map_and_absorbs_the_units_it_learned_in(kind):
    torch.manual_seed(0)
    head = build_head(kind, 6, 3)
    weight, bias, inputs = torch.randn(3, 6), torch.randn(3), torch.randn(8, 6)
    head.start(weight, None if kind == "projection" else bias)
    expected = inputs @ weight.T + (0 if kind == "projection" else bias)
    assert torch.allclose(head(inputs), torch.nn.functional.normalize(expected, dim=1), atol=1e-6)
    if kind == "mlp":
        torch.nn.init.normal_(head.out.weight)
    mean, deviation = (torch.zeros(6) if kind == "projection" else torch.randn(6)), torch.tensor(1.7)
    wanted = head((inputs - mean) / deviation)
    head.absorb(mean, deviation)
    assert torch.allclose(head(inputs), wanted, atol=1e-5)


def test_a_prefix_is_the_first_dims_of_the_finest_vector():
    model = HiVLPModel(tiny_config(levels=(Level("coarse", 4, 8, 3), Level("fine", 16, 8, 3)),
        image_tower=TowerConfig("efficientnet_lite", {"variant": "lite0"}, {"coarse": "prefix"}),
        text_tower=TowerConfig("bert", BERT, {"coarse": "prefix"})))  # fmt: skip
    vectors = model.project_text(texts(5, 0))
    assert torch.allclose(vectors["coarse"], torch.nn.functional.normalize(vectors["fine"][:, :4], dim=1), atol=1e-6)
    assert not list(model.text_heads["coarse"].parameters())
    with pytest.raises(ValueError, match="a prefix of 9 dims is more than the finest level's 8"):
        build_head("prefix", 8, 9)


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
