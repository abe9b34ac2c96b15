"""Vectors made elsewhere: read from every kind of file, refused where they are none, and searched exactly."""

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hivlp.cli import main
from hivlp.coarse.closed import prefix
from hivlp.coarse.maps import CoarseMaps, NoCoarseLevel
from hivlp.data.vectors import files as embedding_files
from hivlp.data.vectors.source import open_embeddings, unit_rows
from hivlp.errors import ArgumentError, DataError, IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from synthetic import FakeEncoder, Stored

WIDTH = 24


def vectors(count, seed=0, dtype=np.float32):
    """Not of unit length, on purpose."""
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(dtype) * 3


def unit(array):
    array = array.astype(np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def table(place, array, fixed=False, column="embedding", **others):
    kind = pa.list_(pa.from_numpy_dtype(array.dtype), WIDTH if fixed else -1)
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(list(array), kind), **others}), place, row_group_size=7)
    return place


def clip_retrieval(folder, counts=(3, 4), numbers=None, texts=False):
    """As clip-retrieval writes it: float16, numbered, in an order that is not that of the names."""
    for place, count in enumerate(counts):
        number = (numbers or (2, 10))[place]
        save(folder / "img_emb" / f"img_emb_{number}.npy", vectors(count, number, np.float16))
        if texts:
            save(folder / "text_emb" / f"text_emb_{number}.npy", vectors(count, 50 + number, np.float16))
        (folder / "metadata").mkdir(exist_ok=True)
        names = [f"{number}/{row}.jpg" for row in range(count)]
        columns = {"image_path": names, "caption": [f"{name}!" for name in names], "width": list(range(count))}
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def read(source):
    chunks = list(source.chunks())
    return np.concatenate([chunk.vectors for chunk in chunks]), [told for chunk in chunks for told in chunk.told]


@pytest.fixture
def made(tmp_path):
    """An index of the first eight dims, and what was put into it."""
    given = vectors(300)
    index = Index.create_from_embeddings(tmp_path / "index", prefix(WIDTH, 8))
    index.add_embeddings(save(tmp_path / "v.npy", given))
    yield index, given
    index.close()


def test_numbers_of_the_other_byte_order_are_read_as_they_are(tmp_path):
    given = vectors(10, dtype=">f4")
    np.testing.assert_array_equal(read(open_embeddings(save(tmp_path / "v.npy", given)))[0], given)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fixed", [True, False])
def test_parquet(tmp_path, dtype, fixed):
    given = vectors(20, dtype=dtype)
    names = [f"{row}.png" for row in range(20)]
    others = {"path": names, "caption": [None, *names[1:]], "width": [float("nan"), *range(19)], "raw": [b"x"] * 20}
    other_vectors = pa.array(list(given), pa.list_(pa.float32()))
    source = open_embeddings(table(tmp_path / "v.parquet", given, fixed, **others, text_vector=other_vectors))
    array, told = read(source)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, given)
    assert [each.path for each in told] == names
    assert (told[0].caption, told[0].metadata) == (None, {})
    assert (told[3].caption, told[3].metadata) == ("3.png", {"width": 2.0})


def test_parquet_column_by_name(tmp_path):
    file = table(tmp_path / "v.parquet", vectors(5), column="clip")
    assert open_embeddings(file, column="clip").rows == 5
    with pytest.raises(DataError, match="no column embedding; name one of these with --column: clip"):
        open_embeddings(file)
    pq.write_table(pa.table({"embedding": [[1, 2]], "n": [1]}), file)
    with pytest.raises(DataError, match=r"holds list<.*int64>, not lists of float16"):
        open_embeddings(file)
    with pytest.raises(DataError, match="it has no lists of floats"):
        open_embeddings(file, column="clip")


def test_clip_retrieval_pairs_files_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "CHUNK", 2)
    array, told = read(open_embeddings(clip_retrieval(tmp_path / "out", texts=True)))
    np.testing.assert_array_equal(array, np.concatenate([vectors(3, 2, np.float16), vectors(4, 10, np.float16)]))
    assert [each.path for each in told] == [f"2/{row}.jpg" for row in range(3)] + [f"10/{row}.jpg" for row in range(4)]
    assert (told[4].caption, told[4].metadata) == ("10/1.jpg!", {"width": 1})
    texts = open_embeddings(tmp_path / "out", texts=True)
    np.testing.assert_array_equal(read(texts)[0][:3], vectors(3, 52, np.float16))


def test_clip_retrieval_that_does_not_fit_together_is_refused(tmp_path):
    folder = clip_retrieval(tmp_path / "out")
    save(folder / "img_emb" / "img_emb_2.npy", vectors(4))
    with pytest.raises(DataError, match=r"img_emb_2.npy has 4 rows, .*metadata_2.parquet has 3"):
        open_embeddings(folder)
    (folder / "metadata" / "metadata_2.parquet").unlink()
    with pytest.raises(DataError, match=r"img_emb_2.npy has no partner number 2 in .*metadata"):
        open_embeddings(folder)
    (folder / "img_emb" / "img_emb_2.npy").unlink()
    (folder / "img_emb" / "img_emb_10.npy").unlink()
    with pytest.raises(DataError, match=r"holds no files such as img_emb_0.npy"):
        open_embeddings(folder)
    save(folder / "img_emb" / "img_emb_7.npy", vectors(4))
    with pytest.raises(DataError, match=r"img_emb_7.npy has no partner"):
        open_embeddings(folder)
    save(folder / "img_emb" / "img_emb_07.npy", vectors(4))
    with pytest.raises(DataError, match="the same number"):
        open_embeddings(folder)


def test_folder_of_files_in_numeric_order(tmp_path):
    for number in (10, 9, 1):
        save(tmp_path / "parts" / f"part-{number}.npy", vectors(2, number))
    array, _ = read(open_embeddings(tmp_path / "parts"))
    np.testing.assert_array_equal(array, np.concatenate([vectors(2, number) for number in (1, 9, 10)]))
    save(tmp_path / "parts" / "part-11.npy", vectors(2)[:, :5])
    with pytest.raises(DataError, match=r"part-11.npy holds vectors of 5 dims, .*part-1.npy of 24"):
        open_embeddings(tmp_path / "parts")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 3), np.int64), "holds int64"),
        (np.zeros(3, np.float32), r"has shape \(3,\)"),
        (np.zeros((2, 0), np.float32), r"has shape \(2, 0\)"),
        (np.array([[object()]]), "not a readable .npy"),
        (b"", "not a readable .npy"),
        (b"\x93NUMPY\x01\x00garbage", "not a readable .npy"),
    ],
)
def test_files_that_are_no_vectors(tmp_path, content, message):
    file = tmp_path / "v.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_embeddings(file)


def test_truncated_npy(tmp_path):
    file = save(tmp_path / "v.npy", vectors(10))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"not a readable .npy"):
        open_embeddings(file)


def test_other_things_that_are_no_source(tmp_path):
    (tmp_path / "v.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a readable parquet"):
        open_embeddings(tmp_path / "v.parquet")
    (tmp_path / "v.txt").write_text("1 2 3")
    with pytest.raises(DataError, match=r"neither .npy nor .parquet"):
        open_embeddings(tmp_path / "v.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no .npy or .parquet"):
        open_embeddings(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        open_embeddings(tmp_path / "nothing")


def test_unit_rows():
    given = vectors(8, dtype=np.float64)
    given[1], given[2, 3], given[3, 0], given[4], given[5] = 0, np.nan, -np.inf, given[4] * 1e200, given[5] * 1e-200
    result, refused = unit_rows(given)
    assert refused == {1: "the vector is zero", 2: "the vector holds NaN", 3: "the vector holds an infinite number"}
    good = [0, 4, 5, 6, 7]
    np.testing.assert_allclose(result[good], unit(vectors(8, dtype=np.float64))[good], atol=1e-6)
    assert not result[[1, 2, 3]].any()


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_sample_is_of_unit_vectors_that_are_there(tmp_path, suffix):
    given = vectors(200)
    given[5] = np.nan
    file = tmp_path / f"v.{suffix}"
    source = open_embeddings(save(file, given) if suffix == "npy" else table(file, given))
    known = unit(given)
    sample = source.sample(50)
    assert len(sample) in (49, 50)
    assert len(source.sample(1000)) == 199
    nearest = np.nan_to_num(known) @ sample.T.astype(np.float64)
    np.testing.assert_allclose(nearest.max(0), 1, atol=1e-6)
    assert len(set(nearest.argmax(0))) == len(sample)


def test_rows_that_are_no_vectors_are_reported_and_the_others_stored(tmp_path):
    given = [list(map(float, row)) for row in vectors(8)]
    given[1], given[2], given[3], given[4] = None, given[2][:5], [float("nan"), *given[3][1:]], [0.0] * WIDTH
    given[5] = [None, *given[5][1:]]
    file = tmp_path / "v.parquet"
    pq.write_table(pa.table({"embedding": pa.array(given, pa.list_(pa.float32())), "id": list(range(8))}), file)
    with Index.create_from_embeddings(tmp_path / "index", prefix(WIDTH, 8)) as index:
        report = index.add_embeddings(file)
        assert (report.added, report.items) == (3, 3)
        assert [(failure.path, failure.error) for failure in report.failed] == [
            ("1", f"{file}, row 1: no vector"),
            ("2", f"{file}, row 2: 5 numbers, not {WIDTH}"),
            ("3", f"{file}, row 3: the vector holds NaN"),
            ("4", f"{file}, row 4: the vector is zero"),
            ("5", f"{file}, row 5: the vector holds NaN"),
        ]
        assert [hit.path for hit in index.search(vector={"fine": given[7]}, k=1)] == ["7"]


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["<f2", "<f4"])
@pytest.mark.parametrize("given_as", ["<f2", "<f4", ">f4", "<f8"])
def test_what_is_stored_is_what_was_given_whatever_the_pieces(tmp_path, monkeypatch, given_as, stored):
    monkeypatch.setattr(embedding_files, "CHUNK", 600)
    given = vectors(1500, dtype=given_as)
    bad = [0, 255, 256, 700, *range(1100, 1112), 1499]
    given[bad] = 0
    good = np.delete(np.arange(1500), bad)
    with Index.create_from_embeddings(tmp_path / "index", prefix(WIDTH, 8)) as index:
        if stored == "<f4":  # as in an index that is older than float16
            with Stored(index).changing() as writer:
                for file in index.path.glob("*.f16"):
                    file.rename(file.with_suffix(".f32"))
                writer.set_rows(0, dtype=stored)
        report = index.add_embeddings(save(tmp_path / "v.npy", given))
        assert (report.added, len(report.failed)) == (len(good), len(bad))
        items = list(Stored(index).all_items())
        assert [int(item.path.rpartition("#")[2]) for item in items] == good.tolist()
        assert [item.hash for item in items] == [sha256(given[row]).digest() for row in good]
        assert index.verify().ok and index.info().vectors == np.dtype(stored).name
        found = Stored(index).embeddings([item.row for item in items])
        fine = unit(given[good])
        tolerance = 1e-3 if stored == "<f2" else 1e-6
        np.testing.assert_allclose(found["fine"], fine, atol=tolerance)
        np.testing.assert_allclose(found["coarse"], unit(fine[:, :8]), atol=tolerance)


def test_a_batch_that_cannot_be_written_leaves_those_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "CHUNK", 100)
    file, reported = save(tmp_path / "v.npy", vectors(350)), []
    with Index.create_from_embeddings(tmp_path / "index", prefix(WIDTH, 8)) as index:
        pwrite = os.pwrite

        def full(handle, data, offset):
            if offset >= 200 * WIDTH * 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(handle, data, offset)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(IndexFolderError, match="no space left"):
            index.add_embeddings(file, on_progress=lambda done: reported.append(done.added))
        monkeypatch.setattr(os, "pwrite", pwrite)
        assert reported == [100, 200] and len(index) == 200 and index.verify().ok
        report = index.add_embeddings(file)
        assert (report.added, report.skipped, len(index)) == (150, 200, 350) and index.verify().ok


def test_search_is_exact_with_a_shortlist_of_everything(made):
    index, given = made
    query = vectors(1, seed=9)[0]
    scores = unit(given) @ unit(query[None])[0]
    expected = np.argsort(-scores)[:10]
    result = index.search(vector={"fine": query}, k=10, shortlist=len(given))
    assert [int(hit.path.rpartition("#")[2]) for hit in result] == expected.tolist()
    np.testing.assert_allclose([hit.scores["fine"] for hit in result], scores[expected], atol=1e-3)
    coarse = unit(given[:, :8]) @ unit(query[None, :8])[0]
    np.testing.assert_allclose([hit.scores["coarse"] for hit in result], coarse[expected], atol=1e-3)


def test_queries_have_a_map_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    maps = prefix(WIDTH, 8)
    maps = type(maps)(maps.item, rng.normal(size=(8, WIDTH)).astype(np.float32))
    given, query = vectors(50), vectors(1, seed=3)[0]
    with Index.create_from_embeddings(tmp_path / "index", maps) as index:
        index.add_embeddings(save(tmp_path / "v.npy", given))
    with Index.open(tmp_path / "index") as index:
        hit = index.search(vector={"fine": query}, k=1)[0]
        row = int(hit.path.rpartition("#")[2])
        # An item is compared with items by the map of items.
        nearest = (unit(given[1:, :8]) @ unit(given[:1, :8])[0]).max()
        expected = unit((maps.query @ query)[None])[0] @ unit(given[row : row + 1, :8])[0]
        assert hit.scores["coarse"] == pytest.approx(expected, abs=1e-3)
        assert index.search(like=1, k=1, shortlist=1)[0].scores["coarse"] == pytest.approx(nearest, abs=1e-3)
        own = {"fine": query, "coarse": unit(given[row : row + 1, :8])[0]}
        assert index.search(vector=own, k=1, shortlist=1)[0].scores["coarse"] == pytest.approx(1, abs=1e-3)


def test_like(made):
    index, given = made
    hits = index.search(like=1, k=5, shortlist=len(given))
    scores = unit(given) @ unit(given[:1])[0]
    assert [int(hit.path.rpartition("#")[2]) for hit in hits] == np.argsort(-scores)[1:6].tolist()


def test_run_again_adds_what_is_new_and_updates_what_changed(tmp_path):
    given = vectors(30)
    names = [f"https://example.org/{row}.png" for row in range(30)]
    file = table(tmp_path / "v.parquet", given[:20], path=names[:20], caption=names[:20])
    with Index.create_from_embeddings(tmp_path / "index", prefix(WIDTH, 8)) as index:
        assert index.add_embeddings(file).added == 20
        report = index.add_embeddings(file)
        assert (report.added, report.updated, report.skipped, report.items) == (0, 0, 20, 20)
        given[4] += 1
        table(file, given, path=names, caption=["told anew", *names[1:]])
        report = index.add_embeddings(file)
        assert (report.added, report.updated, report.skipped, report.items) == (10, 2, 18, 30)
        assert index.search(vector={"fine": given[4]}, k=1)[0].scores["fine"] == pytest.approx(1, abs=1e-3)
        assert index.search(vector={"fine": given[0]}, k=1)[0].caption == "told anew"
        assert index.remove([names[3]]) == 1
        assert index.add_embeddings(file).added == 1


def test_rows_of_one_path(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "CHUNK", 4)
    given = vectors(8)
    given[[2, 6]] = given[0]
    names = ["a", "b", "a", "b", "c", "b", "a", "d"]
    file = table(tmp_path / "v.parquet", given, path=names)
    with Index.create_from_embeddings(tmp_path / "index", prefix(WIDTH, 8)) as index:
        report = index.add_embeddings(file)
        assert (report.added, report.updated, report.skipped) == (4, 0, 2)
        why = "another row has the same path and another vector"
        assert [failure.error for failure in report.failed] == [f"{file}, row {row}: {why}" for row in (3, 5)]


def test_embeddings_and_pictures_do_not_mix(tmp_path, made, pictures):
    index, _ = made
    with pytest.raises(IndexFolderError, match="holds given embeddings"):
        index.add(pictures)
    with pytest.raises(DataError, match="vectors of 5 dims for an index of 24"):
        index.add_embeddings(save(tmp_path / "short.npy", vectors(3)[:, :5]))
    with (
        Index.create(tmp_path / "other", model=FakeEncoder()) as other,
        pytest.raises(IndexFolderError, match="made with a model"),
    ):
        other.add_embeddings(tmp_path / "v.npy")
    with pytest.raises(IndexFolderError, match="cannot be called embeddings"):
        Index.create(tmp_path / "third", model=FakeEncoder("embeddings"))
    with pytest.raises(QueryError, match="made of embeddings alone"):
        index.search("a text")


def test_texts_and_pictures_by_the_model_whose_vectors_they_are(tmp_path, made, pictures):
    index, given = made
    with pytest.raises(IndexFolderError, match="fake makes vectors of 64 dims"):
        index.attach(FakeEncoder())
    model = FakeEncoder(dims=(4, 6, WIDTH))
    index.attach(model)
    picture = pictures / "00003.png"
    scores = unit(given) @ model.encode_image([picture]).fine[0]
    hit = index.search(image=picture, k=1, shortlist=len(given))[0]
    assert int(hit.path.rpartition("#")[2]) == scores.argmax()
    scores = unit(given) @ model.encode_text(["red"]).fine[0]
    hit = index.search("red", k=1, shortlist=len(given))[0]
    assert int(hit.path.rpartition("#")[2]) == scores.argmax()
    assert hit.scores["fine"] == pytest.approx(scores.max(), abs=1e-3)
    with Index.create_from_embeddings(tmp_path / "named", prefix(WIDTH, 8), model=model) as named:
        assert named.model_source == "fake"


def test_index_folder_without_its_maps_is_refused(tmp_path, made):
    index, _ = made
    copy = shutil.copytree(index.path, tmp_path / "copy")
    np.save(copy / "query_map.npy", np.ones((8, WIDTH), np.float32))
    with pytest.raises(IndexFolderError, match="not those that it was made with"):
        Index.open(copy)
    (copy / "query_map.npy").unlink()
    with pytest.raises(IndexFolderError, match=r"query_map.npy is missing"):
        Index.open(copy)


def test_compact_and_merge_keep_the_maps(tmp_path, made):
    index, given = made
    with Index.create_from_embeddings(tmp_path / "more", prefix(WIDTH, 8)) as more:
        more.add_embeddings(save(tmp_path / "more.npy", vectors(5, seed=4)))
    assert index.merge(tmp_path / "more") == 5
    index.remove([2])
    assert index.compact() == 1
    assert index.search(vector={"fine": given[0]}, k=1)[0].id == 1


@pytest.mark.parametrize(
    ("maps", "difference"),
    [
        (prefix(WIDTH, 9), f"has the levels coarse 8, fine {WIDTH}, this index has coarse 9, fine {WIDTH}"),
        (NoCoarseLevel(WIDTH), f"has the levels coarse 8, fine {WIDTH}, this index has fine {WIDTH}"),
        (CoarseMaps(*np.ones((2, 8, WIDTH), np.float32)), "of other weights, settings or coarse maps"),
    ],
)
def test_an_index_that_does_not_fit_is_not_merged_and_the_difference_is_named(tmp_path, made, maps, difference):
    index, _ = made
    with (
        Index.create_from_embeddings(tmp_path / "unlike", maps) as unlike,
        pytest.raises(IndexFolderError, match=f"{difference}: not merged"),
    ):
        unlike.merge(index.path)


def test_two_indexes_are_merged_into_each_other_at_one_time(tmp_path):
    """As each commits, the other reads it: none may wait for the other to end."""
    made = []
    for seed in range(2):
        with Index.create_from_embeddings(tmp_path / f"index{seed}", NoCoarseLevel(WIDTH)) as index:
            index.add_embeddings(save(tmp_path / f"{seed}.npy", vectors(40, seed=seed)))
            made.append(index.path)
    with Index.open(made[0]) as first, Index.open(made[1]) as second:
        both = threading.Barrier(2, timeout=20)

        def waiting():
            met = []

            def wait(done: int, total: int) -> None:
                if not met:  # both are in the middle
                    met.append(done)
                    both.wait()

            return wait

        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(a.merge, b.path, waiting()) for a, b in ((first, second), (second, first))]
            assert [job.result(timeout=25) for job in jobs] == [40, 40]
        assert len(first) == len(second) == 80


def test_texts_of_a_clip_retrieval_folder_are_what_is_fitted_to(tmp_path):
    folder = clip_retrieval(tmp_path / "out", counts=(300, 300), texts=True)
    report = index_embeddings(tmp_path / "index", folder, dims=6, method="lean")
    assert (report.fit.items, report.fit.queries, report.fit.held_out) == (600, 480, 120)


def test_command_line(tmp_path, capfd, caplog):
    given, queries = vectors(700), vectors(150, seed=1)
    source, asked = save(tmp_path / "v.npy", given), save(tmp_path / "q.npy", queries)
    out = tmp_path / "index"
    command = ["index", "--embeddings", str(source), "-o", str(out), "--queries", str(asked), "--dims", "6", "--json"]

    def run(*arguments):
        code = main(list(map(str, arguments)))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    code, text, _ = run(*command, "--fit", "lean")
    result = json.loads(text)
    assert code == 0
    assert {name: result[name] for name in ("added", "updated", "skipped", "failed", "items")} == {
        "added": 700, "updated": 0, "skipped": 0, "failed": [], "items": 700,
    }  # fmt: skip
    fit = result["fit"]
    assert (fit["method"], fit["dims"], fit["queries"], fit["held_out"], fit["shortlist"]) == ("lean", 6, 120, 30, 35)
    assert set(fit["recall@10"]) == {"pca", "lean"}
    result = json.loads(run(*command)[1])
    assert "keeps the coarse level that it was made with" in caplog.text
    assert (result["skipped"], result["added"], result["fit"]) == (700, 0, None)
    one = save(tmp_path / "one.npy", queries[:1])
    code, text, _ = run("search", out, "--vector", one, "-k", 3, "--shortlist", 700, "--json")
    hits = json.loads(text)["hits"]
    best = np.argsort(-(unit(given) @ unit(queries[:1])[0]))[:3]
    assert [hit["path"] for hit in hits] == [f"{source}#{row}" for row in best]
    code, text, _ = run("search", out, "--like", hits[0]["id"], "-k", 3, "--json")
    assert (code, len(json.loads(text)["hits"])) == (0, 3)
    assert json.loads(run("info", out, "--json")[1])["model"] == "embeddings"
    code, text, _ = run("remove", out, f"{source}#3", "--json")
    assert json.loads(text) == {"removed": 1, "items": 699}
    for arguments, code, message in [
        ((*command[:-2], "7"), 1, "coarse level of 6 dims, not 7"),
        ((*command[:5], "--fit", "none"), 1, "coarse level of 6 dims, not none"),
        ((*command[:5], "--vectors", "int8"), 1, "stores float16 vectors, not int8"),
        ((*command[:5], "--column", "v"), 1, "holds no parquet, of which a column could be v"),
        ((*command[:3], "-o", tmp_path / "n", "--fit", "none", "--dims", 8), 1, "cannot be given with dims or queries"),
        ((*command[:3], "-o", tmp_path / "n", "--fit", "none", "--queries", asked), 1, "with dims or queries"),
        (("search", out, "--vector", one, "--model", "hivlp-mini"), 2, "not with --vector"),
        (("search", out, "--like", 1, "--model", "hivlp-mini"), 2, "not with --like"),
        (("search", out, "--vector", one, "--exact", "--shortlist", 9), 2, "--exact ranks everything"),
        (("tune", out, "--queries", asked, "--model", "hivlp-mini"), 2, "not with vectors"),
        (("bench", "crash", "--pictures", 3), 2, "--pictures goes with index, not with crash"),
        (("bench", "hierarchy", "--model", "x"), 2, "--model goes with index, objective, living"),
        (("bench", "fuzz", "--fresh"), 2, "--fresh goes with hierarchy, ann"),
        (("search", out, "a text"), 1, "made of embeddings alone"),
        (("search", out, "--vector", tmp_path / "none.npy"), 1, "not a readable .npy"),
        (("search", out, "--vector", source), 1, "shape (700, 24)"),
        (("search", out, "--vector", one, "--like", 1), 2, "exactly one of"),
        (("index", "-o", out), 2, "either PATH or --embeddings"),
        (("index", tmp_path, "--embeddings", source, "-o", out), 2, "either PATH or --embeddings"),
        (("index", tmp_path, "-o", out, "--dims", 3), 2, "--dims goes with --embeddings"),
        (("index", "--embeddings", source, "-o", tmp_path), 1, "choose another folder"),
    ]:
        result = run(*arguments)
        assert result[0] == code
        assert message in result[2] and result[2].count("\n") == 1


def test_given_vectors_may_be_stored_without_a_coarse_level(tmp_path, capsys):
    given = save(tmp_path / "v.npy", vectors(1500))
    assert main(["index", "--embeddings", str(given), "-o", str(tmp_path / "one"), "--fit", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fit"] is None
    with Index.open(tmp_path / "one") as index:
        assert [level.name for level in index.levels] == ["fine"] and index.verify().ok
        asked = vectors(1500)[7].astype(np.float32)
        found = index.search(vector=asked, k=5)
        assert found[0].path.endswith("#7") and set(found[0].scores) == {"fine"}
        assert [hit.id for hit in index.search_many(vectors=asked[None], k=5)[0]] == [hit.id for hit in found]
        assert [hit.id for hit in index.search(like=8, k=4)] == [hit.id for hit in found][1:]
        more = save(tmp_path / "more.npy", vectors(20))
        assert index.add_embeddings(more).added == 20 and index.compact() == 0
    for wanted in ({"dims": 8}, {"method": "pca"}):
        with pytest.raises(IndexFolderError, match="has no coarse level"):
            index_embeddings(tmp_path / "one", given, **wanted)


@pytest.mark.parametrize("codec", ["float16", "float32", "int8"])
def test_the_finest_level_is_stored_as_was_chosen(tmp_path, codec):
    given = save(tmp_path / "v.npy", vectors(600))
    index_embeddings(tmp_path / "i", given, dims=8, method="pca", vectors=codec)
    with Index.open(tmp_path / "i") as index:
        assert index.info().vectors == codec and index.verify().ok
        truth = vectors(600).astype(np.float32)
        truth /= np.linalg.norm(truth, axis=1, keepdims=True)
        for query in truth[:20]:
            exact = index.search(vector={"fine": query}, exact=True)
            best = set((np.argsort(-(truth @ query))[:10] + 1).tolist())
            assert len({hit.id for hit in exact} & best) >= 8
            assert exact[0].scores["fine"] == pytest.approx(1, abs=2e-2 if codec == "int8" else 2e-3)


def test_a_codec_that_there_is_not_is_refused(tmp_path, encoder):
    with pytest.raises(ArgumentError, match="float16, float32, int8"):
        Index.create(tmp_path / "i", model=encoder, vectors="int4")
    assert not (tmp_path / "i").exists()
