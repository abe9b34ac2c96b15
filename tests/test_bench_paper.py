"""The paper's speed table: what its rows and ratios say."""

import time
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from hivlp.bench.paper import searching  # noqa: E402
from hivlp.bench.paper.encoding import agreement  # noqa: E402
from hivlp.bench.paper.plot import draw  # noqa: E402
from hivlp.bench.paper.pools import Pool  # noqa: E402
from hivlp.bench.paper.published import POOLS, PUBLISHED  # noqa: E402
from hivlp.bench.paper.searching import Flat, measure, own_index  # noqa: E402
from hivlp.bench.paper.systems import ALBEF, BEST, FEW, INT8, LIGHTNINGDOT, SAME, SHIPPED, TO_IMAGE, TO_TEXT, UNITER  # noqa: E402
from hivlp.bench.paper.table import PaperReport, Row, headline, ratios  # noqa: E402
from hivlp.bench.paper.towers import CAPTIONS, Published, flops  # noqa: E402
from hivlp.bench.report import measured, medians_in_turns  # noqa: E402
from hivlp.cli.bench import BENCHES  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402
from hivlp.systems.uniter import UniterConfig, UniterRanker  # noqa: E402
from synthetic import random_unit, save_tiny  # noqa: E402

pytestmark = pytest.mark.train


def test_pools_are_those_of_the_paper():
    assert POOLS["small"] == (1_000, 5_000, 31_014, 123_287) and POOLS["full"][-1] == 1_000_000
    assert "paper" in BENCHES
    assert PUBLISHED["hivlp_over_uniter"] == {"1000": 1427, "123287": 120649}
    assert PUBLISHED["hivlp_over_meter"] == "not published"


ROWS = [
    Row(UNITER, TO_IMAGE, 1000, 1, None, None, 800.0, 800.0, pairs=64),
    Row(LIGHTNINGDOT, TO_IMAGE, 1000, 1, 20.0, 1.0, 21.0, 21.0),
    Row(LIGHTNINGDOT, TO_IMAGE, 1000, 1, 20.0, 1.0, 20.0, 20.0, FEW),
    Row(LIGHTNINGDOT, TO_IMAGE, 1000, 400, 9.0, 1.0, 10.0, 10.0),
    Row(SAME, TO_IMAGE, 1000, 1, 9.5, 0.5, 10.0, 10.0),
    Row(SAME, TO_IMAGE, 1000, 1, 9.5, 0.5, 8.0, 8.0, FEW),
    Row(INT8, TO_IMAGE, 1000, 1, 3.5, 0.5, 4.0, 4.0),
    Row(SHIPPED, TO_IMAGE, 1000, 1, 1.5, 0.5, 2.0, 2.0),
    Row(SHIPPED, TO_TEXT, 1000, 1, 1.5, 0.5, 1.0, 1.0),
    Row(SHIPPED, TO_IMAGE, 5000, 1, 1.5, 0.5, 2.0, 2.0),
]


def test_ratios_are_of_text_to_image_one_query_at_a_time():
    assert ratios(ROWS, UNITER) == {SAME: {"1000": 80.0}, INT8: {"1000": 200.0}, SHIPPED: {"1000": 400.0}}
    assert ratios(ROWS, LIGHTNINGDOT)[SHIPPED] == {"1000": 10.5}
    assert ratios(ROWS, LIGHTNINGDOT, FEW) == {SAME: {"1000": 2.5}}


@pytest.mark.parametrize(("cosine", "system", "ratio"), [(0.995, INT8, 5.25), (0.98, SAME, 2.1)])
def test_the_headline_is_of_int8_only_if_its_vectors_agree(cosine, system, ratio):
    told = headline(ROWS, {"cosine": cosine})
    assert told["system"] == system and told["ratio_lightningdot"] == {"1000": ratio}
    assert told["aims"] == {"1000": 2.0} and told["met"] == {"1000": True} and str(cosine) in told["why"]


def test_the_report_says_what_is_published_and_what_kept_tokens_save():
    int8 = {"cosine": 0.995, "lowest_cosine": 0.99, "agreement_at_10": 0.95, "apart": 0.9}
    kept = {"model": ALBEF, "candidates": 100, "aim": 5.0, "pictures": 1, "without_ms": 1420.0, "kept_ms": 110.0,
            "ratio": 12.9, "item_bytes": 886_272}  # fmt: skip
    report = PaperReport(
        rows=[asdict(row) for row in ROWS], headline=headline(ROWS, int8), ratio_uniter=ratios(ROWS, UNITER),
        ratio_lightningdot=ratios(ROWS, LIGHTNINGDOT), ratio_lightningdot_ten=ratios(ROWS, LIGHTNINGDOT, FEW),
        published=PUBLISHED, reranking=kept, left_out=[123_287], flat="FAISS", int8=int8,
        **measured(time.perf_counter()),
    )  # fmt: skip
    text = report.to_text()
    assert f"re-ranking 100 candidates by {ALBEF}: 1420 ms (scaled from 1 pictures), 110 ms with kept tokens" in text
    assert (
        "12.9 times faster, and aimed at: 5" in text and "'123287': 120649" in text and "scaled from 64 pairs" in text
    )
    assert "no time for pools of 123287" in text and "aimed at: 1000: 5.2 of 2" in text
    assert {"rows", "ratio_uniter", "ratio_lightningdot", "published", "reranking"} <= report.to_json().keys()


def test_actions_are_timed_in_turns():
    seen = []
    times = medians_in_turns({name: lambda name=name: seen.append(name) for name in "ab"}, 2)
    assert seen == list("ababab") and set(times) == {"a", "b"}


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


def a_pool(rows=60, dim=8):
    rng = np.random.default_rng(0)
    items, queries, train = (random_unit(rng, count, dim) for count in (rows, 100, 5))
    return Pool(items.astype(np.float16), queries, train, "some")


def test_searches_are_timed_in_turns_and_held_against_the_exhaustive_one(tmp_path, monkeypatch):
    for name, value in (("BLOCKS", 2), ("BLOCK", 5), ("BATCH", 20), ("BEST", 12), ("FEW", 3), ("PART", 25)):
        monkeypatch.setattr(searching, name, value)
    pool = a_pool()
    with own_index(tmp_path / "index", pool) as own:
        searches = {
            "flat": Flat().over(pool.items, 8),
            "index": own,
            "wrong": (lambda asked, k: [[0] * k] * len(asked), 1),
        }
        found = measure(searches, pool.queries, "flat")
    assert all(set(each.times) == {(1, 12), (1, 3), (20, 12)} for each in found.values())
    assert found["flat"].found == {} and found["index"].found == {12: 1.0, 3: 1.0}
    assert 0 < found["wrong"].found[12] < 0.1 and found["flat"].item_bytes == 32


def test_an_exhaustive_search_ranks_by_the_first_values_of_a_vector():
    pool = a_pool()
    search, _ = Flat().over(pool.items, 4)
    scores = pool.queries[:, :4] @ pool.items[:, :4].astype(np.float32).T
    assert search(pool.queries, 1) == [[int(best)] for best in scores.argmax(1)]


def test_systems_are_held_until_they_are_let_go(tmp_path):
    systems = Published(tmp_path)
    first = systems.get(UniterRanker, UniterConfig(layers=1, width=64, feed_forward=64, vocabulary=50))
    systems.get(torch.nn.Linear, 2, 2)
    assert systems.get(UniterRanker) is first
    systems.drop()
    assert systems.get(UniterRanker, UniterConfig(layers=1, width=64, feed_forward=64, vocabulary=50)) is not first


def test_times_are_drawn_with_a_line_a_system(tmp_path):
    row = {"direction": TO_IMAGE, "batch": 1, "best": BEST}
    rows = [row | {"system": name, "pool": pool, "total_ms": pool / 100}
            for name in (SAME, LIGHTNINGDOT) for pool in (1000, 5000)]  # fmt: skip
    draw(rows, tmp_path / "times.png")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_the_graph_of_lightningdot_is_kept_and_ranks_by_inner_products(tmp_path):
    pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'hivlp[bench]'")
    pool = a_pool()
    assert Flat().graph(tmp_path / "hnsw", pool, build=False) is None
    search, size = Flat().graph(tmp_path / "hnsw", pool, build=True)
    exact, _ = Flat().over(pool.items, 8)
    assert search(pool.queries, 3) == exact(pool.queries, 3) and size > 4 * 9
    assert Flat().graph(tmp_path / "hnsw", pool, build=False)[1] == size


def test_a_model_exported_in_int8_agrees_with_float32(tmp_path, capsys):
    from hivlp.cli import main

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


def test_agreement_of_a_graph_with_itself_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("hivlp.bench.paper.encoding.CHECKED", 20)
    folder = save_tiny(tmp_path / "tiny")
    from hivlp.cli import main

    assert main(["export", str(folder)]) == 0
    model = HiVLP.from_pretrained(folder)
    found = agreement(model, model)
    assert found["cosine"] == pytest.approx(1, abs=1e-4) and found["agreement_at_10"] == 1 and found["apart"] < 1


def test_exported_texts_are_those_of_the_model_at_any_length(tmp_path):
    """The graph has its weights on the left of the tokens, whatever batch and length it was traced with."""
    import onnx

    from hivlp.export.graphs import export
    from hivlp.model.hivlp_model import HiVLPModel

    folder = save_tiny(tmp_path / "tiny")
    export(folder)
    graph = onnx.load(str(folder / "text.onnx")).graph
    weights = {table.name for table in graph.initializer if len(table.dims) == 2}
    products = [node for node in graph.node if node.op_type == "MatMul" and weights & set(node.input)]
    assert any(node.input[0] in weights for node in products)
    model, encoder = HiVLPModel.from_pretrained(folder).eval(), HiVLP.from_pretrained(folder)
    for texts in (["a"], ["a red bird", "a"], ["two small ships on a wide sea"] * 3):
        ids, mask = (torch.from_numpy(array) for array in encoder.tokenize(texts))
        with torch.no_grad():
            expected = model.encode_text(ids, mask)
        for level, vectors in encoder.encode_text(texts).items():
            np.testing.assert_allclose(vectors, expected[level].numpy(), atol=2e-5)
