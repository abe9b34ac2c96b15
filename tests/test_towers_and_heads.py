"""What every registered tower and head promises: shapes, early stops, gradients, and weights that can be kept."""

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from hivlp.config import TowerConfig  # noqa: E402
from hivlp.model.heads import HEADS, build_head  # noqa: E402
from hivlp.model.towers import DUAL_ENCODER, IMAGE_TOWERS, TEXT_TOWERS, build_towers  # noqa: E402
from synthetic import BERT  # noqa: E402

pytestmark = pytest.mark.train

CLIP = {
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {**BERT, "eos_token_id": 3},
    "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "image_size": 32, "patch_size": 16},
}  # fmt: skip
SIGLIP = {key: CLIP[key] for key in ("text_config", "vision_config")} | {"model_type": "siglip"}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = {"image_size": 32, "patch": 16, "width": 16, "depth": 3, "heads": 2, "feed_forward": 2.0}
IMAGE = {
    "convnet": {"channels": (4, 8, 8), "grid": 2},
    "efficientnet_lite": {"variant": "lite0"},
    "vit": VIT,
    "vit with registers": {**VIT, "registers": 2, "pool": "mean", "layer_scale": 0.1},
    "transformers": {"model_type": "vit", "image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6, **SMALL},
    "transformers dinov2": {"model_type": "dinov2_with_registers", "image_size": 32, "patch_size": 16, **SMALL},
    "transformers convnext": {"model_type": "convnext", "hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1]},
}
TEXT = {
    "bert": {**BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "transformers": {"model_type": "roberta", "vocab_size": 20, **SMALL, "max_position_embeddings": 16},
    "transformers distilbert": {"model_type": "distilbert", "vocab_size": 20, "dim": 16, "hidden_dim": 32,
                                "n_layers": 3, "n_heads": 2, "pool": "class"},
}  # fmt: skip
"""Kind, and what sort of it, -> options."""
SIZES = {
    "linear": (8, 4),
    "projection": (8, 4),
    "prefix": (8, 4),
    "mlp": (8, 4),
    "residual": (8, 8),
    "identity": (8, 8),
    "prototype": (1008, 4),
    "anchored_prototype": (1008, 8),
    "anchored_residual": (8, 16),
}
"""Head -> width of its input and dims."""


def towers():
    """Name -> how to build it with random weights."""
    bert, convnet = TowerConfig("bert", TEXT["bert"]), TowerConfig("convnet", IMAGE["convnet"])
    for name, options in IMAGE.items():
        image = TowerConfig(name.split()[0], options)
        yield f"image {name}", lambda image=image: build_towers(image, bert)[0]
    for name, options in TEXT.items():
        text = TowerConfig(name.split()[0], options)
        yield f"text {name}", lambda text=text: build_towers(convnet, text)[1]
    for options in (CLIP, SIGLIP):
        config = TowerConfig(DUAL_ENCODER, options)
        for side in (0, 1):
            name = f"{('image', 'text')[side]} {options['model_type']}"
            yield name, lambda config=config, side=side: build_towers(config, config)[side]


TOWERS = dict(towers())


@pytest.fixture(params=TOWERS)
def tower(request):
    torch.manual_seed(0)
    tower = TOWERS[request.param]().eval()
    if request.param.startswith("image"):
        tower.inputs = (torch.randn(3, 3, 32, 32),)
    else:
        ids = torch.tensor([[2, 5, 8, 7, 6, 3], [2, 6, 9, 5, 7, 3]])
        tower.inputs = (ids, torch.ones_like(ids))
    tower.again = TOWERS[request.param]
    return tower


def test_a_vit_with_weights_of_transformers_computes_the_same():
    theirs = TOWERS["image transformers"]().eval()
    ours = TOWERS["image vit"]().eval()
    state = theirs.network.state_dict()
    embeddings = "embeddings.patch_embeddings.projection"
    named = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for part in ("weight", "bias"):
        named |= {f"patch_embed.proj.{part}": state[f"{embeddings}.{part}"], f"norm.{part}": state[f"layernorm.{part}"]}
        for block in range(3):
            there, here = f"layers.{block}", f"blocks.{block}"
            qkv = [state[f"{there}.attention.{each}_proj.{part}"] for each in "qkv"]
            named |= {f"{here}.attn.qkv.{part}": torch.cat(qkv)}
            for old, new in (("attention.o_proj", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
                             ("layernorm_before", "norm1"), ("layernorm_after", "norm2")):  # fmt: skip
                named[f"{here}.{new}.{part}"] = state[f"{there}.{old}.{part}"]
    ours.load_state_dict(named)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        mine, given = ours(pixels, (2, 3)), theirs(pixels, (2, 3))
    assert all(torch.allclose(mine[layer], given[layer], atol=1e-4) for layer in (2, 3))


def every_layer(tower) -> tuple[int, ...]:
    return tuple(range(1, tower.depth + 1))


def test_every_registered_tower_and_head_is_held_to_this():
    assert set(IMAGE_TOWERS.names()) == {name.split()[0] for name in IMAGE}
    assert set(TEXT_TOWERS.names()) == {name.split()[0] for name in TEXT}
    assert set(HEADS.names()) == set(SIZES)


def test_a_layer_has_features_of_its_width(tower):
    with torch.no_grad():
        features = tower(*tower.inputs, every_layer(tower))
    assert {layer: tuple(rows.shape) for layer, rows in features.items()} == {
        layer: (len(tower.inputs[0]), width) for layer, width in enumerate(tower.widths, start=1)
    }


def test_a_layer_alone_is_what_it_is_among_others(tower):
    with torch.no_grad():
        whole = tower(*tower.inputs, every_layer(tower))
        for layer in every_layer(tower):
            alone = tower(*tower.inputs, (layer,))
            assert list(alone) == [layer] and torch.allclose(alone[layer], whole[layer], atol=1e-5)


def test_a_row_does_not_depend_on_the_others(tower):
    with torch.no_grad():
        whole = tower(*tower.inputs, every_layer(tower))
        first = tower(*(part[:1] for part in tower.inputs), every_layer(tower))
    for layer, rows in first.items():
        assert torch.allclose(rows, whole[layer][:1], atol=1e-5)


def test_gradients_reach_every_layer_that_is_read_and_no_later_one(tower):
    owned = [parameter for _, parameter in tower.parameters_by_layer()]
    assert len({id(parameter) for parameter in owned}) == len(owned)
    middle = max(1, tower.depth // 2)
    for last in (middle, tower.depth):
        tower.zero_grad()
        tower(*tower.inputs, (last,))[last].square().sum().backward()
        moved = {layer for layer, parameter in tower.parameters_by_layer() if parameter.grad is not None
                 and parameter.grad.abs().sum() > 0}  # fmt: skip
        assert set(range(1, last)) <= moved
        if not hasattr(tower, "dual"):  # transformers runs the whole network
            assert max(moved) <= last


def test_weights_that_were_kept_give_the_same_features(tower, tmp_path):
    save_file({name: tensor.contiguous().clone() for name, tensor in tower.state_dict().items()}, tmp_path / "w")
    other = tower.again().eval()
    other.load_state_dict(load_file(tmp_path / "w"))
    with torch.no_grad():
        assert torch.equal(*(each(*tower.inputs, (tower.depth,))[tower.depth] for each in (tower, other)))


@pytest.fixture(params=SIZES)
def kind(request):
    return request.param


def test_a_head_gives_unit_vectors_of_its_dims(kind):
    width, dim = SIZES[kind]
    torch.manual_seed(0)
    head = build_head(kind, width, dim)
    if hasattr(head, "anchor"):
        torch.nn.init.normal_(head.anchor)
    out = head(torch.randn(5, width))
    assert out.shape == (5, dim) and torch.allclose(out.norm(dim=1), torch.ones(5), atol=1e-5)


def test_gradients_go_through_a_head_to_its_input_and_its_parameters(kind):
    width, dim = SIZES[kind]
    torch.manual_seed(0)
    head, features = build_head(kind, width, dim), torch.randn(5, width, requires_grad=True)
    (head(features) @ torch.randn(dim)).sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_head_that_was_kept_gives_the_same_vectors(kind, tmp_path):
    width, dim = SIZES[kind]
    head, other, features = build_head(kind, width, dim), build_head(kind, width, dim), torch.randn(5, width)
    save_file(head.state_dict(), tmp_path / "w")
    other.load_state_dict(load_file(tmp_path / "w"))
    assert torch.equal(head(features), other(features))


@pytest.mark.parametrize(
    ("kind", "width", "dim"),
    [("residual", 8, 4), ("identity", 8, 4), ("prefix", 4, 8), ("prototype", 1000, 4), ("anchored_residual", 8, 15)],
)
def test_a_head_of_sizes_that_it_cannot_have_is_refused(kind, width, dim):
    with pytest.raises(ValueError, match=r"width|prefix|logits|even"):
        build_head(kind, width, dim)
