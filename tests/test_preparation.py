"""Pictures and texts prepared as a checkpoint's own processor does it: against ``transformers``, on files it wrote."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image, ImageDraw, ImageFilter  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

from hivlp.config import RESAMPLE, PictureConfig  # noqa: E402
from hivlp.data.pictures import load_pixels  # noqa: E402
from hivlp.data.pictures.preparing import prepare  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import ModelError  # noqa: E402
from hivlp.export.graphs import export  # noqa: E402
from hivlp.formats.dual_encoder import import_dual_encoder  # noqa: E402
from hivlp.formats.preparation import picture_config  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402

pytestmark = pytest.mark.train
SIDE = 48
# Thin and flat, upright and lying, smaller and larger than what is cut out, sides whose quotient must be rounded.
SIZES = [(3, 500), (500, 3), (1, 1), (20, 30), (48, 48), (101, 67), (67, 101), (640, 427), (333, 1000), (47, 49),
         (1, 2000), (900, 1200)]  # fmt: skip


def photograph(size: tuple[int, int]) -> Image.Image:
    """Soft areas, sharp edges and noise, as in a photograph."""
    rng = np.random.default_rng(sum(size))
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, size[0] + 1), rng.integers(0, size[1] + 1)
        draw.rectangle((x, y, x + size[0] // 5, y + size[1] // 7), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def normalised(pixels: np.ndarray, config: PictureConfig) -> np.ndarray:
    """What the image tower is given: (3, S, S)."""
    return ((pixels - np.float32(config.mean)) / np.float32(config.std)).transpose(2, 0, 1)


def grey_levels(processor, image: Image.Image, config: PictureConfig) -> float:
    """By how many grey levels the two preparations differ at most."""
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = normalised(prepare(image, config), config)
    assert theirs.shape == ours.shape
    return float((np.abs(theirs - ours) * np.abs(np.float32(config.std))[:, None, None]).max())


def saved(folder, processor, family: str) -> PictureConfig:
    folder.mkdir(exist_ok=True)
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return picture_config(folder, folder, SIDE)


CUT = {"height": SIDE, "width": SIDE}
CLIP_SETTINGS = [
    {},
    {"size": {"shortest_edge": 56}},
    {"size": {"shortest_edge": 40}},  # smaller than what is cut out
    {"size": 56},
    {"size": {"shortest_edge": 50, "longest_edge": 70}},
    {"size": {"height": 60, "width": 52}},
    {"do_resize": False},
    {"do_center_crop": False, "size": CUT},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    {"do_convert_rgb": False},
    {"crop_size": 48, "size": {"shortest_edge": 57}},
]


@pytest.mark.parametrize("settings", CLIP_SETTINGS, ids=str)
def test_clip_pictures_are_prepared_as_its_processor_does_it(settings, tmp_path):
    processor = CLIPImageProcessorPil(**{"size": {"shortest_edge": SIDE}, "crop_size": CUT, **settings})
    config = saved(tmp_path / "c", processor, "clip")
    for size in SIZES:
        if "longest_edge" in str(settings) and max(size) > 100 * min(size):
            continue  # would be less than a pixel wide, which the processor does not survive
        assert grey_levels(processor, photograph(size), config) < 1, size


@pytest.mark.parametrize("resample", range(6), ids=RESAMPLE)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_filter_is_the_one_that_is_named(kind, resample, tmp_path):
    if kind == "clip":
        processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=CUT, resample=resample)
    else:
        processor = SiglipImageProcessorPil(size=CUT, resample=resample)
    config = saved(tmp_path / "c", processor, kind)
    assert config.resample == RESAMPLE[resample]
    for size in SIZES:
        assert grey_levels(processor, photograph(size), config) < 1, size


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_the_file_leaves_open_its_class_decides(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    named = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[kind]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": named, "image_mean": None}))
    config = picture_config(tmp_path, tmp_path, 224)
    processor = CLIPImageProcessorPil() if kind == "clip" else SiglipImageProcessorPil()
    assert grey_levels(processor, photograph((300, 451)), config) < 1
    (tmp_path / "preprocessor_config.json").write_text("{}")  # as the oldest checkpoints: the model says which class
    assert picture_config(tmp_path, tmp_path, 224) == config


@pytest.mark.parametrize("fitting", [{"fit": "crop", "resize": {"shortest_edge": 56}}, {"fit": "stretch"}], ids=str)
def test_a_jpeg_is_decoded_at_its_full_size_where_exactness_is_promised(fitting, tmp_path):
    config = PictureConfig(SIDE, **fitting)
    for size in [(1600, 1067), (801, 1203)]:
        image = photograph(size).filter(ImageFilter.GaussianBlur(1))
        image.save(tmp_path / "x.jpg", quality=88)
        with Image.open(tmp_path / "x.jpg") as whole:
            expected = prepare(whole.convert("RGB"), config)
        np.testing.assert_array_equal(load_pixels(tmp_path / "x.jpg", config), expected)
        np.testing.assert_array_equal(load_pixels((tmp_path / "x.jpg").read_bytes(), config), expected)


@pytest.mark.parametrize("size", [(2, 4000), (4000, 2), (1, 300)])
def test_an_endless_strip_is_not_scaled_as_a_whole(size, monkeypatch):
    config = PictureConfig(SIDE, "crop", resize={"shortest_edge": 40})
    expected = prepare(photograph(size), config)
    monkeypatch.setattr("hivlp.data.pictures.preparing.WHOLE", 1)
    assert np.abs(prepare(photograph(size), config).astype(int) - expected).max() <= 1
    monkeypatch.undo()
    assert prepare(Image.new("RGB", (1, 3_000_000), "red"), config).shape == (SIDE, SIDE, 3)


REFUSED = [
    ({"do_resize": False, "do_center_crop": False}, "vary in size"),
    ({"do_center_crop": False}, "vary in size"),
    ({"crop_size": {"height": 48, "width": 40}}, "48x40 is not square"),
    ({"do_center_crop": False, "size": {"height": 40, "width": 48}}, "40x48 is not square"),
    ({"size": {"longest_edge": 48}}, "longest_edge"),
    ({"size": {"max_height": 60, "max_width": 60}}, "max_height"),
    ({"do_pad": True, "pad_size": {"height": 60, "width": 60}}, "do_pad"),
    ({"rescale_factor": 0.0}, "rescale_factor"),
    ({"image_std": [0.0, 1.0, 1.0]}, "std must not be 0"),
    ({"image_mean": [0.5, 0.5]}, "2 channels"),
    ({"resample": 17}, "resample|17"),
    ({"crop_size": None}, "do_center_crop without a crop_size"),
    ({"crop_size": 32}, "32 pixels a side, its vision tower takes 48"),
    ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED, ids=str)
def test_what_cannot_be_honoured_is_refused_in_one_line(settings, reason, tmp_path):
    about = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, "crop_size": 48}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**about, **settings}))
    with pytest.raises(ModelError, match=reason) as refused:
        picture_config(tmp_path, tmp_path, SIDE)
    assert "\n" not in str(refused.value)


LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [
    "A Red circle",
    "the",
    "the blue SQUARE on white and some more words that are cut off somewhere",
    "red, blue!",
    "",
]


def clip_tokenizer(**settings) -> CLIPTokenizer:
    """Of CLIP's real class, with letters and two merged words."""
    pieces = [*LETTERS, *(f"{c}</w>" for c in LETTERS), *"!,", "!</w>", ",</w>", "re", "red</w>", "th", "the</w>"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, [("r", "e"), ("re", "d</w>"), ("t", "h"), ("th", "e</w>")], **settings)


def checkpoint(folder, family: str, tokenizer, *, dtype=torch.float32, side: int = 16, **more):
    """A random model of the real class whose words are the tokenizer's, saved with it by the library itself."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12, **ids}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": side, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():  # else the words hardly matter
        model.text_model.embeddings.token_embedding.weight.mul_(40)
    model = model.eval().to(dtype)
    model.save_pretrained(folder, **more)
    return model.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("files", ["processor_config.json", "preprocessor_config.json"])
def test_what_the_library_saves_is_read(dtype, shards, files, tmp_path):
    from transformers import CLIPProcessor

    tokenizer = clip_tokenizer(model_max_length=10)
    more = {"max_shard_size": "10KB"} if shards else {}
    original = checkpoint(tmp_path / "in", "clip", tokenizer, dtype=dtype, **more)
    assert (len(list((tmp_path / "in").glob("*.safetensors"))) > 1) == shards
    prepare = CLIPProcessor(CLIPImageProcessorPil(size=20, crop_size=16), tokenizer)
    if files == "processor_config.json":
        prepare.save_pretrained(tmp_path / "in")
    else:
        prepare.image_processor.save_pretrained(tmp_path / "in")
        prepare.tokenizer.save_pretrained(tmp_path / "in")
    assert (tmp_path / "in" / files).is_file()
    import_dual_encoder(tmp_path / "in", tmp_path / "out")
    stored = HiVLPModel.from_pretrained(tmp_path / "out")
    assert {tensor.dtype for tensor in stored.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    export(tmp_path / "out")
    model = HiVLP.from_pretrained(tmp_path / "out")

    picture = photograph((37, 61))
    picture.save(tmp_path / "x.png")
    texts = [text for text in TEXTS if text]
    inputs = prepare(text=texts, images=picture, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        expected = original(**inputs)
    np.testing.assert_allclose(model.encode_text(texts).fine, expected.text_embeds.numpy(), atol=1e-5)
    for given in (picture, tmp_path / "x.png"):
        np.testing.assert_allclose(model.encode_image([given]).fine, expected.image_embeds.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("truncation", ["right", "left"])
@pytest.mark.parametrize("longest", [6, 12, 1000])
def test_texts_are_prepared_as_the_tokenizer_does_it(family, padding, truncation, longest, tmp_path):
    settings = {"model_max_length": longest, "padding_side": padding, "truncation_side": truncation}
    tokenizer = clip_tokenizer(**settings)
    original = checkpoint(tmp_path / "in", family, tokenizer)
    tokenizer.save_pretrained(tmp_path / "in")
    about = json.loads((tmp_path / "in" / "tokenizer_config.json").read_text())
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps({**about, **settings}))
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "in")
    import_dual_encoder(tmp_path / "in", tmp_path / "out")
    export(tmp_path / "out")
    model = HiVLP.from_pretrained(tmp_path / "out")
    length = min(longest, 12)
    whole = family == "siglip" or padding == "left"
    expected = tokenizer(TEXTS, padding="max_length" if whole else True, max_length=length, truncation=True)
    ids, mask = model.tokenize(TEXTS)
    assert ids.tolist() == expected["input_ids"] and mask.tolist() == expected["attention_mask"]
    with torch.no_grad():
        mask_too = {"attention_mask": torch.from_numpy(mask)} if family == "clip" else {}
        output = original.text_model(input_ids=torch.from_numpy(ids), **mask_too).pooler_output
        output = original.text_projection(output) if family == "clip" else output
    vectors = torch.nn.functional.normalize(output, dim=1).numpy()
    np.testing.assert_allclose(model.encode_text(TEXTS).fine, vectors, atol=1e-5)


def test_words_and_merges_alone_make_the_tokenizer(tmp_path):
    tokenizer = clip_tokenizer()
    checkpoint(tmp_path / "in", "clip", tokenizer)
    CLIPImageProcessorPil(size=16, crop_size=16).save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "whole")
    stored = json.loads((tmp_path / "whole" / "tokenizer.json").read_text())["model"]
    (tmp_path / "in" / "vocab.json").write_text(json.dumps(stored["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in stored["merges"])
    with pytest.raises(ModelError, match=r"tokenizer\.json, nor spiece\.model, nor vocab\.json with merges\.txt"):
        import_dual_encoder(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    import_dual_encoder(tmp_path / "in", tmp_path / "out")
    export(tmp_path / "out")
    expected = tokenizer(TEXTS, padding=True, max_length=12, truncation=True)
    assert HiVLP.from_pretrained(tmp_path / "out").tokenize(TEXTS)[0].tolist() == expected["input_ids"]


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoint(tmp_path / "in", "clip", clip_tokenizer())
    clip_tokenizer().save_pretrained(tmp_path / "in")
    CLIPImageProcessorPil(size=16, crop_size=16).save_pretrained(tmp_path / "in")
    state = load_file(tmp_path / "in" / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights.*visual_projection\.weight"):
        import_dual_encoder(tmp_path / "in", tmp_path / "out")


def sentencepiece_model(pieces: list[tuple[str, float, int]], kind: int = 1) -> bytes:
    """A ``spiece.model`` of these pieces (text, score, kind), byte by byte."""

    def number(value: int) -> bytes:
        more, low = divmod(value, 128)
        return bytes([low + 128]) + number(more) if more else bytes([low])

    def text(field: int, content: bytes) -> bytes:
        return number(field << 3 | 2) + number(len(content)) + content

    parts = [
        text(1, text(1, piece.encode()) + b"\x15" + np.float32(score).tobytes() + b"\x18" + number(sort))
        for piece, score, sort in pieces
    ]
    return b"".join(parts) + text(2, b"\x18" + number(kind))


PIECES = [("<pad>", 0, 3), ("</s>", 0, 3), ("<unk>", 0, 2), ("▁", -5, 1), *((c, -6, 1) for c in LETTERS),
          ("▁a", -2, 1), ("▁red", -3, 1), ("▁circle", -4, 1)]  # fmt: skip


@pytest.mark.parametrize("lower", [True, False])
def test_siglip_texts_need_its_sentencepiece_model_alone(lower, tmp_path):
    class Ids:
        eos_token_id = pad_token_id = 1
        bos_token_id = 0

        def __len__(self):
            return len(PIECES)

    checkpoint(tmp_path / "in", "siglip", Ids())
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "spiece.model").write_bytes(sentencepiece_model(PIECES))
    about = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 8, "do_lower_case": lower, "pad_token": "</s>"}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(about))
    import_dual_encoder(tmp_path / "in", tmp_path / "out")
    export(tmp_path / "out")
    id_of = {piece: number for number, (piece, *_) in enumerate(PIECES)}
    rows = {
        "A  red,\tcircle!": ["▁a", "▁red", "▁circle"] if lower else ["▁", "<unk>", "▁red", "▁circle"],
        "red-ab": ["▁red", "a", "b"],
        "": [],
        "a a a a a a a a a a": ["▁a"] * 7,
    }
    ids, _ = HiVLP.from_pretrained(tmp_path / "out").tokenize(list(rows))
    expected = [[id_of[piece] for piece in row] + [1] * (8 - len(row)) for row in rows.values()]
    assert ids.tolist() == expected


def test_sentencepiece_itself_gives_the_same_ids(tmp_path):
    pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    from hivlp.formats.sentencepiece import convert_sentencepiece

    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(PIECES))
    theirs, ours = SiglipTokenizer(str(tmp_path / "spiece.model")), convert_sentencepiece(tmp_path / "spiece.model")
    rng = np.random.default_rng(0)
    parts = [*"abz .,-'\"!?é\tAB", " red", "circle", "a red circle", "naïve"]
    for text in ["", *("a" + "".join(rng.choice(parts, rng.integers(1, 9))) for _ in range(300))]:
        assert ours.encode(text.lower()).ids == theirs(text).input_ids, text


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_damaged_sentencepiece_model_is_refused(length, tmp_path):
    from hivlp.formats.sentencepiece import convert_sentencepiece

    for content in (sentencepiece_model(PIECES)[:length], b"\xff" * length, sentencepiece_model(PIECES, kind=2)):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(ModelError, match=r"spiece\.model cannot be read as a sentencepiece model"):
            convert_sentencepiece(tmp_path / "spiece.model")


@pytest.mark.parametrize("side", ["right", "left", None])
def test_siglip2_at_a_fixed_resolution_is_read_as_the_library_saves_it(side, tmp_path):
    from transformers import SiglipProcessor
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "re", "red"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    more = {} if side is None else {"padding_side": side}
    tokenizer = Siglip2Tokenizer(vocabulary, [("r", "e"), ("re", "d")], model_max_length=10, **more)
    original = checkpoint(tmp_path / "in", "siglip", tokenizer, dtype=torch.bfloat16)
    prepare = SiglipProcessor(SiglipImageProcessorPil(size={"height": 16, "width": 16}, resample=2), tokenizer)
    prepare.save_pretrained(tmp_path / "in")
    assert (tmp_path / "in" / "processor_config.json").is_file()
    import_dual_encoder(tmp_path / "in", tmp_path / "out")
    export(tmp_path / "out")
    model = HiVLP.from_pretrained(tmp_path / "out")
    picture = photograph((61, 37))
    inputs = prepare(text=TEXTS, images=picture, return_tensors="pt", padding="max_length", truncation=True)
    assert model.tokenize(TEXTS)[0].tolist() == inputs["input_ids"].tolist()
    assert model.picture.resample == "bilinear"
    with torch.no_grad():
        expected = original(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    np.testing.assert_allclose(model.encode_text(TEXTS).fine, expected.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.encode_image([picture]).fine, expected.image_embeds.numpy(), atol=1e-5)


def test_siglip2_naflex_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ModelError, match=r"siglip2 model.*NaFlex"):
        import_dual_encoder(tmp_path, tmp_path / "out")
