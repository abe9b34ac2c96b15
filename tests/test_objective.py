"""The hierarchical objective against naive loops, in blocks, and over processes."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from hivlp.objective import HierarchicalObjective, ObjectiveConfig  # noqa: E402
from hivlp.objective.codes import quantize  # noqa: E402
from hivlp.objective.terms import (  # noqa: E402
    Block,
    HardNegatives,
    InfoNCE,
    RankingDistillation,
    ShortlistLoss,
    SigmoidContrastive,
)

pytestmark = pytest.mark.train

EVERYTHING = {
    "distillation": 0.7,
    "shortlist": 0.3,
    "shortlist_size": 0.25,
    "shortlist_top": 3,
    "hard_negatives": 0.4,
    "hard_negative_count": 3,
    "learned_weights": True,
    "codes": {"coarse": "int8"},
    "temperature": 0.2,
}


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def block(seed: int = 0, queries: int = 5, candidates: int = 7, shared: bool = True) -> Block:
    generator = torch.Generator().manual_seed(seed)
    scores = {
        level: torch.rand(queries, candidates, generator=generator, dtype=torch.float64) * 2 - 1
        for level in ("coarse", "fine")
    }
    positives = torch.eye(queries, candidates, dtype=torch.bool)
    if shared:
        positives[0, 3] = positives[2, 6] = True
    scales = {"coarse": torch.tensor(4.0), "fine": torch.tensor(9.0)}
    return Block(scores, scales, {"coarse": torch.tensor(-1.0), "fine": torch.tensor(-2.0)}, positives)


def rows(seen: Block, level: str) -> list[list[float]]:
    return (seen.scales[level] * seen.scores[level]).tolist()


def own(seen: Block, row: int) -> list[int]:
    return [column for column, fits in enumerate(seen.positives[row].tolist()) if fits]


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in values))
    return [value - total for value in values]


def test_infonce_equals_the_naive_loop():
    seen = block()
    expected = 0.0
    for row, logits in enumerate(rows(seen, "fine")):
        fits = own(seen, row)
        expected -= sum(log_softmax(logits)[column] for column in fits) / len(fits)
    assert InfoNCE("fine")(seen).item() == pytest.approx(expected, rel=1e-9)


def test_sigmoid_equals_the_naive_loop():
    seen = block()
    expected = 0.0
    for row, logits in enumerate(rows(seen, "fine")):
        for column, logit in enumerate(logits):
            sign = 1 if column in own(seen, row) else -1
            expected += math.log(1 + math.exp(-sign * (logit - 2.0)))
    assert SigmoidContrastive("fine")(seen).item() == pytest.approx(expected, rel=1e-9)


def test_distillation_equals_the_naive_kl_divergence():
    seen = block()
    expected = 0.0
    for student, teacher in zip(rows(seen, "coarse"), rows(seen, "fine"), strict=True):
        for p, q in zip(log_softmax(teacher), log_softmax(student), strict=True):
            expected += math.exp(p) * (p - q)
    assert RankingDistillation("coarse", "fine")(seen).item() == pytest.approx(expected, rel=1e-9)


def test_shortlist_loss_equals_the_naive_loop():
    seen = block(queries=4, candidates=12)
    expected = 0.0
    for coarse, fine in zip(rows(seen, "coarse"), seen.scores["fine"].tolist(), strict=True):
        hits = sorted(range(12), key=lambda column: -fine[column])[0:5:3]
        for hit in hits:
            rank = sum(1 / (1 + math.exp(coarse[hit] - other)) for j, other in enumerate(coarse) if j != hit)
            expected += math.log(1 + math.exp((rank - 3) / 0.75)) / 2
    loss = ShortlistLoss("coarse", "fine", size=0.25, top=5)(seen)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_shortlist_loss_draws_a_lost_hit_nearer_and_leaves_the_temperature_alone():
    scores = torch.tensor([[0.1, 0.5, 0.6, 0.7]], requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    fine = torch.tensor([[0.9, 0.1, 0.2, 0.3]])
    seen = Block(
        {"coarse": scores, "fine": fine}, {"coarse": scale, "fine": scale}, {}, torch.eye(1, 4, dtype=torch.bool)
    )
    ShortlistLoss("coarse", "fine", size=0.25, top=1)(seen).backward()
    assert scores.grad[0, 0] < 0 and (scores.grad[0, 1:] > 0).all()
    assert scale.grad is None


def test_hard_negatives_equal_the_naive_loop():
    seen = block()
    expected = 0.0
    for row, logits in enumerate(rows(seen, "fine")):
        coarse = seen.scores["coarse"][row].tolist()
        wrong = [column for column in range(7) if column not in own(seen, row)]
        mined = sorted(wrong, key=lambda column: -coarse[column])[:3]
        for fit in own(seen, row):
            among = log_softmax([logits[fit], *(logits[column] for column in mined)])
            expected -= among[0] / len(own(seen, row))
    assert HardNegatives("fine", "coarse", 3)(seen).item() == pytest.approx(expected, rel=1e-9)


def test_hard_negatives_of_a_query_that_has_none_cost_nothing():
    seen = block(queries=3, candidates=3, shared=False)
    seen = Block(seen.scores, seen.scales, {}, torch.ones(3, 3, dtype=torch.bool))
    assert HardNegatives("fine", "coarse", 2)(seen).item() == 0.0


def test_codes():
    vectors = unit(6, 8, 3)
    assert torch.equal(quantize(vectors, "float"), vectors)
    eight = quantize(vectors, "int8")
    step = vectors.abs().amax(1, keepdim=True) / 127
    assert (eight - vectors).abs().le(step / 2 + 1e-12).all()
    assert torch.allclose((eight / step).round(), eight / step)
    signs = quantize(vectors, "binary")
    assert torch.equal(signs > 0, vectors >= 0)
    assert torch.allclose(signs.norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(quantize(torch.zeros(1, 4), "int8"), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="unknown code 'int4'"):
        quantize(vectors, "int4")


def parts(count: int = 12) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    image = {"coarse": unit(count, 4, 11), "fine": unit(count, 8, 12)}
    text = {"coarse": unit(count, 4, 13), "fine": unit(count, 8, 14)}
    ids = torch.arange(count)
    ids[3] = ids[1] = 0
    return image, text, ids


def gradients(objective: HierarchicalObjective, image, text, ids) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    leaves = [side[level].clone().requires_grad_() for side in (image, text) for level in ("coarse", "fine")]
    terms = objective(dict(zip(image, leaves[:2], strict=True)), dict(zip(text, leaves[2:], strict=True)), ids)
    return terms, list(torch.autograd.grad(3 * terms["loss"], [*leaves, *objective.parameters()]))


def plain(objective: HierarchicalObjective, image, text, ids) -> torch.Tensor:
    """The same loss on whole matrices, for autograd to differentiate."""
    positives = ids[:, None] == ids[None, :]
    total = 0.0
    for queries, candidates in ((image, text), (text, image)):
        scores = {}
        for level in objective.levels:
            code = quantize(candidates[level].detach(), objective.config.codes.get(level, "float"))
            scores[level] = queries[level] @ (candidates[level] + (code - candidates[level]).detach()).T
        scales = dict(zip(objective.levels, objective.scales(), strict=True))
        biases = dict(zip(objective.levels, [0, 0] if objective.biases is None else objective.biases, strict=True))
        seen = Block(scores, scales, biases, positives)
        for level, weight, term in objective.terms:
            factor = 1.0
            if objective.log_variances is not None:
                factor = (-objective.log_variances[objective.levels.index(level)]).exp()
            total = total + weight * factor * term(seen) / (2 * len(ids))
    if objective.log_variances is not None:
        total = total + objective.log_variances.sum() / 2
    return total


@pytest.mark.parametrize("chunk", [0, 5, 12, 100])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_blocks_give_the_loss_and_gradients_of_whole_matrices(chunk, loss):
    image, text, ids = parts()
    objective = HierarchicalObjective(("coarse", "fine"), ObjectiveConfig(**EVERYTHING, loss=loss, chunk=chunk))
    objective = objective.double()
    with torch.no_grad():
        objective.log_variances.copy_(torch.tensor([0.3, -0.2]))
    terms, found = gradients(objective, image, text, ids)
    leaves = [side[level].clone().requires_grad_() for side in (image, text) for level in ("coarse", "fine")]
    naive = plain(objective, dict(zip(image, leaves[:2], strict=True)), dict(zip(text, leaves[2:], strict=True)), ids)
    assert terms["loss"].item() == pytest.approx(naive.item(), rel=1e-9)
    wanted = torch.autograd.grad(3 * naive, [*leaves, *objective.parameters()])
    for gradient, naive_gradient in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, naive_gradient, rtol=1e-7, atol=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_terms_are_named_and_the_loss_is_their_weighted_sum():
    image, text, ids = parts()
    config = ObjectiveConfig(contrastive={"coarse": 0.5}, distillation=2.0, shortlist=0.1, hard_negatives=0.2)
    terms = HierarchicalObjective(("coarse", "fine"), config)(image, text, ids)
    assert set(terms) == {
        "loss", "contrastive/coarse", "contrastive/fine", "distillation/coarse", "shortlist/coarse",
        "hard_negatives/fine",
    }  # fmt: skip
    total = (
        0.5 * terms["contrastive/coarse"] + terms["contrastive/fine"] + 2 * terms["distillation/coarse"]
        + 0.1 * terms["shortlist/coarse"] + 0.2 * terms["hard_negatives/fine"]
    )  # fmt: skip
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_a_term_with_no_weight_is_off():
    config = ObjectiveConfig(contrastive={"coarse": 0.0}, distillation=0.0)
    objective = HierarchicalObjective(("coarse", "fine"), config)
    assert [(level, term.name) for level, _, term in objective.terms] == [("fine", "contrastive")]


def test_one_level_is_an_ordinary_dual_encoder():
    image, text = unit(6, 4, 0), unit(6, 4, 1)
    terms = HierarchicalObjective(("fine",), ObjectiveConfig(temperature=0.1))({"fine": image}, {"fine": text})
    assert set(terms) == {"loss", "contrastive/fine"}
    logits = 10 * image @ text.T
    target = torch.arange(6)
    clip = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    assert terms["loss"].item() == pytest.approx(clip.item(), rel=1e-6)


def test_the_teacher_is_not_pulled_towards_the_student():
    image, text, ids = parts()
    config = ObjectiveConfig(contrastive={"coarse": 0.0, "fine": 0.0}, shortlist=1.0)
    _, found = gradients(HierarchicalObjective(("coarse", "fine"), config), image, text, ids)
    coarse_image, fine_image, coarse_text, fine_text = found[:4]
    assert coarse_image.abs().max() > 0 and coarse_text.abs().max() > 0
    assert fine_image.abs().max() == 0 and fine_text.abs().max() == 0


def test_temperatures_are_learned_and_bounded():
    objective = HierarchicalObjective(("fine",), ObjectiveConfig(temperature=0.05))
    assert objective.scales().item() == pytest.approx(20.0)
    with torch.no_grad():
        objective.log_scales.fill_(9.0)
    assert objective.scales().item() == 100.0


def test_a_temperature_at_its_bound_comes_back():
    """Its gradient is there on both sides of the bound, and a step never leaves it beyond."""
    objective = HierarchicalObjective(("fine",), ObjectiveConfig(temperature=0.01))
    optimizer = torch.optim.SGD(objective.parameters(), 0.01)
    image = torch.nn.functional.normalize(torch.eye(4) + 0.3, dim=1)

    def step(text: torch.Tensor) -> float:
        optimizer.zero_grad()
        objective({"fine": image}, {"fine": text})["loss"].backward()
        assert objective.log_scales.grad.abs().item() > 0
        optimizer.step()
        objective.keep_bounds()
        return objective.scales().item()

    assert step(image) == pytest.approx(100.0, rel=1e-5), "all is right: colder still, but for the bound"
    assert step(image.roll(1, 0)) < 99, "all is wrong: warmer again"
    with torch.no_grad():
        objective.log_scales.fill_(6.0)  # beyond, as an older checkpoint may have it
    assert step(image.roll(1, 0)) <= 100
    assert step(image.roll(1, 0)) < 100


@pytest.mark.parametrize(("name", "value"), [("contrastive", 1.0), ("codes", "int8")])
def test_unknown_level_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"objective.{name} names levels that the model lacks: medium"):
        HierarchicalObjective(("coarse", "fine"), ObjectiveConfig(**{name: {"medium": value}}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; known: sigmoid, softmax"),
        ({"shortlist_size": 0}, "shortlist_size must be above 0 and at most 1, not 0"),
        ({"chunk": -1}, "chunk must be at least 0, not -1"),
        ({"shortlist_top": 0}, "shortlist_top must be at least 1"),
        ({"temperature": 0.0}, "temperature must be at least 0.01"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"codes": {"coarse": "int4"}}, "codes.coarse is 'int4'; did you mean int8"),
        ({"contrastive": {"fine": "1.0"}}, "contrastive.fine must be a finite number"),
    ],
)
def test_impossible_settings_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        ObjectiveConfig(**settings)


def _one_process(rank: int, world: int, path: str) -> None:
    """What each of several processes does: its share of the rows, unequal on purpose."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=world)
    image, text, ids = parts()
    edges = [0, 5, 12] if world == 2 else [0, 3, 4, 12]
    mine = slice(edges[rank], edges[rank + 1])
    objective = HierarchicalObjective(("coarse", "fine"), ObjectiveConfig(**EVERYTHING, chunk=2)).double()
    terms, found = gradients(
        objective, {k: v[mine] for k, v in image.items()}, {k: v[mine] for k, v in text.items()}, ids[mine]
    )
    torch.save({"terms": {k: v.detach() for k, v in terms.items()}, "found": found}, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_many_processes_give_the_loss_and_gradients_of_one(world, tmp_path):
    torch.multiprocessing.spawn(_one_process, (world, str(tmp_path)), nprocs=world)
    image, text, ids = parts()
    objective = HierarchicalObjective(("coarse", "fine"), ObjectiveConfig(**EVERYTHING)).double()
    terms, whole = gradients(objective, image, text, ids)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for result in results:
        for name, value in terms.items():
            assert result["terms"][name].item() == pytest.approx(value.item(), rel=1e-9), name
        for gradient, wanted in zip(result["found"][4:], whole[4:], strict=True):  # the objective's own parameters
            assert torch.allclose(gradient, wanted, rtol=1e-9)
    for number in range(4):
        # Each process's rows, and the mean over processes that DistributedDataParallel would take.
        together = torch.cat([result["found"][number] for result in results]) / world
        assert torch.allclose(together, whole[number], rtol=1e-9, atol=1e-15)
