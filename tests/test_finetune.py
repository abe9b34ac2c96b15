"""Fine-tuning of UNITER, METER and LightningDOT: their losses, their recipes, and a run that is resumed."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from hivlp.data.load import load_pairs  # noqa: E402
from hivlp.errors import RecipeError  # noqa: E402
from hivlp.search.fusion import Shown  # noqa: E402
from hivlp.systems.fusion import load_reranker  # noqa: E402
from hivlp.systems.lightningdot import load_lightningdot  # noqa: E402
from hivlp.train.finetune.job import average_recall, finetune, groups_of, rows_of, schedule  # noqa: E402
from hivlp.train.finetune.procedures import Examples, procedure_of  # noqa: E402
from hivlp.train.finetune.recipe import FinetuneOptim, is_finetune, load_finetune  # noqa: E402
from synthetic import write_benchmark  # noqa: E402

pytestmark = pytest.mark.train

RECIPES = Path(__file__).parent.parent / "recipes"
SYSTEMS = ("lightningdot", "meter", "uniter")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "seen", "again", "once", *(f"thing{number}" for number in range(12))]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """``data/`` as the recipes read it: Karpathy's JSON, pictures, region features and a vocabulary."""
    folder = tmp_path / "data" / "flickr30k"
    entries = write_benchmark(folder, "flickr30k", [("train", 5)] * 8 + [("val", 5)] * 3)
    (folder / "regions").mkdir()
    for number, entry in enumerate(entries):
        rng = np.random.default_rng(number)
        arrays = {"features": rng.random((11, 8)), "norm_bb": rng.random((11, 6)), "conf": np.full(11, 0.9)}
        name = f"flickr30k_{int(Path(entry['filename']).stem):012}.npz"
        np.savez(folder / "regions" / name, **{key: value.astype("f2") for key, value in arrays.items()})
    (tmp_path / "data" / "bert").mkdir()
    (tmp_path / "data" / "bert" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(system):
    return load_finetune(RECIPES / f"{system}_flickr30k.yaml", tiny=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_tiny_variant_of_a_recipe_runs_end_to_end(data, system):
    result = finetune(tiny(system), data / "model")
    lines = [json.loads(line) for line in (data / "model" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and result.average_recall == round(max(line["recall"] for line in lines), 2)
    if system == "lightningdot":
        assert load_lightningdot(data / "model" / "model.safetensors").encode_text
        return
    model = load_reranker(data / "model")
    picture = next(iter((data / "data" / "flickr30k" / "flickr30k-images").iterdir()))
    assert np.isfinite(model.score(["thing1 seen once"], [Shown.file(picture)])).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_whole_recipe_is_sound(system):
    path = RECIPES / f"{system}_flickr30k.yaml"
    assert is_finetune(path) and load_finetune(path).system == system
    assert not is_finetune(RECIPES / "tiny_cpu.yaml")


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(data, monkeypatch):
    from dataclasses import replace

    recipe = tiny("lightningdot")
    recipe = replace(recipe, optim=replace(recipe.optim, steps=4), checkpoint_every=2)
    finetune(recipe, data / "whole")

    class Stopped(Exception):
        pass

    class Once(type(procedure_of(recipe))):
        def loss(self, examples, rows, rng):
            if np.array_equal(rows, rows_of(recipe, len(examples.captions), 3)):
                raise Stopped
            return super().loss(examples, rows, rng)

    with monkeypatch.context() as patch:
        patch.setattr("hivlp.train.finetune.job.procedure_of", Once)
        with pytest.raises(Stopped):
            finetune(recipe, data / "cut")
    finetune(recipe, data / "cut", resume=True)
    one, other = ((data / name / "run" / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert one == other
    with pytest.raises(RecipeError, match="the recipe changed"):
        finetune(replace(recipe, seed=1), data / "cut", resume=True)


def test_uniter_learns_from_the_highest_of_the_wrong_ones(data):
    recipe = tiny("uniter")
    procedure = procedure_of(recipe)
    examples = Examples.of(load_pairs(recipe.data, "train"))
    right, text = examples.pictures[0], examples.captions[0]
    others = list(examples.pictures[1:])
    procedure.network.eval()
    found = procedure._hardest(right, text, others, [text])
    with torch.no_grad():
        scores = procedure.scores([right, *others], [text])[:, 0]
    wrong = scores[1:].sort(descending=True).values[: recipe.negatives]
    assert torch.allclose(found, (0.2 + wrong.sigmoid() - scores[0].sigmoid()).clamp(min=0).mean(), atol=1e-5)
    assert found.requires_grad


def test_meter_leaves_its_matching_head_alone_and_lightningdot_takes_the_batch(data):
    recipe = tiny("meter")
    procedure = procedure_of(recipe)
    examples = Examples.of(load_pairs(recipe.data, "train"))
    procedure.loss(examples, np.array([0, 7]), np.random.default_rng(0)).backward()
    network = procedure.network
    assert network.itm_score.fc.weight.grad is None and network.rank_output.weight.grad.abs().sum() > 0
    groups = {(round(group["peak"], 9), group["weight_decay"]) for group in groups_of(network, recipe.optim)}
    assert groups == {(5e-6, 0.01), (5e-6, 0.0), (2.5e-5, 0.01), (2.5e-5, 0.0)}
    dot = procedure_of(tiny("lightningdot"))
    dot.network.eval()
    rows = np.unique(examples.owner, return_index=True)[1][:3]
    scores = dot.scores(examples.pictures[:3], [examples.captions[row] for row in rows])
    both = torch.nn.functional.cross_entropy
    expected = (both(scores, torch.arange(3)) + both(scores.T, torch.arange(3))) / 2
    assert torch.allclose(dot.loss(examples, rows, np.random.default_rng(0)), expected, atol=1e-5)


def test_recall_counts_the_best_of_a_pictures_captions_and_ties_against(data):
    class Known:
        network = torch.nn.Identity()

        def scores(self, pictures, captions):
            return torch.tensor([[3.0, 0.0, 1.0], [2.0, 5.0, 0.0]])

    examples = Examples(["a", "b"], ["x", "y", "z"], np.array([0, 0, 1]))
    # Texts: x finds a; y finds b before a; z finds a before b. Pictures: a has x first, b has y and x before z.
    assert average_recall(Known(), examples) == pytest.approx(100 * (1 / 3 + 1 + 1 + 1 / 2 + 1 + 1) / 6)


def test_captions_are_visited_once_a_pass_and_rates_rise_and_fall():
    recipe = tiny("uniter")
    rows = np.concatenate([rows_of(recipe, 6, step) for step in range(6)])
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6)) and list(rows[:6]) != list(rows[6:])
    optim = FinetuneOptim(steps=10, batch_size=1, lr=1.0, warmup=0.2)
    assert [schedule(step, optim) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 0.125]


def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path):
    known = yaml.safe_load((RECIPES / "uniter_flickr30k.yaml").read_text())
    path = tmp_path / "recipe.yaml"
    for key, value, message in (
        ("system", "unitre", "system is 'unitre'; did you mean uniter?"),
        ("regions", None, "need a folder of region features"),
        ("negatives", 0, "negatives must be at least 1 for uniter"),
        ("pool", 31, "hard negatives are looked for among more than 31"),
        ("lr", 1, "unknown key lr"),
    ):
        path.write_text(yaml.safe_dump({**known, key: value}))
        with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
            load_finetune(path)
        assert message in str(caught.value)
