"""The paper's speed table: what its rows and ratios say."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from hivlp.bench.paper import run as paper  # noqa: E402
from hivlp.bench.paper.published import POOLS, PUBLISHED  # noqa: E402
from hivlp.bench.paper.run import INT8, LIGHTNINGDOT, SAME, SHIPPED, TO_IMAGE, TO_TEXT, UNITER, FlatSearch, Row  # noqa: E402
from hivlp.bench.paper.towers import CAPTIONS, Published, flops  # noqa: E402
from hivlp.cli.bench import BENCHES  # noqa: E402
from hivlp.systems.uniter import UniterConfig, UniterRanker  # noqa: E402

pytestmark = pytest.mark.train


def test_pools_are_those_of_the_paper():
    assert POOLS["small"] == (1_000, 5_000, 31_014, 123_287) and POOLS["full"][-1] == 1_000_000
    assert "paper" in BENCHES
    assert PUBLISHED["hivlp_over_uniter"] == {"1000": 1427, "123287": 120649}
    assert PUBLISHED["hivlp_over_meter"] == "not published"


def test_ratios_are_of_text_to_image_one_query_at_a_time():
    rows = [
        Row(UNITER, TO_IMAGE, 1000, 1, None, None, 800.0, 800.0, 64),
        Row(LIGHTNINGDOT, TO_IMAGE, 1000, 1, 20.0, 1.0, 21.0, 21.0),
        Row(LIGHTNINGDOT, TO_IMAGE, 1000, 400, 9.0, 1.0, 10.0, 10.0),
        Row(SAME, TO_IMAGE, 1000, 1, 9.5, 0.5, 10.0, 10.0),
        Row(INT8, TO_IMAGE, 1000, 1, 3.5, 0.5, 4.0, 4.0),
        Row(SHIPPED, TO_IMAGE, 1000, 1, 1.5, 0.5, 2.0, 2.0),
        Row(SHIPPED, TO_TEXT, 1000, 1, 1.5, 0.5, 1.0, 1.0),
        Row(SHIPPED, TO_IMAGE, 5000, 1, 1.5, 0.5, 2.0, 2.0),
    ]
    assert paper._ratios(rows, UNITER) == {SAME: {"1000": 80.0}, INT8: {"1000": 200.0}, SHIPPED: {"1000": 400.0}}
    assert paper._ratios(rows, LIGHTNINGDOT)[SHIPPED] == {"1000": 10.5}


def test_a_caption_is_fourteen_tokens(tmp_path):
    systems = Published(tmp_path)
    ids, mask = systems.ids(list(CAPTIONS))
    assert ids.shape == (len(CAPTIONS), 14) and bool(mask.all()) and not (ids == 100).any(), "no word is unknown"


def test_a_pair_costs_what_a_pass_costs(tmp_path):
    """Four projections, two products of attention and two of the feed-forward part a layer, for 50 tokens."""
    systems, model = Published(tmp_path), UniterRanker(UniterConfig(layers=2))
    tokens, width, inner = 14 + 36, 768, 3072
    layer = 2 * tokens * (4 * width * width + 2 * tokens * width + 2 * width * inner)
    with torch.no_grad():
        counted = flops(
            lambda: model.eval()(*systems.ids([CAPTIONS[0]]), torch.randn(1, 36, 768), torch.ones(1, 36) > 0)
        )
    assert counted == pytest.approx(2 * layer, rel=0.01)


def test_an_exhaustive_search_is_timed_alone_and_in_a_batch(monkeypatch):
    monkeypatch.setattr(paper, "BATCH", 4)
    rng = np.random.default_rng(0)
    times = FlatSearch().times(rng.random((50, 8), np.float32), rng.random((20, 8), np.float32))
    assert set(times) == {1, 4} and all(value > 0 for value in times.values())


def test_only_one_large_system_is_held(tmp_path):
    systems = Published(tmp_path)
    first = systems.get(UniterRanker, UniterConfig(layers=1, width=64, feed_forward=64, vocabulary=50))
    assert systems.get(UniterRanker) is first
    systems.get(torch.nn.Linear, 2, 2)
    assert systems.get(UniterRanker, UniterConfig(layers=1, width=64, feed_forward=64, vocabulary=50)) is not first


def test_times_are_drawn_with_a_line_a_system(tmp_path):
    row = {"direction": TO_IMAGE, "batch": 1}
    rows = [row | {"system": name, "pool": pool, "total_ms": pool / 100}
            for name in (SAME, LIGHTNINGDOT) for pool in (1000, 5000)]  # fmt: skip
    paper.draw(rows, tmp_path / "times.png")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_the_graph_of_lightningdot_is_kept(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'hivlp[bench]'")
    monkeypatch.setattr(paper, "BATCH", 4)
    rng = np.random.default_rng(0)
    pool = paper._Vectors(*(rng.random((rows, 8), np.float32) for rows in (50, 20, 5)))
    assert FlatSearch().graph(tmp_path / "hnsw", pool, build=False) is None
    times, size = FlatSearch().graph(tmp_path / "hnsw", pool, build=True)
    assert set(times) == {1, 4} and size > 4 * 9
    assert FlatSearch().graph(tmp_path / "hnsw", pool, build=False)[1] == size


def test_a_model_exported_in_int8_agrees_with_float32(tmp_path, capsys):
    from hivlp.cli import main
    from hivlp.encode import HiVLP
    from synthetic import save_tiny

    folder = save_tiny(tmp_path / "tiny")
    assert main(["export", str(folder)]) == 0
    exact = HiVLP.from_pretrained(folder).encode_text(CAPTIONS)
    assert main(["export", str(folder), "--precision", "int8", "--json"]) == 0
    assert '"int8_cosine": ' in capsys.readouterr().out
    found = HiVLP.from_pretrained(folder).encode_text(CAPTIONS)
    for level in exact:
        assert (exact[level] * found[level]).sum(1).min() > 0.99
    first = exact.coarse.shape[1]
    assert HiVLP.from_pretrained(folder).encode_text(CAPTIONS, levels=["coarse"]).coarse.shape[1] == first
