"""Starting weights: what is loaded from where, what is not, and what does not fit in one line."""

import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from hivlp.config import PictureConfig, TextConfig, TowerConfig  # noqa: E402
from hivlp.errors import ModelError, RecipeError  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.model.towers import build_towers  # noqa: E402
from hivlp.train.job import averaged  # noqa: E402
from hivlp.train.recipe.check import check_recipe  # noqa: E402
from hivlp.train.recipe.schema import Recipe  # noqa: E402
from hivlp.train.schedule import parameter_groups  # noqa: E402
from hivlp.train.starting import load_tower, load_whole  # noqa: E402
from hivlp.train.state.shard import checkpoint_activations  # noqa: E402
from hivlp.train.weights import build_model  # noqa: E402
from hivlp.typed import build  # noqa: E402
from synthetic import BERT, VOCABULARY, WITHOUT_DROPOUT, save_checkpoint, tiny_config, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.train

VIT = {"image_size": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2}
TEXT = {**BERT, **WITHOUT_DROPOUT}


def vit(**changes):
    return TowerConfig("vit", {**VIT, **changes})


def bert(**changes):
    return TowerConfig("bert", {**TEXT, **changes})


def image_tower(**changes):
    return build_towers(vit(**changes), bert())[0]


def text_tower(**changes):
    return build_towers(vit(), bert(**changes))[1]


def whole(**changes):
    levels = (Level("coarse", 4, 1, 1), Level("fine", 16, 2, 3))
    settings = {"levels": levels, "image_tower": vit(), "text_tower": bert(), "picture": PictureConfig(32)}
    return HiVLPModel(tiny_config(**{**settings, **changes}))


def same(one, other) -> bool:
    there = other.state_dict()
    return all(torch.equal(value, there[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual."])
def test_a_tower_is_filled_from_a_file_under_any_prefix(tmp_path, suffix, prefix):
    source, tower = image_tower(), image_tower()
    state = {prefix + name: value for name, value in source.state_dict().items()} | {"head.weight": torch.zeros(3, 16)}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    found = load_tower(tower, "image", str(path))
    assert same(source, tower) and not found.missing and found.unused == ("head.weight",)
    assert found.tensors == len(source.state_dict()) and "not used: head.weight" in str(found)


def test_a_tower_comes_from_an_earlier_run_and_so_does_the_whole(tmp_path):
    before = whole()
    before.save_pretrained(tmp_path / "run")
    model = whole()
    load_tower(model.image_tower, "image", str(tmp_path / "run"))
    assert same(before.image_tower, model.image_tower) and not same(before.text_tower, model.text_tower)
    assert not load_whole(model, str(tmp_path / "run")).missing and same(before, model)
    levels = (Level("first", 4, 1, 1), Level("fine", 16, 2, 3))
    found = load_whole(whole(levels=levels), str(tmp_path / "run"))
    assert {name.split(".")[1] for name in found.missing} == {"first"}
    assert {name.split(".")[1] for name in found.unused} == {"coarse"}


def test_a_clip_checkpoint_starts_a_dual_encoder_whose_heads_are_new(tmp_path):
    network, _ = save_checkpoint(tmp_path / "clip", "clip")
    options = network.config.to_dict()
    tower = TowerConfig("dual_encoder", options, {"fine": "identity"})
    model = whole(image_tower=tower, text_tower=tower, picture=PictureConfig(16),
                  levels=(Level("coarse", 4, 1, 1), Level("fine", 8, 2, 2)))  # fmt: skip
    found = load_whole(model, str(tmp_path / "clip"))
    assert same(network, model.image_tower.dual.network) and all("_heads.coarse" in name for name in found.missing)


@pytest.mark.parametrize("kind", ["bert", "transformers"])
def test_a_text_tower_comes_from_a_checkpoint_of_transformers(tmp_path, kind):
    from transformers import BertConfig, BertForMaskedLM

    network = BertForMaskedLM(BertConfig(**{**BERT, "max_position_embeddings": 24}))
    network.save_pretrained(tmp_path / "bert")
    options = TEXT if kind == "bert" else {"model_type": "bert", **TEXT}
    tower = build_towers(vit(), TowerConfig(kind, options))[1]
    found = load_tower(tower, "text", str(tmp_path / "bert"))
    assert "resized: " in str(found) and "position_embeddings" in found.resized[0]
    mine = tower.state_dict()
    words = next(name for name in mine if name.endswith("word_embeddings.weight"))
    assert torch.equal(mine[words], network.state_dict()["bert.embeddings.word_embeddings.weight"])


def test_old_names_of_berts_layer_norm_are_read_and_layer_scale_keeps_its_own(tmp_path):
    source, tower = text_tower(), text_tower()
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in source.state_dict().items()}  # fmt: skip
    torch.save(old, tmp_path / "old.bin")
    load_tower(tower, "text", str(tmp_path / "old.bin"))
    assert same(source, tower)
    scaled, other = image_tower(layer_scale=0.3), image_tower(layer_scale=0.1)
    torch.save(scaled.state_dict(), tmp_path / "scaled.pt")
    load_tower(other, "image", str(tmp_path / "scaled.pt"))
    assert same(scaled, other)


def test_positions_are_resized_to_another_picture_size_and_registers_start_anew(tmp_path):
    source = image_tower()
    torch.save(source.state_dict(), tmp_path / "vit.pt")
    tower = image_tower(image_size=64, registers=2)
    found = load_tower(tower, "image", str(tmp_path / "vit.pt"))
    assert found.resized == ("pos_embed",) and found.missing == ("reg_token",)
    assert torch.equal(tower.pos_embed[:, 0], source.pos_embed[:, 0]) and tower.pos_embed.shape == (1, 65, 16)
    centre = tower.pos_embed[0, 1:].reshape(8, 8, 16).mean((0, 1))
    assert torch.allclose(centre, source.pos_embed[0, 1:].mean(0), atol=5e-3)


@pytest.mark.parametrize(
    ("tower", "state", "message"),
    [
        (image_tower, lambda: image_tower(width=32).state_dict(), "cls_token is (1, 1, 32), not (1, 1, 16)"),
        (image_tower, lambda: image_tower(depth=1).state_dict(), "lacks 12 of 30 tensors, the first of them blocks.1"),
        (image_tower, lambda: text_tower().state_dict(), "another architecture: no cls_token; it has bert."),
        (image_tower, dict, "it holds no tensors"),
        (text_tower, lambda: text_tower(vocab_size=20).state_dict(),
         "a vocabulary of 20 does not fit the text tower's 13 (vocab_size)"),
        (text_tower, lambda: text_tower(max_position_embeddings=8).state_dict(), "8 positions, the text tower 16"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path, tower, state, message):
    torch.save(state(), tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_tower(tower(), "image" if tower is image_tower else "text", str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value) and message in str(caught.value)
    assert str(caught.value).startswith("init.")


def test_nothing_is_unpickled(tmp_path):
    torch.save({"weight": SimpleNamespace()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="without unpickling"):
        load_tower(image_tower(), "image", str(tmp_path / "w.pt"))


def recipe(tmp_path, **changes) -> Recipe:
    write_tokenizer(tmp_path / "tokenizer")
    settings = {
        "name": "start",
        "levels": [{"name": "coarse", "dim": 4, "image_layer": 1, "text_layer": 1},
                   {"name": "fine", "dim": 16, "image_layer": 2, "text_layer": 3}],
        "image_tower": {"kind": "vit", "options": VIT},
        "text_tower": {"kind": "bert", "options": TEXT},
        "picture": {"size": 32},
        "text": {"max_tokens": 12},
        "init": {"tokenizer": str(tmp_path / "tokenizer")},
        "train": [{"source": "demo"}],
        "quantize": False,
        "optim": {"tower_lr": 1e-3, "tower_weight_decay": 0.1},
    }  # fmt: skip
    return build(Recipe, {**settings, **changes})


def test_a_run_brings_its_tokenizer_and_says_what_was_loaded(tmp_path, caplog):
    caplog.set_level("INFO")
    whole(text=TextConfig(12)).save_pretrained(tmp_path / "before", write_tokenizer(tmp_path / "words"))
    asked = recipe(tmp_path, init={"model": str(tmp_path / "before")})
    check_recipe(asked)
    (tmp_path / "run").mkdir()
    model, tokenizer, _ = build_model(asked, tmp_path / "run")
    assert tokenizer.backend.get_vocab_size() == len(VOCABULARY) and "init.model: loaded" in caplog.text
    assert json.loads((tmp_path / "run" / "starting.json").read_text())[0]["tensors"] == len(model.state_dict())


def test_a_vocabulary_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    asked = recipe(tmp_path, text_tower={"kind": "bert", "options": {**TEXT, "vocab_size": 9}})
    with pytest.raises(ModelError, match="the tokenizer has 13 words, the text tower 9"):
        build_model(asked, tmp_path / "run")
    with pytest.raises(RecipeError, match="model fills both towers"):
        recipe(tmp_path, init={"model": "x/y", "image": "x/y"})


def test_checkpointed_layers_have_the_gradients_of_all_others(tmp_path):
    torch.manual_seed(0)
    model = whole()
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    ids = torch.tensor([[2, 5, 8, 3]] * 4)

    def gradients():
        model.zero_grad()
        image, text = model(pixels, (ids, torch.ones_like(ids)))
        sum((image[level] * text[level]).sum() for level in image).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    before = gradients()
    checkpoint_activations(model)
    after = gradients()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_the_last_weights_are_averaged_equally(tmp_path):
    model = whole()
    average = averaged(model, recipe(tmp_path, optim={"average": 0.5}))
    values = [torch.randn_like(model.image_tower.cls_token) for _ in range(3)]
    for value in values:
        model.image_tower.cls_token.data.copy_(value)
        average.update_parameters(model)
    assert torch.allclose(average.module.image_tower.cls_token, sum(values) / 3, atol=1e-6)


def test_positions_and_tokens_of_a_vit_do_not_decay(tmp_path):
    from hivlp.objective import HierarchicalObjective

    asked = recipe(tmp_path)
    model = whole()
    groups = parameter_groups(
        model, HierarchicalObjective(("coarse", "fine"), asked.objective), torch.nn.Module(), asked
    )
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    tower = dict(model.image_tower.named_parameters())
    assert {decays[id(tower[name])] for name in ("cls_token", "pos_embed", "norm.weight")} == {0.0}
    assert {decays[id(tower[f"blocks.0.{name}.weight"])] for name in ("attn.qkv", "mlp.fc1")} == {0.1}
