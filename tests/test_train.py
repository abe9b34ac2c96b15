"""The training job: recipes, exact resume, a real kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from hivlp.config import HiVLPConfig, PictureConfig  # noqa: E402
from hivlp.data.pairs import Pair  # noqa: E402
from hivlp.demo import pictures_folder  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.errors import RecipeError  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.train.inputs.augment import bare, caption_variants, random_view  # noqa: E402
from hivlp.train.recipe.schema import Augment, load_recipe  # noqa: E402
from synthetic import BERT, shapes_recipe  # noqa: E402

pytestmark = pytest.mark.train
SOURCE = Path(__file__).resolve().parent.parent / "src"


@pytest.fixture
def workplace(tmp_path):
    """Forty pictures of coloured shapes with captions, a tokenizer, and a recipe that trains on them."""
    return tmp_path, shapes_recipe(tmp_path)


def run_train(folder: Path, recipe: dict, out: str, *more: str, processes: int = 1) -> subprocess.Popen:
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "hivlp", "train", str(path), "-o", str(folder / out), "--json", *more]
    if processes > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(folder: Path, out: str) -> list[dict]:
    path = folder / out / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("tower_lr", [0.0, 1e-3], ids=["frozen", "tuned"])
def test_a_killed_run_resumes_with_the_same_losses(workplace, tower_lr):
    folder, recipe = workplace
    recipe["optim"]["tower_lr"] = tower_lr
    if tower_lr:  # everything that has a state of its own, and dropout
        recipe["text_tower"]["options"] = BERT
        recipe["optim"]["ema"] = 0.8
        recipe["watch"] = {"every": 2, "patience": 5}
        recipe["objective"] = {"learned_weights": True, "loss": "sigmoid"}
    if tower_lr == 0:  # coarse from fine, once the fine level is done
        recipe["self_distillation"] = {"texts": 0, "steps": 30}
        recipe["levels"][0]["image_layer"] = 8
        recipe["image_tower"]["heads"] = {"coarse": "projection"}
    whole = run_train(folder, recipe, "whole")
    out, err = whole.communicate(timeout=240)
    assert whole.returncode == 0, err
    result = json.loads(out)
    assert result["validation"]["captions"] == 40
    assert (folder / "whole" / "README.md").read_text().startswith("# shapes")
    reference = losses(folder, "whole")
    assert [row["step"] for row in reference if "loss" in row] == list(range(12))

    # Kill it for real once a checkpoint lies behind it and steps after that checkpoint are logged.
    victim = run_train(folder, recipe, "killed")
    while len(losses(folder, "killed")) < 5 and victim.poll() is None:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    resumed = run_train(folder, recipe, "killed", "--resume")
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert losses(folder, "killed") == reference
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def finished(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out)


def steps(folder: Path, out: str) -> list[dict]:
    return [row for row in losses(folder, out) if "loss" in row]


def assert_same_losses(folder: Path, one: str, other: str, count: int = 12) -> None:
    pairs = list(zip(steps(folder, one), steps(folder, other), strict=True))
    assert len(pairs) == count
    for row, same in pairs:
        for name, value in row.items():
            assert same[name] == pytest.approx(value, rel=1e-4), (row["step"], name)


def assert_close_recalls(one: list[dict], other: list[dict]) -> None:
    """Two measurements; how a sum was rounded may swap two look-alikes."""
    assert len(one) == len(other) == 2
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, abs=2)


def test_two_processes_train_as_one_does(workplace):
    """Towers, batch statistics, objective (hard negatives too) and averages: the same losses, the same weights."""
    folder, recipe = workplace
    with_pretext(folder, recipe)
    recipe["optim"] |= {"tower_lr": 1e-3, "feature_dropout": {}, "ema": 0.9, "lr": 1e-3, "clip": 1.0}
    recipe["objective"] = {"hard_negatives": 0.3, "hard_negative_count": 4, "shortlist": 0.2, "chunk": 3}
    recipe["watch"] = {"every": 6}
    # EfficientNet normalises a map of one pixel here, which makes much of how a sum was rounded.
    recipe["image_tower"] = {"kind": "convnet", "options": {"channels": [8, 16], "grid": 2}}
    for level, layer in zip(recipe["levels"], (1, 2), strict=True):
        level["image_layer"] = layer
    results = [finished(run_train(folder, recipe, name, processes=count)) for name, count in (("one", 1), ("two", 2))]
    assert_same_losses(folder, "one", "two")
    recalls = [[row["recalls"] for row in losses(folder, name) if "recalls" in row] for name in ("one", "two")]
    assert_close_recalls(*recalls)
    ends = [result["validation"]["cascade"]["AR"] for result in results]
    assert ends[0] == pytest.approx(ends[1], abs=2)


def test_sharded_weights_train_as_whole_ones_do_and_go_on_as_such(workplace):
    """Two processes with half of everything each; killed, and taken up by one process that holds it all."""
    folder, recipe = workplace
    recipe["optim"] |= {"tower_lr": 1e-3, "feature_dropout": {}, "ema": 0.9, "lr": 1e-3, "clip": 1.0, "epochs": 9}
    recipe["objective"] = {"shortlist": 0.2, "learned_weights": True}
    recipe["watch"] = {"every": 18, "patience": 9}
    recipe["compute"] = {"micro_batch": 3}
    recipe["image_tower"] = {"kind": "convnet", "options": {"channels": [8, 16], "grid": 2}}
    recipe["optim"]["freeze_batchnorm"] = True
    for level, layer in zip(recipe["levels"], (1, 2), strict=True):
        level["image_layer"] = layer
    finished(run_train(folder, recipe, "whole"))
    recipe["compute"]["shard"] = True
    finished(run_train(folder, recipe, "shared", processes=2))
    assert_same_losses(folder, "whole", "shared", 36)
    recalls = [[row["recalls"] for row in losses(folder, name) if "recalls" in row] for name in ("whole", "shared")]
    assert_close_recalls(*recalls)

    victim = run_train(folder, recipe, "killed", processes=2)
    while len(steps(folder, "killed")) < 5 and victim.poll() is None:
        time.sleep(0.01)
    victim.terminate()  # torchrun kills its processes
    victim.communicate()
    assert len(steps(folder, "killed")) < 36
    finished(run_train(folder, recipe, "killed", "--resume"))
    assert_same_losses(folder, "whole", "killed", 36)


def with_pretext(folder: Path, recipe: dict) -> None:
    """Matching and masked words too."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.save(str(path))
    recipe["pretext"] = {"matching": 0.5, "masked_language": 0.5, "masked_share": 0.4}
    recipe["text_tower"]["options"]["vocab_size"] += 1


def test_micro_batches_train_as_a_whole_batch_does(workplace):
    folder, recipe = workplace
    with_pretext(folder, recipe)
    recipe["optim"] |= {"tower_lr": 1e-3, "freeze_batchnorm": True, "lr": 1e-3}
    recipe["optim"]["feature_dropout"] = {}
    finished(run_train(folder, recipe, "whole"))
    recipe["compute"] = {"micro_batch": 3}
    finished(run_train(folder, recipe, "parts"))
    assert_same_losses(folder, "whole", "parts")
    recipe["optim"]["freeze_batchnorm"] = False
    refused = run_train(folder, recipe, "refused")
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 1 and "freeze_batchnorm" in err and "Traceback" not in err


def test_a_run_stops_when_validation_gets_no_better_and_gives_its_best(workplace):
    folder, recipe = workplace
    recipe["optim"] |= {"epochs": 30, "lr": 0.0, "text_lr": 0.0}
    recipe["watch"] = {"every": 2, "patience": 3}
    recipe["compute"] = {"precision": "bf16"}
    result = finished(run_train(folder, recipe, "stopped"))
    assert len(steps(folder, "stopped")) == 8, "one measurement that was the best, then three no better"
    assert result["best_step"] == 2
    assert (folder / "stopped" / "curves.png").stat().st_size > 5000


def test_lower_layers_learn_slower_and_the_lowest_not_at_all(workplace):
    from hivlp.objective import HierarchicalObjective
    from hivlp.train.schedule import parameter_groups, set_learning_rates

    folder, recipe = workplace
    recipe["optim"] |= {"tower_lr": 1e-3, "layer_decay": 0.5, "freeze": {"text": 1}, "tower_delay": 4}
    recipe["optim"]["warmup_steps"] = 2
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(path)
    model = HiVLPModel(
        HiVLPConfig("x", loaded.levels, loaded.image_tower, loaded.text_tower, loaded.picture, loaded.text)
    )
    objective = HierarchicalObjective(("coarse", "fine"), loaded.objective)
    optimizer = torch.optim.AdamW(parameter_groups(model, objective, torch.nn.ModuleDict(), loaded))
    peak = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    text, image = model.text_tower.bert, model.image_tower
    assert id(text.embeddings.word_embeddings.weight) not in peak
    assert not text.encoder.layer[0].attention.self.query.weight.requires_grad
    assert peak[id(text.encoder.layer[1].attention.self.query.weight)] == pytest.approx(5e-4)
    assert peak[id(text.encoder.layer[2].attention.self.query.weight)] == pytest.approx(1e-3)
    assert peak[id(image.stem[0].weight)] == pytest.approx(1e-3 / 2**8)
    assert peak[id(image.classifier.weight)] == pytest.approx(1e-3)

    def rates(step: int) -> tuple[float, float]:
        set_learning_rates(optimizer, loaded, step, 1000)
        tower = next(g["lr"] for g in optimizer.param_groups if any(p is image.classifier.weight for p in g["params"]))
        return tower, optimizer.param_groups[0]["lr"]

    assert rates(3)[0] == 0 and rates(3)[1] == pytest.approx(1e-2, rel=1e-3)
    assert rates(4)[0] == pytest.approx(5e-4, rel=1e-3) and rates(5)[0] == pytest.approx(1e-3, rel=1e-3)


def test_the_optimiser_is_set_as_the_recipe_says(workplace):
    """Decay of matrices alone, of heads and towers apart; betas of either; eps; the objective's own rate."""
    from hivlp.objective import HierarchicalObjective
    from hivlp.train.schedule import parameter_groups

    folder, recipe = workplace
    recipe["optim"] |= {"tower_lr": 1e-3, "weight_decay": 0.2, "tower_weight_decay": 0.05, "betas": [0.8, 0.95],
                        "tower_betas": [0.9, 0.98], "eps": 1e-6, "objective_lr": 5e-4}  # fmt: skip
    recipe["text_tower"]["heads"] = {"coarse": "mlp"}
    recipe["objective"] = {"loss": "sigmoid", "learned_weights": True}

    def groups(**more) -> dict[str, dict]:
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, "optim": {**recipe["optim"], **more}}))
        loaded = load_recipe(path)
        model = HiVLPModel(
            HiVLPConfig("x", loaded.levels, loaded.image_tower, loaded.text_tower, loaded.picture, loaded.text)
        )
        objective = HierarchicalObjective(("coarse", "fine"), loaded.objective)
        optimizer = torch.optim.AdamW(parameter_groups(model, objective, torch.nn.ModuleDict(), loaded))
        found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        named = [*model.named_parameters(), *objective.named_parameters()]
        return {
            name: found[id(parameter)] | {"ndim": parameter.ndim} for name, parameter in named if id(parameter) in found
        }

    found = groups()
    assert len(found) > 50
    for name, group in found.items():
        tower = "_tower." in name
        own = name in ("log_scales", "biases", "log_variances")
        decay = 0.0 if group["ndim"] < 2 or own else 0.05 if tower else 0.2
        assert group["weight_decay"] == decay, name
        assert group["betas"] == ((0.9, 0.98) if tower else (0.8, 0.95)) and group["eps"] == 1e-6, name
        assert not own or group["peak"] == 5e-4
    assert groups(decay_vectors=True)["text_heads.coarse.hidden.bias"]["weight_decay"] == 0.2
    assert groups(tower_betas=None)["text_tower.bert.embeddings.LayerNorm.weight"]["betas"] == (0.8, 0.95)


def test_an_epoch_is_cut_evenly(workplace):
    """Forty-one pairs in batches of at most ten: no pair is left by itself."""
    from types import SimpleNamespace

    from hivlp.train.inputs.batch import steps_of_epoch
    from hivlp.train.inputs.corpus import batches

    recipe = replace(load_recipe(SOURCE.parent / "recipes" / "tiny_cpu.yaml"), seed=1)
    recipe = replace(recipe, optim=replace(recipe.optim, batch_size=10, epochs=2))

    class Fake(SimpleNamespace):
        def __len__(self) -> int:
            return 41

    corpus, each = Fake(repeat=np.ones(41, np.int64)), steps_of_epoch(41, 10)
    taken = list(batches(corpus, recipe, each, 0, 2 * each))
    assert [step for step, _ in taken] == list(range(10)) and {len(rows) for _, rows in taken} == {8, 9}
    assert sorted(np.concatenate([rows for _, rows in taken[:5]])) == list(range(41))
    again = list(batches(corpus, recipe, each, 7, 2 * each))
    assert [step for step, _ in again] == [7, 8, 9] and np.array_equal(again[0][1], taken[7][1])


def test_training_that_fails_says_so_and_keeps_its_last_checkpoint(workplace):
    """A loss that is no number ends the run with an error, before it reaches the weights."""
    folder, recipe = workplace
    recipe["optim"] |= {"tower_lr": 1e-3, "lr": 1e30, "text_lr": 1e30, "warmup_steps": 0}
    failed = run_train(folder, recipe, "failed")
    out, err = failed.communicate(timeout=240)
    assert failed.returncode == 1 and "training has failed" in err and "Traceback" not in err
    assert "training has failed" in json.loads(out)["error"]
    assert not (folder / "failed" / "config.json").exists()


def test_a_run_is_not_overwritten_nor_resumed_by_another_recipe(workplace):
    folder, recipe = workplace
    recipe["optim"]["epochs"] = 1
    first = run_train(folder, recipe, "run1")
    assert first.wait(240) == 0, first.stderr.read()
    again = run_train(folder, recipe, "run1")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 1 and "--resume" in err and "Traceback" not in err
    recipe["seed"] = 1
    other = run_train(folder, recipe, "run1", "--resume")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 1 and "another recipe" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nlevel: []", "unknown key level"),
        ("- a\n- b", "does not hold a mapping"),
        ("name: [", "cannot be read"),
        ("name: x", "missing"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(tmp_path / "nosuch.yaml")


@pytest.mark.parametrize("option", ["feature_dropout", "tower_gradient"])
def test_an_option_for_a_level_that_there_is_not_is_refused(option):
    recipe = load_recipe(SOURCE.parent / "recipes" / "tiny_cpu.yaml")
    replace(recipe, optim=replace(recipe.optim, **{option: {"coarse": 0.5}}))
    with pytest.raises(ValueError, match=f"{option}: no level corse among"):
        replace(recipe, optim=replace(recipe.optim, **{option: {"corse": 0.5}}))


@pytest.mark.parametrize("name", ["mini", "tiny_cpu", "scenes_cpu", "scenes_hard_cpu"])
def test_shipped_recipes_load(name):
    recipe = load_recipe(SOURCE.parent / "recipes" / f"{name}.yaml")
    assert [level.name for level in recipe.levels] == ["coarse", "fine"]
    assert isinstance(recipe.picture, PictureConfig)


def test_the_tiny_recipe_runs_end_to_end(tmp_path):
    """The whole job on the pictures that ship: towers trained, int8 chosen on validation, card written."""
    command = [sys.executable, "-m", "hivlp", "train", str(SOURCE.parent / "recipes" / "tiny_cpu.yaml"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "tiny")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["validation"]["images"] == len(list(pictures_folder().glob("*.webp")))
    rows = losses(tmp_path, "tiny")
    assert len(rows) == 12
    first, last = (sum(row["loss"] for row in part) for part in (rows[:4], rows[-4:]))
    assert last < first, "the loss falls"
    model = HiVLP.from_pretrained(tmp_path / "tiny")
    assert model.encode_text(["a red car"]).fine.shape == (1, 64)
    assert "smoke test" in (tmp_path / "tiny" / "README.md").read_text()


def test_random_views_keep_size_and_repeat_with_their_seed():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    config = Augment(zoom=(0.5, 1.4))
    views = [random_view(pixels, 32, config, np.random.default_rng([0, seed])) for seed in range(20)]
    assert all(view.shape == (32, 32, 3) and view.dtype == np.uint8 for view in views)
    assert len({view.tobytes() for view in views}) > 15
    again = random_view(pixels, 32, config, np.random.default_rng([0, 3]))
    np.testing.assert_array_equal(views[3], again)


def test_caption_variants():
    pair = Pair("animals/big_cats/tiger.png", b"", ("A Bengal tiger.",))
    assert bare("The cat.") == "cat" and bare("Another cat") == "Another cat"
    assert caption_variants(pair, Augment(folders=True)) == [
        "A Bengal tiger.",
        "Bengal tiger",
        "Bengal tiger, big cats",
        "Bengal tiger, big cats, animals",
    ]
    assert caption_variants(pair, Augment(folders=False)) == ["A Bengal tiger.", "Bengal tiger"]


def test_a_slim_vocabulary_spells_the_rest_in_smaller_tokens(tmp_path):
    from tokenizers import Tokenizer

    from hivlp.mini.backbones import slim_vocabulary

    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "cat", "##s", "1999", "1", "##9", "н", "##ии", "a"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    data = {
        "version": "1.0",
        "added_tokens": [
            {"id": words.index(token), "content": token, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False} for token in special
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [words.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
        },
        "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {word: i for i, word in enumerate(words)}},
    }  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(data))
    kept = slim_vocabulary(tmp_path / "old.json", tmp_path / "new.json")
    assert [words[i] for i in kept] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "##s", "1", "##9", "a"]
    old, new = (Tokenizer.from_file(str(tmp_path / name)) for name in ("old.json", "new.json"))
    assert [kept[i] for i in new.encode("A cats").ids] == old.encode("A cats").ids
    assert new.encode("1999").tokens == ["[CLS]", "1", "##9", "##9", "##9", "[SEP]"]
    assert new.encode("н").tokens == ["[CLS]", "[UNK]", "[SEP]"]


STAMPS = Path("/usr/share/tuxpaint/stamps")


@pytest.mark.stamps
@pytest.mark.skipif(not STAMPS.is_dir(), reason="the Tux Paint stamps are not installed (make system)")
def test_the_model_that_ships_is_as_good_as_its_card_says():
    """On the stamps' validation part: the card's own numbers, and the floor that the project asks for."""
    from hivlp.data.load import load_pairs
    from hivlp.evaluate.evaluation import evaluate

    result = evaluate(load_pairs("stamps", "val"), HiVLP.from_pretrained("hivlp-mini"), progress=False).to_json()
    recalls = result["cascade"]["text_to_image"]
    assert recalls["R@1"] >= 30 and recalls["R@5"] >= 55 and recalls["R@10"] >= 70
    assert result["cascade"]["retained"]["text_to_image"]["R@10"] >= 0.96


def test_wordnet_says_what_a_class_is(tmp_path):
    """Offsets, word counts in hexadecimal, pointers: the format of wndb(5), in small."""
    from hivlp.errors import DataError
    from hivlp.mini.warm_start import class_texts
    from hivlp.mini.wordnet import read_synsets

    (tmp_path / "data.noun").write_text(
        "  1 This is the licence  \n"
        '00000100 03 n 01 entity 0 000 | that which exists; "it is"\n'
        "00000200 05 n 02 fish 0 Pisces 1 001 @ 00000100 n 0000 | an animal that lives in water\n"
        "00000300 05 n 01 tench 0 002 @ 00000200 n 0000 ~ 00000100 n 0000 | a freshwater fish; of Europe\n"
        "00000400 06 n 02 crane 0 derrick 0 001 @ 00000100 n 0000 | a machine that lifts\n"
        "00000500 05 n 01 crane 1 001 @i 00000100 n 0000 | a large bird\n"
    )
    nouns = read_synsets(folder=tmp_path)
    assert nouns["00000200"].words == ("fish", "Pisces") and nouns["00000200"].kinds == ("00000100",)

    def embed(texts):
        words = ["bird", "machine", "fish"]
        return torch.tensor([[float(word in text) for word in words] for text in texts])

    got = class_texts(["tench", "crane (bird)", "nosuch"], nouns, embed)
    assert got[0] == ["tench", "tench, fish, entity", "tench: a freshwater fish"]
    assert got[1][2] == "crane (bird): a large bird", "the name says which sense is meant"
    assert got[2] == ["nosuch"] * 3
    with pytest.raises(DataError, match="wordnet-base"):
        read_synsets(folder=tmp_path / "missing")
