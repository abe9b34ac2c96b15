"""Files and wrappers for other libraries, checked with those libraries themselves."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from hivlp.cli import main
from hivlp.data.pairs import Pair
from hivlp.errors import DataError
from hivlp.evaluate.encoded import Encoded, encode_pairs
from hivlp.evaluate.recall import score
from hivlp.evaluate.results import CUTOFFS, DIRECTIONS
from hivlp.evaluate.trec import topics, write_trec
from hivlp.levels import Embeddings
from synthetic import FakeEncoder, random_unit, write_benchmark, write_pairs


def collection(levels=("coarse", "fine"), images=40, ties=True, seed=0) -> Encoded:
    """Random pictures with one to three captions each; some vectors occur twice, so that scores tie."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, images)
    owner = np.repeat(np.arange(images), counts)
    pairs = [Pair(f"folder {n}/picture é{n}.jpg", b"", tuple(f"caption {n} {c}" for c in range(counts[n])))
             for n in range(images)]  # fmt: skip
    sides = []
    for rows in (images, len(owner)):
        found = {level: random_unit(rng, rows, 6) for level in levels}
        if ties:
            for vectors in found.values():
                vectors[1::4] = vectors[: len(vectors[1::4])]
        sides.append(Embeddings(found))
    return Encoded(pairs, *sides, owner, 0)


@pytest.mark.parametrize("levels", [("coarse", "fine"), ("fine",)])
@pytest.mark.parametrize("library", ["ir_measures", "ranx"])
def test_run_files_give_the_same_recall_in_other_libraries(tmp_path, library, levels):
    other = pytest.importorskip(library, reason=f"{library} is not installed: pip install 'hivlp[interop]'")
    encoded = collection(levels)
    write_trec(tmp_path, encoded, 12, "our run")
    cascade = score(encoded.images, encoded.texts, encoded.owner, 12).cascade
    for direction in DIRECTIONS:
        run, qrels = (str(tmp_path / f"{direction}.{kind}") for kind in ("run", "qrels"))
        if library == "ir_measures":
            measures = {other.Success @ cutoff: f"R@{cutoff}" for cutoff in CUTOFFS}
            graded, ranked = other.read_trec_qrels(qrels), other.read_trec_run(run)
            found = other.calc_aggregate(list(measures), list(graded), list(ranked))
            theirs = {name: found[measure] for measure, name in measures.items()}
        else:
            names = [f"hit_rate@{cutoff}" for cutoff in CUTOFFS]
            graded, ranked = other.Qrels.from_file(qrels, kind="trec"), other.Run.from_file(run, kind="trec")
            found = other.evaluate(graded, ranked, names)
            theirs = {f"R@{cutoff}": found[name] for cutoff, name in zip(CUTOFFS, names, strict=True)}
        ours = getattr(cascade, direction)
        assert {name: round(100 * float(value), 2) for name, value in theirs.items()} == pytest.approx(ours, abs=0.011)


def test_a_run_has_strictly_falling_scores_and_no_spaces_in_names(tmp_path):
    encoded = collection()
    write_trec(tmp_path, encoded, 12, "our run")
    for direction in DIRECTIONS:
        rows = [line.split(" ") for line in (tmp_path / f"{direction}.run").read_text(encoding="utf-8").splitlines()]
        assert all(len(row) == 6 and row[1] == "Q0" and row[5] == "our_run" for row in rows)
        for before, row in itertools.pairwise(rows):
            if before[0] == row[0]:
                assert int(row[3]) == int(before[3]) + 1
                assert np.float32(row[4]) < np.float32(before[4])
            else:
                assert row[3] == "1"


def test_qrels_hold_every_own_item_whether_it_was_found_or_not(tmp_path):
    encoded = collection()
    write_trec(tmp_path, encoded, 1, "x")
    lines = (tmp_path / "image_to_text.qrels").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(encoded.owner) == len((tmp_path / "text_to_image.qrels").read_text().splitlines())
    assert len((tmp_path / "text_to_image.run").read_text().splitlines()) == len(encoded.owner)


def test_a_tie_with_an_own_item_counts_against_it():
    vectors = Embeddings({"fine": np.ones((3, 1), np.float32)})
    pairs = [Pair(str(n), b"", (f"c{n}",)) for n in range(3)]
    found = list(topics(Encoded(pairs, vectors, vectors, np.arange(3), 0), 5, "text_to_image"))
    assert [topic.documents[-1] for topic in found] == ["0", "1", "2"]


def test_depth_ends_a_topic():
    assert {len(topic.documents) for topic in topics(collection(("fine",)), 5, "image_to_text", depth=7)} == {7}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        write_trec(tmp_path / "file", collection(), 5, "x")


def test_the_command_writes_run_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hivlp.cli.training.load_model", lambda *asked: FakeEncoder())
    data = write_pairs(tmp_path / "pairs", "folder")
    assert main(["evaluate", str(data), "--trec", str(tmp_path / "trec"), "--json"]) == 0
    assert len(list((tmp_path / "trec").iterdir())) == 4 and json.loads(capsys.readouterr().out)["images"]
    write_benchmark(tmp_path / "coco", "coco", [("test", 5)] * 10)
    coco = ["evaluate", "coco", "--root", str(tmp_path / "coco"), "--trec", str(tmp_path / "coco-trec")]
    assert main(coco) == 0 and len(list((tmp_path / "coco-trec").iterdir())) == 4
    capsys.readouterr()
    assert main([*coco, "--protocol", "1k"]) == 2 and "1k protocol has five" in capsys.readouterr().err


def local_task(mteb, direction, pairs):
    """A retrieval task of mteb's made from pairs on this machine, with nothing to fetch."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    pictures = Dataset.from_list(
        [{"id": f"i{n}", "image": Image.open(pair.picture).convert("RGB")} for n, pair in enumerate(pairs)],
        features=Features({"id": Value("string"), "image": Picture()}),
    )
    captions = Dataset.from_list([{"id": f"t{n}", "text": pair.captions[0]} for n, pair in enumerate(pairs)])
    asks, answers = (captions, pictures) if direction == "t2i" else (pictures, captions)
    first, second = ("t", "i") if direction == "t2i" else ("i", "t")

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"LocalPairs{direction.upper()}", description="Pairs of this machine.", reference=None,
            dataset={"path": "local/pairs", "revision": "1"}, type="Any2AnyRetrieval", category=direction,
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="hit_rate_at_5", date=None, domains=None,
            task_subtypes=None, license=None, annotations_creators=None, dialect=None,
            modalities=["text", "image"], sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

        def load_data(self, *given, **more):
            relevant = {f"{first}{n}": {f"{second}{n}": 1} for n in range(len(pairs))}
            split = {"corpus": answers, "queries": asks, "relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Local()


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.parametrize(("direction", "ours"), [("t2i", "text_to_image"), ("i2t", "image_to_text")])
def test_mteb_runs_a_task_on_our_model_and_finds_what_we_find(direction, ours):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'hivlp[interop]'")
    from hivlp import HiVLP
    from hivlp.data.load import load_pairs
    from hivlp.evaluate.mteb_model import MtebModel

    model = HiVLP.from_pretrained("hivlp-mini")
    pairs = [Pair(pair.id, pair.picture, pair.captions[:1]) for pair in load_pairs("demo")[:24]]
    found = mteb.evaluate(MtebModel(model), local_task(mteb, direction, pairs), cache=None, show_progress_bar=False)
    theirs = found.task_results[0].scores["test"][0]
    encoded = encode_pairs(pairs, model, progress=False)
    recalls = getattr(score(encoded.images, encoded.texts, encoded.owner).levels["fine"], ours)
    assert {f"R@{k}": 100 * theirs[f"hit_rate_at_{k}"] for k in CUTOFFS} == pytest.approx(recalls, abs=0.05)
    assert found.model_name == "hivlp/hivlp-mini-fine"


@pytest.mark.train
def test_a_level_is_given_to_mteb_by_name():
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'hivlp[interop]'")
    from mteb.models.models_protocols import EncoderProtocol

    from hivlp.evaluate.mteb_model import MtebModel

    model = FakeEncoder()
    wrapped = MtebModel(model, "coarse")
    assert isinstance(wrapped, EncoderProtocol) and wrapped.mteb_model_meta.embed_dim == 16
    assert wrapped.mteb_model_meta.modalities == ["text", "image"] and mteb.__name__ == "mteb"
    picture = Image.new("RGB", (16, 16), "red")
    model.encode_image = lambda pictures: model.encode_pixels(np.stack([np.asarray(each) for each in pictures]))
    both = wrapped.encode([{"text": ["a", "b"]}, {"text": ["c"], "image": [picture]}])
    assert both.shape == (3, 16) and np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    assert np.allclose(both[:2], model.encode_text(["a", "b"]).coarse)
    assert np.allclose(wrapped.similarity(both, both).numpy(), both @ both.T, atol=1e-6)
    assert wrapped.similarity_pairwise(both, both).shape == (3,)
    with pytest.raises(DataError, match="neither text nor image"):
        wrapped.encode([{"audio": [1]}])
    with pytest.raises(DataError, match="no level 'middle'"):
        MtebModel(model, "middle")
