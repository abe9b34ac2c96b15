"""What is trained is what is published: one way to prepare texts and pictures, from the recipe to the graphs."""

from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import SiglipConfig  # noqa: E402

from hivlp.config import HiVLPConfig, PictureConfig, TextConfig, TowerConfig  # noqa: E402
from hivlp.data.pairs import Pair  # noqa: E402
from hivlp.data.pictures import load_pixels  # noqa: E402
from hivlp.data.texts import TextTokenizer  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import ModelError  # noqa: E402
from hivlp.export.graphs import export  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.train.adapt import AdaptConfig, adapt  # noqa: E402
from hivlp.train.inputs.augment import plain_view  # noqa: E402
from hivlp.train.inputs.corpus import Inputs  # noqa: E402
from hivlp.train.inputs.features import build_corpus, text_features, token_features  # noqa: E402
from hivlp.train.recipe.schema import Augment, Recipe  # noqa: E402
from synthetic import BERT, VOCABULARY, save_checkpoint, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.train
LONG = "a red circle on the white square on the blue circle on a"
TEXTS = ["a red circle", "the BLUE square on white", "White", LONG, "green"]
SIDES = ("right", "left")
SETTINGS = [
    TextConfig(length, lower, pad, 0, padding, truncation)
    for length, lower, pad, padding, truncation in product((6, 12), (False, True), (False, True), SIDES, SIDES)
    if pad or padding == "right"
]


def build(family: str, text: TextConfig, picture: PictureConfig | None = None) -> HiVLPModel:
    torch.manual_seed(0)
    if family == "siglip":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        words = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 12, **sizes}
        options = SiglipConfig(text_config=words, vision_config={"image_size": 16, "patch_size": 8, **sizes}).to_dict()
        towers = [TowerConfig("dual_encoder", options)] * 2
    else:
        towers = [TowerConfig("convnet", {"channels": [4, 4, 4], "grid": 1}), TowerConfig("bert", BERT)]
    levels = (Level("coarse", 4, 2, 1), Level("fine", 16, 3, 3))
    config = HiVLPConfig("tiny", levels, *towers, picture or PictureConfig(16), text)
    model = HiVLPModel(config).eval()
    with torch.no_grad():  # else the words hardly matter
        for name, parameter in model.named_parameters():
            if "word_embeddings" in name or "token_embedding" in name:
                parameter.mul_(20)
    return model


def case_matters(folder):
    """A tokenizer to which RED is not red."""
    tokenizer = Tokenizer.from_file(str(write_tokenizer(folder)))
    tokenizer.normalizer = None
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("family", ["bert", "siglip"])
@pytest.mark.parametrize("text", SETTINGS, ids=str)
def test_texts_in_training_are_those_of_the_published_model(family, text, tmp_path):
    if family == "siglip" and not text.pad_to_max:
        with pytest.raises(ModelError, match="pad_to_max"):
            build(family, text)
        return
    path = case_matters(tmp_path / "tokenizer")
    model, tokenizer = build(family, text), TextTokenizer(path, text)
    model.save_pretrained(tmp_path / "out", path)
    export(tmp_path / "out")
    published = HiVLP.from_pretrained(tmp_path / "out")
    expected = published.encode_text(TEXTS)
    alone = [published.encode_text([one]).fine[0] for one in TEXTS]
    np.testing.assert_allclose(expected.fine, alone, atol=1e-5, err_msg="neighbours count")

    # Frozen towers, whose features are kept; and towers in training, which see a batch at a time.
    Image.new("RGB", (16, 16), "red").save(tmp_path / "x.png")
    pairs = [(Pair(str(number), tmp_path / "x.png", (caption,)), 1) for number, caption in enumerate(TEXTS)]
    corpus = build_corpus(pairs, model.config.picture, tokenizer, Augment(views=0, folders=False), tmp_path / "run")
    rows = [corpus.texts.index(caption) for caption in TEXTS]
    with torch.no_grad():
        kept = model.project_text(token_features(model, corpus.ids, corpus.mask))
        asked = model.project_text(text_features(model, tokenizer, TEXTS))
        stepped = []
        for row in rows:
            corpus.variants[0] = [row]
            recipe = Recipe("x", model.config.levels, model.config.image_tower, model.config.text_tower,
                            train=(), picture=model.config.picture, text=text)  # fmt: skip
            batch = Inputs(corpus).batch(recipe, 0, np.array([0, 0]), slice(None))
            stepped.append(model.encode_text(*batch.text)["fine"][0])
    for level in ("coarse", "fine"):
        np.testing.assert_allclose(kept[level][rows], expected[level], atol=1e-5)
        np.testing.assert_allclose(asked[level], expected[level], atol=1e-5)
    np.testing.assert_allclose(torch.stack(stepped), expected.fine, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("text_layer", [1, 2])
def test_texts_in_adaptation_are_those_of_the_published_model(family, text_layer, tmp_path):
    save_checkpoint(tmp_path / "in", family) if (tmp_path / "in").mkdir() is None else None
    (tmp_path / "texts.txt").write_text("\n".join(f"{a} {b}" for a in TEXTS for b in TEXTS))
    adapt(str(tmp_path / "in"), str(tmp_path / "texts.txt"), tmp_path / "out",
          AdaptConfig(dims=4, steps=3, text_layer=text_layer))  # fmt: skip
    model, published = HiVLPModel.from_pretrained(tmp_path / "out"), HiVLP.from_pretrained(tmp_path / "out")
    tokenizer = TextTokenizer(tmp_path / "out" / "tokenizer.json", model.config.text)
    with torch.no_grad():
        trained = model.project_text(text_features(model, tokenizer, TEXTS))
    for level, vectors in published.encode_text(TEXTS).items():
        np.testing.assert_allclose(trained[level], vectors, atol=1e-5)


PICTURES = [
    PictureConfig(24),
    PictureConfig(24, "crop"),
    PictureConfig(24, "crop", resample="bilinear", resize={"shortest_edge": 30}),
    PictureConfig(24, "crop", resample="lanczos", resize={"height": 30, "width": 26}),
    PictureConfig(24, "crop", resize={}),
    PictureConfig(24, "stretch", resample="nearest", mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 3.0)),
]


@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_pictures_in_training_are_those_of_the_published_model(picture, tmp_path):
    model = build("bert", TextConfig(12), picture)
    model.save_pretrained(tmp_path / "out", case_matters(tmp_path / "tokenizer"))
    export(tmp_path / "out")
    published = HiVLP.from_pretrained(tmp_path / "out")
    assert published.picture == picture
    rng = np.random.default_rng(0)
    pairs = []
    for number, size in enumerate([(70, 40), (40, 70), (90, 90), (20, 30)]):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
        pairs.append((Pair(str(number), tmp_path / f"{number}.png", ("a red circle",)), 1))
    tokenizer = TextTokenizer(tmp_path / "out" / "tokenizer.json", TextConfig(12))
    wanted = [load_pixels(pair.read(), published.picture) for pair, _ in pairs]
    plain = Augment(views=0, zoom=(1.0, 1.0), colour=0.0, flip=False, folders=False)
    assert plain.plain
    corpus = build_corpus(pairs, picture, tokenizer, plain, tmp_path / "plain")
    np.testing.assert_array_equal(corpus.pixels, wanted)
    with torch.no_grad():
        trained = model.encode_image(torch.from_numpy(np.array(corpus.pixels)))["fine"]
    np.testing.assert_allclose(published.encode_image([pair.picture for pair, _ in pairs]).fine, trained, atol=1e-4)
    # With random views, pictures are kept at a higher resolution: the same part of them, to resampling.
    corpus = build_corpus(pairs, picture, tokenizer, Augment(views=1, folders=False), tmp_path / "views")
    views = [plain_view(pixels, picture.size) for pixels in corpus.pixels]
    assert np.abs(np.float32(views) - np.float32(wanted)).mean() < 12
