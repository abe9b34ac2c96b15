"""Published benchmarks read from generated folders of the same format, and their protocols against naive ones."""

import json
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.cli import main
from hivlp.data.benchmarks.positives import Positives, Rating, cxc_positives, find_eccv, read_cxc, read_eccv
from hivlp.data.benchmarks.retrieval import read_benchmark
from hivlp.data.benchmarks.sugarcrepe import KINDS, read_sugarcrepe
from hivlp.errors import DataError
from hivlp.evaluate import benchmarks
from hivlp.evaluate.benchmarks import evaluate_benchmark, evaluate_sugarcrepe
from hivlp.evaluate.encoded import encode_pairs
from hivlp.evaluate.positives import PositiveSet, cascade_flags, level_flags, spearman, summary
from hivlp.evaluate.recall import score
from hivlp.levels import Embeddings
from synthetic import FakeEncoder, picture_bytes, random_unit, write_benchmark, write_karpathy

MIXED = [("train", 5), ("restval", 5), ("val", 5), *[("test", 6 if n == 2 else 5) for n in range(10)]]


def test_all_captions_of_a_picture_count_repeated_ones_too(tmp_path):
    write_benchmark(tmp_path, "coco", MIXED)
    data = read_benchmark("coco", tmp_path)
    assert [len(pair.captions) for pair in data.pairs] == [5, 5, 6, *[5] * 7]
    assert any(len(set(pair.captions)) < len(pair.captions) for pair in data.pairs)
    assert [len(ids) for ids in data.caption_ids] == [5, 5, 6, *[5] * 7]
    assert data.picture_ids[0] == 1000 + 7 * 3 and not data.complete


def test_restval_is_trained_on(tmp_path):
    write_benchmark(tmp_path, "coco", MIXED)
    assert len(read_benchmark("coco", tmp_path, "train").pairs) == 2
    assert len(read_benchmark("coco", tmp_path, "val").pairs) == 1


@pytest.mark.parametrize("place", ["", "karpathy", "annotations"])
def test_the_json_lies_where_people_unpack_it(tmp_path, place):
    write_benchmark(tmp_path, "flickr30k", [("test", 5)])
    if place:
        (tmp_path / place).mkdir()
        (tmp_path / "dataset_flickr30k.json").rename(tmp_path / place / "dataset_flickr30k.json")
    assert len(read_benchmark("flickr30k", tmp_path).pairs) == 1


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_missing_data_is_named_with_what_to_download_and_where_it_goes(tmp_path, name, capsys):
    assert main(["evaluate", name, "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "caption_datasets.zip" in said and f"dataset_{name}.json" in said
    write_benchmark(tmp_path, name, [("test", 5)], written=False)
    assert main(["evaluate", name, "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    folder = {"flickr30k": "flickr30k-images", "coco": "val2014"}[name]
    assert said.count("\n") == 1 and str(tmp_path / folder) in said


def test_a_missing_picture_is_counted_and_the_benchmark_said_to_be_incomplete(tmp_path):
    entries = write_benchmark(tmp_path, "coco", MIXED)
    (tmp_path / "val2014" / entries[4]["filename"]).unlink()
    data = read_benchmark("coco", tmp_path)
    assert (data.absent, data.total, data.places) == (1, 10, (0, *range(2, 10)))
    found = evaluate_benchmark(data, FakeEncoder(), progress=False).to_json()
    assert (found["images"], found["skipped"], found["complete"]) == (9, 1, False)
    assert found["published"] == {"images": 5000, "captions": 25010}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e[1].update(filename=e[0]["filename"], filepath=e[0]["filepath"]), "filename"),
        (lambda e: e[1].update(cocoid=e[0]["cocoid"]), "cocoid"),
        (lambda e: e[1]["sentences"][0].update(sentid=e[0]["sentences"][0]["sentid"]), "sentid"),
        (lambda e: e[1]["sentences"][0].update(sentid=e[1]["sentences"][1]["sentid"]), "sentid"),
    ],
)
def test_an_id_that_occurs_twice_is_refused_by_name(tmp_path, change, said):
    entries = write_benchmark(tmp_path, "coco", MIXED)
    change(entries)
    write_karpathy(tmp_path, "coco", entries)
    with pytest.raises(DataError, match=f"image 1: the {said} .* occurs twice"):
        read_benchmark("coco", tmp_path)


@pytest.mark.parametrize("value", ["7", 1.5, -1, True, None])
def test_an_id_that_is_no_number_is_refused(tmp_path, value):
    entries = write_benchmark(tmp_path, "coco", MIXED)
    entries[0]["sentences"][0]["sentid"] = value
    write_karpathy(tmp_path, "coco", entries)
    with pytest.raises(DataError, match="sentid must be a whole number"):
        read_benchmark("coco", tmp_path)


def test_a_picture_outside_of_the_root_is_refused(tmp_path):
    entries = write_benchmark(tmp_path / "coco", "coco", MIXED)
    entries[0]["filename"] = "../../secret.jpg"
    write_karpathy(tmp_path / "coco", "coco", entries)
    with pytest.raises(DataError, match="leaves its folder"):
        read_benchmark("coco", tmp_path / "coco")


def test_folds_are_the_published_fifths_each_by_itself(tmp_path):
    entries = write_benchmark(tmp_path, "coco", [("test", 5)] * 20)
    (tmp_path / "val2014" / entries[5]["filename"]).unlink()
    model, data = FakeEncoder(), read_benchmark("coco", tmp_path)
    found = evaluate_benchmark(data, model, protocol="1k", shortlist=3, progress=False)
    parts = []
    for fold in range(5):
        pairs = [pair for pair, place in zip(data.pairs, data.places, strict=True) if 4 * fold <= place < 4 * fold + 4]
        encoded = encode_pairs(pairs, model, progress=False)
        parts.append(score(encoded.images, encoded.texts, encoded.owner, 3))
    assert [part.to_json() for part in found.folds] == [part.to_json() for part in parts]
    told = found.to_json()
    values = [part.levels["fine"].text_to_image["R@1"] for part in parts]
    assert told["levels"]["fine"]["text_to_image"]["R@1"] == round(statistics.fmean(values), 2)
    assert told["spread"]["levels"]["fine"]["text_to_image"]["R@1"] == round(statistics.stdev(values), 2)
    assert len(told["folds"]) == 5 and told["protocol"] == "1k"


def test_a_fold_without_pictures_is_refused(tmp_path):
    write_benchmark(tmp_path, "coco", [("test", 5)] * 4)
    with pytest.raises(DataError, match="holds no picture"):
        evaluate_benchmark(read_benchmark("coco", tmp_path), FakeEncoder(), protocol="1k", progress=False)


def test_a_protocol_of_another_benchmark_is_refused(tmp_path):
    write_benchmark(tmp_path, "flickr30k", [("test", 5)] * 4)
    with pytest.raises(DataError, match="no protocol '5k'"):
        evaluate_benchmark(read_benchmark("flickr30k", tmp_path), FakeEncoder(), protocol="5k", progress=False)


def write_cxc(path, rows):
    head = "caption,image,agg_score,sampling_method\n"
    lines = [f"COCO_val2014:sentid:{c},COCO_val2014_{i:012}.jpg,{s},c2i_intrasim" for c, i, s in rows]
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def test_cxc_adds_what_people_scored_three_or_more_to_cocos_own_pairs(tmp_path):
    write_cxc(tmp_path / "sits_test.csv", [(1, 20, 3.0), (1, 30, 2.99), (2, 10, 4.5), (9, 10, 5.0)])
    ratings = read_cxc(tmp_path / "sits_test.csv")
    assert ratings[0] == Rating(1, 20, 3.0)
    own = Positives({1: frozenset({10}), 2: frozenset({20})}, {10: frozenset({1}), 20: frozenset({2})})
    found = cxc_positives(ratings, own)
    assert found.images == {1: {10, 20}, 2: {10, 20}} and found.captions == {10: {1, 2}, 20: {1, 2}}


@pytest.mark.parametrize("line", ["1,2", "COCO:sentid:x,COCO_val2014_000000000010.jpg,3,c2i", "a:1,b_2.jpg,7,c2i"])
def test_a_line_that_is_not_of_cxc_is_refused(tmp_path, line):
    (tmp_path / "sits_test.csv").write_text(f"caption,image,agg_score,sampling_method\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: not in CxC's layout"):
        read_cxc(tmp_path / "sits_test.csv")


def test_one_file_of_eccv_without_the_other_is_refused(tmp_path):
    assert find_eccv(tmp_path) is None
    (tmp_path / "eccv_caption_to_image.json").write_text('{"1": [10]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"has no eccv_image_to_caption\.json"):
        find_eccv(tmp_path)
    (tmp_path / "eccv_image_to_caption.json").write_text('{"10": [1, 2]}', encoding="utf-8")
    found = read_eccv(find_eccv(tmp_path))
    assert found.images == {1: {10}} and found.captions == {10: {1, 2}}
    (tmp_path / "eccv_image_to_caption.json").write_text('{"10": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="not in ECCV Caption's layout"):
        read_eccv(find_eccv(tmp_path))


def naive_metrics(scores, own):
    """By sorting everything; a positive comes after whatever ties with it."""
    result = {f"R@{k}": 0.0 for k in (1, 5, 10)} | {"R-precision": 0.0, "mAP@R": 0.0}
    for row, positives in zip(scores, own, strict=True):
        mine = set(positives.tolist())
        order = sorted((i for i in range(len(row)) if np.isfinite(row[i])), key=lambda i: (-row[i], i in mine))
        right = [i in mine for i in order]
        for k in (1, 5, 10):
            result[f"R@{k}"] += any(right[:k])
        size = len(mine)
        result["R-precision"] += sum(right[:size]) / size
        result["mAP@R"] += sum(sum(right[:r]) / r for r in range(1, size + 1) if right[r - 1 : r] == [True]) / size
    return {name: round(100 * value / len(own), 2) for name, value in result.items()}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 8), items=st.integers(1, 40), keep=st.integers(1, 41))
def test_metrics_of_several_positives_are_those_of_sorting(seed, queries, items, keep):
    rng = np.random.default_rng(seed)
    coarse_q, fine_q = (rng.integers(-2, 3, (queries, 3)).astype(np.float32) for _ in range(2))
    coarse_i, fine_i = (rng.integers(-2, 3, (items, 3)).astype(np.float32) for _ in range(2))
    own = [np.sort(rng.permutation(items)[: rng.integers(1, items + 1)]) for _ in range(queries)]
    scores = fine_q @ fine_i.T
    assert summary(level_flags(fine_q, fine_i, own), own) == pytest.approx(naive_metrics(scores, own), abs=0.011)
    kept = np.full(scores.shape, -np.inf, np.float32)
    for number, row in enumerate(coarse_q @ coarse_i.T):
        mine = set(own[number].tolist())
        alive = sorted(range(items), key=lambda i: (-row[i], i in mine))[:keep]
        kept[number, alive] = scores[number, alive]
    found = summary(cascade_flags([coarse_q, fine_q], [coarse_i, fine_i], own, keep), own)
    assert found == pytest.approx(naive_metrics(kept, own), abs=0.011)


def test_queries_and_items_that_are_not_in_the_collection_are_left_out():
    rng = np.random.default_rng(0)
    images, texts = (Embeddings({"fine": random_unit(rng, count, 8)}) for count in (3, 4))
    positives = Positives({7: frozenset({10, 99}), 8: frozenset({99}), 77: frozenset({10})}, {10: frozenset({7})})
    found = PositiveSet(positives, [10, 11, 12], [6, 7, 8, 9])
    assert found.captions[0] == [1] and found.captions[1][0].tolist() == [0]
    assert found.metrics(images, texts, 2)["queries"] == {"text_to_image": 1, "image_to_text": 1}


def test_spearman_shares_the_ranks_of_equal_values():
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == 1
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
    # Ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4.
    assert spearman(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9487, abs=1e-4)
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None


def test_coco_is_judged_by_cxc_and_eccv_where_their_files_lie_beside_it(tmp_path):
    entries = write_benchmark(tmp_path, "coco", MIXED)
    test = [entry for entry in entries if entry["split"] == "test"]
    first, second = test[0], test[1]
    caption = first["sentences"][0]["sentid"]
    (tmp_path / "cxc").mkdir()
    write_cxc(tmp_path / "cxc" / "sits_test.csv", [(caption, second["cocoid"], 4.0), (caption, first["cocoid"], 4.9)])
    (tmp_path / "eccv_caption").mkdir()
    (tmp_path / "eccv_caption" / "eccv_caption_to_image.json").write_text(
        json.dumps({str(caption): [first["cocoid"], second["cocoid"]]}), encoding="utf-8"
    )
    (tmp_path / "eccv_caption" / "eccv_image_to_caption.json").write_text(
        json.dumps({str(first["cocoid"]): [caption]}), encoding="utf-8"
    )
    found = evaluate_benchmark(read_benchmark("coco", tmp_path), FakeEncoder(), shortlist=4, progress=False).to_json()
    assert found["cxc"]["queries"] == {"text_to_image": 51, "image_to_text": 10}
    assert found["eccv"]["queries"] == {"text_to_image": 1, "image_to_text": 1}
    assert set(found["eccv"]["levels"]["fine"]["text_to_image"]) == {"R@1", "R@5", "R@10", "R-precision", "mAP@R"}
    assert found["cxc"]["spearman"]["pairs"] == 2


def test_without_cocos_ids_nothing_is_compared_by_them(tmp_path):
    write_benchmark(tmp_path, "coco", MIXED, ids=False)
    write_cxc(tmp_path / "sits_test.csv", [(50000, 1021, 4.0)])
    assert "cxc" not in evaluate_benchmark(read_benchmark("coco", tmp_path), FakeEncoder(), progress=False).to_json()


def write_sugarcrepe(root, count=3):
    (root / "val2017").mkdir(parents=True)
    for number in range(count):
        (root / "val2017" / f"{number:012}.jpg").write_bytes(picture_bytes(number))
    for kind in KINDS:
        cases = {
            str(n): {"filename": f"{n:012}.jpg", "caption": f"thing{n}", "negative_caption": f"{kind} thing{n}"}
            for n in range(count)
        }
        (root / f"{kind}.json").write_text(json.dumps(cases), encoding="utf-8")


def test_sugarcrepe_asks_which_caption_is_right(tmp_path):
    write_sugarcrepe(tmp_path)
    model = FakeEncoder()
    found = evaluate_sugarcrepe(tmp_path, model, progress=False).to_json()
    case = read_sugarcrepe(tmp_path)["swap_obj"]
    images = model.encode_image([each.picture for each in case]).fine
    right = model.encode_text([each.caption for each in case]).fine
    wrong = model.encode_text([each.negative for each in case]).fine
    share = np.mean((images * right).sum(1) > (images * wrong).sum(1))
    assert found["kinds"]["swap_obj"]["levels"]["fine"] == round(100 * share, 2)
    assert set(found["kinds"]) == set(KINDS) and set(found["mean"]) == {"coarse", "fine"}


def test_a_tie_with_the_negative_is_wrong(tmp_path):
    write_sugarcrepe(tmp_path)
    for kind in KINDS:
        same = {"0": {"filename": f"{0:012}.jpg", "caption": "same", "negative_caption": "same"}}
        (tmp_path / f"{kind}.json").write_text(json.dumps(same), encoding="utf-8")
    assert evaluate_sugarcrepe(tmp_path, FakeEncoder(), progress=False).to_json()["mean"] == {"coarse": 0, "fine": 0}


def test_sugarcrepe_without_its_files_says_where_they_come_from(tmp_path):
    with pytest.raises(DataError, match=r"has no add_obj\.json: the seven files come from https://"):
        read_sugarcrepe(tmp_path)
    write_sugarcrepe(tmp_path)
    (tmp_path / "swap_att.json").write_text('{"0": {"filename": "x.jpg"}}', encoding="utf-8")
    with pytest.raises(DataError, match="case 0: filename, caption, negative_caption"):
        read_sugarcrepe(tmp_path)


def test_the_command_prints_the_folds_of_coco(tmp_path, capsys, monkeypatch):
    write_benchmark(tmp_path / "coco", "coco", [("test", 5)] * 10)
    monkeypatch.setattr("hivlp.cli.training.load_model", lambda name: FakeEncoder())
    command = ["evaluate", "coco", "--root", str(tmp_path / "coco"), "--protocol", "1k"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["benchmark"], found["images"], found["captions"], len(found["folds"])) == ("coco", 10, 50, 5)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "mean of 5 folds" in said and "not the published benchmark" in said
    # A folder of the benchmark's name needs no --root.
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "coco", "--json"]) == 0


def test_root_is_for_benchmarks_alone(tmp_path, capsys):
    assert main(["evaluate", "stamps", "--root", str(tmp_path)]) == 2
    assert "--root and --protocol are for flickr30k, coco, sugarcrepe" in capsys.readouterr().err


def test_the_command_prints_sugarcrepe(tmp_path, capsys, monkeypatch):
    write_sugarcrepe(tmp_path)
    monkeypatch.setattr("hivlp.cli.training.load_model", lambda name: FakeEncoder())
    assert main(["evaluate", "sugarcrepe", "--root", str(tmp_path)]) == 0
    assert "mean" in capsys.readouterr().out


def test_protocols_name_what_there_is():
    assert set(benchmarks.PROTOCOLS) == {"flickr30k", "coco"}
