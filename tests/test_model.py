"""Towers, heads, model folders and graphs."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hivlp.config import HiVLPConfig, PictureConfig, TextConfig, TowerConfig  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import ModelError  # noqa: E402
from hivlp.export.graphs import export  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.mini.efficientnet import EfficientNetLite, EfficientNetOptions  # noqa: E402
from hivlp.mini.heads import (  # noqa: E402
    ANCHOR,
    ASKED,
    CLASS_TEMPERATURE,
    CLASSES,
    SEEN,
    AnchoredPrototypeHead,
    AnchoredResidualHead,
    PrototypeHead,
)
from hivlp.model.heads import ResidualHead  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.model.towers import BertTextTower  # noqa: E402
from synthetic import BERT, save_tiny, tiny_config, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_lite2_has_the_published_size():
    tower = EfficientNetLite(EfficientNetOptions("lite2"))
    assert sum(p.numel() for p in tower.parameters()) == 6_092_072
    assert tower.widths == [16, 24, 48, 88, 120, 208, 352, 2280]


@pytest.mark.parametrize("size", [32, 33, 47])
def test_same_padding_keeps_tensorflows_sizes(size):
    tower = EfficientNetLite(EfficientNetOptions("lite0")).eval()
    x = tower.stem(torch.zeros(1, 3, size, size))
    for stage, stride in zip(tower.stages, (1, 2, 2, 2, 1, 2, 1), strict=True):
        before = x.shape[-1]
        x = stage(x)
        assert x.shape[-1] == -(-before // stride)


def test_an_early_layer_costs_less():
    from torch.utils.flop_counter import FlopCounterMode

    model = HiVLPModel(tiny_config()).eval()
    pixels, tokens = torch.zeros(1, 3, 32, 32), torch.ones(1, 8, dtype=torch.int64)

    def flops(side: str, layer: int) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if side == "image":
                model.image_tower(pixels, (layer,))
            else:
                model.text_tower(tokens, tokens, (layer,))
        return int(counter.get_total_flops())

    text = [flops("text", layer) for layer in (1, 2, 3)]
    assert text[1] == 2 * text[0] and text[2] == 3 * text[0]
    image = [flops("image", layer) for layer in range(1, 9)]
    assert image == sorted(image) and len(set(image)) == 8


def test_towers_stop_at_the_deepest_layer_asked_for():
    image, text = EfficientNetLite(EfficientNetOptions("lite0")).eval(), BertTextTower(BERT).eval()
    calls = []
    for number, stage in enumerate(image.stages, start=1):
        stage.register_forward_hook(lambda *_, number=number: calls.append(("image", number)))
    for number, block in enumerate(text.bert.encoder.layer, start=1):
        block.register_forward_hook(lambda *_, number=number: calls.append(("text", number)))
    with torch.no_grad():
        early = image(torch.zeros(1, 3, 32, 32), (2, 4))
        text(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long), (2,))
    assert sorted(early) == [2, 4]
    assert calls == [("image", n) for n in (1, 2, 3, 4)] + [("text", n) for n in (1, 2)]


def test_the_text_tower_is_the_transformers_model_and_ignores_padding():
    torch.manual_seed(0)
    tower = BertTextTower(BERT).eval()
    ids = torch.tensor([[2, 5, 8, 3], [2, 6, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        hidden = tower.bert(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        features = tower(ids, mask, (1, 3))
        alone = tower(ids[1:, :3], mask[1:, :3], (1, 3))
    for layer in (1, 3):
        expected = hidden[layer][0].mean(0), hidden[layer][1, :3].mean(0)
        assert torch.allclose(features[layer], torch.stack(expected), atol=1e-5)
        assert torch.allclose(features[layer][1:], alone[layer], atol=1e-5)


def test_heads_start_as_documented():
    features = torch.randn(5, 8)
    unit = torch.nn.functional.normalize(features, dim=-1)
    assert torch.allclose(ResidualHead(8, 8)(features), unit, atol=1e-6)
    head = PrototypeHead(8, 3, classes=4)
    torch.nn.init.zeros_(head.project.weight)
    torch.nn.init.zeros_(head.project.bias)
    expected = features[:, 4:].softmax(1) @ head.values
    assert torch.allclose(head(features), torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)


def test_an_anchored_similarity_is_the_weighted_sum_of_both():
    torch.manual_seed(0)
    image_head, text_head = AnchoredPrototypeHead(CLASSES + 6, 16), AnchoredResidualHead(8, 16)
    torch.nn.init.normal_(image_head.anchor)
    torch.nn.init.normal_(text_head.trained.project.weight)
    images, texts = torch.randn(3, CLASSES + 6), torch.randn(4, 8)
    unit = torch.nn.functional.normalize
    anchor = unit(images[:, 6:].softmax(1) @ image_head.anchor, dim=-1) @ unit(texts, dim=-1).T
    expected = (image_head.trained(images) @ text_head.trained(texts).T + ANCHOR * anchor) / (1 + ANCHOR)
    got = image_head(images) @ text_head(texts).T
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(image_head(images).norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_text_that_asks_adds_the_classes_it_is_like():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    image_head, text_head = AnchoredPrototypeHead(CLASSES + 6, 16).eval(), AnchoredResidualHead(8, 16).eval()
    image_head.anchor.copy_(unit(torch.randn(CLASSES, 8), dim=-1))
    images, texts = torch.randn(3, CLASSES + 6), torch.randn(4, 8)
    trained = image_head.trained(images) @ text_head.trained(texts).T
    seen = unit(images[:, 6:].softmax(1) @ image_head.anchor, dim=-1)

    def ratio(said):
        """Of what the dot product is to the weighted sum of the two similarities."""
        return (image_head(images) @ text_head(texts).T) / (trained + ASKED * seen @ said.T)

    alone = ratio(unit(texts, dim=-1))
    assert torch.allclose(alone, alone[:1, :1].expand_as(alone), rtol=1e-3)
    text_head.classes.copy_(image_head.anchor)
    likely = (unit(texts, dim=-1) @ image_head.anchor.T / CLASS_TEMPERATURE).softmax(1) @ image_head.anchor
    both = ratio(unit(unit(texts, dim=-1) + SEEN * unit(likely, dim=-1), dim=-1))
    assert torch.allclose(both, alone, rtol=1e-3)
    assert torch.allclose(text_head(texts).norm(dim=1), torch.ones(4), atol=1e-5)


def test_a_folder_gives_back_the_same_model(folder):
    torch.manual_seed(1)
    model = HiVLPModel.from_pretrained(folder)
    again = HiVLPModel(HiVLPConfig.load(folder))
    again.load_state_dict(model.state_dict())
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    for a, b in zip(model.encode_image(pixels).values(), again.eval().encode_image(pixels).values(), strict=True):
        assert torch.equal(a, b)


def test_graphs_equal_torch(folder):
    model, encoder = HiVLPModel.from_pretrained(folder), HiVLP.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    texts = ["a red circle", "the blue square on white", "green", "a a a a a a a a a a a a a a a a a a a a"]
    images, captions = encoder.encode_pixels(pixels), encoder.encode_text(texts)
    with torch.no_grad():
        expected = model.encode_image(torch.from_numpy(pixels))
        for level in ("coarse", "fine"):
            np.testing.assert_allclose(images[level], expected[level].numpy(), atol=2e-5)
        for row, text in enumerate(texts):
            encoding = encoder._tokenizer.backend.encode(text)
            alone = model.encode_text(torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask]))
            for level in ("coarse", "fine"):
                np.testing.assert_allclose(captions[level][row], alone[level][0].numpy(), atol=2e-5)


def test_the_coarse_text_level_does_not_run_the_deeper_layers(folder, tmp_path):
    import onnx

    def attention_layers(name):
        nodes = onnx.load(str(folder / name), load_external_data=False).graph.node
        return sum(node.op_type == "Softmax" for node in nodes)

    assert attention_layers("text.onnx") == 3
    assert attention_layers("text.coarse.onnx") == 1
    encoder = HiVLP.from_pretrained(folder)
    both = encoder.encode_text(["a red circle", "blue"])
    alone = encoder.encode_text(["a red circle", "blue"], levels=["coarse"])
    assert list(alone) == ["coarse"]
    np.testing.assert_allclose(alone.coarse, both.coarse, atol=1e-6)
    # The graph that was used is the short one: without it, the coarse level alone cannot be had.
    encoder.save_pretrained(tmp_path)
    (tmp_path / "text.coarse.onnx").unlink()
    without = HiVLP.from_pretrained(tmp_path)
    without.encode_text(["blue"])
    with pytest.raises(ModelError, match=r"text\.coarse\.onnx"):
        without.encode_text(["blue"], levels=["coarse"])


IMAGENET = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}


@pytest.mark.parametrize(("normalisation", "fed"), [({}, "Transpose"), (IMAGENET, "Cast")], ids=["bytes", "imagenet"])
def test_int8_graphs_stay_close(tmp_path_factory, tmp_path, normalisation, fed):
    onnx = pytest.importorskip("onnx")
    folder = save_tiny(tmp_path_factory.mktemp("float"), picture=PictureConfig(size=32, **normalisation))
    HiVLPModel.from_pretrained(folder).save_pretrained(tmp_path, folder / "tokenizer.json")
    calibration = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    export(tmp_path, calibration=calibration, quantize_text=True)
    pixels = np.random.default_rng(2).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    exact, small = HiVLP.from_pretrained(folder), HiVLP.from_pretrained(tmp_path)
    assert (tmp_path / "image.onnx").stat().st_size < 0.5 * (folder / "image.onnx").stat().st_size
    for a, b in ((exact.encode_pixels(pixels), small.encode_pixels(pixels)),
                 (exact.encode_text(["a red circle"]), small.encode_text(["a red circle"]))):  # fmt: skip
        assert ((a.fine * b.fine).sum(1) > 0.97).all()
    assert exact.fingerprint != small.fingerprint
    # Nothing in float between the convolutions; bytes go straight into the first one where the scale allows it.
    nodes = onnx.load(str(tmp_path / "image.onnx")).graph.node
    assert "Pad" not in {node.op_type for node in nodes}
    assert [node.op_type for node in nodes if "pixels" in node.input] == [fed]


def test_broken_folders_are_refused_in_a_sentence(tmp_path, folder):
    with pytest.raises(ModelError, match=r"no config\.json"):
        HiVLP.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ModelError, match="upgrade hivlp"):
        HiVLP.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"image\.onnx"):
        HiVLP.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        HiVLPModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="does not fit"):
        HiVLPModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no model 'nosuch'"):
        HiVLP.from_pretrained("nosuch")


def test_levels_must_fit_their_towers():
    with pytest.raises(ModelError, match="reads layer 9"):
        HiVLPModel(tiny_config(levels=(Level("fine", 16, 9, 3),)))
    with pytest.raises(ModelError, match="residual"):
        HiVLPModel(tiny_config(levels=(Level("coarse", 4, 6, 1), Level("fine", 12, 8, 3))))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_dual_encoders_finest_level_is_its_own_embedding(family, tmp_path):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {"vocab_size": len(BERT) + 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    if family == "clip":
        text |= {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
        original = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
        dim = 8
    else:
        original = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
        dim = 16
    identity = {"fine": "identity"}
    tower = TowerConfig("dual_encoder", original.config.to_dict(), identity)
    config = HiVLPConfig(
        name=family,
        levels=(Level("coarse", 4, 1, 1), Level("fine", dim, 3, 2)),
        image_tower=tower,
        text_tower=tower,
        picture=PictureConfig(size=16),
        text=TextConfig(max_tokens=12, pad_to_max=family == "siglip"),
    )
    model = HiVLPModel(config).eval()
    model.image_tower.dual.network.load_state_dict(original.state_dict())
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    ids = torch.tensor([[2, 5, 9, 3] + [0] * 8, [2, 7, 3, 0] + [0] * 8])
    mask = (ids != 0).long()
    with torch.no_grad():
        output = original(input_ids=ids, pixel_values=((pixels.float() - 127) / 128).permute(0, 3, 1, 2),
                          attention_mask=None if family == "siglip" else mask)  # fmt: skip
        mine_image, mine_text = model.encode_image(pixels), model.encode_text(ids, mask)
    assert torch.allclose(mine_image["fine"], output.image_embeds, atol=1e-5)
    assert torch.allclose(mine_text["fine"], output.text_embeds, atol=1e-5)
    model.save_pretrained(tmp_path, write_tokenizer(tmp_path))
    export(tmp_path)
    encoder = HiVLP.from_pretrained(tmp_path)
    np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy()).fine, output.image_embeds.numpy(), atol=1e-4)
