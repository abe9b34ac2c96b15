"""A fusion stage after a search and in an evaluation, with a fusion model of three lines."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.cli import main
from hivlp.data.pairs import Pair
from hivlp.errors import ArgumentError, PictureError, QueryError
from hivlp.evaluate.encoded import Encoded
from hivlp.evaluate.evaluation import evaluate, scores_of
from hivlp.evaluate.reranked import Reranking, reranked
from hivlp.index import Index
from hivlp.levels import Embeddings
from hivlp.search.fusion import Fuse, Shown, fused_order
from synthetic import FakeEncoder, picture_bytes, write_pictures


class FakeFusion:
    """Scores by the number in a picture's file name, times that in the text: no cosine has anything to do with it."""

    name, depth, rule = "fake", 12, "score alone"

    def __init__(self):
        self.pairs = []

    def score(self, texts, pictures):
        self.pairs += list(zip(texts, pictures, strict=True))
        scores = []
        for text, picture in zip(texts, pictures, strict=True):
            try:
                picture.read()
                number = int(picture.name.rpartition(".")[0])
                scores.append((number * 7 + len(text)) % 31)
            except PictureError:
                scores.append(np.nan)
        return np.array(scores, np.float32)


@pytest.fixture
def index(tmp_path, pictures, encoder):
    with Index.create(tmp_path / "x.hivlp", model=encoder) as made:
        made.add(pictures)
        yield made


def numbers(result):
    return [int(hit.path.rpartition("/")[2].partition(".")[0]) for hit in result]


def test_the_first_ranks_are_ordered_by_the_fusion_model_and_the_others_stay(index):
    plain = numbers(index.search("a dog", k=30))
    fusion = FakeFusion()
    found = index.search("a dog", k=30, rerank=fusion, rerank_depth=8)
    head = sorted(plain[:8], key=lambda n: (-((n * 7 + 5) % 31), plain.index(n)))
    assert numbers(found) == head + plain[8:]
    assert [hit.rank for hit in found] == list(range(1, 31))
    assert len(fusion.pairs) == 8 and {text for text, _ in fusion.pairs} == {"a dog"}
    assert all("fusion" in hit.scores for hit in found[:8]) and not any("fusion" in hit.scores for hit in found[8:])
    assert {name: value for name, value in found[0].scores.items() if name != "fusion"} == next(
        hit.scores for hit in index.search("a dog", k=30) if hit.id == found[0].id
    )


@pytest.mark.parametrize("offset", [0, 3, 10, 14])
def test_pages_are_parts_of_one_list(index, offset):
    whole = numbers(index.search("two words", k=30, rerank=FakeFusion()))
    page = index.search("two words", k=5, offset=offset, rerank=FakeFusion())
    assert numbers(page) == whole[offset : offset + 5]
    assert [hit.rank for hit in page] == list(range(offset + 1, offset + 6))


def test_the_plan_and_the_times_show_the_stage(index):
    found = index.search("a dog", k=3, rerank=FakeFusion())
    stage = {"stage": "fuse", "model": "fake", "keep": 12, "rule": "score alone"}
    assert found.plan[-1] == stage and found.to_json(explain=True)["explain"]["fusion"] == stage
    assert "the first 12 → fuse fake (score alone)" in found.explain()
    assert found.timings_ms["fusion"] > 0 and found.timings_ms["total"] >= found.timings_ms["fusion"]


def test_a_picture_that_is_gone_comes_after_those_that_are_there(index, pictures):
    gone = numbers(index.search("a dog", k=12))[4]
    (pictures / f"{gone:05}.png").unlink()
    found = index.search("a dog", k=12, rerank=FakeFusion())
    assert numbers(found)[11] == gone and "fusion" not in found[11].scores


def test_filters_and_batches_go_with_it(index):
    many = index.search_many(["a dog", "two words"], k=4, where="id > 10", rerank=FakeFusion())
    one = [index.search(text, k=4, where="id > 10", rerank=FakeFusion()) for text in ("a dog", "two words")]
    assert [numbers(each) for each in many] == [numbers(each) for each in one]
    assert all(hit.id > 10 for each in many for hit in each)


def test_only_a_text_can_be_compared_with_pictures(index, pictures):
    for asked in ({"image": pictures / "00000.png"}, {"like": 1}):
        with pytest.raises(QueryError, match="give a text"):
            index.search(**asked, rerank=FakeFusion())
    with pytest.raises(ArgumentError, match="must be a loaded fusion model"):
        index.search("a dog", rerank="blip")
    for depth in (0, 10_001):
        with pytest.raises(QueryError, match="rerank_depth"):
            index.search("a dog", rerank=FakeFusion(), rerank_depth=depth)
    with pytest.raises(QueryError, match="k must be"):
        index.search("a dog", k=0, rerank=FakeFusion())


def test_a_changed_picture_has_another_key(tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    before = Shown.file(path)
    assert before.read() == path.read_bytes() and before == before and Shown.file(path).key == before.key
    path.write_bytes(picture_bytes(7) + b" ")
    assert Shown.file(path).key != before.key
    stored = [Shown.stored("a", lambda number=number: picture_bytes(number)) for number in (1, 2, 1)]
    assert stored[0].key == stored[2].key != stored[1].key


def test_equal_fusion_scores_keep_their_order():
    assert fused_order(np.array([1, np.nan, 2, 1, np.nan, 3], np.float32)).tolist() == [5, 2, 0, 3, 1, 4]
    assert str(Fuse.of(FakeFusion(), 5)) == "the first 5 → fuse fake (score alone)"


class Table:
    """A fusion model whose scores are a table: caption and picture by number."""

    name, depth, rule = "table", 4, "score alone"

    def __init__(self, scores):
        self.scores = scores

    def score(self, texts, pictures):
        places = zip(texts, pictures, strict=True)
        return np.array([self.scores[int(text), int(picture.name)] for text, picture in places], np.float32)


def naive(queries, items, own, fused, depth, shortlist):
    """Ranks by sorting: the coarse level keeps a shortlist, the fine one orders it, fusion orders the head again."""
    ranks = []
    for q in range(len(queries[0])):
        mine = {int(i) for i in own[q] if i >= 0}
        alive = range(len(items[0]))
        if len(queries) > 1:
            coarse = queries[0][q] @ items[0].T
            alive = sorted(alive, key=lambda i: (-coarse[i], i in mine))[:shortlist]
        fine = queries[-1][q] @ items[-1].T
        order = sorted(alive, key=lambda i: (-fine[i], i in mine, i))
        order[:depth] = sorted(order[:depth], key=lambda i: (-np.nan_to_num(fused(q, i), nan=-np.inf), i in mine))
        ranks.append(next((place for place, i in enumerate(order) if i in mine), len(items[0])))
    return np.array(ranks)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 9), levels=st.integers(1, 2), depth=st.integers(1, 12),
       shortlist=st.integers(1, 12))  # fmt: skip
def test_recalls_after_fusion_are_those_of_sorting(seed, images, levels, depth, shortlist):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), rng.integers(1, 4, images))
    pictures = [rng.integers(-2, 3, (images, 3)).astype(np.float32) for _ in range(levels)]
    texts = [rng.integers(-2, 3, (len(owner), 3)).astype(np.float32) for _ in range(levels)]
    scores = rng.integers(0, 4, (len(owner), images)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    captions = [tuple(str(c) for c in np.flatnonzero(owner == i)) for i in range(images)]
    pairs = [Pair(str(number), b"%d" % number, each) for number, each in enumerate(captions)]
    names = ["coarse", "fine"][-levels:]
    encoded = Encoded(pairs, *(Embeddings(dict(zip(names, side, strict=True))) for side in (pictures, texts)), owner, 0)
    found = reranked(encoded, shortlist, Reranking(Table(scores), depth), progress=False)
    table = np.full((images, max(map(len, captions))), -1)
    for number, each in enumerate(captions):
        table[number, : len(each)] = [int(c) for c in each]
    to_image = naive(texts, pictures, owner[:, None], lambda q, i: scores[q, i], depth, shortlist)
    to_text = naive(pictures, texts, table, lambda q, i: scores[i, q], depth, shortlist)
    for cutoff in (1, 5, 10):
        assert found.recalls.text_to_image[f"R@{cutoff}"] == round(100 * float((to_image < cutoff).mean()), 2)
        assert found.recalls.image_to_text[f"R@{cutoff}"] == round(100 * float((to_text < cutoff).mean()), 2)
    assert (
        scores_of(encoded, shortlist, Reranking(Table(scores), depth), progress=False).reranked.recalls == found.recalls
    )


def test_an_evaluation_tells_what_re_ranked_it(tmp_path):
    paths = write_pictures(tmp_path, 6)
    pairs = [Pair(path.name, path, (f"thing {number}", "again")) for number, path in enumerate(paths)]
    found = evaluate(pairs, FakeEncoder(), rerank=Reranking(FakeFusion(), 3), progress=False).to_json()
    assert found["reranked"]["stage"] == {"stage": "fuse", "model": "fake", "keep": 3, "rule": "score alone"}
    assert found["reranked"]["pairs"] == 12 * 3 + 6 * 3 and found["reranked"]["AR"] > 0
    assert "reranked" not in evaluate(pairs, FakeEncoder(), progress=False).to_json()


@pytest.fixture
def fused_cli(monkeypatch):
    for module in ("search", "training"):
        monkeypatch.setattr(
            f"hivlp.cli.{module}.load_fusion", lambda arguments: FakeFusion() if arguments.rerank else None
        )
    monkeypatch.setattr("hivlp.cli.search.index_model", lambda index, model: FakeEncoder())
    monkeypatch.setattr("hivlp.cli.training.load_model", lambda name: FakeEncoder())


def test_the_command_line_re_ranks_and_explains(index, fused_cli, capsys, tmp_path):
    asked = ["search", str(index.path), "a dog", "-k", "4", "--rerank", "folder", "--rerank-depth", "6", "--explain"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"][-1] == {"stage": "fuse", "model": "fake", "keep": 6, "rule": "score alone"}
    assert len(found["hits"]) == 4 and "fusion" in found["hits"][0]["scores"]
    assert main(asked) == 0
    assert "the first 6 → fuse fake" in capsys.readouterr().out
    assert main(["search", str(index.path), "--like", "1", "--rerank", "folder"]) == 2
    assert "--rerank goes with TEXT" in capsys.readouterr().err


def test_the_command_line_evaluates_with_it(fused_cli, capsys, tmp_path):
    for number, path in enumerate(write_pictures(tmp_path, 5)):
        path.with_suffix(".txt").write_text(f"thing {number}")
    assert main(["evaluate", str(tmp_path), "--rerank", "folder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reranked"]["stage"]["model"] == "fake"
    assert main(["evaluate", str(tmp_path), "--rerank", "folder"]) == 0
    assert "re-ranked by fake: score alone, 12 candidates" in capsys.readouterr().out


def test_options_of_a_fusion_model_need_one(index, capsys):
    assert main(["search", str(index.path), "a dog", "--rerank-depth", "5"]) == 1
    assert "belong to --rerank" in capsys.readouterr().err
