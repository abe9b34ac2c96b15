"""Every format against its own library: vectors of texts and of odd pictures agree to 1e-4."""

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import (  # noqa: E402
    OPEN_CLIP,
    TEXTS,
    as_rgb,
    library_vectors,
    open_clip_vectors,
    save_checkpoint,
    save_onnx_folders,
    save_onnx_towers,
    save_open_clip,
    write_odd_pictures,
)
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import MissingExtraError, ModelError  # noqa: E402

pytestmark = pytest.mark.train
FAMILIES = ["clip", "siglip", "siglip2", "metaclip_2", "align", "altclip", "chinese_clip"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_odd_pictures(tmp_path_factory.mktemp("pictures"))


def assert_same(model: HiVLP, expected, pictures) -> None:
    texts, images = expected
    assert np.abs(texts @ texts.T - 1).max() > 1e-2, "the checkpoint does not tell texts apart"
    np.testing.assert_allclose(model.encode_text(TEXTS).fine, texts, atol=1e-4)
    for text, row in zip(TEXTS, texts, strict=True):
        np.testing.assert_allclose(model.encode_text(text).fine[0], row, atol=1e-4)
    for (name, path), row in zip(pictures.items(), images, strict=True):
        np.testing.assert_allclose(model.encode_image([path]).fine[0], row, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_transformers_checkpoint_gives_its_librarys_vectors(kind, pickled, tmp_path, pictures):
    saved = save_checkpoint(tmp_path / kind, kind, pickled=pickled)
    model = HiVLP.from_pretrained(tmp_path / kind)
    assert_same(model, library_vectors(*saved, TEXTS, [as_rgb(path) for path in pictures.values()]), pictures)


@pytest.fixture(scope="module")
def rgb(pictures):
    return [as_rgb(path) for path in pictures.values()]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_ready_graphs_beside_a_configuration_give_the_checkpoints_vectors(kind, tmp_path, pictures, rgb):
    saved = save_onnx_towers(tmp_path / kind, kind, ("", "_fp16", "_int8"))
    exact = HiVLP.from_pretrained(tmp_path / kind)
    assert_same(exact, library_vectors(*saved, TEXTS, rgb), pictures)
    prints = {exact.fingerprint}
    for precision, least in (("float16", 0.9999), ("int8", 0.95)):
        small = HiVLP.from_pretrained(f"{tmp_path / kind}:{precision}")
        assert precision in str(small.files.image) or "fp16" in str(small.files.image)
        for ours, theirs in ((small.encode_text(TEXTS), exact.encode_text(TEXTS)),
                             (small.encode_image(rgb), exact.encode_image(rgb))):  # fmt: skip
            assert (ours.fine * theirs.fine).sum(1).min() > least
        prints.add(small.fingerprint)
    assert len(prints) == 3


def test_a_precision_that_is_not_there_is_named_with_those_that_are(tmp_path):
    save_onnx_towers(tmp_path / "clip", "clip")
    with pytest.raises(ModelError, match="its graphs are in float32, not in int8"):
        HiVLP.from_pretrained(f"{tmp_path / 'clip'}:int8")


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "align"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_converted_graphs_in_less_precision_agree_with_float32(kind, precision, tmp_path, rgb):
    save_checkpoint(tmp_path / kind, kind, gentle=True)
    exact, small = (HiVLP.from_pretrained(f"{tmp_path / kind}{ending}") for ending in ("", f":{precision}"))
    assert small.source == f"{tmp_path / kind}:{precision}" and small.fingerprint != exact.fingerprint
    for ours, theirs in ((small.encode_text(TEXTS), exact.encode_text(TEXTS)),
                         (small.encode_image(rgb), exact.encode_image(rgb))):  # fmt: skip
        assert (ours.fine * theirs.fine).sum(1).mean() > 0.98
    about = json.loads((small.files.image.parent / "origin.json").read_text())["agreement_with_float32"]
    assert min(about["image_cosine"], about["text_cosine"]) >= 0.99 and 0 <= about["recall"] <= 1


def test_graphs_that_lose_too_much_are_refused(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "clip", "clip")
    monkeypatch.setattr("hivlp.export.precision.LEAST", 1.1)
    with pytest.raises(ModelError, match=r"in int8 its vectors agree with those in float32 to 0\.\d+ only") as said:
        HiVLP.from_pretrained(f"{tmp_path / 'clip'}:int8")
    assert "\n" not in str(said.value)


def test_ready_graphs_need_neither_torch_nor_transformers(tmp_path):
    save_onnx_towers(tmp_path / "clip", "clip")
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "onnx", "safetensors")))
from hivlp import Index
from PIL import Image
Image.new("RGB", (9, 7), "red").save({str(tmp_path / "x.png")!r})
index = Index.create({str(tmp_path / "index")!r}, model={str(tmp_path / "clip")!r})
index.add({str(tmp_path / "x.png")!r})
print(len(index.search("a red circle")))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_without_torch_weights_are_refused_with_what_to_install(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "clip", "clip")
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("hivlp.export")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"has weights, not graphs.*pip install torch transformers") as said:
        HiVLP.from_pretrained(tmp_path / "clip")
    assert "\n" not in str(said.value)


def test_pickled_code_is_never_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    save_checkpoint(tmp_path / "clip", "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    for content in (pickle.dumps({"x": Evil()}), b"\x80\x04"):
        (tmp_path / "clip" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match="cannot be loaded") as said:
            HiVLP.from_pretrained(tmp_path / "clip")
        assert "\n" not in str(said.value)
    torch.save({"x": Evil()}, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        HiVLP.from_pretrained(tmp_path / "clip")
    assert not (tmp_path / "ran").exists()


def test_a_model_is_converted_once_and_again_when_its_weights_change(tmp_path, cache):
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path / "clip", "clip")
    first = HiVLP.from_pretrained(tmp_path / "clip")
    made = first.files.image.stat().st_mtime_ns
    again = HiVLP.from_pretrained(tmp_path / "clip")
    assert again.files.image.stat().st_mtime_ns == made and again.fingerprint == first.fingerprint
    assert not [path for path in (cache / "models").iterdir() if path.name.startswith(".")]
    state = load_file(tmp_path / "clip" / "model.safetensors")
    state["text_projection.weight"] = state["text_projection.weight"].flip(0)
    save_file(state, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    changed = HiVLP.from_pretrained(tmp_path / "clip")
    assert changed.fingerprint != first.fingerprint
    assert not np.allclose(changed.encode_text("the").fine, first.encode_text("the").fine, atol=1e-3)


def test_a_conversion_elsewhere_is_the_same_model(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "clip", "clip")
    first = HiVLP.from_pretrained(tmp_path / "clip").fingerprint
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "another machine's"))
    assert HiVLP.from_pretrained(tmp_path / "clip").fingerprint == first


def open_clip():
    return pytest.importorskip("open_clip", reason="open_clip_torch is not installed", exc_type=ImportError)


PREPARATIONS = [{}, {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}]


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=["shortest", "squash"])
@pytest.mark.parametrize("words", [{}, {"no_causal_mask": True}], ids=["causal", "padding visible"])
@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_open_clip_folder_gives_its_librarys_vectors(prepare, words, weights, tmp_path, pictures, rgb):
    open_clip()
    settings = {**OPEN_CLIP, "text_cfg": {**OPEN_CLIP["text_cfg"], **words}, "custom_text": bool(words)}
    saved = save_open_clip(tmp_path / "m", settings, prepare, weights)
    model = HiVLP.from_pretrained(tmp_path / "m")
    assert_same(model, open_clip_vectors(*saved, TEXTS, rgb), pictures)
    assert model.config.text.pad_to_max == bool(words)
    odd = ["  A RED\n circle&amp; square ", "it's 1,234 €!", "日本 語", ""]
    np.testing.assert_allclose(model.encode_text(odd).fine, open_clip_vectors(*saved, odd, rgb)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileCLIP2-S0", "PE-Core-T-16-384"])
def test_mobileclip2_and_pe_core_give_open_clips_vectors(name, tmp_path, pictures, rgb):
    library = open_clip()
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    settings = library.get_model_config(name)
    settings = {**settings, "text_cfg": {**settings["text_cfg"], "width": 64, "heads": 2, "layers": 2}}
    size = settings["vision_cfg"]["image_size"]
    saved = save_open_clip(tmp_path / "m", settings, {**PREPARATIONS[1], "size": size})
    assert_same(HiVLP.from_pretrained(tmp_path / "m"), open_clip_vectors(*saved, TEXTS, rgb), pictures)


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=["shortest", "squash"])
def test_graphs_in_two_folders_give_open_clips_vectors(prepare, tmp_path, pictures, rgb):
    open_clip()
    saved = save_onnx_folders(tmp_path / "m", prepare=prepare)
    model = HiVLP.from_pretrained(tmp_path / "m")
    assert model.files.image == tmp_path / "m" / "visual" / "model.onnx"
    assert_same(model, open_clip_vectors(*saved, TEXTS, rgb), pictures)


def test_a_sentence_transformers_clip_folder_gives_its_vectors(tmp_path, pictures, rgb):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed", exc_type=ImportError
    )
    saved = save_checkpoint(tmp_path / "in", "clip")
    from transformers import CLIPProcessor

    CLIPProcessor(saved[2], saved[1]).save_pretrained(tmp_path / "in")
    # Where torchvision is installed, its filters are the default, which round otherwise than Pillow's.
    whole = library.SentenceTransformer(str(tmp_path / "in"), device="cpu", processor_kwargs={"backend": "pil"})
    whole.save(str(tmp_path / "out"))
    model = HiVLP.from_pretrained(tmp_path / "out")
    unit = [whole.encode(given, normalize_embeddings=True) for given in (TEXTS, rgb)]
    assert_same(model, unit, pictures)


def test_a_sentence_transformers_folder_of_the_older_layout_is_read(tmp_path, pictures, rgb):
    saved = save_checkpoint(tmp_path / "m" / "0_CLIPModel", "clip")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    assert_same(HiVLP.from_pretrained(tmp_path / "m"), library_vectors(*saved, TEXTS, rgb), pictures)
    modules.append({"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="has a module Dense"):
        HiVLP.from_pretrained(tmp_path / "m")


UNKNOWN = [
    ({}, "there is no config.json"),
    ({"model.gguf": b""}, "GGUF"),
    ({"config.json": b'{"model_type": "clip"}', "tf_model.h5": b""}, "TensorFlow or Flax"),
    ({"config.json": b'{"model_type": "clip"}', "model.onnx": b""}, r"onnx/text_model\.onnx"),
    ({"checkpoint.pt": b""}, "pickled checkpoints are never opened"),
    ({"config.json": b'{"model_type": "blip"}', "model.safetensors": b""}, "is a blip model; hivlp reads clip"),
    ({"config.json": b"[1]", "model.safetensors": b""}, "config.json"),
    ({"config.json": b'{"model_type": "clip"}', "model.safetensors": b"x"}, "preprocessor_config.json"),
    ({"open_clip_config.json": b"{}", "open_clip_model.safetensors": b"x"}, "no model_cfg"),
    ({"modules.json": b"{}", "0_CLIPModel/config.json": b"{}", "0_CLIPModel/model.safetensors": b""}, "not a list"),
]


@pytest.mark.parametrize(("files", "reason"), UNKNOWN, ids=[reason for _, reason in UNKNOWN])
def test_what_is_no_model_is_told_in_one_line(files, reason, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=reason) as said:
        HiVLP.from_pretrained(tmp_path)
    assert "\n" not in str(said.value)
