"""What a recipe may say: everything else is refused before anything is read or trained."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from hivlp.cli import main  # noqa: E402
from hivlp.errors import HivlpError, RecipeError  # noqa: E402
from hivlp.train.recipe.check import check_data, check_recipe  # noqa: E402
from hivlp.train.recipe.schema import Optim, load_recipe  # noqa: E402
from synthetic import shapes_recipe  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict:
    """A recipe that is sound, with a convnet."""
    recipe = shapes_recipe(tmp_path_factory.mktemp("recipes"))
    recipe["image_tower"] = {"kind": "convnet", "options": {"channels": [8, 16], "grid": 2}}
    for level, layer in zip(recipe["levels"], (1, 2), strict=True):
        level["image_layer"] = layer
    recipe["optim"] |= {"tower_lr": 1e-3}
    return recipe


def changed(recipe: dict, key: str, value) -> dict:
    """The recipe with one value changed; ``levels.0.dim`` is a path, None takes the key away."""
    recipe = copy.deepcopy(recipe)
    *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
    place = recipe
    for part in path:
        place = place[part] if isinstance(place, list) else place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return recipe


def refusal(recipe: dict, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(HivlpError) as caught:
        loaded = load_recipe(path)
        check_recipe(loaded)
        check_data(loaded)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_recipe_is_accepted(known, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(known))
    recipe = load_recipe(path)
    check_recipe(recipe)
    assert len(check_data(recipe)) == 40


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nam", "x", "unknown key nam; did you mean name?"),
        ("init.imgae", "registry", "unknown key init.imgae; did you mean image? known: image, model, text"),
        ("init.image", "regsitry", "init.image is 'regsitry'; did you mean registry? known: random, registry"),
        ("levels.0.dims", 4, "unknown key levels[0].dims; did you mean dim?"),
        ("levels.1.dim", 0, "levels[1]: level fine: dim must be a whole number of at least 1"),
        ("levels.1.dim", "16", "levels[1].dim must be a whole number, not '16'"),
        ("levels.0.name", "fine", "levels: level names must differ: fine, fine"),
        ("levels.1.text_layer", 4, "level fine reads layer 4 of a tower of 3"),
        ("levels", [], "levels: a model needs at least one level"),
        ("levels", None, "the key levels is missing"),
        ("image_tower.kind", "convnext", "image_tower.kind is 'convnext'; did you mean convnet?"),
        ("image_tower.options.chanels", [8], "unknown key image_tower.options.chanels; did you mean channels?"),
        ("image_tower.options.channels", [8, -1], "image_tower.options.channels[1] must be at least 1, not -1"),
        ("image_tower.heads", {"corse": "linear"}, "image_tower.heads names no level: corse; did you mean coarse?"),
        ("text_tower.heads", {"fine": "mpl"}, "text_tower.heads.fine is 'mpl'; did you mean mlp?"),
        ("text_tower.heads", {"fine": "identity", "coarse": "identity"}, "an identity head keeps the width"),
        ("text_tower.options.hiden_size", 8, "unknown key text_tower.options.hiden_size; did you mean hidden_size?"),
        ("text_tower.options.num_hidden_layers", 2**31, "num_hidden_layers must be at most 1000, not 2147483648"),
        ("text_tower.options.vocab_size", 2**31, "vocab_size must be at most 16777216"),
        ("text_tower.options.intermediate_size", 2**63, "intermediate_size must be at most"),
        ("text_tower.options.hidden_size", 15, "not a multiple of the number of attention heads"),
        ("text_tower.options.hidden_dropout_prob", 1.5, "hidden_dropout_prob must be at least 0 and below 1, not 1.5"),
        ("text_tower.options.vocab_size", 9, "has 13 words, the text tower 9"),
        ("text.max_tokens", 17, "text.max_tokens must be at least 3 and at most 16, the positions of the text tower"),
        ("picture.size", 34, "picture.size is 34: level coarse wants a multiple of 4"),
        ("picture.size", -32, "picture: size must be at least 1"),
        ("picture.std", [0.0, 1.0, 1.0], "picture: std must not be 0"),
        ("train", [], "train names no data"),
        ("train.0.source", "/no/such/folder", "train[0].source: /no/such/folder does not exist"),
        ("train.0.repeat", 0, "train[0].repeat must be at least 1, not 0"),
        ("validation", "/no/such.csv", "validation: /no/such.csv does not exist"),
        ("validation", "demo:vla", "validation is demo:vla: no split vla; did you mean val?"),
        ("init.tokenizer", "nosuch", "init.tokenizer: no model 'nosuch'"),
        ("init.text", "registry", "init.text: registry has the weights of options.hidden_size: 384, not 16"),
        ("init.warm_start", True, "init.warm_start needs image and text heads"),
        ("optim.epochs", 0, "optim.epochs must be at least 1, not 0"),
        ("optim.epochs", 1.5, "optim.epochs must be a whole number, not 1.5"),
        ("optim.lr", float("nan"), "optim.lr must be a finite number, not nan"),
        ("optim.lr", -1e-3, "optim.lr must be at least 0, not -0.001"),
        ("optim.lr", "much", "optim.lr must be a finite number, not 'much'"),
        ("optim.betas", [0.9, 1], "optim.betas[1] must be at least 0 and below 1, not 1"),
        ("optim.freeze", {"text": 4}, "optim.freeze.text is 4, of a tower of 3 layers"),
        ("optim.feature_dropout", {"fine": 1}, "optim.feature_dropout.fine must be at least 0 and below 1"),
        ("optim.batch_size", 41, "optim.batch_size is 41, more than the 40 pairs of an epoch"),
        ("optim.batch_size", 1, "a pair by itself"),
        ("optim.tower_delay", 12, "the towers never learn in 12 steps"),
        ("limit", 8, "optim.batch_size is 10, more than the 8 pairs"),
        ("augment.zoom", [1.2, 0.8], "augment: zoom goes from small to large"),
        ("augment.color", 0.1, "unknown key augment.color; did you mean colour?"),
        ("objective.loss", "softmin", "objective.loss is 'softmin'; did you mean softmax?"),
        (
            "objective.codes",
            {"fnie": "int8"},
            "objective.codes names no level that is trained: fnie; did you mean fine?",
        ),
        ("objective", {"contrastive": {"coarse": 0, "fine": 0}, "distillation": 0}, "every term has the weight 0"),
        ("compute.precision", "bf32", "compute.precision is 'bf32'; known: bf16, fp16, no"),
        ("compute.micro_batch", 4, "set optim.freeze_batchnorm"),
        ("watch.every", 13, "watch.every is 13, but the run has 12 steps"),
        ("watch.patience", 2, "watch: patience needs every"),
        ("pretext.matchin", 1.0, "unknown key pretext.matchin; did you mean matching?"),
        ("pretext.masked_language", 1.0, "needs a tokenizer with [MASK]"),
        ("self_distillation", {"texts": 0}, "self_distillation works on frozen towers"),
        ("seed", -1, "seed must be at least 0"),
        ("quantize", "no", "quantize must be true or false, not 'no'"),
        ("name", "../up", "name must be a name that a folder may have"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused_with_its_key(known, tmp_path, key, value, message):
    assert message in refusal(changed(known, key, value), tmp_path)


def test_a_set_that_is_needed_must_be_named(known, tmp_path):
    without = changed(known, "validation", None)
    assert "quantize needs a validation set" in refusal({**without, "quantize": True}, tmp_path)
    assert "watch.every needs a validation set" in refusal({**without, "watch": {"every": 2}}, tmp_path)
    same = {**known, "test": known["validation"]}
    assert "cannot be measured on it" in refusal(same, tmp_path)
    shown = {**without, "test": f"{known['validation']}/shapes"}
    assert "test: 40 of its pictures are trained on" in refusal(shown, tmp_path)


def test_training_on_the_validation_set_is_said(known, tmp_path, caplog):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(known))
    check_data(load_recipe(path))
    assert "40 of its pictures are trained on" in caplog.text and "no peak is reached" in caplog.text


def test_a_batch_must_be_enough_for_the_processes(known, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(known))
    check_data(load_recipe(path), processes=10)
    with pytest.raises(RecipeError, match="batches of 10 pairs cannot be shared by 11 processes"):
        check_data(load_recipe(path), processes=11)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nname: a\nlr: 2", "line 3: the key lr stands there twice"),
        ("optim: {lr: 1, lr: 2}", "the key lr stands there twice"),
        ("a: &a [*a]", "its aliases stand for too much"),
        (
            "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
            "too much",
        ),
        ("[" * 3000, "nested too deeply"),
        ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("name: x\n---\nname: y", "expected a single document"),
        ("- name", "does not hold a mapping"),
        ("", "does not hold a mapping"),
        ("1: 2", "unknown key 1"),
        ("name: \x00", "cannot be read"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(RecipeError, match="not a file"):
        load_recipe(tmp_path)


def test_numbers_and_words_are_what_they_look_like(known, tmp_path):
    text = yaml.safe_dump({**known, "optim": {}, "compute": {}})
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("optim: {}", "optim: {lr: 1e-4, text_lr: 2, betas: [.9, 98e-2]}")
                    .replace("compute: {}", "compute: {precision: no}"))  # fmt: skip
    recipe = load_recipe(path)
    assert (recipe.optim.lr, recipe.optim.text_lr, recipe.optim.betas) == (1e-4, 2.0, (0.9, 0.98))
    assert recipe.compute.precision == "no"
    for wrong in ("'1e-4'", "1_000", "1:30", ".inf", "0x10", "010", "true", "~"):
        path.write_text(text.replace("optim: {}", f"optim: {{lr: {wrong}}}"))
        with pytest.raises(RecipeError, match=r"optim\.lr must be a finite number"):
            load_recipe(path)


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="epochs must be at least 1, not 0"):
        Optim(epochs=0)
    with pytest.raises(ValueError, match="lr must be a finite number"):
        replace(Optim(), lr=float("inf"))


def test_a_refused_recipe_leaves_no_trace_and_fails(known, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(known, "validation", "/no/such")))
    command = [sys.executable, "-m", "hivlp", "train", str(path), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "validation: /no/such does not exist" in done.stderr and "Traceback" not in done.stderr


def test_a_plan_says_what_would_be_done_and_does_nothing(known, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(known, "optim.batch_size", 12)))
    assert main(["train", str(path), "-o", str(tmp_path / "out"), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["pairs"], plan["steps"], plan["batch"]) == (40, 12, [10, 10])
    assert {group["weight_decay"] for group in plan["learning"]} == {0.0, 0.1}
    assert not (tmp_path / "out").exists()
    assert main(["train", str(path), "--plan"]) == 0
    assert "12 of 10 pairs" in capsys.readouterr().out
    path.write_text(yaml.safe_dump(changed(known, "optim.epochs", 0)))
    assert main(["train", str(path), "--plan"]) == 1
