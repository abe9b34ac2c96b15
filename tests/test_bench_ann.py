import sys
from pathlib import Path

import numpy as np
import pytest

from hivlp.bench.ann import run
from hivlp.bench.ann.collection import Collection, write_collection
from hivlp.bench.ann.kept import Kept, code_of
from hivlp.bench.ann.measure import measure
from hivlp.bench.ann.real import RealSet, read_wordnet
from hivlp.bench.ann.rivals import faiss_codes
from hivlp.bench.ann.truth import exact, recall
from hivlp.cli import BENCHES
from hivlp.errors import DataError
from synthetic import cloud, random_unit

FAKES = """
import numpy as np

class Exact:
    name = "exact"
    def build(self, items, train_queries):
        self.items = items.astype(np.float32)
    def settings(self):
        return [[{"effort": 1}, {"effort": 2}]]
    def search(self, queries, k, setting):
        print("{ a library's own line")
        return np.argsort(-queries @ self.items.T, axis=1)[:, :k]

class Half(Exact):
    name = "half"
    def search(self, queries, k, setting):
        found = super().search(queries, k, setting)
        return found if setting["effort"] == 2 else np.where(np.arange(k) % 2, found, -1)

class Missing(Exact):
    name = "missing"
    def build(self, items, train_queries):
        import a_library_that_is_not_there

class Broken(Exact):
    name = "broken"
    def search(self, queries, k, setting):
        raise RuntimeError("out of order")

class Crashing(Half):
    name = "crashing"
    def search(self, queries, k, setting):
        import os, sys
        if setting["effort"] == 2:
            print("a warning", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 11)
        return super().search(queries, k, setting)
"""


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    rng = np.random.default_rng(0)
    return write_collection(
        tmp_path / "collection", random_unit(rng, 200, 16), random_unit(rng, 30, 16), random_unit(rng, 40, 16)
    )


def test_exact_answers_across_blocks() -> None:
    rng = np.random.default_rng(1)
    items, queries = random_unit(rng, 100, 16), random_unit(rng, 7, 16)
    found = exact(items, queries, 10, block=30)
    assert (found == np.argsort(-queries @ items.T, axis=1)[:, :10]).all()
    assert recall(found[:, ::-1], found) == 1
    assert recall(np.where(np.arange(10) < 5, found, -1), found) == 0.5


@pytest.mark.slow
def test_every_engine_runs_in_its_own_process(collection: Collection) -> None:
    result = run.compare(collection, ["fakes:Exact", "fakes:Half", "fakes:Missing", "fakes:Broken"], timeout=60)
    status = {each["engine"]: each["status"] for each in result["engines"]}
    assert status["exact"] == status["half"] == "ok"
    assert status["missing"] == "not installed"
    assert "out of order" in status["broken"]
    rows = {name: [row for row in result["rows"] if row["engine"] == name] for name in status}
    assert [row["recall"] for row in rows["exact"]] == [1.0]  # enough, so no more effort
    assert [row["recall"] for row in rows["half"]] == [0.5, 1.0]
    assert {"setting", "recall", "qps", "p50_us", "p99_us", "batch_qps", "front"} <= rows["exact"][0].keys()
    assert {"build_s", "peak_mb", "resident_mb"} <= result["engines"][0].keys()
    assert result["best_rival"] == result["best_rival_batch"] == "half"
    for key in ("speedup_best_rival", "speedup_flat", "speedup_best_rival_batch"):
        assert result[key] > 0
    shown = run.AnnReport(size="small", **result, pools=[]).to_text()
    assert "not installed" in shown and "out of order" in shown


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(collection.folder.parent))
    sys.modules.pop("fakes", None)
    engines = ["fakes:Exact", "fakes:Half", "fakes:Broken"]
    asked = []

    def count(engine: str, *rest: object, **named: object) -> dict:
        asked.append(engine)
        return measure(engine, *rest, **named)

    monkeypatch.setattr(run, "measure", count)
    kept = Kept(collection.folder / "measured", {"cpu": "a"})
    first = run.compare(collection, engines, 60, kept=kept)
    assert asked == engines
    second = run.compare(collection, engines, 60, kept=kept)
    # Ours always, and what did not work.
    assert asked[3:] == ["fakes:Exact", "fakes:Broken"]
    half = [[row for row in result["rows"] if row["engine"] == "half"] for result in (first, second)]
    assert half[0] == half[1]
    assert "measured" in second["engines"][1] and "measured" not in second["engines"][0]
    assert "measured on" in run.AnnReport(size="small", **second, pools=[]).to_text()
    run.compare(collection, engines, 60, kept=Kept(collection.folder / "measured", {"cpu": "another"}))
    assert asked[5:] == engines


@pytest.mark.slow
def test_only_what_reaches_a_target_is_timed(collection: Collection) -> None:
    timed = {
        name: [row["setting"]["effort"] for row in measure(f"fakes:{name}", collection, 60, target=0.99)["rows"]]
        for name in ("Exact", "Half")
    }
    assert timed == {"Exact": [1], "Half": [2]}


def test_what_is_kept_depends_on_an_engines_own_code() -> None:
    narrow, wide = code_of(faiss_codes.FaissFastScan), code_of(faiss_codes.FaissFastScanWide)
    assert "2 * REDUCED" in wide and "2 * REDUCED" not in narrow
    for code in narrow, wide:
        assert "class _FaissRefined" in code and "def principal" in code and "class FaissFlat" not in code


def test_a_slow_engine_is_stopped(collection: Collection) -> None:
    assert measure("fakes:Exact", collection, timeout=0.01) == {"engine": "Exact", "status": "timeout", "rows": []}


def test_an_engine_that_crashes_keeps_its_rows(collection: Collection) -> None:
    measured = measure("fakes:Crashing", collection, timeout=60)
    assert measured["status"] == "killed by signal 11"
    assert [row["setting"] for row in measured["rows"]] == [{"effort": 1}]


def test_pareto_front() -> None:
    points = [(0.9, 10.0), (0.9, 12.0), (0.95, 11.0), (0.94, 11.0), (0.99, 1.0), (0.99, 2.0)]
    assert run.pareto(points) == {1, 2, 5}


def test_gain_takes_each_ones_fastest_good_enough_setting() -> None:
    rows = [
        {"engine": "ours", "recall": 0.98, "qps": 900.0},
        {"engine": "ours", "recall": 0.99, "qps": 300.0},
        {"engine": "ours", "recall": 0.995, "qps": 400.0},
        {"engine": "fast", "recall": 0.98, "qps": 800.0},
        {"engine": "slow", "recall": 0.999, "qps": 100.0},
    ]
    speeds = run.fastest(rows, "qps")
    assert speeds == {"ours": 400.0, "slow": 100.0}
    assert run._gain(speeds, "ours", ["fast", "slow"]) == ("slow", 4.0)
    assert run._gain(speeds, "ours", ["fast"]) == (None, None)


@pytest.mark.slow
def test_our_index_is_measured_with_its_hits_and_beside_the_engine_inside(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    place = write_collection(tmp_path / "made", cloud(1500, 32, 3), cloud(40, 32, 4), cloud(1200, 32, 5))
    found = measure("hivlp.bench.ann.rivals:OurIndex", place, 120)
    assert found["status"] == "ok" and found["engine"] == "hivlp Index"
    assert max(row["recall"] for row in found["rows"]) >= 0.99
    assert [each["recall"] for each in found["overheads"]] == [0.95, 0.99]
    for each in found["overheads"]:
        assert 0 < each["engine_us"] < each["hits_us"] and each["search_us"] < each["hits_us"]
        assert each["batch_search_us"] < each["batch_hits_us"]


def test_pools_and_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    real = RealSet(words=cloud(400, 32, seed=9), glosses=cloud(5100, 32, seed=10))
    (pool,) = run.pools(real, 60, sizes=(300,))
    assert pool["items"] == 300
    assert min(pool[key] for key in ("ours_qps", "flat_qps", "ours_batch_qps", "flat_batch_qps", "speedup")) > 0
    pytest.importorskip("matplotlib")
    row = {"engine": "a", "recall": 0.9, "qps": 10.0, "batch_qps": 20.0}
    result = {"engines": [{"engine": "a"}, {"engine": "b"}], "rows": [row], "items": 300, "dim": 8}
    run.draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_wordnet_is_read_in_a_fixed_order(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wordnet-base"):
        read_wordnet(tmp_path)
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text(
            "  1 licence\n00001740 03 n 02 physical_entity 0 old(a) 0 000 | that which is; an example\n"
        )
    assert read_wordnet(tmp_path) == (["old", "physical entity"], ["that which is"])


def test_the_command_line_knows_it() -> None:
    assert "ann" in BENCHES
