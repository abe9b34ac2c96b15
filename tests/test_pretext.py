"""Masked words and matching, beside retrieval."""

import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer  # noqa: E402

from hivlp.errors import RecipeError  # noqa: E402
from hivlp.model.hivlp_model import HiVLPModel  # noqa: E402
from hivlp.objective import HierarchicalObjective, ObjectiveConfig  # noqa: E402
from hivlp.train.pretext import MaskedLanguage, Matching, TrainingModel  # noqa: E402
from hivlp.train.recipe.schema import Optim, Pretext, Recipe  # noqa: E402
from synthetic import VOCABULARY, tiny_config, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path)))
    tokenizer.add_special_tokens(["[MASK]"])
    return tokenizer


@pytest.fixture
def model() -> HiVLPModel:
    torch.manual_seed(0)
    config = tiny_config()
    options = {**config.text_tower.options, "vocab_size": len(VOCABULARY) + 1}
    text = type(config.text_tower)("bert", {**options, "hidden_dropout_prob": 0.0}, config.text_tower.heads)
    return HiVLPModel(tiny_config(text_tower=text)).eval()


def recipe(model: HiVLPModel, **settings) -> Recipe:
    config = model.config
    return Recipe("tiny", config.levels, config.image_tower, config.text_tower, train=(), **settings)


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_only_words_are_masked_and_only_masked_words_count(model, tokenizer, monkeypatch):
    task = MaskedLanguage(model, tokenizer, 0.5)
    ids = torch.tensor([[2, 4, 5, 8, 3, 0], [2, 4, 6, 3, 0, 0]])
    attention = (ids > 0).long()
    seen = []
    states = model.text_tower.token_states
    monkeypatch.setattr(model.text_tower, "token_states", lambda i, a: seen.append(i.clone()) or states(i, a))
    changed = torch.zeros_like(ids)
    for seed in range(200):
        torch.manual_seed(seed)
        loss = task(model.text_tower, ids, attention, unit(2, 16, 0))
        assert loss.isfinite()
        changed += seen[-1] != ids
    special = torch.isin(ids, torch.tensor([0, 2, 3]))
    assert (changed[special] == 0).all() and (changed[~special] > 50).all() and (changed[~special] < 150).all()
    to_mask = sum(int((one == task.mask).sum()) for one in seen) / int(changed.sum())
    assert 0.85 < to_mask < 0.95, "of the tokens that changed, 80 in 90 are [MASK]"
    nothing = MaskedLanguage(model, tokenizer, 0.0)(model.text_tower, ids, attention, unit(2, 16, 0))
    assert nothing.item() == 0.0


def test_a_masked_word_can_be_told_from_the_picture(model, tokenizer):
    """Captions that differ in the colour alone: without the picture a masked colour is a guess among three."""
    task = MaskedLanguage(model, tokenizer, 0.5)
    ids = torch.tensor([[2, 4, colour, 8, 3] for colour in (5, 6, 7)]).repeat(20, 1)
    pictures = unit(3, 16, 1).repeat(20, 1)
    optimizer = torch.optim.Adam([*task.parameters(), *model.text_tower.parameters()], 3e-3)
    for step in range(150):
        torch.manual_seed(step)
        optimizer.zero_grad()
        task(model.text_tower, ids, torch.ones_like(ids), pictures).backward()
        optimizer.step()
    torch.manual_seed(999)
    with torch.no_grad():
        told = task(model.text_tower, ids, torch.ones_like(ids), pictures).item()
        torch.manual_seed(999)
        misled = task(model.text_tower, ids, torch.ones_like(ids), pictures.roll(1, 0)).item()
    assert told < 0.2 < misled


def test_matching_never_takes_an_equal_caption_for_wrong():
    torch.manual_seed(0)
    task = Matching(8)
    seen = []
    task.judge.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    image, text = unit(6, 8, 1), unit(6, 8, 2)
    ids = torch.tensor([0, 0, 1, 1, 2, 2])
    for _ in range(20):
        task(image, text, ids)
    for batch in seen:
        assert len(batch) == 18
        for row in batch[6:]:
            i = int((image - row[:8]).norm(dim=1).argmin())
            j = int((text - row[8:16]).norm(dim=1).argmin())
            assert ids[i] != ids[j]
    assert task(image, text, torch.zeros(6, dtype=torch.int64)).isfinite()
    assert len(seen[-1]) == 6, "no pair is wrong, so there are none"


def matching_gradients(rows: slice = slice(0, 12)) -> tuple[float, list[torch.Tensor]]:
    """Loss, and gradients of pictures, texts and the judge, for some of twelve pairs."""
    torch.manual_seed(5)
    task = Matching(8).double()
    image, text = (unit(12, 8, seed).double()[rows].requires_grad_() for seed in (1, 2))
    ids = torch.tensor([0, 1, 2, 3, 4, 0, 1, 7, 8, 9, 10, 11])[rows]
    loss = task(image, text, ids, seed=3)
    loss.backward()
    return loss.item(), [image.grad, text.grad, *(parameter.grad for parameter in task.parameters())]


def _one_process(rank: int, world: int, path: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=world)
    edges = [0, 5, 12] if world == 2 else [0, 3, 4, 12]
    loss, found = matching_gradients(slice(edges[rank], edges[rank + 1]))
    torch.save({"loss": loss, "found": found}, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_many_processes_match_as_one_does(world, tmp_path):
    """Wrong pairs are drawn from all processes: the same loss and gradients, of pictures that lie elsewhere too."""
    torch.multiprocessing.spawn(_one_process, (world, str(tmp_path)), nprocs=world)
    loss, whole = matching_gradients()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for result in results:
        assert result["loss"] == pytest.approx(loss, rel=1e-9)
        for gradient, wanted in zip(result["found"][2:], whole[2:], strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-12)
    for side in range(2):
        together = (
            torch.cat([result["found"][side] for result in results]) / world
        )  # as the mean over processes takes it
        assert torch.allclose(together, whole[side], rtol=1e-9, atol=1e-12)


def test_matching_has_the_gradient_that_differences_show():
    torch.manual_seed(5)
    task = Matching(4).double()
    image, text = (unit(5, 4, seed).double().requires_grad_() for seed in (1, 2))
    task(image, text, torch.arange(5), seed=1).backward()
    for side in (image, text):
        for place in range(side.numel()):
            losses = []
            for change in (1e-5, -1e-5):
                with torch.no_grad():
                    side.view(-1)[place] += change
                    losses.append(task(image, text, torch.arange(5), seed=1).item())
                    side.view(-1)[place] -= change
            assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(side.grad.view(-1)[place].item(), abs=1e-6)


def test_the_gradients_of_a_loss_are_handed_over_once():
    image, text = (unit(5, 4, seed).requires_grad_() for seed in (1, 2))
    loss = Matching(4)(image, text, torch.arange(5))
    (3 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        loss.backward()


def test_the_parts_of_a_batch_have_the_masked_words_of_the_whole(model, tokenizer):
    """Micro-batches and processes: what each part counts adds up to the mean over all masked words."""
    task = MaskedLanguage(model, tokenizer, 0.5)
    ids = torch.tensor([[2, 4, 5, 8, 3, 0], [2, 4, 6, 3, 0, 0], [2, 6, 7, 3, 0, 0]])
    attention, pictures = (ids > 0).long(), unit(3, 16, 0)
    masked, counts = task.draw(ids, attention, seed=2)
    assert torch.equal(masked, task.draw(ids, attention, seed=2)[0]) and counts.sum().item() == pytest.approx(1)
    whole = task(model.text_tower, ids, attention, pictures, (masked, counts))
    parts = [
        task(model.text_tower, ids[rows], attention[rows], pictures[rows], (masked[rows], counts[rows]))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


def test_tasks_learn_with_the_model_and_cost_nothing_when_off(model, tokenizer):
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    ids = torch.tensor([[2, 4, 5, 8, 3], [2, 4, 6, 8, 3], [2, 4, 7, 9, 3], [2, 4, 5, 9, 3]])
    text = (ids, torch.ones_like(ids))
    tasks = Pretext(masked_language=1.0, masked_share=0.9, matching=0.5)
    both = TrainingModel(model, recipe(model, pretext=tasks), tokenizer)
    *vectors, losses = both(pixels, text)
    assert set(losses) == {"masked_language"}
    losses["matching"] = Matching(16)(vectors[0]["fine"], vectors[1]["fine"], torch.arange(4))
    sum(losses.values()).backward()
    assert model.text_tower.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert model.image_heads["fine"].project.weight.grad.abs().sum() > 0
    off = TrainingModel(model, recipe(model), tokenizer)
    *_, losses = off(pixels, text)
    assert not losses and off.words is None
    with pytest.raises(RecipeError, match="tower_lr"):
        both(pixels, {1: torch.randn(4, 16), 3: torch.randn(4, 16)})


def test_a_vocabulary_without_a_mask_is_refused(model, tmp_path):
    with pytest.raises(RecipeError, match=r"\[MASK\]"):
        plain = Tokenizer.from_file(str(write_tokenizer(tmp_path)))
        TrainingModel(model, recipe(model, pretext=Pretext(masked_language=1.0)), plain)


def gradients(model, tokenizer, optim: Optim, config: ObjectiveConfig) -> dict[str, torch.Tensor]:
    """Every parameter's gradient of the objective on four pairs."""
    model.zero_grad()
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[2, 4, 5, 8, 3], [2, 4, 6, 8, 3], [2, 4, 7, 9, 3], [2, 4, 5, 9, 3]])
    training = TrainingModel(model, recipe(model, optim=optim), tokenizer)
    image, text, _ = training(pixels, (ids, torch.ones_like(ids)))
    HierarchicalObjective(("coarse", "fine"), config)(image, text)["loss"].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: gradient.clone() for name, gradient in found.items() if gradient.abs().sum() > 0}


def test_the_finest_level_learns_as_if_it_were_alone(model, tokenizer):
    """The towers get the finest level's gradient and nothing else, unless a recipe says so."""
    alone = gradients(model, tokenizer, Optim(), ObjectiveConfig(contrastive={"coarse": 0.0}, distillation=0.0))
    two = gradients(model, tokenizer, Optim(), ObjectiveConfig(shortlist=0.1))
    assert set(two) - set(alone) == {name for name in two if "heads.coarse" in name} != set()
    for name, gradient in alone.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-7)
    whole = gradients(model, tokenizer, Optim(tower_gradient={"coarse": 1.0}), ObjectiveConfig(shortlist=0.1))
    half = gradients(model, tokenizer, Optim(tower_gradient={"coarse": 0.5}), ObjectiveConfig(shortlist=0.1))
    name = "text_tower.bert.embeddings.word_embeddings.weight"
    assert (whole[name] - alone[name]).norm() > 0.01 * alone[name].norm()
    torch.testing.assert_close(half[name], (whole[name] + alone[name]) / 2, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        half["text_heads.coarse.project.weight"], whole["text_heads.coarse.project.weight"], rtol=1e-4, atol=1e-7
    )


def test_a_prefix_shapes_the_vector_that_it_is_a_part_of(tokenizer):
    torch.manual_seed(0)
    config = tiny_config()
    sides = [type(tower)(tower.kind, tower.options, {**tower.heads, "coarse": "prefix"})
             for tower in (config.image_tower, config.text_tower)]  # fmt: skip
    levels = tuple(type(one)(one.name, one.dim, config.levels[-1].image_layer, config.levels[-1].text_layer)
                   for one in config.levels)  # fmt: skip
    model = HiVLPModel(tiny_config(image_tower=sides[0], text_tower=sides[1], levels=levels)).eval()
    alone = gradients(model, tokenizer, Optim(), ObjectiveConfig(contrastive={"coarse": 0.0}, distillation=0.0))
    nested = gradients(model, tokenizer, Optim(), ObjectiveConfig(distillation=0.0))
    name = next(name for name in alone if name.startswith("image_heads.fine"))
    assert (nested[name] - alone[name]).norm() > 0.01 * alone[name].norm()
