"""`hivlp bench recall`: rows of every way of searching, and published rows beside them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.bench.recall import run as bench
from hivlp.bench.recall.published import PUBLISHED, read_open_clip
from hivlp.bench.recall.run import RecallRow, approximate_ranks, mean_row, measure, shortfalls
from hivlp.cli import main
from hivlp.data.pairs import Pair
from hivlp.errors import DataError
from hivlp.evaluate.encoded import Encoded, encode_pairs
from hivlp.evaluate.recall import score
from hivlp.levels import Embeddings
from synthetic import FakeEncoder, random_unit, write_benchmark, write_pairs

HEAD = "name,pretrained,params (M)," + ",".join(
    f"{data} {side} retr. R@{k}" for data in ("Flickr", "MSCOCO") for side in ("image", "text") for k in (1, 5, 10)
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_published_rows_name_their_source_and_what_to_mind():
    assert {row.dataset for row in PUBLISHED} == {"flickr30k", "coco"} and all(row.source for row in PUBLISHED)
    notes = {(row.model, row.dataset): row.note for row in PUBLISHED}
    assert "test split" in notes["METER CLIP-B/16", "coco"] and "too many" in notes["UNITER large", "flickr30k"]
    hivlp = [row for row in PUBLISHED if row.model == "HiVLP"]
    assert all(row.recalls is None and "not published" in row.note for row in hivlp)


def test_the_published_average_is_the_mean_of_six():
    averages = {(row.model, row.dataset, row.how[:4]): row.average for row in PUBLISHED}
    assert averages["UNITER large", "flickr30k", "fine"] == pytest.approx(91.83, abs=0.01)
    assert averages["UNITER large", "coco", "fine"] == pytest.approx(78.15, abs=0.01)
    assert averages["METER CLIP-B/16", "coco", "fine"] == pytest.approx(82.66, abs=0.01)


def test_open_clips_table_is_read_with_image_retrieval_as_text_to_image(tmp_path):
    shares = ",".join(str(n / 100) for n in range(50, 62))
    (tmp_path / "table.csv").write_text(f"{HEAD}\nViT-B-32,openai,151,{shares}\n", encoding="utf-8")
    flickr, coco = read_open_clip(tmp_path / "table.csv")
    assert (flickr.dataset, coco.dataset, flickr.model) == ("flickr30k", "coco", "ViT-B-32 (openai)")
    assert flickr.recalls.text_to_image == {"R@1": 50, "R@5": 51, "R@10": 52}
    assert coco.recalls.image_to_text == {"R@1": 59, "R@5": 60, "R@10": 61} and coco.average == 58.5


@pytest.mark.parametrize("text", ["a,b\n1,2\n", f"{HEAD}\nx,y,1,{','.join(['2'] * 12)}\n", f"{HEAD}\nx,y\n", HEAD])
def test_another_table_is_refused(tmp_path, text):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"table\.csv"):
        read_open_clip(tmp_path / "table.csv")


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ranks_of_an_index_that_is_read_whole_are_those_of_sorting(seed):
    rng = np.random.default_rng(seed)
    items, queries = (random_unit(rng, rows, 8).astype(np.float16).astype(np.float32) for rows in (30, 12))
    own = rng.integers(0, 30, (12, 2))
    ranks = approximate_ranks(items, queries, own)
    scores = queries @ items.T
    for number, row in enumerate(scores):
        best = row[own[number]].max()
        others = np.delete(row, own[number])
        assert abs(ranks[number] - np.count_nonzero(others >= best)) <= np.count_nonzero(np.abs(others - best) < 1e-3)


def test_an_index_can_be_tuned_with_the_other_half_of_the_queries():
    rng = np.random.default_rng(0)
    items = random_unit(rng, 1_100, 16)
    queries = items[:60] + 0.1 * random_unit(rng, 60, 16)
    encoded = encoded_at_random(rng, list(range(60)))
    exact = approximate_ranks(items, queries, np.arange(60)[:, None])
    halves = approximate_ranks(items, queries[::2], np.arange(60)[::2, None], queries[1::2])
    assert (halves == exact[::2]).mean() > 0.9
    whole = bench.approximate(encoded, with_queries=True)
    assert whole.text_to_image == bench.approximate(encoded).text_to_image, "few items are read whole either way"


def test_every_way_of_searching_has_a_row(tmp_path):
    write_benchmark(tmp_path / "coco", "coco", [("test", 5)] * 12)
    from hivlp.data.benchmarks.retrieval import read_benchmark

    encoded = encode_pairs(read_benchmark("coco", tmp_path / "coco").pairs, FakeEncoder(), progress=False)
    rows = {row.way: row for row in measure("coco", "fake", encoded)}
    assert list(rows) == ["level coarse", "level fine", "cascade (200)", "approximate index"]
    scores = score(encoded.images, encoded.texts, encoded.owner)
    assert scores.levels["fine"].average == rows["level fine"].AR and rows["level fine"].retained is None
    assert rows["cascade (200)"].text_to_image == scores.cascade.text_to_image
    assert "nothing can be lost" in rows["cascade (200)"].note
    assert "every vector is read" in rows["approximate index"].note
    assert pytest.approx(scores.levels["fine"].average, abs=2) == rows["approximate index"].AR


def test_larger_collections_have_an_index_with_the_model_one_of_vectors_alone_and_one_with_queries(monkeypatch):
    encoded, words, asked = encoded_at_random(np.random.default_rng(0), range(1_000)), np.ones((3, 4), "f4"), []

    def approximate(given, words=None, *, with_queries=False):
        asked.append((words is not None, with_queries))
        return score(given.images, given.texts, given.owner).cascade

    monkeypatch.setattr(bench, "approximate", approximate)
    rows = {row.way: row for row in measure("d", "m", encoded, words=words)}
    ways = ["approximate index", "approximate index, vectors alone", "approximate index, tuned with queries"]
    assert list(rows)[-3:] == ways and asked == [(True, False), (False, False), (False, True)]
    assert "vocabulary" in rows[ways[0]].note and "by the items" in rows[ways[1]].note
    assert ways[0] not in [row.way for row in measure("d", "m", encoded)], "a model that does not tell its words"


def test_the_words_of_a_model_are_those_that_its_index_is_tuned_with(monkeypatch):
    assert bench.words_of(FakeEncoder()) is None
    monkeypatch.setattr(FakeEncoder, "vocabulary", lambda self: ["red", "blue", "square"], raising=False)
    words = bench.words_of(FakeEncoder())
    assert words.shape == (6, FakeEncoder().levels[-1].dim), "words and pairs of words"


def test_the_mean_over_folds_has_a_spread():
    def row(share, retained):
        recalls = {f"R@{cutoff}": share for cutoff in (1, 5, 10)}
        return RecallRow("coco 1k", "m", "cascade (200)", "measured", recalls, recalls, share, 6 * share, retained)

    mean = mean_row([row(40.0, 1.0), row(50.0, 0.98)])
    assert (mean.AR, mean.rsum, mean.retained) == (45.0, 270.0, 0.99) and mean.text_to_image["R@5"] == 45.0
    assert mean.spread["AR"] == mean.spread["image_to_text"]["R@1"] == pytest.approx(7.07, abs=0.01)
    assert mean_row([row(40.0, None)] * 5).retained is None and mean_row([row(40.0, None)] * 5).spread["AR"] == 0


def test_data_sets_together_are_one_collection():
    rng = np.random.default_rng(0)
    parts = [encoded_at_random(rng, [0, 0, 1]), encoded_at_random(rng, [1, 0, 2])]
    whole = Encoded.together(parts)
    assert whole.owner.tolist() == [0, 0, 1, 3, 2, 4] and len(whole.pairs) == 5 and whole.skipped == 2
    assert np.array_equal(whole.images.fine[2:], parts[1].images.fine)
    assert np.array_equal(whole.texts.fine[:3], parts[0].texts.fine)


def encoded_at_random(rng, owner):
    images, texts = (Embeddings({"fine": random_unit(rng, rows, 4)}) for rows in (max(owner) + 1, len(owner)))
    pairs = [Pair(str(number), b"", ("",)) for number in range(max(owner) + 1)]
    return Encoded(pairs, images, texts, np.array(owner), 1)


def test_what_keeps_too_little_is_said():
    def row(way, retained):
        return RecallRow("scenes", "m", way, "measured", {}, {}, 50, 300, retained)

    rows = [row("cascade (200)", share) for share in (0.9949, 0.995)]
    rows += [row("approximate index", 0.98), row("level a", 0.5)]
    assert len(shortfalls(rows)) == 2 and "keeps 99.49% of AR, below 99.5%" in shortfalls(rows)[0]


def test_the_command_measures_what_is_here_and_says_what_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "ALWAYS", {"small": ()})
    monkeypatch.setattr(bench, "INSTALLED", ())
    monkeypatch.setattr("hivlp.cli.bench.load_model", FakeEncoder)
    write_benchmark(tmp_path / "here" / "coco", "coco", [("val", 5), *[("test", 5)] * 10])
    pairs = str(write_pairs(tmp_path / "pairs", "folder"))
    shares = ",".join(["0.5"] * 12)
    (tmp_path / "table.csv").write_text(f"{HEAD}\nViT-B-32,openai,151,{shares}\n", encoding="utf-8")
    command = ["bench", "recall", "--root", str(tmp_path / "here"), "--data", pairs, "--published",
               str(tmp_path / "table.csv"), "--model", "one", "--model", "two"]  # fmt: skip
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["datasets"]) == {"coco", "coco 1k", pairs} and found["datasets"]["coco"]["complete"] is False
    assert found["datasets"]["coco"]["captions"] == 50 and "flickr30k" in found["absent"][0]
    measured = [row for row in found["rows"] if row["kind"] == "measured"]
    assert {row["model"] for row in measured} == {"one", "two"} and len(measured) == 2 * 3 * 4
    folded = [row for row in measured if row["dataset"] == "coco 1k"]
    assert len(folded) == 2 * 4 and all(row["spread"] is not None for row in folded)
    assert len([row for row in found["rows"] if row["kind"] == "published"]) == len(PUBLISHED) + 2
    assert main(command) == 0
    assert "published" in capsys.readouterr().out


def test_several_models_go_with_recall_alone(capsys):
    assert main(["bench", "living", "--model", "a", "--model", "b"]) == 2
    assert "only recall takes several" in capsys.readouterr().err
