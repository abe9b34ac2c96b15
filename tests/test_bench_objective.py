"""The comparison of ways to make a coarse level: its measure against a naive loop, and that every way really runs."""

import pytest

torch = pytest.importorskip("torch")

from hivlp.bench import levels, objective  # noqa: E402
from hivlp.bench.levels import Budget, Pairs, Vectors, kept, linear_maps, train_heads  # noqa: E402
from hivlp.bench.training import LOSSES, throughput  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def pairs() -> Pairs:
    """Two views of hidden causes, in 24 dims, a few of which hold most of the spread."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.arange(1, 25).float() ** -0.8
    hidden = torch.randn(400, 24, generator=rng) * spread
    sides = [torch.nn.functional.normalize(hidden + 0.1 * torch.randn(400, 24, generator=rng) * spread) for _ in "ab"]
    rows = {"train": torch.arange(0, 300), "val": torch.arange(300, 340), "test": torch.arange(340, 400)}
    return Pairs(*sides, torch.arange(400), rows)


def test_kept_equals_the_naive_loop():
    rng = torch.Generator().manual_seed(1)
    queries, items = (torch.randn(n, 8, generator=rng) for n in (30, 50))
    coarse_queries, coarse_items = queries[:, :3], items[:, :3]
    found = 0
    for query, coarse in zip(queries, coarse_queries, strict=True):
        wanted = sorted(range(50), key=lambda i: -float(items[i] @ query))[:4]
        shortlist = sorted(range(50), key=lambda i: -float(coarse_items[i] @ coarse))[:5]
        found += len(set(wanted) & set(shortlist))
    assert kept(queries, items, coarse_queries, coarse_items, 0.1, 4) == pytest.approx(100 * found / 120)


def test_one_width_trains_an_ordinary_level_and_prefixes_are_prefixes(pairs):
    budget = Budget(fine_steps=30, coarse_steps=30, batch=64, dim=16, lr=3e-2)
    alone = train_heads(pairs, (16,), budget, 0, nested=False)
    assert list(alone) == [16]
    nested = train_heads(pairs, (4, 16), budget, 0, nested=True)
    prefix = torch.nn.functional.normalize(nested[16].images[:, :4], dim=1)
    assert torch.allclose(nested[4].images, prefix, atol=1e-6)
    apart = train_heads(pairs, (4, 16), budget, 0, nested=False)
    assert not torch.allclose(apart[4].images, torch.nn.functional.normalize(apart[16].images[:, :4], dim=1), atol=0.05)


def test_training_teaches(pairs):
    def loss(steps: int) -> float:
        fine = train_heads(pairs, (16,), Budget(steps, 0, 128, dim=16, lr=1e-2), 0, nested=False)[16]
        test = fine.rows(pairs.rows["test"])
        return float((test.images @ test.texts.T * 20).log_softmax(1).diagonal().mean())

    assert loss(60) > loss(1)


def test_maps_that_need_no_training_are_what_their_names_say(pairs):
    fine = Vectors(pairs.images, pairs.texts)
    maps = linear_maps(fine, pairs.rows["train"], 5, seed=0)
    assert torch.equal(pairs.images @ maps["truncation"][0], pairs.images[:, :5])
    for name in ("random projection", "PCA"):
        assert torch.allclose(maps[name][0].T @ maps[name][0], torch.eye(5), atol=1e-5)

    def error(name: str) -> float:
        image_map, text_map = maps[name]
        images, texts = (side[pairs.rows["train"]] for side in (pairs.images, pairs.texts))
        return float((texts @ images.T - (texts @ text_map) @ (images @ image_map).T).square().mean())

    assert error("LeanVec-OOD") < error("PCA") < error("truncation") < error("random projection")


def test_signs_are_rotated_only_where_that_helps(pairs):
    fine = Vectors(pairs.images, pairs.texts)
    train = pairs.rows["train"]
    assert levels.coded(fine, train, "int8", lambda _: 0.0) is fine
    rotated = levels.coded(fine, train, "binary", lambda vectors: float(vectors is not fine))
    assert rotated is not fine
    assert torch.allclose(rotated.images @ rotated.texts.T, fine.images @ fine.texts.T, atol=1e-5)
    assert levels.coded(fine, train, "binary", lambda vectors: float(vectors is fine)) is fine


def test_every_way_has_a_row_for_each_width_and_code_and_margins_compare_with_the_best(pairs, tmp_path):
    claimed = ((4, "int8"), (8, "binary"))
    tiny = objective.Size(0, 0, 0, Budget(10, 40, 64, dim=24), seeds=2, dims=(4, 8), claimed=claimed)
    result = objective.compare([("hidden causes", pairs)], tiny)
    objective.draw(result.rows, tmp_path / "plot.png")
    ways = {row["method"] for row in result.rows}
    assert ways == {
        "truncation", "random projection", "PCA", "LeanVec-OOD", "MRL prefixes", "separate heads", objective.OURS,
    }  # fmt: skip
    assert len(result.rows) == 7 * 2 * 3
    for row in result.rows:
        assert 0 < row["both"]["mean"] <= 100
        assert row["both"]["mean"] == pytest.approx(
            (row["text_to_image"]["mean"] + row["image_to_text"]["mean"]) / 2, abs=0.02
        )
    margin = result.margin["hidden causes"]["4 int8"]
    same = {row["method"]: row["both"] for row in result.rows if (row["dims"], row["code"]) == (4, "int8")}
    mine = same.pop(objective.OURS)
    best = max(same, key=lambda way: same[way]["mean"])
    assert margin["best"] == best
    assert margin["points"] == pytest.approx(mine["mean"] - same[best]["mean"], abs=0.01)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "hidden causes" in result.to_text() and "4 int8: hivlp is" in result.to_text()


@pytest.mark.parametrize("levels", ["one level", "two levels"])
def test_the_plain_loss_is_the_same_loss(levels):
    rng = torch.Generator().manual_seed(0)
    image, text = (
        {
            name: torch.nn.functional.normalize(torch.randn(6, dim, generator=rng), dim=1)
            for name, dim in (("coarse", 3), ("fine", 5))
        }
        for _ in "ab"
    )
    ours, plain = LOSSES[f"hivlp, {levels}"](), LOSSES[f"plain, {levels}"]()
    plain.log_scales.data.copy_(ours.log_scales)
    assert plain(image, text)["loss"].item() == pytest.approx(ours(image, text)["loss"].item(), rel=1e-5)


def test_throughput_measures_every_loss():
    rates = throughput(repeats=2, batch=8, steps=1)
    assert set(rates) == set(LOSSES)
    assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
