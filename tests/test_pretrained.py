"""Importing CLIP and SigLIP checkpoints: real classes, random weights, saved to disk as the hub has them."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

from hivlp.cli import main  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import ModelError  # noqa: E402
from hivlp.formats.dual_encoder import import_dual_encoder  # noqa: E402
from hivlp.index import Index  # noqa: E402
from synthetic import (  # noqa: E402
    VOCABULARY,
    save_checkpoint,
    write_pictures,
    write_tokenizer,
)

pytestmark = pytest.mark.train


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_an_imported_model_is_the_original(family, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    original, processor = save_checkpoint(source, family)
    assert main(["export", str(source), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == {"fine": 8 if family == "clip" else 16}
    model = HiVLP.from_pretrained(out)

    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    texts = ["A Red circle", "the blue square on white"]
    words = [["[CLS]", *text.lower().split(), "[SEP]"] for text in texts]
    length = 12 if family == "siglip" else max(len(row) for row in words)
    ids = torch.tensor([[VOCABULARY.index(w) for w in row] + [0] * (length - len(row)) for row in words])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in words])
    scaled = torch.from_numpy(pixels).float() / 255
    normalised = (scaled - torch.tensor(processor["image_mean"])) / torch.tensor(processor["image_std"])
    with torch.no_grad():
        output = original(
            input_ids=ids,
            attention_mask=mask if family == "clip" else None,
            pixel_values=normalised.permute(0, 3, 1, 2),
        )
    np.testing.assert_allclose(model.encode_pixels(pixels).fine, output.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(model.encode_text(texts).fine, output.text_embeds.numpy(), atol=1e-4)
    assert model.picture.fit == ("crop" if family == "clip" else "stretch")

    write_pictures(tmp_path / "pictures", 5)
    Image.new("RGB", (40, 20), "red").save(tmp_path / "pictures" / "wide.png")
    with Index.create(tmp_path / "x", model=model) as index:
        assert index.add(tmp_path / "pictures").added == 6
        hits = index.search("a red circle", k=3)
        assert len(hits) == 3 and set(hits[0].scores) == {"fine"}


def test_what_cannot_be_imported_is_refused_in_a_sentence(tmp_path):
    from transformers import BertConfig, BertModel

    with pytest.raises(ModelError, match=r"config\.json"):
        import_dual_encoder(tmp_path, tmp_path / "out")
    BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8)).save_pretrained(tmp_path)  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text("{}")
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="is a bert model"):
        import_dual_encoder(tmp_path, tmp_path / "out")
    clip = tmp_path / "clip"
    clip.mkdir()
    save_checkpoint(clip, "clip")
    (clip / "model.safetensors").rename(clip / "weights")
    torch.save({}, clip / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"lacks .* of its weights"):
        import_dual_encoder(clip, tmp_path / "out")


def test_a_refused_checkpoint_leaves_nothing(tmp_path):
    save_checkpoint(tmp_path / "siglip", "siglip")
    settings = tmp_path / "siglip" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "<nope>"}))
    with pytest.raises(ModelError, match="its tokenizer has no <nope>"):
        import_dual_encoder(tmp_path / "siglip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
