"""Earlier work is used only where what it was made of is still the same, by content."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from PIL import Image  # noqa: E402

from hivlp.data.contents import Contents  # noqa: E402
from hivlp.data.load import load_pairs  # noqa: E402
from hivlp.data.texts import TextTokenizer  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import HivlpError, RecipeError  # noqa: E402
from hivlp.levels import Level  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.train.adapt import prepare_original  # noqa: E402
from hivlp.train.inputs.features import build_corpus, frozen_image_features  # noqa: E402
from hivlp.train.inputs.vectors import picture_vectors, text_vectors  # noqa: E402
from hivlp.train.job import train  # noqa: E402
from hivlp.train.recipe.schema import Augment, load_recipe  # noqa: E402
from synthetic import draw_shape, save_tiny, shapes_recipe, tiny_config, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.train


def replaced_in_place(folder: Path) -> None:
    """Another picture of the same size in bytes, with the same time of change."""
    path = folder / "05.png"
    data, before = bytearray(path.read_bytes()), path.stat()
    Image.new("RGB", (48, 48), "black").save(path)
    new = path.read_bytes()
    assert len(new) < len(data)
    path.write_bytes(new + bytes(len(data) - len(new)))  # what follows the end of a PNG is not read
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def added_in_front(folder: Path) -> None:
    draw_shape(folder, 41).rename(folder / "!new.png")
    (folder / "41.txt").rename(folder / "!new.txt")


def renamed(folder: Path) -> None:
    for end in (".png", ".txt"):
        (folder / f"00{end}").rename(folder / f"zz{end}")


CHANGES = {
    "1 picture added": added_in_front,
    "1 picture removed": lambda folder: (folder / "00.png").unlink(),
    "1 picture changed": replaced_in_place,
    "captions of 1 picture changed": lambda folder: (folder / "07.txt").write_text("A blue square on white."),
    "1 picture added, 1 removed": renamed,
    "2 pictures changed, captions of 2 pictures changed": lambda folder: swap(folder, "01", "02"),
}


def swap(folder: Path, one: str, other: str) -> None:
    for end in (".png", ".txt"):
        (folder / f"{one}{end}").rename(folder / "aside")
        (folder / f"{other}{end}").rename(folder / f"{one}{end}")
        (folder / "aside").rename(folder / f"{other}{end}")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run on frozen towers whose last steps are still to be done, and its recipe."""
    folder = tmp_path_factory.mktemp("begun")
    recipe = shapes_recipe(folder)
    recipe["optim"] |= {"epochs": 1}
    recipe["augment"] = {"views": 1}
    recipe["watch"] = {"every": 2}
    recipe["compute"] = {"trackers": []}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(folder / "recipe.yaml"), folder / "out")
    return folder


@pytest.fixture
def place(begun, tmp_path, monkeypatch) -> Path:
    """A copy of that run and its data, under the same relative names."""
    shutil.copytree(begun, tmp_path / "copy")
    text = (tmp_path / "copy" / "recipe.yaml").read_text().replace(f"{begun}/", "")
    (tmp_path / "copy" / "recipe.yaml").write_text(text)
    path = tmp_path / "copy" / "out" / "run" / "checkpoint" / "checkpoint.safetensors"
    monkeypatch.chdir(tmp_path / "copy")
    edit_metadata(path, lambda origin: origin.update(settings=load_recipe(Path("recipe.yaml")).settings()))
    return tmp_path / "copy"


def edit_metadata(path: Path, change) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["hivlp"])
    change(about["origin"])
    save_file(load_file(path), path, metadata={"hivlp": json.dumps(about)})


def test_an_unchanged_run_resumes_whatever_the_files_dates(place):
    for path in (place / "pictures").rglob("*.png"):
        os.utime(path, (0, 0))
    assert train(load_recipe(Path("recipe.yaml")), place / "out", resume=True) is not None


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_is_not_resumed_with_other_data(place, what):
    CHANGES[what](place / "pictures" / "shapes")
    with pytest.raises(RecipeError, match=rf"the training data changed \({what} since the checkpoint\)"):
        train(load_recipe(Path("recipe.yaml")), place / "out", resume=True)


def test_a_run_is_not_resumed_with_another_recipe_tokenizer_or_first_weights(place, monkeypatch):
    path = place / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for key, value in (("lr", 0.02), ("betas", [0.8, 0.9])):
        path.write_text(yaml.safe_dump({**recipe, "optim": {**recipe["optim"], key: value}}))
        with pytest.raises(RecipeError, match=rf"the recipe changed \(optim\.{key}\)"):
            train(load_recipe(path), place / "out", resume=True)
    path.write_text(yaml.safe_dump(recipe))
    with monkeypatch.context() as patched:
        patched.setattr("hivlp.train.job.weights_digest", lambda _: "another")
        with pytest.raises(RecipeError, match="the weights that training starts from changed"):
            train(load_recipe(path), place / "out", resume=True)
    tokenizer = place / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"red"', '"rot"'))
    with pytest.raises(RecipeError, match="the tokenizer changed"):
        train(load_recipe(path), place / "out", resume=True)


def test_a_run_is_not_resumed_with_another_validation_set(place):
    path = place / "recipe.yaml"
    shutil.copytree("pictures", "other")
    edit_metadata(
        place / "out/run/checkpoint/checkpoint.safetensors",
        lambda origin: origin["settings"].update(validation="other"),
    )
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "validation": "other"}))
    (place / "other" / "shapes" / "03.png").unlink()
    with pytest.raises(RecipeError, match=r"the validation data changed \(1 picture removed since the checkpoint\)"):
        train(load_recipe(path), place / "out", resume=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_checkpoint_is_named(place, damage):
    path = place / "out/run/checkpoint/checkpoint.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "other": b"hello, world" * 9}[damage])
    with pytest.raises(RecipeError, match=r"checkpoint\.safetensors cannot be read"):
        train(load_recipe(Path("recipe.yaml")), place / "out", resume=True)


@pytest.mark.parametrize("change", [replaced_in_place, added_in_front, None])
def test_cached_pixels_and_features_are_those_of_the_pictures_that_are_there(tmp_path, change):
    recipe = shapes_recipe(tmp_path)
    tokenizer = TextTokenizer(write_tokenizer(tmp_path), tiny_config().text)
    model, augment = HiVLPModel(tiny_config()).eval(), Augment(views=1)

    def features(cache: str) -> list[dict[int, torch.Tensor]]:
        pairs = [(pair, 1) for pair in load_pairs(recipe["train"][0]["source"], "train")]
        corpus = build_corpus(pairs, model.config.picture, tokenizer, augment, tmp_path / cache)
        return frozen_image_features(model, corpus, augment, 0, tmp_path / cache)

    features("kept")
    if change is not None:
        change(tmp_path / "pictures" / "shapes")
    stamp = (tmp_path / "kept" / "pixels.npy").stat().st_mtime_ns
    for view, fresh in zip(features("kept"), features("fresh"), strict=True):
        assert all(torch.equal(view[layer], fresh[layer]) for layer in fresh)
    assert ((tmp_path / "kept" / "pixels.npy").stat().st_mtime_ns == stamp) == (change is None)


@pytest.mark.parametrize("changed", ["weights", "augment", "seed", "picture"])
def test_cached_features_are_of_these_weights_and_views(tmp_path, changed):
    recipe = shapes_recipe(tmp_path)
    tokenizer = TextTokenizer(write_tokenizer(tmp_path), tiny_config().text)
    pairs = [(pair, 1) for pair in load_pairs(recipe["train"][0]["source"], "train")]

    def features(cache: str, *, other: bool) -> list[dict[int, torch.Tensor]]:
        torch.manual_seed(other and changed == "weights")
        model = HiVLPModel(tiny_config()).eval()
        picture = model.config.picture
        if other and changed == "picture":
            picture = type(picture)(picture.size, "crop")
        augment = Augment(views=1, colour=0.1 if other and changed == "augment" else 0.4)
        corpus = build_corpus(pairs, picture, tokenizer, augment, tmp_path / cache)
        return frozen_image_features(model, corpus, augment, int(other and changed == "seed"), tmp_path / cache)

    features("kept", other=False)
    for view, fresh in zip(features("kept", other=True), features("fresh", other=True), strict=True):
        assert all(torch.equal(view[layer], fresh[layer]) for layer in fresh)


def test_half_a_cache_is_no_cache(tmp_path):
    recipe = shapes_recipe(tmp_path)
    tokenizer = TextTokenizer(write_tokenizer(tmp_path), tiny_config().text)
    pairs = [(pair, 1) for pair in load_pairs(recipe["train"][0]["source"], "train")]
    model, augment = HiVLPModel(tiny_config()).eval(), Augment(views=0)

    def features() -> torch.Tensor:
        corpus = build_corpus(pairs, model.config.picture, tokenizer, augment, tmp_path / "run")
        return frozen_image_features(model, corpus, augment, 0, tmp_path / "run")[0][8]

    whole = features()
    (tmp_path / "run" / "view0.safetensors").write_bytes(b"\x08\0\0\0")
    (tmp_path / "run" / "pixels.json").write_text("{")
    assert torch.equal(features(), whole)


@pytest.mark.parametrize("what", ["1 picture added", "1 picture changed"])
def test_adapt_asks_the_towers_anew_for_pictures_that_changed(tmp_path, what):
    shapes_recipe(tmp_path)
    folder = tmp_path / "pictures" / "shapes"
    encoder = HiVLP.from_pretrained(save_tiny(tmp_path / "model"))
    picture_vectors(encoder, load_pairs(folder), tmp_path / "kept")
    CHANGES[what](folder)
    pairs = load_pairs(folder)
    kept, fresh = (picture_vectors(encoder, pairs, tmp_path / run) for run in ("kept", "fresh"))
    assert torch.equal(kept, fresh)
    captions = [pair.captions[0] for pair in pairs]
    text_vectors(encoder, captions, tmp_path / "kept")
    kept, fresh = (text_vectors(encoder, captions[::-1], tmp_path / run) for run in ("kept", "fresh"))
    assert torch.equal(kept, fresh)


def test_adapt_asks_another_model_anew(tmp_path, caplog):
    levels = (Level("fine", 16, 8, 3),)
    shapes_recipe(tmp_path)
    pairs = load_pairs(tmp_path / "pictures")
    before = prepare_original(str(save_tiny(tmp_path / "model", levels=levels)), tmp_path / "out")
    first = picture_vectors(HiVLP.from_pretrained(before), pairs, tmp_path / "out" / "run")
    save_tiny(tmp_path / "model", seed=1, levels=levels)  # in place
    with caplog.at_level(logging.WARNING):
        after = prepare_original(str(tmp_path / "model"), tmp_path / "out")
    assert "changed since it was adapted" in caplog.text
    encoder = HiVLP.from_pretrained(after)
    again = picture_vectors(encoder, pairs, tmp_path / "out" / "run")
    assert torch.equal(again, picture_vectors(encoder, pairs, tmp_path / "fresh")) and not torch.equal(again, first)
    (tmp_path / "out" / "run" / "source.json").write_text("{")
    with pytest.raises(HivlpError, match=r"source\.json cannot be read"):
        prepare_original(str(tmp_path / "model"), tmp_path / "out")


def test_changes_are_counted_by_name():
    def contents(*items: tuple[str, str, str]) -> Contents:
        return Contents(*(tuple(column) for column in zip(*items, strict=True)))

    before = contents(("a", "1", "x"), ("b", "2", "x"), ("c", "3", "x"), ("d", "4", "x"))
    after = contents(("new", "9", "x"), ("b", "2", "x"), ("c", "0", "x"), ("d", "4", "y"))
    assert after.changes(before) == "1 picture added, 1 removed, 1 changed, captions of 1 picture changed"
    moved = contents(("b", "2", "x"), ("a", "1", "x"), ("c", "3", "x"), ("d", "4", "x"))
    assert moved.changes(before) == "the order changed" and moved.digest != before.digest
    assert before.changes(before) == ""
    twice = contents(("a", "1", "x"), ("a", "1", "x"), ("b", "2", "x"), ("c", "3", "x"), ("d", "4", "x"))
    assert twice.changes(before) == "1 picture added"
    assert np.unique([each.digest for each in (before, after, moved, twice)]).size == 4


def test_pixels_that_are_damaged_are_decoded_again(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    for number in range(4):
        draw_shape(folder, number)
    tokenizer = TextTokenizer(write_tokenizer(tmp_path), tiny_config().text)
    pairs = [(pair, 1) for pair in load_pairs(folder)]

    def pixels() -> np.ndarray:
        return np.array(build_corpus(pairs, tiny_config().picture, tokenizer, Augment(), tmp_path / "cache").pixels)

    whole, store = pixels(), tmp_path / "cache" / "pixels.npy"
    content = store.read_bytes()
    for damaged in (b"", content[:-1], content[:100], content.replace(b"|u1", b"<u2"), content.replace(b"(4,", b"(5,")):
        store.write_bytes(damaged)
        assert np.array_equal(pixels(), whole)


DAMAGED = {
    "step": lambda about, tensors: about.update(step=-5),
    "best": lambda about, tensors: about.update(more={"bogus": 1}),
    "origin": lambda about, tensors: about.update(origin={"settings": 5, "data": [1]}),
    "shape": lambda about, tensors: tensors.update({next(iter(tensors)): torch.zeros(3, 1, 2)}),
    "missing": lambda about, tensors: tensors.pop(next(name for name in tensors if name.endswith(".weight"))),
    "moments": lambda about, tensors: tensors.update({"optimizer.99999.exp_avg": torch.zeros(1)}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_checkpoint_that_is_damaged_is_refused_in_a_line(place, what):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = place / "out" / "run" / "checkpoint" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["hivlp"])
    tensors = load_file(path)
    DAMAGED[what](about, tensors)
    save_file(tensors, path, metadata={"hivlp": json.dumps(about)})
    with pytest.raises(RecipeError, match="train into a new folder, or without --resume") as refused:
        train(load_recipe(Path("recipe.yaml")), place / "out", resume=True)
    assert "\n" not in str(refused.value)


def test_a_damaged_log_or_cache_does_not_end_a_run(place):
    run = place / "out" / "run"
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + b"\xff{\n5\n[[")
    for name in ("pixels.json", "training-contents.json"):
        (run / name).write_bytes(b"[" * 100_000)
    assert train(load_recipe(Path("recipe.yaml")), place / "out", resume=True) is not None
