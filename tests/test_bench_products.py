"""Products beside hivlp: the contract of each, the chooser, the report, and what a killed run leaves."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hivlp.ann import native
from hivlp.bench.products import run as bench
from hivlp.bench.products.child import PHASES
from hivlp.bench.products.choose import choose, least
from hivlp.bench.products.collection import SHARES, Collection, K, best, filters, write_collection
from hivlp.bench.products.report import ProductsReport, draw
from hivlp.bench.products.rivals import PRODUCTS, Product
from hivlp.bench.products.rivals.base import YEARS, geometric, payloads_of, rows_of
from hivlp.cli import main
from hivlp.errors import HivlpError
from hivlp.files.scratch import hold
from synthetic import cloud, quick_tuning

ITEMS, LATER, DIM = 1300, 130, 96
SLOW = (PRODUCTS[0],)  # to tune
EACH = [pytest.param(each, id=each.__name__, marks=pytest.mark.slow if each in SLOW else ()) for each in PRODUCTS]


def oracle(items: np.ndarray, query: np.ndarray, passing: np.ndarray) -> set[int]:
    scores = np.where(passing, items @ query, -np.inf)
    return set(np.argsort(-scores)[: min(K, passing.sum())].tolist())


@pytest.fixture(scope="module", params=EACH)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[type[Product], Path]:
    """A product that has indexed all but the last items, closed."""
    product, folder = request.param(), tmp_path_factory.mktemp("product")
    try:
        product.load()
    except ModuleNotFoundError as error:
        pytest.skip(f"{product.name} is not installed here: no module {error.name}")
    if request.param is PRODUCTS[0] and native.load() is None:
        pytest.skip("hivlp's kernels are not compiled here")
    items, payloads, learn = sample()
    with quick_tuning():
        product.build(folder, items[:-LATER], payloads[:-LATER], learn)
    return request.param, folder


def sample():
    items = cloud(ITEMS, DIM, 0)
    return items, payloads_of([f"caption {row}" for row in range(ITEMS)]), cloud(600, DIM, 1)


def opened(built: tuple[type[Product], Path]) -> Product:
    product = built[0]()
    product.load()
    product.open(built[1])
    return product


def most(product: Product) -> dict:
    return product.efforts()[-1][-1]


def found_recall(product: Product, items, passing, queries, years=None) -> float:
    """Of an exact search; every hit has its own payload, and passes."""
    payloads, shares = sample()[1], []
    for query in queries:
        hits = product.search(query, K, most(product), years)
        assert len({hit[0] for hit in hits}) == len(hits) <= K
        assert all(tuple(hit[1:]) == payloads[hit[0]] and passing[hit[0]] for hit in hits)
        true = oracle(items, query, passing)
        shares.append(len({hit[0] for hit in hits} & true) / max(1, len(true)))
    return float(np.mean(shares))


def test_a_product_finds_the_best_with_their_payloads(built):
    items, queries = sample()[0][:-LATER], cloud(30, DIM, 2)
    product = opened(built)
    assert found_recall(product, items, np.ones(len(items), bool), queries) > 0.97
    product.close()


def test_a_product_finds_as_much_many_at_once(built):
    queries = cloud(30, DIM, 2)
    product = opened(built)
    single = [rows_of(product.search(query, K, most(product)), K) for query in queries]
    many = [rows_of(hits, K) for hits in product.search_many(queries, K, most(product))]
    assert np.mean(np.array(single) == np.array(many)) > 0.99  # float32 sums may swap neighbours
    product.close()


def test_little_effort_finds_no_more_than_much(built):
    queries = cloud(60, DIM, 2)
    product = opened(built)
    truth = best(sample()[0][:-LATER], queries)
    for ladder in product.efforts():
        few, much = (
            np.mean([len({hit[0] for hit in product.search(query, K, effort)} & set(true.tolist()))
                     for query, true in zip(queries, truth, strict=True)])
            for effort in (ladder[0], ladder[-1])
        )  # fmt: skip
        assert few <= much + 0.1
    product.close()


@pytest.mark.parametrize("share", SHARES)
def test_a_filter_lets_through_what_passes_alone(built, share):
    items, payloads, _ = sample()
    items = items[:-LATER]
    product = opened(built)
    for years in filters(share)[:3]:
        passing = np.array([years[0] <= payload.year <= years[1] for payload in payloads[:-LATER]])
        assert found_recall(product, items, passing, cloud(10, DIM, 3), years) > 0.97
    product.close()


def test_what_is_added_is_found_and_what_is_removed_is_not(built, tmp_path):
    items, payloads, _ = sample()
    product = opened(built)
    try:
        product.add(items[-LATER:], payloads[-LATER:])
    except NotImplementedError:
        product.close()
        pytest.skip(f"{product.name} reads only")
    kept = np.ones(ITEMS, bool)
    queries = cloud(30, DIM, 4)
    assert product.search(items[-1], K, most(product))[0][0] == ITEMS - 1
    assert found_recall(product, items, kept, queries) > 0.97
    gone = np.random.default_rng(0).permutation(ITEMS)[: ITEMS // 10]
    kept[gone] = False
    product.remove(gone.tolist())
    assert found_recall(product, items, kept, queries) > 0.97
    years = (YEARS[0], YEARS[49])
    passing = kept & np.array([years[0] <= payload.year <= years[1] for payload in payloads])
    assert found_recall(product, items, passing, queries[:10], years) > 0.97
    product.close()


# The chooser.


def test_the_least_effort_that_reaches_a_recall():
    rng = np.random.default_rng(0)
    for _ in range(200):
        recalls = np.sort(rng.random(rng.integers(1, 20)))
        ladder, wanted, tried = [{"effort": place} for place in range(len(recalls))], rng.random(), []

        def recall(effort: dict, recalls=recalls, tried=tried) -> float:
            tried.append(effort["effort"])
            return recalls[effort["effort"]]

        there = np.flatnonzero(recalls >= wanted)
        found = least(ladder, wanted, recall)
        assert found == (ladder[there[0]] if len(there) else None)
        if len(there):  # nothing that takes much longer than needed is tried
            assert max(tried) <= 2 * there[0] + 1


def test_the_fastest_ladder_is_chosen_and_one_that_falls_short_is_not():
    ladders = [[{"few": 1}, {"few": 2}], [{"many": 1}, {"many": 2}], [{"short": 1}]]
    recall = {"few": {1: 0.9, 2: 0.96}, "many": {1: 0.97, 2: 0.99}, "short": {1: 0.5}}
    cost = {"few": 3.0, "many": 2.0, "short": 1.0}

    def of(effort: dict) -> float:
        ((name, value),) = effort.items()
        return recall[name][value]

    assert choose(ladders, 0.95, of, lambda effort: cost[next(iter(effort))]) == {"many": 1}
    assert choose(ladders, 0.995, of, lambda effort: 0.0) is None


def test_ladders_grow():
    for product in PRODUCTS:
        assert product.name and product.how and product.packages
    assert geometric(12, 40) == [12, 15, 19, 23, 29, 37]


# Collections.


def test_answers_of_a_collection_are_exact(tmp_path):
    items = cloud(440, 24, 0)
    made = write_collection(tmp_path / "c", items, [str(row) for row in range(440)], cloud(60, 24, 1), cloud(9, 24, 2))
    payloads, test, count = made.payloads(), made.read("test"), made.later()
    assert count == 400 and len(test) == 30 and len(made.read("validation")) == 30
    everything = np.ones(440, bool)
    old, kept = np.arange(440) < 400, everything.copy()
    kept[made.read("remove")] = False
    assert 0.85 < kept.mean() < 0.95
    cases = {"all": old, "added": everything, "removed": kept}
    for name, passing in cases.items():
        for query, found in zip(test, made.truth("test", name), strict=True):
            assert set(found.tolist()) == oracle(items, query, passing)
    for share in SHARES:
        asked = filters(share)
        assert len(set(asked)) == len(asked)
        for of, years in (("", [asked[0]] * 30), ("first-", asked[1:])):
            for query, found, (low, high) in zip(test, made.truth("test", f"{of}{share}"), years, strict=False):
                passing = old & np.array([low <= payload.year <= high for payload in payloads])
                assert {row for row in found.tolist() if row >= 0} == oracle(items, query, passing)
    stamp = (made.folder / "items.npy").stat().st_mtime_ns
    again = write_collection(tmp_path / "c", items[:100], [], items[:2], items[:2])
    assert (again.folder / "items.npy").stat().st_mtime_ns == stamp


# Runs.


class Exact:
    """A product without a library, which compares with everything."""

    name, packages, how = "exact", ("numpy",), "everything"
    keeps_payloads = True

    def load(self) -> None: ...


class Missing(Exact):
    name = "missing"


def said(name: str, phase: str, broken: str = "") -> dict:
    """What a child process says of a phase."""
    if name == "Missing":
        return {"status": "not installed: nothing"}
    rows = [{"measure": measure, "status": "ok"} for measure in PHASES[phase]]
    for row in rows:
        row |= {"p50_ms": 2.0 if name == "Exact" else 1.0, "qps": 100.0, "recall": 0.99, "recall_wanted": 0.99}
        row |= dict.fromkeys(("first_ms", "again_ms", "change_s", "times", "ms", "cold_ms"), 3.0)
        row |= dict.fromkeys(("disk_mb", "private_mb", "build_s", "cpu_s"), 4.0)
    if phase == broken:
        return {"status": "killed by signal 11", "rows": rows[:1]}
    return {"status": "ok", "rows": rows, "efforts": {"0.99": {"effort": 1}}}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A run whose child processes are pretended, and the phases that were asked for."""
    made = write_collection(tmp_path / "c", cloud(220, 24, 0), [""] * 220, cloud(40, 24, 1), cloud(9, 24, 2))
    asked, broken = [], []

    def listen(module: str, arguments: list[str], timeout: float, environment: dict) -> dict:
        name, phase, folder = arguments[0], arguments[1], Path(arguments[2])
        asked.append((name, phase))
        if phase == "build":
            assert not list(folder.iterdir())
            (folder / "file").write_text("built")
        assert (folder / "file").read_text() == "built"
        (folder / "file").write_text("changed" if phase == "change" else "built")
        return said(name, phase, *broken)

    monkeypatch.setattr(bench, "listen", listen)
    return bench.Run(made, tmp_path / "run", 60), asked, broken


class Other(Exact):
    name = "other"
    keeps_payloads = False


class Database(Exact):
    name = "database"


def test_every_product_has_a_row_for_every_measure(started):
    run, asked, broken = started
    broken.append("ask")
    report = bench.compare(run, [Exact, Missing, Other], time.perf_counter(), "small")
    measures = [measure for of in PHASES.values() for measure in of]
    assert [(row["product"], row["measure"]) for row in report.rows] == [
        (product, measure) for product in ("exact", "missing", "other") for measure in measures
    ]
    status = {(row["product"], row["measure"]): row["status"] for row in report.rows}
    assert {status["missing", measure] for measure in measures} == {"not installed: nothing"}
    assert status["exact", "search 0.95"] == "ok"
    assert status["exact", "threads"] == "killed by signal 11"
    assert status["exact", "memory"] == status["exact", "removed"] == "ok"
    assert ("Missing", "ask") not in asked
    shown = report.to_text()
    assert "not installed: nothing" in shown and "killed by signal 11" in shown


@pytest.mark.slow
def test_the_gain_is_over_the_best_other_product(started):
    run, _, _ = started
    report = bench.compare(run, [Exact, Missing, Other], time.perf_counter(), "small")
    assert report.speedup_best_product == {at: {"single": 0.5, "batch": 1.0} for at in ("0.95", "0.99")}
    assert report.best_product["0.99"] == {"single": "other", "batch": "other"}
    assert set(report.speedup_best_database["0.99"].values()) == {None}
    more = bench.compare(run, [Exact, Other, Database], time.perf_counter(), "small")
    assert more.best_product["0.99"]["single"] == "other"
    assert more.best_database["0.99"] == {"single": "database", "batch": "database"}
    assert more.speedup_best_database["0.99"] == {"single": 0.5, "batch": 1.0}
    alone = bench.compare(run, [Exact, Missing], time.perf_counter(), "small")
    assert alone.speedup_best_product["0.95"] == {"single": None, "batch": None}
    saved = json.loads(json.dumps(report.to_json()))
    assert {"rows", "speedup_best_product", "speedup_best_database", "machine", "command", "products"} <= saved.keys()
    assert ProductsReport(**saved).to_text() == report.to_text()


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed(started, monkeypatch):
    run, asked, _ = started
    carried = bench.Run._carried_out

    def killed(self, name, phase, *rest):
        if (name, phase) == ("Other", "change"):
            raise KeyboardInterrupt
        return carried(self, name, phase, *rest)

    monkeypatch.setattr(bench.Run, "_carried_out", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.compare(run, [Exact, Other], time.perf_counter())
    monkeypatch.setattr(bench.Run, "_carried_out", carried)
    asked.clear()
    report = bench.compare(run, [Exact, Other], time.perf_counter())
    assert asked == [("Other", "change")]
    assert all(row["status"] == "ok" for row in report.rows)
    # What was built is gone: it is built again.
    (run.folder / "Other" / "index" / "file").unlink()
    (run.folder / "Other" / "index").rmdir()
    asked.clear()
    bench.compare(run, [Exact, Other], time.perf_counter())
    assert asked == [("Other", "build")]


def test_a_run_beside_another_is_refused_and_leaves_what_that_builds(started, monkeypatch, tmp_path):
    _, asked, _ = started
    collection = Collection(tmp_path / "words")
    monkeypatch.setattr(bench, "collection_of", lambda *_: collection)
    kept = tmp_path / "words-run" / "Exact"
    kept.mkdir(parents=True)
    with hold(tmp_path / "words-run") as alone:
        assert alone
        with pytest.raises(HivlpError, match="another `hivlp bench products --size small` is under way"):
            bench.run("small", None)
    assert kept.is_dir() and not asked


def test_what_has_no_time_left_says_so(started):
    run, asked, _ = started
    late = bench.Run(run.collection, run.folder, 60, deadline=time.perf_counter())
    report = bench.compare(late, [Exact], time.perf_counter())
    assert {row["status"] for row in report.rows} == {"no time left"} and not asked


@pytest.mark.slow
def test_rows_are_drawn_with_gaps(started, tmp_path):
    pytest.importorskip("matplotlib")
    run, _, broken = started
    broken.append("ask")
    draw(bench.compare(run, [Exact, Missing], time.perf_counter()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SqliteVec", "FaissIvf", "Ours"])
def test_a_products_own_process_says_all_its_measures(tmp_path, monkeypatch, name):
    product = next(each for each in PRODUCTS if each.__name__ == name)
    try:
        product().load()
    except ModuleNotFoundError as error:
        pytest.skip(f"{product.name} is not installed here: no module {error.name}")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    made = write_collection(tmp_path / "c", cloud(1300, DIM, 0), [""] * 1300, cloud(80, DIM, 1), cloud(600, DIM, 2))
    report = bench.compare(bench.Run(made, tmp_path / "run", 120), [product], time.perf_counter())
    assert {row["status"] for row in report.rows} == {"ok"}
    for row in report.rows:
        assert row.get("recall", 1) > 0.9 and min((v for v in row.values() if isinstance(v, float)), default=1) >= 0
    assert report.of(product.name)["disk"]["disk_mb"] > 0.3


def test_a_wrong_size_is_wrong_usage(capsys):
    assert main(["bench", "products", "--size", "full"]) == 2
    assert main(["bench", "ann", "--size", "real"]) == 2
    assert "small and real" in capsys.readouterr().err


def test_a_collection_names_its_arrays(tmp_path):
    assert Collection(tmp_path).folder == tmp_path
