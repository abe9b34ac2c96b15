"""The hierarchical objective against naive loops."""

import math

import pytest

torch = pytest.importorskip("torch")

from hivlp.objective import (  # noqa: E402
    HierarchicalObjective,
    ObjectiveConfig,
    contrastive_loss,
    ranking_distillation,
    sigmoid_loss,
)

pytestmark = pytest.mark.train


def unit(rows: int, dim: int, seed: int) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1
    ).requires_grad_()


def naive_contrastive(image, text, scale, positives=None):
    """InfoNCE spelled out, one query and one candidate at a time."""
    n = len(image)
    total = 0.0
    for queries, candidates, transpose in ((image, text, False), (text, image, True)):
        for i in range(n):
            scores = [scale * sum(a * b for a, b in zip(queries[i], candidates[j], strict=True)) for j in range(n)]
            top = max(scores)
            log_sum = top + math.log(sum(math.exp(score - top) for score in scores))
            fits = [j for j in range(n) if (positives[j][i] if transpose else positives[i][j])] if positives else [i]
            total += sum(log_sum - scores[j] for j in fits) / len(fits) / n / 2
    return total


def test_contrastive_loss_equals_the_naive_loop():
    image, text = unit(7, 5, 0), unit(7, 5, 1)
    loss = contrastive_loss(image, text, torch.tensor(9.0))
    assert loss.item() == pytest.approx(naive_contrastive(image.tolist(), text.tolist(), 9.0), rel=1e-6)


def test_contrastive_loss_with_shared_captions_equals_the_naive_loop():
    image, text = unit(6, 4, 2), unit(6, 4, 3)
    positives = torch.eye(6, dtype=torch.bool)
    positives[0, 3] = positives[2, 1] = positives[3, 0] = True  # not symmetric on purpose
    loss = contrastive_loss(image, text, torch.tensor(5.0), positives)
    assert loss.item() == pytest.approx(
        naive_contrastive(image.tolist(), text.tolist(), 5.0, positives.tolist()), rel=1e-6
    )


def test_positives_on_the_diagonal_alone_change_nothing():
    image, text, scale = unit(6, 4, 4), unit(6, 4, 5), torch.tensor(3.0)
    plain = contrastive_loss(image, text, scale)
    assert torch.allclose(plain, contrastive_loss(image, text, scale, torch.eye(6, dtype=torch.bool)))


def test_sigmoid_loss_equals_the_naive_loop():
    image, text = unit(6, 4, 2), unit(6, 4, 3)
    positives = torch.eye(6, dtype=torch.bool)
    positives[0, 3] = positives[2, 1] = True
    for fits in (None, positives):
        expected = 0.0
        for i in range(6):
            for j in range(6):
                dot = sum(a * b for a, b in zip(image[i].tolist(), text[j].tolist(), strict=True))
                sign = 1 if (i == j if fits is None else fits[i, j]) else -1
                expected += math.log(1 + math.exp(-sign * (7.0 * dot - 2.0))) / 6
        loss = sigmoid_loss(image, text, torch.tensor(7.0), torch.tensor(-2.0), fits)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_distillation_equals_the_naive_kl_divergence():
    coarse, fine = unit(5, 5, 6) * 4, unit(5, 5, 7) * 4
    expected = 0.0
    for student, teacher in ((coarse, fine), (coarse.T, fine.T)):
        for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
            s_sum, t_sum = (sum(math.exp(value) for value in row) for row in (s_row, t_row))
            for s, t in zip(s_row, t_row, strict=True):
                p, q = math.exp(t) / t_sum, math.exp(s) / s_sum
                expected += p * math.log(p / q) / 5 / 2
    assert ranking_distillation(coarse, fine).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_is_zero_on_equal_rankings_and_leaves_the_teacher_alone():
    logits = unit(5, 5, 8)
    assert ranking_distillation(logits, logits).item() == pytest.approx(0.0, abs=1e-12)
    coarse, fine = unit(5, 5, 9), unit(5, 5, 10)
    ranking_distillation(coarse, fine).backward()
    assert coarse.grad is not None and coarse.grad.abs().sum() > 0
    assert fine.grad is None


def test_objective_is_the_weighted_sum_of_its_terms():
    objective = HierarchicalObjective(
        ("coarse", "fine"), ObjectiveConfig(contrastive={"coarse": 0.5}, distillation=2.0, temperature=0.1)
    )
    image = {"coarse": unit(6, 3, 11).float(), "fine": unit(6, 8, 12).float()}
    text = {"coarse": unit(6, 3, 13).float(), "fine": unit(6, 8, 14).float()}
    terms = objective(image, text)
    total = 0.5 * terms["contrastive/coarse"] + terms["contrastive/fine"] + 2.0 * terms["distillation/coarse"]
    assert torch.allclose(terms["loss"], total)
    assert "distillation/fine" not in terms
    assert terms["contrastive/fine"].item() == pytest.approx(
        naive_contrastive(image["fine"].tolist(), text["fine"].tolist(), 10.0), rel=1e-4
    )
    terms["loss"].backward()
    assert (objective.log_scales.grad != 0).all()


def test_a_sigmoid_objective_learns_a_bias_for_each_level():
    objective = HierarchicalObjective(("coarse", "fine"), ObjectiveConfig(loss="sigmoid", temperature=0.1))
    image = {"coarse": unit(6, 3, 11).float(), "fine": unit(6, 8, 12).float()}
    text = {"coarse": unit(6, 3, 13).float(), "fine": unit(6, 8, 14).float()}
    terms = objective(image, text)
    expected = sigmoid_loss(image["fine"], text["fine"], torch.tensor(10.0), torch.tensor(-10.0))
    assert torch.allclose(terms["contrastive/fine"], expected)
    terms["loss"].backward()
    assert (objective.biases.grad != 0).all() and (objective.log_scales.grad != 0).all()
    assert HierarchicalObjective(("fine",), ObjectiveConfig()).biases is None
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        ObjectiveConfig(loss="triplet")


def test_one_level_is_a_plain_dual_encoder():
    objective = HierarchicalObjective(("fine",), ObjectiveConfig())
    image, text = {"fine": unit(4, 3, 15).float()}, {"fine": unit(4, 3, 16).float()}
    terms = objective(image, text)
    assert torch.equal(terms["loss"], terms["contrastive/fine"])


def test_a_weight_for_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="medium"):
        HierarchicalObjective(("coarse", "fine"), ObjectiveConfig(contrastive={"medium": 1.0}))
