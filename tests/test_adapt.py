"""A coarse level for models that are already trained: CLIP, SigLIP, and our own."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

from hivlp.cli import main  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import DataError, HivlpError, ModelError  # noqa: E402
from hivlp.formats.dual_encoder import import_dual_encoder  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.objective.codes import quantize  # noqa: E402
from hivlp.train.adapt import (  # noqa: E402
    AdaptConfig,
    adapt,
    distill_coarse,
    read_items,
    temperature_for,
    with_coarse_level,
)
from synthetic import save_checkpoint, save_tiny, tiny_config  # noqa: E402

pytestmark = pytest.mark.train
QUICK = AdaptConfig(dims=4, steps=40)
WORDS = ["a red circle", "the blue square", "a green square on white", "A RED square", "the circle", "white"]


@pytest.fixture
def pictures(tmp_path):
    """Thirty pictures with captions, and one that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(WORDS[number % len(WORDS)] + f"\n{WORDS[number // 6]} on white")
    (folder / "broken.png").write_text("not a picture")
    (folder / "broken.txt").write_text("a circle")
    return folder


def pixels(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("text_layer", [None, 1])
def test_the_original_embedding_stays_as_it_is(family, text_layer, tmp_path, pictures):
    source = tmp_path / "source"
    source.mkdir()
    save_checkpoint(source, family)
    settings = AdaptConfig(dims=4, steps=40, text_layer=text_layer, shortlist=5)
    result = adapt(str(source), str(pictures), tmp_path / "out", settings)
    assert result.levels == {"coarse": 4, "fine": 8 if family == "clip" else 16}
    assert result.pictures == 30 and result.texts == len(
        {caption for file in pictures.glob("*.txt") for caption in file.read_text().splitlines()}
    )
    import_dual_encoder(source, tmp_path / "plain")
    assert main(["export", str(tmp_path / "plain")]) == 0
    plain, adapted = HiVLP.from_pretrained(tmp_path / "plain"), HiVLP.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(adapted.encode_pixels(pixels(16)).fine, plain.encode_pixels(pixels(16)).fine)
    np.testing.assert_array_equal(adapted.encode_text(WORDS).fine, plain.encode_text(WORDS).fine)
    assert adapted.levels[0] == Level("coarse", 4, 2, text_layer or 2)
    if family == "siglip":  # which was trained on lower case
        np.testing.assert_array_equal(adapted.encode_text(["A Red"]).coarse, adapted.encode_text(["a red"]).coarse)
    early = adapted.encode_text(WORDS, levels=["coarse"]).coarse
    np.testing.assert_allclose(early, adapted.encode_text(WORDS).coarse, atol=1e-6)
    assert result.recalls["train"].scores.shortlist == 5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "unchanged" in card and "30 pictures" in card


@pytest.mark.parametrize("known", [("pictures", "texts"), ("pictures",), ("texts",)])
@pytest.mark.parametrize("code", ["int8", "binary"])
def test_a_coarse_level_finds_what_the_original_would(known, code):
    """Held-out texts among held-out pictures, by vectors whose spread is uneven; against the first dimensions."""
    rng = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=rng)).Q
    spread = torch.arange(1, 17).float() ** -0.8

    def unit(count: int) -> torch.Tensor:
        return torch.nn.functional.normalize((torch.randn(count, 16, generator=rng) * spread) @ turn, dim=1)

    config = tiny_config(levels=(Level("fine", 16, 8, 3),))
    model = with_coarse_level(HiVLPModel(config), AdaptConfig(dims=8))
    distill_coarse(
        model,
        *(unit(600) if kind in known else None for kind in ("pictures", "texts")),
        None,
        AdaptConfig(dims=8, steps=150, code=code),
    )
    pictures, texts = unit(300), unit(200)
    wanted = (texts @ pictures.T).topk(5).indices

    def kept(queries: torch.Tensor, items: torch.Tensor) -> float:
        found = (queries @ quantize(items, code).T).topk(30).indices
        return float((wanted[:, :, None] == found[:, None, :]).any(2).float().mean())

    with torch.no_grad():
        ours = kept(model.text_heads["coarse"](texts), model.image_heads["coarse"](pictures))
    assert ours > kept(texts[:, :8], pictures[:, :8]) + 0.1


@pytest.mark.parametrize("alone", ["pictures", "texts"])
def test_pictures_or_texts_alone_are_enough(alone, tmp_path, pictures):
    source = save_tiny(tmp_path / "model", levels=(Level("fine", 16, 8, 3),))
    data = pictures
    if alone == "pictures":
        for file in pictures.glob("*.txt"):
            file.unlink()
    else:
        data = tmp_path / "texts.txt"
        data.write_text("\n".join(f"{a} {b}" for a in WORDS for b in WORDS) + "\n\n")
    result = adapt(str(source), str(data), tmp_path / "out", QUICK)
    assert (result.pictures, result.texts) == ((30, 0) if alone == "pictures" else (0, 36))
    assert not result.recalls
    model = HiVLPModel.from_pretrained(tmp_path / "out")
    heads = model.image_heads["coarse"], model.text_heads["coarse"]
    assert torch.equal(heads[0].project.weight, heads[1].project.weight), "one kind cannot tell how the other differs"


def test_what_the_towers_said_is_kept(tmp_path, pictures, monkeypatch):
    source = save_tiny(tmp_path / "model", levels=(Level("fine", 16, 8, 3),))
    first = adapt(str(source), str(pictures), tmp_path / "out", QUICK)
    vectors = HiVLP.from_pretrained(tmp_path / "out").encode_text(WORDS).coarse

    def never(*_):
        raise AssertionError("a tower ran again")

    with monkeypatch.context() as patched:
        patched.setattr("hivlp.train.inputs.vectors.encode_stream", never)
        patched.setattr("hivlp.train.adapt.evaluate", lambda *_, **__: SimpleNamespace(to_json=dict))
        patched.setattr("hivlp.train.adapt.model_card", lambda *_: "")
        again = adapt(str(source), str(pictures), tmp_path / "out", QUICK)
    assert again.pictures == first.pictures
    np.testing.assert_array_equal(HiVLP.from_pretrained(tmp_path / "out").encode_text(WORDS).coarse, vectors)


def test_a_model_that_has_a_coarse_level_gets_another(tmp_path, pictures):
    source = save_tiny(tmp_path / "model")
    before = HiVLP.from_pretrained(source)
    adapt(str(source), str(pictures), tmp_path / "out", AdaptConfig(dims=6, steps=20, code="binary"))
    after = HiVLP.from_pretrained(tmp_path / "out")
    assert [level.dim for level in before.levels] == [4, 16] and [level.dim for level in after.levels] == [6, 16]
    np.testing.assert_array_equal(before.encode_text(WORDS).fine, after.encode_text(WORDS).fine)


def test_an_adapted_model_indexes_searches_and_evaluates(tmp_path, pictures, capsys):
    source = save_tiny(tmp_path / "model", levels=(Level("fine", 16, 8, 3),))
    out, index = str(tmp_path / "out"), str(tmp_path / "x.hivlp")
    assert main(["adapt", str(source), str(pictures), "-o", out, "--dims", "4", "--steps", "20", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["levels"] == {"coarse": 4, "fine": 16} and "cascade" in result["train"]
    assert main(["index", str(pictures), "-o", index, "--model", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 30
    assert main(["search", index, "a red circle", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["hits"][0]["scores"]) == {"coarse", "fine"}
    assert main(["evaluate", str(pictures), "--model", out]) == 0


def test_broken_pictures_are_named_and_passed_over(tmp_path, pictures, caplog):
    source = save_tiny(tmp_path / "model", levels=(Level("fine", 16, 8, 3),))
    with caplog.at_level(logging.WARNING):
        adapt(str(source), str(pictures), tmp_path / "out", QUICK)
    assert "skipped broken.png" in caplog.text


def test_the_test_part_is_not_learned_from(tmp_path):
    lines = [{"image": f"{n}.png", "caption": f"c{n}", "split": ("train", "val", "test")[n % 3]} for n in range(9)]
    table = tmp_path / "captions.jsonl"
    table.write_text("\n".join(json.dumps(line) for line in lines))
    items = read_items(str(table), AdaptConfig())
    assert sorted(items.texts) == ["c0", "c3", "c6"]
    assert {name: sorted(pair.captions[0] for pair in part) for name, part in items.held_out.items()} == {
        "validation": ["c1", "c4", "c7"], "test": ["c2", "c5", "c8"]
    }  # fmt: skip
    assert read_items(str(table), AdaptConfig(limit=2)).texts == ["c0", "c3"]
    with pytest.raises(DataError, match="not to learn from"):
        read_items(str(table), AdaptConfig(split="test"))
    table.write_text("\n".join(json.dumps(line) for line in lines if line["split"] != "train"))
    with pytest.raises(DataError, match="no pairs of the split 'train' to learn from; it has val, test"):
        read_items(str(table), AdaptConfig())
    assert sorted(read_items(str(table), AdaptConfig(split="val")).texts) == ["c1", "c4", "c7"]


def test_the_temperature_suits_the_spread_of_the_scores():
    rng = torch.Generator().manual_seed(0)
    texts, pictures = (torch.nn.functional.normalize(torch.randn(400, 32, generator=rng), dim=1) for _ in "ab")
    # The same rankings in a band a tenth as wide, as in models whose two sides lie apart.
    narrow = torch.cat([pictures * 0.1**0.5, torch.full((400, 1), 0.9**0.5)], 1)
    narrow_texts = torch.cat([texts * 0.1**0.5, torch.full((400, 1), 0.9**0.5)], 1)
    wide = temperature_for(texts, pictures, 0)
    assert temperature_for(narrow_texts, narrow, 0) == pytest.approx(wide / 10, rel=0.02)
    logs = (texts @ pictures.T / wide).log_softmax(1)
    assert float((-(logs.exp() * logs).sum(1)).mean().exp()) == pytest.approx(10, rel=0.05)


def test_what_cannot_be_adapted_is_refused_in_a_sentence(tmp_path, pictures):
    source = str(save_tiny(tmp_path / "model", levels=(Level("fine", 16, 8, 3),)))
    with pytest.raises(DataError, match="does not exist"):
        adapt(source, str(tmp_path / "nowhere"), tmp_path / "a", QUICK)
    with pytest.raises(ModelError, match="16 dims are no coarser"):
        adapt(source, str(pictures), tmp_path / "b", AdaptConfig(dims=16))
    with pytest.raises(ModelError, match="layers 1 to 3"):
        adapt(source, str(pictures), tmp_path / "c", AdaptConfig(dims=4, text_layer=4))
    with pytest.raises(ModelError, match="no model 'nosuch'"):
        adapt("nosuch", str(pictures), tmp_path / "d", QUICK)
    with pytest.raises(ModelError, match="weights"):
        adapt("hivlp-mini", str(pictures), tmp_path / "e", QUICK)
    with pytest.raises(HivlpError, match="not an adaptation"):
        adapt(source, str(pictures), tmp_path / "model", QUICK)
    adapt(source, str(pictures), tmp_path / "f", QUICK)
    other = str(save_tiny(tmp_path / "other", seed=1, levels=(Level("fine", 16, 8, 3),)))
    with pytest.raises(HivlpError, match="another model's adaptation"):
        adapt(other, str(pictures), tmp_path / "f", QUICK)
    for file in pictures.glob("*.txt"):
        file.unlink()
    with pytest.raises(HivlpError, match="texts are needed"):
        adapt(source, str(pictures), tmp_path / "g", AdaptConfig(dims=4, text_layer=1))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no text"):
        adapt(source, str(tmp_path / "empty.txt"), tmp_path / "h", QUICK)
