"""Engines that are damaged or made to do harm: refused in a line, searched without, and never a wrong exact answer."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.ann import AnnIndex, SearchParams, bounds, native
from hivlp.ann.arrays import DEFERRED
from hivlp.ann.manifest import MANIFEST, manifest_check
from hivlp.bench import fuzz
from hivlp.bench.fuzz_mutations import forge
from hivlp.bench.report import Report
from hivlp.cli import main
from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.files import npy
from hivlp.index import Index
from hivlp.index.tuning import jobs
from hivlp.index.tuning.tuned_index import QUERIES, TunedIndex
from hivlp.search import truth
from hivlp.search.opened import open_ann
from hivlp.search.operating_points import FOLDER, Tuned

pytestmark = pytest.mark.skipif(native.load() is None, reason="the kernels are not compiled here")
ITEMS, WIDTH, DIMS, SIGNED, LISTS, COPIES = 1200, 40, 32, 16, 11, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tuned index."""
    place = tmp_path_factory.mktemp("fuzz") / "index"
    fuzz.make_index(place, 0, ITEMS, WIDTH, DIMS, SIGNED, LISTS, COPIES, True, False)
    return place


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy to change."""
    shutil.copytree(made, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(10, WIDTH)).astype(np.float32)


def answers(folder: Path, queries: np.ndarray, **options) -> tuple[list, bool]:
    """What searches say, and whether they had an engine."""
    with Index.open(folder) as index:
        found = [index.search(vector={"fine": query}, **options) for query in queries]
        return [
            [(hit.id, hit.scores) for hit in result] for result in found
        ], index.snapshot().collection.ann is not None


def true_answers(folder: Path, queries: np.ndarray) -> list:
    without = folder.with_name("without")
    shutil.rmtree(without, ignore_errors=True)
    shutil.copytree(folder, without, ignore=shutil.ignore_patterns(FOLDER))
    return answers(without, queries, exact=True)[0]


def check_refused(folder: Path, queries: np.ndarray, caplog, *names: str) -> None:
    """It is searched without the engine, a line of the log names one of the files, and `verify` does so, too."""
    expected = true_answers(folder, queries)
    caplog.clear()
    with caplog.at_level(logging.WARNING), Index.open(folder) as index:
        for query, answer in zip(queries, expected, strict=True):
            exact = index.search(vector={"fine": query}, exact=True)
            assert [(hit.id, hit.scores) for hit in exact] == answer
            assert len(index.search(vector={"fine": query})) == 10
        assert index.snapshot().collection.ann is None
        (line,) = [record.getMessage() for record in caplog.records]
        assert any(name in line for name in names) and "hivlp tune" in line and "\n" not in line
        damage = index.verify().damage
        assert any(name in found.file for found in damage for name in names), damage


def forged(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / FOLDER / f"{name}.npy", array)
    forge(folder / FOLDER)


@pytest.mark.slow
def test_a_hundred_damaged_indexes_do_no_harm():
    result = fuzz.run(100, seed=20)
    assert result.failures == []
    assert (result.cases, result.crashes, result.hangs, result.silent) == (100, 0, 0, 0)
    assert result.refused > 30 and result.accepted > 5
    assert "100 cases: 0 crashes" in result.to_text()
    json.dumps(result.to_json())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_bench_finds_a_kernel_that_writes_where_it_must_not(tmp_path, made):
    environment, watched = fuzz.sanitized(tmp_path)
    if not environment:
        pytest.skip(watched)
    code = (
        "import sys, numpy as np\n"
        "from hivlp.ann import native\n"
        "native.__file__ = sys.argv[1]\n"
        "out, one = np.empty(1, np.float32), np.ones((9, 8), np.float16)\n"
        "native.load().hivlp_dot(one.ctypes.data, 16, 0, None, 9, out.repeat(8).ctypes.data, 8, out.ctypes.data)\n"
    )
    _, ended = fuzz.child(["-c", code, environment["KERNELS"]], environment)
    assert ended is not None and ended["outcome"] == "crash" and "heap-buffer-overflow" in ended["raw"]


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_and_says_where(tmp_path):
    code = (
        "import sys, time\n"
        "from hivlp.bench import fuzz_child\n"
        "fuzz_child.PATIENCE, fuzz_child.shutil.copytree = 0.2, lambda *_: time.sleep(60)\n"
        f"fuzz_child.run(fuzz_child.Path({str(tmp_path)!r}), [7, 8], 0)\n"
    )
    (tmp_path / "index0").mkdir()
    said, ended = fuzz.child(["-c", code], {})
    assert said == [{"begin": 7}] and ended is not None and ended["outcome"] == "hang"
    assert "run" in ended["raw"]


def test_a_bench_with_failures_exits_with_one(monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "run", lambda cases: Report(failures=[f"case {cases}: crash"]))
    assert main(["bench", "fuzz", "--cases", "5", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failures"] == ["case 5: crash"]


def changed(record: np.ndarray, name: str, value: float) -> np.ndarray:
    record = record.copy()
    record[name] = value
    return record


CRAFTED = {
    "no copies": ("counts", lambda a: np.array([a[0], 0])),
    "fewer than no copies": ("counts", lambda a: np.array([a[0], -1])),
    "copies beyond a product's range": ("counts", lambda a: np.array([a[0], 2**62])),
    "more rows than there are": ("counts", lambda a: np.array([a[0] + 1, a[1]])),
    "no rows": ("counts", lambda a: np.array([0, a[1]])),
    "rows of fewer bits": ("counts", lambda a: a.astype(np.int32)),
    "lists that wrap": ("list_offsets", lambda a: np.array([0, 2**63 - 1, -(2**63), *a[3:]])),
    "a list that goes back": ("list_offsets", lambda a: np.array([0, a[-1], a[1], *a[3:]])),
    "lists that begin late": ("list_offsets", lambda a: np.array([1, *a[1:]])),
    "lists that end early": ("list_offsets", lambda a: np.array([*a[:-1], a[-1] - 1])),
    "lists of the other byte order": ("list_offsets", lambda a: a.astype(">i8")),
    "a row that is not there": ("row_ids", lambda a: np.where(a == 5, ITEMS, a)),
    "a row that comes too often": ("row_ids", lambda a: np.where(a == 5, 6, a)),
    "an empty place amid a list": ("row_ids", lambda a: np.where(a == a[0, 0], 0xFFFFFFFF, a).astype(np.uint32)),
    "factors in no order": ("sign_scales", lambda a: a[:, ::-1].copy()),
    "codes in columns": ("sign_scales", np.asfortranarray),
    "half the codes": ("sign_codes", lambda a: a[: len(a) // 2]),
    "nibbles without names": ("refine_codes", lambda a: a.view(np.dtype((np.void, a.dtype.itemsize)))),
    "a scale that is no number": ("scales", lambda a: changed(a, "sign_scale", np.nan)),
    "a scale of zero": ("scales", lambda a: changed(a, "refine_scale", 0)),
    "a scale too many": ("scales", lambda a: np.append(a, a[:1])),
    "an endless bias": ("router_bias", lambda a: np.full_like(a, np.inf)),
    "a map that is no number": ("query_projection", lambda a: np.full_like(a, np.nan)),
    "steps below zero": ("router_scales", lambda a: -a - 1),
    "a step of zero": ("refine_step", lambda a: np.zeros_like(a)),
    "a mean of doubles": ("mean", lambda a: a.astype(np.float64)),
    "lists without axes": ("centroids", lambda a: a.reshape(-1)),
    "one number": ("sign_amplitude", lambda a: a[0]),
    "nothing": ("router_bias", lambda a: a[:0]),
    "lengths of no row": ("bound_norms", lambda a: np.full_like(a, 65_535)),
    "lengths of signed numbers": ("bound_norms", lambda a: a.astype(np.int16)),
    "a bound's step below zero": ("bound_scalars", lambda a: changed(a, "norm_step", -1)),
    "a bound's map that is no number": ("bound_projection", lambda a: a * np.float32(np.nan)),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_what_no_engine_holds_is_refused_before_a_kernel_reads_it(folder, queries, caplog, case):
    name, change = CRAFTED[case]
    forged(folder, name, change(np.load(folder / FOLDER / f"{name}.npy")))
    check_refused(folder, queries[:2], caplog, f"{name}.npy", "row_ids.npy")  # these must fit to several others


NUMBERS = {
    ("depths", 0, "frontier", 0, "rerank"): (2**61, 0, -1, True, "60", 60.0, None, 10**40),
    ("depths", 0, "frontier", 0, "nprobe"): (-1, 0, 2**61, 1.5, [], None),
    ("depths", 0, "frontier", 0, "margin"): (float("nan"), float("inf"), -1, "x", 1e300),
    ("depths", 0, "frontier", 0, "slack"): (float("-inf"), False, {}),
    ("depths", 0, "frontier", 0, "tolerance"): (-0.5, float("nan"), "None"),
    ("depths", 0, "frontier", 0, "at_least"): (None, 2, "1"),
    ("depths", 0, "frontier", 0): (None, 7, []),
    (
        "depths",
        0,
        "frontier",
    ): (None, {}, 3, [[]]),
    ("rows",): (ITEMS - 1, ITEMS + 1, 0, -1, float(ITEMS), True, 2**63),
    ("checked_rows",): (-1, "3", None, 2**63),
    ("checked_dead",): (-1, "3", 2**63),
    ("generation",): (-1, "0", 0.0, None),
    ("recall",): (0.5j, 2, None, float("nan")),
    ("queries",): (None, 3),
}


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_what_no_manifest_says_is_refused(folder, queries, caplog, path):
    file = folder / FOLDER / MANIFEST
    whole = file.read_text()
    for value in NUMBERS[path]:
        if isinstance(value, complex):
            continue
        manifest = json.loads(whole)
        node = manifest["about"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        del manifest["check"]
        file.write_text(json.dumps({**manifest, "check": manifest_check(manifest)}))
        check_refused(folder, queries[:1], caplog, MANIFEST)


def test_an_engine_of_a_later_generation_than_the_vectors_is_damage(folder, queries):
    file = folder / FOLDER / MANIFEST
    manifest = json.loads(file.read_text())
    manifest["about"]["generation"] = 5
    del manifest["check"]
    file.write_text(json.dumps({**manifest, "check": manifest_check(manifest)}))
    assert answers(folder, queries, exact=True) == (true_answers(folder, queries), False)
    with Index.open(folder) as index:
        assert [damage.file for damage in index.verify().damage] == [f"{FOLDER}/{MANIFEST}"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "7", "null", '{"format": 7}', '{"format": NaN}', "\0" * 99])
def test_a_manifest_that_is_none_is_refused(folder, queries, caplog, text):
    (folder / FOLDER / MANIFEST).write_text(text)
    expected = true_answers(folder, queries)
    found, used = answers(folder, queries, exact=True)
    assert (found, used) == (expected, False)
    with Index.open(folder) as index:
        assert not index.verify().ok


@pytest.mark.parametrize("how", ["pipe", "endless", "folder", "gone", "loop"])
def test_a_file_that_is_none_is_refused_without_waiting(folder, queries, caplog, how):
    path = folder / FOLDER / "scales.npy"
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "endless":
        path.symlink_to("/dev/zero")
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    check_refused(folder, queries[:1], caplog, "scales.npy")


@pytest.mark.slow
def test_four_zeroed_bytes_anywhere_leave_exact_answers_exact(folder, queries):
    """Of every file: all but the longest are summed up when they are opened, these before the first exact answer."""
    expected = true_answers(folder, queries)
    for path in sorted((folder / FOLDER).glob("*.npy")):
        whole = path.read_bytes()
        for at in (130, len(whole) // 2, len(whole) - 4):
            if whole[at : at + 4].strip(b"\0"):
                path.write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])
                found, used = answers(folder, queries, exact=True)
                assert found == expected, path.name
                assert not used or path.name in (QUERIES, *truth.FILES)
        path.write_bytes(whole)
    assert answers(folder, queries, exact=True) == (expected, True)


def test_the_longest_files_are_summed_up_once_and_not_for_approximate_answers(folder, queries, monkeypatch):
    summed, checksum = [], npy.checksum
    monkeypatch.setattr(npy, "checksum", lambda data: summed.append(len(memoryview(data))) or checksum(data))
    assert set(DEFERRED) == {"sign_codes", "refine_codes"}
    size = (folder / FOLDER / "refine_codes.npy").stat().st_size
    with Index.open(folder) as index:
        index.search(vector={"fine": queries[0]})
        assert size not in summed
        for query in queries:
            index.search(vector={"fine": query}, exact=True)
        assert summed.count(size) == 1


@pytest.mark.slow
def test_an_engine_of_other_vectors_is_refused(folder, queries, caplog):
    other = folder.with_name("other")
    fuzz.make_index(other, 3, ITEMS, WIDTH, DIMS, SIGNED, LISTS, COPIES, True, False)
    shutil.rmtree(folder / FOLDER)
    shutil.copytree(other / FOLDER, folder / FOLDER)
    check_refused(folder, queries, caplog, MANIFEST)


def test_bounds_that_leave_out_what_they_should_not_are_not_believed(folder, queries):
    """Even where the sums fit: rows that the engine finds must reach the bar that they set."""
    lengths = np.load(folder / FOLDER / "bound_norms.npy")
    forged(folder, "bound_norms", np.where(lengths == 65_535, lengths, 0).astype(np.uint16))
    assert answers(folder, queries, exact=True)[0] == true_answers(folder, queries)


def test_callers_cannot_lead_a_kernel_out_of_its_arrays(made):
    with Index.open(made) as index:
        index.search(vector={"fine": np.ones(WIDTH)})
        ann = index.snapshot().collection.ann
        engine, exact = ann.index, ann.bounds
    query, setting = np.ones((1, WIDTH), np.float32), SearchParams(4, np.inf, 1.0, 60)
    for allowed in (np.zeros(9, np.uint8), np.zeros(ITEMS, bool), np.zeros(2 * ITEMS, np.uint8)[::2]):
        with pytest.raises(ValueError, match="bytes of bits"):
            engine.search(query, 5, setting, allowed=allowed)
        with pytest.raises(ValueError, match="bytes of bits"):
            exact.reaching(query[0], 0.5, 100, allowed)
    for rows in ([ITEMS], [-1], [2**32 + 5], [3, 2**40]):
        with pytest.raises(IndexError, match="rows must be from 0 to"):
            engine.search_rows(query[0], np.array(rows, np.int64), 5, 5)
        with pytest.raises(IndexError, match="rows must be from 0 to"):
            native.dot(np.asarray(engine.vectors), query[0], np.array(rows, np.int64))
    for wrong in (query[:, :-1], query[0], np.ones((1, WIDTH + 1))):
        with pytest.raises(ValueError, match="dims"):
            engine.search(wrong, 5, setting)
    with pytest.raises(ValueError, match="does not fit"):
        native.dot(np.asarray(engine.vectors), query[0, :-1])
    with pytest.raises(ValueError, match="do not fit the approximate index"):
        AnnIndex(engine.arrays, engine.vectors[:-1])
    with pytest.raises(ValueError, match="do not fit the approximate index"):
        AnnIndex(engine.arrays, np.asfortranarray(engine.vectors))
    for effort in ((2**61, np.inf, 1.0, 2**61), (-5, -1.0, np.nan, -5), (0, np.inf, 0.0, 2**61), (3, np.nan, 1.0, 0)):
        rows, scores = engine.search(np.repeat(query, 9, 0), 7, SearchParams(*effort, np.nan))
        assert rows.shape == scores.shape == (9, 7)
    rows, scores = engine.search(query, ITEMS + 3, SearchParams(LISTS, np.inf, 9.0, 1))
    assert sorted(rows[0, :ITEMS].tolist()) == list(range(ITEMS)) and (rows[0, ITEMS:] == -1).all()
    assert len(engine.search_rows(query[0], np.arange(9), 2**62, 2**62)[0]) == 9
    for bad in (np.full((1, WIDTH), np.nan), np.full((1, WIDTH), np.inf), np.full((1, WIDTH), 1e38)):
        assert engine.search(bad, 5, setting)[0].shape == (1, 5)


@pytest.mark.slow
def test_a_tune_that_is_killed_leaves_an_engine_that_works(folder, queries):
    """SIGKILL before each change to the folder in turn: the old engine, or the new one, and no scraps for ever."""
    expected = true_answers(folder, queries)
    ids = set()
    for moment in itertools.count():
        child = os.fork()
        if child == 0:
            _tune_again(folder, moment)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert finished in (0, -signal.SIGKILL)
        found, used = answers(folder, queries, exact=True)
        assert used, f"no engine after a kill at moment {moment}"
        assert found == expected
        with Index.open(folder) as index:
            assert index.verify().ok
            index.search(vector={"fine": queries[0]})
            ids.add(index.snapshot().collection.ann.tuned.queries)
        if finished == 0:
            break
    assert moment > 40 and len(ids) > 2
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def _tune_again(folder: Path, moment: int) -> None:
    """Put an engine in the place of the one that is there; end by SIGKILL at a change of the folder's files."""
    import sys
    from dataclasses import replace

    try:
        with Index.open(folder) as index, index.store.writer():
            vectors, _, generation = jobs.finest(index.store)
            tuned, engine, bound = open_ann(folder, vectors, generation)
            left = [moment]

            def count(event: str, arguments: tuple) -> None:
                if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open") and str(folder) in str(
                    arguments[0]
                ):
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            asked = np.ones((9, WIDTH), np.float16)
            TunedIndex.of(engine, bound, asked, replace(tuned, queries=f"of moment {moment}")).save(index.store)
            left[0] = 10**9
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def test_what_processes_left_that_died_is_removed_and_what_living_ones_build_is_not(folder, tmp_path):
    from hivlp.files.scratch import scratch_folder

    dead, old = folder / ".engine.abcd1234.scratch", folder / ".engine.4711"
    generation = folder / "fine.9.f16"
    for place in (dead, old):
        place.mkdir()
        (place / "scales.npy").write_bytes(b"1")
    generation.write_bytes(b"of a compaction that was killed")
    abandoned = tmp_path / ".new.abcd1234.scratch"
    abandoned.mkdir()
    with scratch_folder(folder / FOLDER) as living, Index.open(folder) as index:
        index.remove([1])
        assert living.exists() and not dead.exists() and not old.exists() and not generation.exists()
        assert index.verify().ok
    assert not living.exists()
    with scratch_folder(tmp_path / "new"):
        assert not abandoned.exists()


@pytest.mark.parametrize("how", ["a link", "a link to nothing", "a file"])
def test_an_engine_is_put_in_the_place_of_whatever_is_there(folder, tmp_path, queries, how):
    place, elsewhere = folder / FOLDER, tmp_path / "elsewhere"
    place.rename(elsewhere)
    if how == "a file":
        place.write_text("no engine")
    else:
        place.symlink_to(elsewhere if how == "a link" else tmp_path / "nowhere")
    with Index.open(folder) as index:
        vectors, _, generation = jobs.finest(index.store)
        (tmp_path / "copy").mkdir()
        shutil.copytree(elsewhere, tmp_path / "copy" / FOLDER)
        tuned, engine, bound = open_ann(tmp_path / "copy", vectors, generation)
        for _ in range(2):
            with index.store.writer():
                TunedIndex.of(engine, bound, queries.astype(np.float16), tuned).save(index.store)
            index.search(vector={"fine": queries[0]})
            assert index.snapshot().collection.ann is not None and not place.is_symlink()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    assert (elsewhere / MANIFEST).exists()


def test_readers_find_the_engine_in_the_middle_of_a_replacement(folder, queries):
    expected, _ = answers(folder, queries, exact=True)
    with Index.open(folder) as reader:
        reader.search(vector={"fine": queries[0]})
        before = reader.snapshot().collection.ann
        (folder / FOLDER).rename(folder / ".engine.old")
        reader.search(vector={"fine": queries[0]})
        assert reader.snapshot().collection.ann is before
        assert answers(folder, queries, exact=True) == (expected, True)
        assert reader.info().engine_bytes > 0 and reader.verify().ok
        reader.remove([5])
        assert reader.refresh() is False
        assert Tuned.load(folder).rows == ITEMS


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_a_npy_file_says_it_is_an_array_or_a_value_error(data):
    file = io.BytesIO()
    np.save(file, np.arange(12, dtype="<f4").reshape(3, 4))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 131))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(ValueError):
        assert isinstance(npy.parse(bytes(content)), np.ndarray)


@pytest.mark.slow
def test_a_flipped_bit_in_the_header_of_a_map_is_damage(folder, queries):
    path = folder / "item_map.npy"
    whole = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * 128, 3):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            Index.open(folder).close()
        except DamagedIndexError as error:
            assert "item_map.npy" in str(error) or "maps" in str(error)
            refused += 1
    assert refused > 100


def test_an_engine_without_bounds_is_one(folder, queries, caplog):
    for name in bounds.FILES:
        (folder / FOLDER / name).unlink()
    manifest = json.loads((folder / FOLDER / MANIFEST).read_text())
    manifest["checks"] = {name: check for name, check in manifest["checks"].items() if name not in bounds.FILES}
    del manifest["check"]
    (folder / FOLDER / MANIFEST).write_text(json.dumps({**manifest, "check": manifest_check(manifest)}))
    found, used = answers(folder, queries, exact=True)
    assert used and found == true_answers(folder, queries)
    assert not caplog.records


def test_an_engine_is_loaded_from_its_folder_or_refused(folder, tmp_path):
    with pytest.raises(IndexFolderError, match="cannot be read"):
        AnnIndex.load(tmp_path / "none", np.zeros((5, WIDTH), np.float16))
    with pytest.raises(IndexFolderError, match="other vectors"):
        AnnIndex.load(folder / FOLDER, np.zeros((ITEMS, WIDTH + 1), np.float16))
