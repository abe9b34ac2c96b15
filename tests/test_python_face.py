"""What a user of numpy, pandas or sentence-transformers gives and expects, or one line that says why not."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hivlp import HiVLP, Index
from hivlp.errors import EXTRAS, ArgumentError, HivlpError, IndexFolderError, ModelError, PictureError, QueryError
from synthetic import write_pictures

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="module")
def model() -> HiVLP:
    return HiVLP.from_pretrained("hivlp-mini")


@pytest.fixture
def index(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(pictures)
        yield index


# One or many.


@pytest.mark.parametrize("many", [("a dog", "a cat"), np.array(["a dog", "a cat"]), iter(["a dog", "a cat"])])
def test_one_text_is_a_batch_of_one(model, many):
    one, two = model.encode_text("a dog"), model.encode_text(many)
    assert one.fine.shape == (1, 768) and two.fine.shape == (2, 768)
    np.testing.assert_allclose(one.fine[0], two.fine[0], atol=1e-5)
    assert list(model.encode_text("a dog", levels="coarse")) == ["coarse"]


def test_arrays_of_texts_and_names_are_what_they_hold(model, index, tmp_path):
    one = np.array("a dog")
    np.testing.assert_array_equal(model.encode_text(one).fine, model.encode_text("a dog").fine)
    assert index.search(one).hits == index.search("a dog").hits
    assert len(index.search_many(one)) == 1
    paths = [str(path) for path in write_pictures(tmp_path / "more", 2)]
    expected = model.encode_image(paths).fine
    for given in (np.array(paths), np.array(paths, object), [np.str_(path) for path in paths]):
        np.testing.assert_array_equal(model.encode_image(given).fine, expected)
    np.testing.assert_array_equal(model.encode_image(np.array(paths[0])).fine, model.encode_image(paths[0]).fine)
    assert index.add(np.array(paths[0])).added == 1


@pytest.mark.parametrize(
    "wrong", [5, None, b"dog", ["a", 1], [None], [float("nan")], [["a"]], {"a": 1}, np.array(5), np.array([["a"]])]
)
def test_what_is_no_text_is_named(model, index, wrong):
    for use in (model.encode_text, index.search_many):
        if wrong is not None or use is model.encode_text:
            with pytest.raises(ArgumentError, match=r"texts must be|text \d of \d is no str"):
                use(wrong)


def test_one_picture_is_a_batch_of_one(model, tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    with Image.open(path) as image:
        kinds = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image.copy(), [str(path)]]
    vectors = [model.encode_image(picture).fine for picture in kinds]
    assert all(each.shape == (1, 768) for each in vectors)
    for each in vectors[1:]:
        np.testing.assert_array_equal(each, vectors[0])
    for wrong in (5, None, [None], np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(PictureError, match="PIL"):
            model.encode_image(wrong)
    with pytest.raises(PictureError, match=r"nosuch\.png cannot be read"):
        model.encode_image("nosuch.png")
    with pytest.raises(ModelError, match="no level"):
        model.encode_text("a", levels=[])


def test_a_search_of_many_takes_one_text_as_one(index):
    (found,) = index.search_many("abc")
    assert [hit.id for hit in found] == [hit.id for hit in index.search("abc")]
    for wrong in (5, b"abc", float("nan")):
        with pytest.raises(ArgumentError, match="a query is one text"):
            index.search(wrong)


# Numbers.


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), np.array(3), np.int32([3])[0]])
def test_whole_numbers_of_numpy_are_whole_numbers(index, three):
    plain = index.search(like=3, k=3, offset=3, shortlist=3)
    for options in ({"k": three}, {"offset": three}, {"shortlist": three}, {"like": three}, {"shortlist": [three]}):
        assert index.search(**{"like": 3, "k": 3, "offset": 3, "shortlist": 3, **options}).hits == plain.hits
    json.dumps(index.search(like=three, k=three, offset=three, threshold=np.float32(-1), group=np.True_).to_json())
    assert index.search("x", recall=np.float32(0.5)).hits == index.search("x", recall=0.5).hits


@pytest.mark.parametrize("name", ["k", "offset", "shortlist", "like"])
@pytest.mark.parametrize("wrong", [3.0, True, np.True_, "3", float("nan"), np.float32(3), b"3", 3j])
def test_what_is_no_whole_number_is_refused_by_name(index, name, wrong):
    options = {"like": 1, name: wrong}
    with pytest.raises(ArgumentError, match=f"^{name} must be a whole number"):
        index.search(**options)


@pytest.mark.parametrize("name", ["threshold", "group", "recall"])
@pytest.mark.parametrize("wrong", ["0.5", [0.5], b"1", float("nan"), 10**400])
def test_what_is_no_number_is_refused_by_name(index, name, wrong):
    with pytest.raises(QueryError, match=f"^{name} must be"):
        index.search("x", **{name: wrong})


def test_other_options_of_the_wrong_kind_are_refused_by_name(index):
    for wrong in ("no", 1, None):
        with pytest.raises(ArgumentError, match="exact must be True or False"):
            index.search("x", exact=wrong)
    for wrong in (5, ["id > 1"], b"id > 1", Path("x")):
        with pytest.raises(ArgumentError, match="where must be a condition"):
            index.search("x", where=wrong)
    with pytest.raises(ArgumentError, match="by level"):
        index.search(vector=np.ones(64))
    with pytest.raises(QueryError, match="not a vector of numbers"):
        index.search(vector={"coarse": np.ones(16, complex), "fine": np.ones(64)})
    with pytest.raises(ArgumentError, match="recall must be"):
        index.tune(recall="high")
    with pytest.raises(ArgumentError, match="is no str"):
        index.tune([1, 2])


def test_numbers_beyond_all_items_are_no_trouble(index):
    for huge in (2**31, 2**63, 2**70):
        assert len(index.search("x", k=huge)) == 30
        assert len(index.search("x", offset=huge)) == 0
        assert len(index.search("x", k=huge, offset=huge, threshold=-1, group=True)) == 0
        assert len(index.search("x", shortlist=huge)) == 10


# Whose index it is.


@pytest.fixture
def uses(index, pictures):
    return [
        lambda: index.search("x"),
        lambda: index.search_many(["x"]),
        lambda: index.search(like=1),
        lambda: len(index),
        index.info,
        lambda: index.add(pictures),
        lambda: index.remove(1),
        index.verify,
        index.repair,
        index.compact,
        index.tune,
    ]


def refusals(uses) -> list[str]:
    found = []
    for use in uses:
        try:
            use()
        except IndexFolderError as error:
            found.append(str(error))
    return found


def test_a_closed_index_is_called_closed(index, uses):
    index.close()
    index.close()
    assert set(refusals(uses)) == {f"{index.path} was closed: open it again"}
    assert len(refusals(uses)) == len(uses)


def test_an_index_is_at_the_service_of_another_thread(index, uses):
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(refusals, uses[:-1]).result()) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_index_of_another_process_is_called_that(index, uses):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            for use in uses:
                try:
                    use()
                except HivlpError as error:
                    os.write(writer, f"{error}\n".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reader, 10_000).decode().splitlines()
    assert told == [f"{index.path} was opened by another process: open it once in each process"] * len(uses)
    os.close(reader), os.close(writer)


def test_an_open_index_is_neither_pickled_nor_copied(index):
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ArgumentError, match=r"pass its path, and Index\.open"):
            use(index)


def test_what_is_no_index_or_model_is_named(index, tmp_path):
    for wrong in (5, None, "", "a\0b"):
        for use in (Index.open, lambda path: Index.create(path, model=index.model)):
            with pytest.raises(ArgumentError, match="an index is a folder's path"):
                use(wrong)
    for wrong in (5, HiVLP):
        for use in (
            lambda wrong=wrong: Index.open(index.path, wrong),
            lambda wrong=wrong: Index.create(tmp_path / "y", model=wrong),
        ):
            with pytest.raises(ArgumentError, match="must be a loaded model"):
                use()
    with pytest.raises(ModelError, match="no model 'nosuch'"):
        Index.create(tmp_path / "y", model="nosuch")
    with Index.create(tmp_path / "y", model="hivlp-mini") as named, Index.open(tmp_path / "y", "hivlp-mini") as again:
        assert named.model.name == "hivlp-mini" and again.model_source == "hivlp-mini"
    for wrong in (5, None):
        with pytest.raises(ArgumentError, match="by its name or folder"):
            HiVLP.from_pretrained(wrong)
    with pytest.raises(ModelError, match="no model"):
        HiVLP.from_pretrained("x" * 5000)


# Models.


def test_an_index_loads_the_model_that_it_knows_when_it_needs_it(tmp_path, model, pictures):
    with Index.create(tmp_path / "x", model=model) as index:
        index.add(pictures / "00001.png")
        found = index.search("a dog").hits
    with Index.open(tmp_path / "x") as index:
        assert index.search(like=1).hits == [] and index.model is None
        assert index.search("a dog").hits == found
    with Index.open(tmp_path / "x") as index:
        assert index.add(pictures).added == 29


def test_an_index_whose_model_is_gone_says_so(index):
    with Index.open(index.path) as other, pytest.raises(QueryError, match=r"cannot be loaded: no model 'fake'.*model="):
        other.search("x")


def in_another_process(model: HiVLP) -> list[float]:
    return model.encode_text("a dog").coarse[0].tolist()


@pytest.mark.slow
def test_a_used_model_goes_to_other_processes_and_can_be_copied(model, tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    model.encode_image(path)
    words = model.encode_text("a dog")
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):  # noqa: S301
        np.testing.assert_array_equal(other.encode_text("a dog").fine, words.fine)
        np.testing.assert_array_equal(other.encode_image(path).fine, model.encode_image(path).fine)
    assert len(pickle.dumps(model)) < 10_000, "weights stay in the folder"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(in_another_process, (model,)) == words.coarse[0].tolist()


# What is not installed.

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
from hivlp.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "arguments", "command"),
    [
        ("pyarrow", ["index", "--embeddings", "{parquet}", "-o", "{new}"], "pip install pyarrow"),
        ("pyarrow", ["evaluate", "{parquet}"], "pip install pyarrow"),
        (
            "huggingface_hub",
            ["index", "{folder}", "-o", "{new}", "--model", "owner/name"],
            "pip install huggingface_hub",
        ),
        ("yaml", ["train", "{recipe}"], "pip install torch transformers"),
        ("torch", ["train", "{recipe}"], "pip install torch transformers"),
        ("torch", ["adapt", "{folder}", "{folder}", "-o", "{new}"], "pip install torch transformers"),
        ("torch", ["export", "{folder}"], "pip install torch transformers"),
        (
            "onnx",
            ["train", str(SOURCE.parent / "recipes" / "tiny_cpu.yaml"), "-o", "{new}"],
            "pip install torch transformers",
        ),
        (
            "matplotlib",
            ["train", str(SOURCE.parent / "recipes" / "tiny_cpu.yaml"), "-o", "{new}"],
            "pip install torch transformers",
        ),
        ("onnx", ["adapt", "{folder}", "{folder}", "-o", "{new}"], "pip install torch transformers"),
        ("onnx", ["export", "{folder}"], "pip install torch transformers"),
        ("transformers,torch", ["export", "{folder}", "-o", "{new}"], "pip install torch transformers"),
    ],
)
def test_what_is_missing_is_said_with_a_command_that_installs_it(tmp_path, missing, arguments, command):
    places = {name: tmp_path / name for name in ("new", "folder")}
    places |= {"parquet": tmp_path / "x.parquet", "recipe": tmp_path / "r.yaml"}
    places["parquet"].write_bytes(b"PAR1")
    places["recipe"].write_text("name: x\n")
    places["folder"].mkdir()
    (places["folder"] / "config.json").write_text(json.dumps({"model_type": "clip"}))
    call = [sys.executable, "-c", WITHOUT, missing, *(part.format(**places) for part in arguments)]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert command in done.stderr and "hivlp[" not in done.stderr


def test_the_libraries_of_an_extra_are_those_of_the_package():
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def libraries(extra: str) -> set[str]:
        found = set()
        for requirement in extras[extra]:
            name = requirement.split(";")[0].split(">")[0].split("<")[0].split("=")[0].strip()
            found |= libraries(name[len("hivlp[") : -1]) if name.startswith("hivlp[") else {name}
        return found

    for extra, packages in EXTRAS.items():
        assert set(packages.split()) == libraries(extra)
    assert set(EXTRAS) == set(extras) - {"dev", "docs", "compare"}  # which serve those who work on hivlp itself


# The command, however it is started.


@pytest.mark.slow
@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", ">/dev/full"])
def test_a_stream_that_is_closed_or_full_ends_in_no_traceback(index, redirect):
    command = f'"{sys.executable}" -m hivlp search {index.path} --like 1 {redirect}'
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert done.returncode == (1 if "full" in redirect else 0) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_standard_input_that_is_closed_has_no_queries(index):
    command = f'"{sys.executable}" -m hivlp search {index.path} --queries - --model hivlp-mini <&-'
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vector", "{folder}"],
        ["--vector", "{text}"],
        ["--vector", "nosuch.npy"],
        ["--image", "{folder}"],
        ["--image", "nosuch.png"],
        ["--queries", "{folder}"],
        ["--queries", "{binary}"],
        ["--like", "1", "-k", "0"],
        ["--like", "1", "--offset", "-1"],
        ["--like", "1", "--threshold", "nan"],
        ["--like", "1", "--recall", "nan"],
        ["--like", "9" * 30],
        ["--like", "1", "--where", "\udcff"],
        ["\udcff", "--model", "\udcff"],
    ],
)
def test_any_wrong_value_is_one_line(index, tmp_path, capfd, arguments):
    from hivlp.cli import main

    (tmp_path / "t.npy").write_text("no array")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    places = {"folder": tmp_path, "text": tmp_path / "t.npy", "binary": tmp_path / "b"}
    extra = ["--model", "hivlp-mini"] if "--image" in arguments else []
    assert main(["search", str(index.path), *(part.format(**places) for part in arguments), *extra]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith("hivlp: error: ")
