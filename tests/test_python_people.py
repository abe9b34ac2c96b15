"""Arrays, tables, notebooks, event loops and other libraries' retrievers around an index."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hivlp
from hivlp import HiVLP, Index
from hivlp.coarse import fit_coarse
from hivlp.errors import ArgumentError, DataError, IndexFolderError, NoItemError, QueryError
from synthetic import cloud, write_pictures

WIDTH, ROWS = 24, 60
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def index(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(pictures, captions={str(pictures / "00001.png"): "a <b>bold</b> one"})
        yield index


@pytest.fixture
def vectors() -> np.ndarray:
    return cloud(ROWS, WIDTH, 0).astype(np.float32)


# Opening.


def test_an_index_is_opened_or_created(tmp_path, encoder, pictures):
    with Index.open_or_create(tmp_path / "x", model=encoder, fields={"width": "int"}) as index:
        index.add(pictures)
    with Index.open_or_create(str(tmp_path / "x")) as index:
        assert len(index) == 30 and index.fields == {"width": "int"} and index.model is None
    with Index.open_or_create(tmp_path / "x", model=encoder, fields={"height": "int"}) as index:
        assert list(index.fields) == ["width", "height"]
    with Index.open_or_create(tmp_path / "mini") as index:
        assert index.model.name == "hivlp-mini"
    with Index(str(tmp_path / "mini")) as index:
        assert index.search("a dog").hits == [] and index.model.name == "hivlp-mini"
    with pytest.raises(IndexFolderError, match="made with model fake"):
        Index(tmp_path / "x", "hivlp-mini")


# Vectors in memory.


def naive(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.argsort(-(unit @ query), kind="stable")[:k].tolist()


def test_an_array_with_ids_of_text_is_searched_as_numpy_would(vectors):
    ids = [f"doc/{row}" for row in range(ROWS)]
    years = [{"year": 1990 + row} for row in range(ROWS)]
    index = Index.from_vectors(vectors, ids=ids, captions=["x"] * ROWS, metadata=years, fields={"year": "int"}, dims=8)
    place = index.path
    with index:
        for query in vectors[:5]:
            found = index.search(vector={"fine": query}, k=7)
            assert [hit.path for hit in found] == [ids[row] for row in naive(vectors, query, 7)]
        assert {hit.metadata["year"] for hit in index.search(vector={"fine": vectors[0]}, where="year < 1993")} == {
            1990, 1991, 1992,
        }  # fmt: skip
        assert index["doc/7"].metadata == {"year": 1997} and index["doc/7"].caption == "x"
        assert "doc/7" in index and "doc/60" not in index and 10**9 not in index and None not in index
        np.testing.assert_allclose(index.vectors("doc/7").fine[0], vectors[7] / np.linalg.norm(vectors[7]), atol=1e-3)
        assert index.vectors(["doc/7", 1]).fine.shape == (2, WIDTH)
    assert not place.exists(), "it was nobody's to keep"


def test_a_row_number_or_a_whole_number_is_an_id_as_text(vectors, tmp_path):
    with Index.from_vectors(vectors, tmp_path / "x", fit="none") as index:
        assert index["59"].id == index.search(vector=vectors[59]).hits[0].id and len(index.levels) == 1
    with Index(tmp_path / "x") as index:
        assert len(index) == ROWS
    with Index.from_vectors(vectors, ids=np.arange(ROWS) + 5, metadata={"n": np.arange(ROWS)}, dims=8) as index:
        assert index["5"].metadata == {"n": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": ["a"] * ROWS}, "'a' comes twice"),
        ({"ids": ["a"]}, "60 vectors and 1 ids"),
        ({"ids": "a"}, "one for each"),
        ({"ids": [None] * ROWS}, "a text or a whole number"),
        ({"captions": [1] * ROWS}, "caption 0 is no text"),
        ({"metadata": [1] * ROWS}, "metadata 0 is no mapping"),
        ({"metadata": {"a": [1]}}, "60 vectors and 1 values of a"),
    ],
)
def test_what_does_not_belong_to_the_vectors_is_refused_by_name(vectors, options, message):
    with pytest.raises(DataError, match=message):
        Index.from_vectors(vectors, dims=8, **options)


@pytest.mark.parametrize("wrong", [np.zeros((0, 4)), np.ones(4), [["a"]], 5, np.ones((2, 3), complex)])
def test_what_is_no_array_of_vectors_is_refused(wrong):
    with pytest.raises((DataError, ArgumentError)):
        Index.from_vectors(wrong)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda index, rows: index.search_many(vectors=rows[0]), r"a \(queries, dim\) array with a row for each query"),
        (lambda index, rows: index.to_arrow(5), "levels are called by their names, not 5"),
        (lambda index, rows: index.merge(None), "an index is a folder's path, not None"),
        (lambda index, rows: Index.exists(None), "an index is a folder's path, not None"),
        (lambda index, rows: Index.from_vectors(rows, dims=2.5), "dims must be a whole number, not 2.5"),
        (lambda index, rows: Index.from_vectors(rows, fit="best"), "made by distill, pca, lean, prefix, not 'best'"),
        (lambda index, rows: fit_coarse(rows, dims=8, method="best"), "made by distill, pca, lean, prefix, not 'best'"),
    ],
)
def test_values_of_the_wrong_kind_are_named(vectors, use, message):
    with Index.from_vectors(vectors, dims=8) as index, pytest.raises((ArgumentError, QueryError), match=message):
        use(index, vectors)


@pytest.mark.train
def test_a_tensor_is_a_vector_whatever_its_precision_and_gradient(vectors):
    import torch

    query = torch.from_numpy(vectors[3])
    for tensor in (query.bfloat16(), query.double(), query.clone().requires_grad_(), query.half()):
        with Index.from_vectors(torch.stack([tensor, -tensor]), dims=8) as index:
            assert index.search(vector=tensor, k=1).ids == [1]
            assert index.search_many(vectors=tensor[None], k=1)[0].ids == [1]


def test_what_is_missing_in_metadata_breaks_no_condition(vectors):
    values = [math.nan, None, np.float32("nan"), *range(len(vectors) - 3)]
    for metadata in ({"a": values}, [{"a": value} for value in values]):
        with Index.from_vectors(vectors, metadata=metadata) as index:
            assert [item.metadata for item in index][:4] == [{}, {}, {}, {"a": 0}]
            assert len(index.search(vector=vectors[0], where="metadata ->> 'a' >= 2", k=99)) == len(vectors) - 5


@pytest.mark.parametrize(
    "value",
    [{1, 2}, b"x", 1j, math.inf, {"b": math.nan}, object()],
    ids=["set", "bytes", "complex", "inf", "nan", "any"],
)
def test_what_json_cannot_hold_is_named(vectors, value):
    with pytest.raises(DataError, match=r"^metadata 0: a"):
        Index.from_vectors(vectors, metadata=[{"a": value}] * len(vectors))


def test_a_vector_without_a_direction_is_refused_and_leaves_no_folder(vectors, tmp_path):
    vectors[3] = 0
    with pytest.raises(DataError, match=r"1 of 60 vectors cannot be stored.*row 3: the vector is zero"):
        Index.from_vectors(vectors, tmp_path / "x", dims=8)


def test_a_table_in_is_the_table_out(vectors, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    table = pa.table({
        "id": [f"p{row}" for row in range(ROWS)],
        "caption": [None if row % 3 else f"words {row}" for row in range(ROWS)],
        "year": [1990 + row for row in range(ROWS)],
        "mixed": [str(row) if row % 2 else None for row in range(ROWS)],
        "emb": list(vectors),
    })  # fmt: skip
    with Index.from_vectors(table, tmp_path / "x", dims=8) as index:
        out = index.to_arrow()
        assert out.column_names == ["id", "path", "caption", "year", "mixed", "embedding"]
        assert out["path"].to_pylist() == table["id"].to_pylist()
        for name in ("caption", "year", "mixed"):
            assert out[name].to_pylist() == table[name].to_pylist()
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(np.stack(out["embedding"].to_numpy()), unit, atol=1e-3)
        some = index.to_arrow([], where="metadata ->> 'year' < 1992")
        assert some["path"].to_pylist() == ["p0", "p1"] and "embedding" not in some.column_names
        assert index.to_arrow("coarse").schema.field("coarse").type.list_size == 8
        with pytest.raises(ArgumentError, match="no level 'nosuch'"):
            index.to_arrow("nosuch")
    with Index.from_vectors(out.drop_columns("id"), dims=8) as again:
        assert again.to_arrow()["path"].to_pylist() == out["path"].to_pylist()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_of_a_library_is_a_table(vectors, library):
    frames = pytest.importorskip(library, reason=f"{library} is not installed: pip install {library}")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    frame = frames.DataFrame({"path": [f"{row}.png" for row in range(ROWS)], "embedding": list(vectors)})
    with Index.from_vectors(frame, dims=8) as index:
        assert index["7.png"].id == index.search(vector={"fine": vectors[7]}).hits[0].id
        assert "year" not in index.to_arrow().column_names


# Items.


def test_items_are_iterated_looked_up_and_missed(index, pictures):
    assert [item.id for item in index] == list(range(1, 31))
    assert index[3] == index.get(3) and index[pictures / "00003.png"].path.endswith("00003.png")
    assert pictures / "00003.png" in index and str(pictures / "00099.png") not in index
    with pytest.raises(KeyError):
        index[31]
    with pytest.raises(NoItemError, match=r"^.*has no item 31$") as error:
        index[31]
    assert isinstance(error.value, QueryError) and not str(error.value).startswith("'")


# Searches.


def test_a_list_of_texts_finds_what_each_finds(index):
    texts = ["a dog", "a cat", "a dog"]
    assert [found.hits for found in index.search(texts, k=3)] == [index.search(text, k=3).hits for text in texts]
    assert index.search([]) == [] and len(index.search(("a dog",))) == 1
    with pytest.raises(QueryError, match="exactly one"):
        index.search(texts, like=1)
    with pytest.raises(ArgumentError, match="text 2 of 2 is no str"):
        index.search(["a", 1])


def test_a_search_lets_an_event_loop_go_on(index):
    async def several():
        return await asyncio.gather(*(index.asearch(text, k=3) for text in ("a dog", "a cat")), index.asearch(like=1))

    found = asyncio.run(several())
    assert [each.hits for each in found[:2]] == [index.search(text, k=3).hits for text in ("a dog", "a cat")]
    assert found[2].hits == index.search(like=1).hits


# Notebooks.


def test_a_notebook_shows_pictures_and_no_markup_of_others(index, pictures):
    found = index.search("a dog", k=30)
    shown = found._repr_html_()
    assert shown.count("data:image/jpeg;base64,") == 30 and "<script" not in shown
    assert "a &lt;b&gt;bold&lt;/b&gt; one" in shown and "<b>bold" not in shown
    assert len(shown) < 30 * 6000, "thumbnails are small"
    (pictures / "00002.png").unlink()
    (pictures / "00003.png").write_bytes(b"no picture")
    shown = found._repr_html_()
    assert shown.count("no such file") == 1 and shown.count("cannot be read") == 1
    assert found[0]._repr_html_().startswith("<div") and "30 items" in index._repr_html_()
    assert re.fullmatch(r"<Index '.*x': 30 items, fake, coarse 16, fine 64>", repr(index))
    index.close()
    assert "closed" in repr(index)


def test_a_notebook_shows_that_an_index_is_closed(index):
    index.close()
    assert "closed" in index._repr_html_()


def test_a_name_of_an_item_is_escaped_in_a_notebook(vectors):
    evil = "<img src=x onerror=alert(1)>"
    with Index.from_vectors(vectors, ids=[f'{row}"{evil}' for row in range(ROWS)], dims=8) as index:
        for shown in (index._repr_html_(), index.search(vector={"fine": vectors[0]})._repr_html_()):
            assert "<img" not in shown and "&lt;img" in shown


# Models as sentence-transformers has them, and the names of the package.


def test_a_model_encodes_texts_and_pictures_in_their_order(tmp_path):
    model = HiVLP.from_pretrained("hivlp-mini")
    (path,) = write_pictures(tmp_path, 1)
    with Image.open(path) as image:
        found = model.encode(["a dog", path, "a cat", image.copy()], batch_size=1)
    assert found.shape == (4, 768)
    np.testing.assert_allclose(found[[0, 2]], model.encode_text(["a dog", "a cat"]).fine, atol=1e-5)
    np.testing.assert_array_equal(found[1], model.encode_image(path).fine[0])
    assert model.encode("a dog").shape == (768,) and model.encode([], level="coarse").shape == (0, 64)
    with pytest.raises(ArgumentError, match="input 2 is neither"):
        model.encode(["a", 5])


def test_the_package_lists_what_it_has():
    assert set(hivlp.__all__) <= set(dir(hivlp)) and "TYPE_CHECKING" not in dir(hivlp)


# What need not be done.


@pytest.mark.slow
def test_learning_is_skipped_where_a_closed_form_finds_all(caplog):
    rng = np.random.default_rng(0)
    flat = np.zeros((4000, 32), np.float32)
    flat[:, :6] = rng.normal(size=(4000, 6))
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    fitted = fit_coarse(flat, dims=8)
    assert "distill" not in fitted.recall and max(fitted.recall.values()) >= 0.9995
    assert "learning was skipped" in caplog.text
    noise = rng.normal(size=(2000, 32)).astype(np.float32)
    assert "distill" in fit_coarse(noise / np.linalg.norm(noise, axis=1, keepdims=True), dims=4).recall


# Retrievers.


@pytest.mark.parametrize(("library", "module"), [("langchain_core", "langchain"), ("llama_index", "llama_index")])
def test_a_retriever_returns_what_a_search_finds(index, library, module):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install {library.replace('_', '-')}")
    hits = index.search("a dog", k=4, where="id > 3").hits
    if module == "langchain":
        from hivlp.retrievers.langchain import HivlpRetriever

        retriever = HivlpRetriever(index=index, k=4, search_options={"where": "id > 3"})
        for found in (retriever.invoke("a dog"), asyncio.run(retriever.ainvoke("a dog"))):
            assert [(each.id, each.metadata["path"]) for each in found] == [(str(hit.id), hit.path) for hit in hits]
            assert all(each.page_content for each in found)
    else:
        from hivlp.retrievers.llama_index import HivlpRetriever

        retriever = HivlpRetriever(index, k=4, where="id > 3")
        for found in (retriever.retrieve("a dog"), asyncio.run(retriever.aretrieve("a dog"))):
            assert [(each.node_id, each.score) for each in found] == [(str(hit.id), hit.scores["fine"]) for hit in hits]
            assert [each.node.image_path for each in found] == [hit.path for hit in hits]


# The page of the docs.


@pytest.mark.slow
def test_the_snippets_of_the_page_for_python_run_as_they_are(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "photos", 12)
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(snippets) >= 6
    for snippet in snippets:
        if "retrievers" not in snippet:
            exec(snippet, names)
