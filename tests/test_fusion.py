"""Fusion models by family: scores of pairs against the published computation, and what is kept of a picture."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hivlp.data.pictures import load_pixels  # noqa: E402
from hivlp.errors import MissingExtraError, ModelError, PictureError  # noqa: E402
from hivlp.index import Index  # noqa: E402
from hivlp.search.fusion import Shown  # noqa: E402
from hivlp.systems.albef import load_albef  # noqa: E402
from hivlp.systems.fusion import FAMILIES, load_reranker  # noqa: E402
from hivlp.systems.fusion import albef as albef_family  # noqa: E402
from hivlp.systems.fusion import blip as blip_family  # noqa: E402
from hivlp.systems.fusion.kept import KeptTokens  # noqa: E402
from hivlp.systems.fusion.texts import Tokens  # noqa: E402
from hivlp.systems.fusion.uniter import region_names  # noqa: E402
from hivlp.systems.fusion.vilt import scaled  # noqa: E402
from synthetic import FakeEncoder, write_pictures  # noqa: E402
from systems_oracle import (  # noqa: E402
    Oracle,
    albef,
    clip,
    meter,
    random_state,
    uniter_ranker,
)

pytestmark = pytest.mark.train

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "on", "the", "beach", "two", "cats", "play"]
TEXTS = ["a red dog", "two cats play on the beach", "dog"]
SIDE = 32


def save_tensors(path, state):
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)


def write_fusion(folder, family):
    """A small model folder of a family with random weights; gives what computes the same another way."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    torch.manual_seed(0)
    return globals()[f"write_{family}"](folder)


def settings(folder, **config):
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_uniter(folder):
    state = random_state(uniter_ranker(2, 64, 96, len(WORDS), 40, 24))
    save_tensors(folder / "uniter.pt", state)
    (folder / "regions").mkdir()
    for number in range(6):
        rng = np.random.default_rng(number)
        arrays = {"features": rng.random((12 + number, 24)), "norm_bb": rng.random((12 + number, 6))}
        arrays["conf"] = np.full(12 + number, 0.9)
        np.savez(folder / "regions" / f"flickr30k_{number:012}.npz", **{k: v.astype("f2") for k, v in arrays.items()})
    settings(folder, model_type="uniter", checkpoint="uniter.pt", regions="regions")

    def score(text, path):
        with np.load(folder / "regions" / f"flickr30k_{int(path.stem):012}.npz") as held:
            features, boxes = held["features"].astype("f4"), held["norm_bb"].astype("f4")
        boxes = np.concatenate([boxes, boxes[:, 4:5] * boxes[:, 5:6]], 1)
        return Oracle(state).uniter_score(ids(text), features, boxes, 2)

    return score


def ids(text):
    return [2, *(WORDS.index(word) for word in text.split()), 3]


def pixels(path, model):
    seen = load_pixels(path, model.picture).astype(np.float32)
    return ((seen - model.picture.mean) / model.picture.std).transpose(2, 0, 1)


def write_meter(folder):
    state = random_state(meter(clip(2, 64, 8, 4), 64, 2, 2, 64, 96, len(WORDS), 40), 3)
    save_tensors(folder / "meter.ckpt", state)
    settings(folder, model_type="meter", checkpoint="meter.ckpt", image_size=SIDE)

    def score(text, path):
        seen = Oracle(state).clip(pixels(path, load_reranker(folder)), 2)
        return Oracle(state).meter_score(ids(text), seen, 2, 2, "first")

    return score


def write_albef(folder):
    state = random_state(albef(2, 64, 8, 4, 4, 2, 96, len(WORDS), 40, 16))
    held = {name.replace("text_encoder.", "text_encoder.bert."): value for name, value in state.items()}
    held |= {"temp": np.ones((), "f4"), "image_queue": np.ones((16, 8), "f4"), "queue_ptr": np.zeros(1, "i8")}
    held |= {f"vision_proj_m.{part}": np.ones(3, "f4") for part in ("weight", "bias")}
    torch.save({"model": {name: torch.from_numpy(value) for name, value in held.items()}}, folder / "albef.pth")
    settings(folder, model_type="albef", checkpoint="albef.pth", image_size=SIDE)

    def score(text, path):
        return Oracle(state).albef_score(ids(text), pixels(path, load_reranker(folder)), 2, 4, 2)

    return score


def write_vilt(folder):
    from transformers import ViltConfig, ViltForImageAndTextRetrieval

    config = ViltConfig(vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=96, image_size=64, patch_size=32, max_position_embeddings=40,
                        max_image_length=-1, hidden_dropout_prob=0.0)  # fmt: skip
    network = ViltForImageAndTextRetrieval(config).eval()
    network.save_pretrained(folder)

    def score(text, path):
        seen = torch.from_numpy(load_reranker(folder).read(Shown.file(path))).permute(2, 0, 1).float()[None]
        return network(input_ids=torch.tensor([ids(text)]), pixel_values=seen / 127.5 - 1,
                       pixel_mask=torch.ones(1, *seen.shape[2:], dtype=torch.long)).logits.item()  # fmt: skip

    return score


def write_blip(folder):
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

    text = BlipTextConfig(vocab_size=len(WORDS) + 2, hidden_size=64, encoder_hidden_size=64, num_hidden_layers=2,
                          num_attention_heads=2, intermediate_size=96, max_position_embeddings=40)  # fmt: skip
    vision = BlipVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
                              image_size=SIDE, patch_size=8, initializer_range=0.1)  # fmt: skip
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=16)
    network = BlipForImageTextRetrieval(config).eval()
    network.save_pretrained(folder)

    def score(text, path):
        seen = torch.from_numpy(pixels(path, load_reranker(folder))).float()[None]
        tokens = torch.tensor([ids(text)])
        alone = network(tokens, seen, use_itm_head=False, attention_mask=torch.ones_like(tokens)).itm_score.item()
        tokens[0, 0] = len(WORDS) + 1  # [ENC]
        matched = network(tokens, seen, attention_mask=torch.ones_like(tokens)).itm_score[0, 1].item()
        return matched + alone

    return score


def write_bridgetower(folder):
    from transformers import (
        BridgeTowerConfig,
        BridgeTowerForImageAndTextRetrieval,
        BridgeTowerTextConfig,
        BridgeTowerVisionConfig,
    )

    text = BridgeTowerTextConfig(vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=4, num_attention_heads=2,
                                 intermediate_size=96, max_position_embeddings=40, pad_token_id=1)  # fmt: skip
    vision = BridgeTowerVisionConfig(hidden_size=64, num_hidden_layers=4, image_size=SIDE, patch_size=8)
    config = BridgeTowerConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), hidden_size=64,
                               num_hidden_layers=3, num_attention_heads=2, attn_implementation="eager")  # fmt: skip
    network = BridgeTowerForImageAndTextRetrieval(config).eval()
    network.save_pretrained(folder)

    def score(text, path):
        seen = torch.from_numpy(pixels(path, load_reranker(folder))).float()[None]
        tokens = torch.tensor([ids(text)])
        return network(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=seen).logits[0, 1].item()

    return score


@pytest.fixture(scope="module", params=FAMILIES)
def fused(request, tmp_path_factory):
    """A family's model folder, pictures named by number, and the score of a pair computed another way."""
    place = tmp_path_factory.mktemp(request.param)
    score = write_fusion(place / "model", request.param)
    paths = write_pictures(place / "pictures", 5)
    return request.param, place / "model", paths, score


def test_scores_are_the_published_computation_of_each_pair_alone(fused):
    _, folder, paths, score = fused
    model = load_reranker(folder)
    texts, shown = [text for text in TEXTS for _ in paths], [Shown.file(path) for path in paths] * len(TEXTS)
    found = model.score(texts, shown)
    with torch.no_grad():
        alone = [score(text, path) for text in TEXTS for path in paths]
    # Kept tokens are float16.
    assert found == pytest.approx(alone, abs=0.02 * max(1.0, np.abs(alone).max()), rel=0.02)
    assert np.corrcoef(found, alone)[0, 1] > 0.999


def test_a_text_is_cut_to_the_positions_that_the_model_has(fused):
    _, folder, paths, _ = fused
    model = load_reranker(folder)
    long, longer = ("red dog " * times for times in (300, 400))
    found = model.score([long, longer], [Shown.file(paths[0])] * 2)
    assert np.isfinite(found).all() and found[0] == pytest.approx(found[1], abs=1e-4)


def test_the_tokenizer_of_another_model_is_refused(fused, tmp_path):
    _, folder, _, _ = fused
    shutil.copytree(folder, tmp_path / "model")
    more = [*WORDS, *(f"word{number}" for number in range(9))]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(more), encoding="utf-8")
    with pytest.raises(ModelError, match=r"of another model: it has ids up to 22, the weights embeddings of 1[46]"):
        load_reranker(tmp_path / "model")


@pytest.mark.parametrize("positions", [0, 2])
def test_a_model_for_texts_without_words_is_refused(tmp_path, positions):
    with pytest.raises(ModelError, match="can say nothing"):
        Tokens(tmp_path, 40, positions=positions)


def test_regions_of_another_detector_are_done_without(tmp_path, caplog):
    write_fusion(tmp_path / "model", "uniter")
    paths = write_pictures(tmp_path / "pictures", 2)
    arrays = {"features": np.ones((12, 7), "f2"), "norm_bb": np.ones((12, 6), "f2"), "conf": np.ones(12, "f2")}
    np.savez(tmp_path / "model" / "regions" / "flickr30k_000000000001.npz", **arrays)
    found = load_reranker(tmp_path / "model").score(["dog"] * 2, [Shown.file(path) for path in paths])
    assert np.isnan(found).tolist() == [False, True]
    assert "7 features each, where the model takes 24" in caplog.text


def test_what_takes_long_shows_a_bar(tmp_path, monkeypatch, capsys):
    write_fusion(tmp_path / "model", "albef")
    paths = write_pictures(tmp_path / "pictures", 3)
    shown = [Shown.file(path) for path in paths]
    load_reranker(tmp_path / "model").score(["dog"] * 3, shown)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("hivlp.systems.fusion.model.UNTOLD", 0)
    load_reranker(tmp_path / "model").score(["dog"] * 3, shown)
    told = capsys.readouterr().err
    assert "re-ranking: pictures" in told and "re-ranking: pairs" in told


def test_without_rounding_scores_are_exact(fused, monkeypatch):
    _, folder, paths, score = fused
    monkeypatch.setattr("hivlp.systems.fusion.kept.HALF", torch.float32)
    found = load_reranker(folder).score(TEXTS, [Shown.file(path) for path in paths[:3]])
    with torch.no_grad():
        assert found == pytest.approx([score(*pair) for pair in zip(TEXTS, paths[:3], strict=True)], abs=2e-4, rel=2e-3)


def test_a_pictures_tokens_are_computed_once_and_scores_do_not_depend_on_it(fused, tmp_path):
    _, folder, paths, _ = fused
    model, shown = load_reranker(folder, keep=tmp_path / "kept"), [Shown.file(path) for path in paths]
    first = model.score([TEXTS[0]] * 5, shown)
    assert (model.tokens.computed, model.tokens.found) == (5, 0) and model.tokens.bytes_per_item > 0
    assert np.array_equal(model.score([TEXTS[0]] * 5, shown), first)
    assert (model.tokens.computed, model.tokens.found) == (5, 5)
    again = load_reranker(folder, keep=tmp_path / "kept")
    assert np.array_equal(again.score([TEXTS[0]] * 5, shown), first)
    assert (again.tokens.computed, again.tokens.found) == (0, 5), "another process finds them in the folder"


def test_a_picture_that_cannot_be_read_has_no_score(fused, tmp_path):
    _, folder, paths, _ = fused

    def gone():
        raise PictureError("gone")

    found = load_reranker(folder).score(
        ["dog"] * 3, [Shown.file(paths[0]), Shown("x", "x.jpg", gone), Shown.file(paths[1])]
    )
    assert np.isnan(found).tolist() == [False, True, False]


def test_each_family_has_its_published_rule(fused):
    family, folder, _, _ = fused
    rules = {
        "uniter": (100, "score alone"), "meter": (100, "score alone"), "vilt": (100, "score alone"),
        "albef": (128, "matching logit"), "blip": (128, "matching logit plus cosine"),
        "bridgetower": (128, "matching logit"),
    }  # fmt: skip
    model = load_reranker(folder)
    assert (model.depth, model.rule) == rules[family] and model.name == "model"


def test_an_index_is_searched_with_it(fused, tmp_path):
    _, folder, paths, _ = fused
    model = load_reranker(folder)
    with Index.create(tmp_path / "x.hivlp", model=FakeEncoder()) as index:
        index.add(paths)
        found = index.search("a red dog", k=5, rerank=model)
    scores = [hit.scores["fusion"] for hit in found]
    assert scores == sorted(scores, reverse=True) and len(scores) == 5


def test_a_missing_weight_is_named(fused, tmp_path):
    family, folder, _, _ = fused
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    weights = next(
        path for path in (tmp_path / "copy").iterdir() if path.suffix in (".pt", ".ckpt", ".pth", ".safetensors")
    )
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        state = load_file(weights)
        state.pop(max(state))
        save_file(state, weights, {"format": "pt"})
    else:
        held = torch.load(weights, weights_only=True)
        inner = held.get("model", held)
        inner.pop(next(name for name in inner if name.endswith("encoder.layer.1.output.dense.bias")))
        torch.save(held, weights)
    with pytest.raises(ModelError, match="lacks"):
        load_reranker(tmp_path / "copy")
    (tmp_path / "copy" / "vocab.txt").unlink()
    with pytest.raises(ModelError):
        load_reranker(tmp_path / "copy")
    assert family in FAMILIES


@pytest.mark.parametrize(("config", "said"), [({}, "family None"), ({"model_type": "clip"}, "known: uniter"),
                                              ({"model_type": "meter"}, "must name its checkpoint"),
                                              ({"model_type": "meter", "checkpoint": "x"}, "not there")])  # fmt: skip
def test_a_folder_that_is_no_fusion_model_is_refused(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        load_reranker(tmp_path)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_reranker(tmp_path / "nothing")


def test_albef_resizes_its_positions(tmp_path):
    write_fusion(tmp_path / "m", "albef")
    model = load_albef(tmp_path / "m" / "albef.pth", 48)
    assert model.encode_image(torch.zeros(1, 3, 48, 48)).shape == (1, 37, 64)


def test_captions_are_prepared_as_published():
    assert albef_family.plain("A dog's-eye view: two/three (big) cats!") == "a dogs eye view two three big cats"
    assert blip_family.plain('A "dog", sitting; on #1 the beach.') == "a dog , sitting on 1 the beach"
    assert len(albef_family.plain("a " * 50).split()) == 30 and len(blip_family.plain("a " * 99).split()) == 50


@pytest.mark.parametrize(
    ("size", "seen"),
    [((640, 480), (512, 384)), ((480, 640), (384, 512)), ((3000, 500), (608, 96)), ((500, 500), (384, 384))],
)
def test_vilt_keeps_proportions(size, seen):
    assert scaled(size, 384) == seen


def test_region_features_are_found_by_a_pictures_name():
    assert next(region_names("COCO_val2014_000000391895.jpg")) == "coco_val2014_000000391895.npz"
    assert next(region_names("1000092795.jpg")) == "flickr30k_001000092795.npz"
    assert list(region_names("holiday.jpg")) == ["holiday.npz"]


def test_tokens_beyond_the_memory_are_let_go(tmp_path):
    kept = KeptTokens("model", memory=3 * 64)
    made = []

    def compute(places):
        made.extend(places)
        return [torch.ones(8, 4) for _ in places]

    for key in ("a", "b", "c", "a", "d", "a", "b"):
        assert kept.get([key], compute)[0].shape == (8, 4)
    assert kept.computed == 5 and kept.bytes_per_item == 64, "b was let go for d, a was not"


def test_damaged_tokens_in_a_folder_are_computed_again(tmp_path):
    first = KeptTokens("model", tmp_path)
    first.get(["a"], lambda places: [torch.ones(2, 3)])
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-1])
    second = KeptTokens("model", tmp_path)
    assert second.get(["a"], lambda places: [torch.zeros(2, 3)])[0].sum() == 0 and second.computed == 1
    other = KeptTokens("another model", tmp_path)
    assert other.get(["a"], lambda places: [torch.ones(1, 1)])[0].shape == (1, 1), "another model's are not taken"


def test_without_torch_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    import importlib.util
    from argparse import Namespace

    from hivlp.cli.models import load_fusion

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="--rerank needs more than is installed"):
        load_fusion(Namespace(rerank=tmp_path, rerank_depth=None, rerank_keep=None))


@pytest.mark.parametrize("config", [{"num_hidden_layers": 10**7}, {"text_config": {"num_hidden_layers": 10**7}}])
def test_a_network_of_millions_of_layers_is_refused_before_it_is_built(tmp_path, config):
    write_fusion(tmp_path / "vilt", "vilt")
    told = json.loads((tmp_path / "vilt" / "config.json").read_text())
    settings(tmp_path / "vilt", **(told | config))
    with pytest.raises(ModelError, match="num_hidden_layers"):
        load_reranker(tmp_path / "vilt")


def test_a_folder_of_another_family_is_refused_in_one_line(tmp_path, capfd):
    write_fusion(tmp_path / "bridgetower", "bridgetower")
    told = json.loads((tmp_path / "bridgetower" / "config.json").read_text())
    settings(tmp_path / "bridgetower", **(told | {"model_type": "vilt"}))
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"(lacks|cannot be loaded)") as refused:
        load_reranker(tmp_path / "bridgetower")
    assert len(str(refused.value).splitlines()) == 1 and capfd.readouterr() == ("", "")
