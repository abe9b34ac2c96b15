"""The command line, as a person runs it: with the model that ships, in processes of its own."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from hivlp.bench.report import Report
from hivlp.cli import BENCHES, main
from hivlp.demo import pictures_folder
from hivlp.encode import HiVLP

SOURCE = Path(__file__).resolve().parent.parent / "src"


def hivlp(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hivlp", *(os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments)]
    result = subprocess.run(
        command, capture_output=True, cwd=cwd, timeout=120, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert b"Traceback" not in result.stderr, result.stderr.decode("utf-8", "replace")
    return result


def answer(*arguments: object) -> dict:
    result = hivlp(*arguments, "--json")
    assert result.returncode == 0, result.stderr.decode("utf-8", "replace")
    return json.loads(result.stdout)


def refusal(*arguments: object, code: int = 1) -> str:
    """What is said of a call that fails, made in this process: starting one takes longer than most calls."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        status = main([str(argument) for argument in arguments])
    text = said.getvalue()
    assert status == code, text
    assert text.count("\n") == 1 and re.match(r"hivlp: error: " if code == 1 else r"hivlp( \w+)?: error: ", text), text
    return text


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("red-sports-car", "blue-car", "slice-of-pepperoni-pizza", "beagle-sniffing-the-ground", "cello"):
        shutil.copyfile(pictures_folder() / f"{name}.webp", folder / f"{name}.webp")
    return folder


@pytest.fixture(scope="module")
def index(photos, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("index") / "x.hivlp"
    assert answer("index", photos, "-o", place)["added"] == 5
    return place


def test_the_main_job(photos, tmp_path):
    place = tmp_path / "x.hivlp"
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    first = answer("index", folder, "-o", place)
    assert set(first) == {
        *("added", "updated", "moved", "skipped", "missing", "pruned", "failed", "not_read", "items", "seconds")
    }
    assert (first["added"], first["items"], first["failed"]) == (5, 5, [])
    assert answer("index", folder, "-o", place)["skipped"] == 5
    shutil.copyfile(folder / "cello.webp", folder / "blue-car.webp")
    changed = answer("index", folder, "-o", place)
    assert (changed["added"], changed["updated"], changed["skipped"]) == (0, 1, 4)
    found = answer("search", place, "a red car", "-k", 2)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2]
    assert found["hits"][0]["path"].endswith("red-sports-car.webp")
    assert set(found["hits"][0]["scores"]) == {"coarse", "fine"}
    assert set(found["timings_ms"]) == {"encode", "coarse", "fine", "total"}


@pytest.mark.slow
def test_fields_are_declared_counted_and_asked_for(photos, tmp_path):
    place = tmp_path / "x.hivlp"
    made = answer("index", photos, "-o", place, "--field", "width:int", "--field", "taken:str")
    counts = {"width": {"type": "int", "values": 5, "without": 0}, "taken": {"type": "str", "values": 0, "without": 5}}
    assert (made["added"], made["fields"]) == (5, counts)
    assert answer("info", place)["fields"] == counts
    told = hivlp("info", place).stdout.decode()
    assert "field width: int, 5 items with a value, 0 without" in told and "holds: 5 items\n" in told
    assert "levels: coarse 64, fine 768 dims, finest as float16\n" in told and "tuned: no\n" in told
    for where, hits in (("width > 0 AND taken IS NULL", 5), ("NOT width > 0 OR taken >= '2024'", 0)):
        assert len(answer("search", place, "a car", "--where", where)["hits"]) == hits
    assert answer("index", photos, "-o", place, "--field", "format:str")["fields"].keys() == {*counts, "format"}
    for wrong in (["width"], ["width:date"], ["path:str"], ["a b:int"], ["a:int", "a:str"]):
        given = [part for each in wrong for part in ("--field", each)]
        assert "field" in refusal("index", photos, "-o", tmp_path / "y", *given, code=2)
    assert not (tmp_path / "y").exists()


@pytest.mark.slow
def test_what_is_not_read_is_told_and_nothing_at_all_is_a_failure(photos, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.pdf", "b.pdf", "c.psd"):
        (folder / name).write_bytes(b"whatever")
    (folder / "album").symlink_to(photos)
    place = tmp_path / "x.hivlp"
    nothing = hivlp("index", folder, "-o", place, "--json")
    report = json.loads(nothing.stdout)
    assert nothing.returncode == 1 and b"nothing could be read" in nothing.stderr
    assert {kind: passed["count"] for kind, passed in report["not_read"].items()} == {
        "PDF": 2,
        "Photoshop": 1,
        "linked folder": 1,
    }
    shutil.copyfile(photos / "cello.webp", folder / "photo.jpg")  # content counts, not the name
    result = hivlp("index", folder, "-o", place)
    text = result.stdout.decode()
    assert result.returncode == 0 and "1 added" in text
    assert "not read: 2 × PDF" in text and "not read: 1 × linked folder" in text
    (folder / "photo.jpg").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isommp41")
    assert hivlp("index", folder, "-o", place).returncode == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert hivlp("index", empty, "-o", place).returncode == 0


@pytest.mark.slow
def test_search_by_picture_item_and_page(index, photos):
    by_picture = answer("search", index, "--image", photos / "cello.webp")
    assert by_picture["hits"][0]["path"].endswith("cello.webp")
    item = by_picture["hits"][0]["id"]
    like = answer("search", index, "--like", item, "-k", 9)
    assert len(like["hits"]) == 4 and item not in [hit["id"] for hit in like["hits"]]
    everything = answer("search", index, "food", "-k", 100)["hits"]
    pages = [
        hit for offset in (0, 2, 4) for hit in answer("search", index, "food", "-k", 2, "--offset", offset)["hits"]
    ]
    assert [hit["id"] for hit in pages] == [hit["id"] for hit in everything]
    assert everything[0]["path"].endswith("pizza.webp")
    assert answer("search", index, "food", "--exact")["hits"][0]["id"] == everything[0]["id"]
    dogs = answer("search", index, "food", "--where", "path LIKE '%beagle%'")["hits"]
    assert len(dogs) == 1


@pytest.mark.slow
def test_remove_info_compact_merge(index, photos, tmp_path):
    mine = tmp_path / "mine.hivlp"
    shutil.copytree(index, mine)
    assert answer("info", mine)["items"] == 5
    assert answer("remove", mine, photos / "cello.webp")["removed"] == 1
    assert answer("compact", mine) == {"freed": 1, "items": 4}
    assert answer("merge", mine, index) == {"added": 1, "items": 5}
    assert "no item 777" in refusal("remove", mine, 777)


@pytest.mark.slow
def test_many_searches_at_once(index, tmp_path):
    texts = ["a red car", "food", "ünïcödé 狐"]
    file = tmp_path / "queries.txt"
    file.write_bytes("\ufeff a red car\r\n\n food \n\nünïcödé 狐".encode())
    result = hivlp("search", index, "--queries", file, "-k", 3, "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["query"] for each in found] == texts
    for each in found:
        assert set(each) == {"query", "hits", "timings_ms", "plan"}
        alone = answer("search", index, each["query"], "-k", 3)["hits"]
        assert [hit["id"] for hit in each["hits"]] == [hit["id"] for hit in alone]
    shown = hivlp("search", index, "--queries", file, "-k", 1).stdout.decode()
    assert shown.startswith("a red car\n  1  [") and "\n\nfood\n" in shown
    file.write_text("\n\n")
    assert hivlp("search", index, "--queries", file, "--json").stdout == b""


@pytest.mark.slow
def test_equal_pictures_are_one_hit(photos, tmp_path):
    folder, place = tmp_path / "p", tmp_path / "x.hivlp"
    shutil.copytree(photos, folder)
    shutil.copyfile(folder / "cello.webp", folder / "copy.webp")
    answer("index", folder, "-o", place)
    for group in (["--group"], ["--group", "0.99"]):
        hits = answer("search", place, "a cello", "-k", 9, *group)["hits"]
        assert len(hits) == 5
        assert [Path(other["path"]).name for other in hits[0]["duplicates"]] == ["copy.webp"]
        assert all(hit["duplicates"] == [] for hit in hits[1:])
    assert len(answer("search", place, "a cello", "-k", 9, "--group", "0.01")["hits"]) < 5
    assert "\n     = [" in hivlp("search", place, "a cello", "--group").stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{index}", ""], "the query is empty"),
        (["search", "{index}", "x", "-k", "0"], "k must be at least 1"),
        (["search", "{index}", "--like", "12345"], "no item 12345"),
        (["search", "{index}", "--like", "²"], "like must be"),
        (["search", "{index}", "--like", "9" * 5000], "like must be"),
        (["search", "{index}", "x", "--group", "2"], "group must be a cosine"),
        (["search", "{index}", "--queries", "{missing}"], "cannot be read"),
        (["search", "{index}", "--queries", "{photos}/cello.webp"], "is not a text file"),
        (["search", "{index}", "x", "--where", "nosuch = 1"], "nosuch"),
        (["search", "{index}", "--image", "{missing}"], "cannot be read"),
        (["search", "{missing}", "x"], "is not an index"),
        (["index", "{missing}", "-o", "{new}"], "does not exist"),
        (["index", "{photos}", "-o", "{photos}"], "is not an index"),
        (["index", "{photos}", "-o", "{new}", "--model", "nosuch"], "no model 'nosuch'"),
        (["index", "{photos}", "-o", "/proc/nosuch/x"], "cannot be created"),
        (["index", "{photos}", "-o", "{index}", "--vectors", "int8"], "stores float16 vectors, not int8"),
        (["evaluate", "{missing}"], "does not exist"),
        (["evaluate", "{photos}"], "no"),
        pytest.param(["train", "{missing}"], "no recipe", marks=pytest.mark.train),
        pytest.param(["export", "hivlp-mini", "-o", "{new}"], "leave out -o", marks=pytest.mark.train),
    ],
)
def test_what_is_wrong_is_said_in_a_line(index, photos, tmp_path, arguments, message):
    places = {"index": index, "photos": photos, "missing": tmp_path / "missing", "new": tmp_path / "new"}
    assert message in refusal(*(argument.format(**places) for argument in arguments))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nosuch",
        "search",
        "search {index}",
        "index x",
        "search {index} x --like 1",
        "search {index} x --queries f",
        "search {index} x --group a",
        "search {index} x -k a",
    ],
)
def test_wrong_usage_exits_with_two(index, line):
    refusal(*(part.format(index=index) for part in line.split()), code=2)


@pytest.mark.parametrize(
    "line",
    [
        "search {new} x", "search {index}", "search {index} x --where z", "search {index} x -k a", "nosuch", "",
        "index {new} -o {new}", "index {index} -o {new} --field a", "info {new}", "remove {index} 777",
        "evaluate {new}", "bench nosuch", "serve {index} --port 99999", "search {index} {new}\udcff --model \udcff",
    ],
)  # fmt: skip
def test_a_failure_is_json_where_results_are(index, tmp_path, capsys, line):
    places = {"index": index, "new": tmp_path / "new"}
    assert main([part.format(**places) for part in f"{line} --json".split()]) in (1, 2)
    shown, said = capsys.readouterr()
    assert said == f"{said.partition(':')[0]}: error: {json.loads(shown)['error']}\n"


@pytest.mark.slow
def test_options_stand_anywhere_among_the_arguments(index, photos, tmp_path):
    last = answer("search", index, "a red car", "-k", 1)["hits"]
    for words in (["-k", 1, index, "a red car"], [index, "-k", 1, "a red car"]):
        assert [hit["id"] for hit in answer("search", *words)["hits"]] == [hit["id"] for hit in last]
    assert hivlp("search", "-k", 1, index, "--", "-a red car").returncode == 0
    place = tmp_path / "x.hivlp"
    report = answer("index", photos / "cello.webp", "-o", place, photos / "blue-car.webp")
    assert report["added"] == 2
    assert answer("remove", place, "--id", 1, "--json", 2) == {"removed": 2, "items": 0}
    assert "extra" in refusal("info", index, "extra", code=2)
    bare = answer("search", index, "-k", 1, "a", "red", "car")["hits"]
    assert [hit["id"] for hit in bare] == [hit["id"] for hit in last], "words need no quotes"


@pytest.mark.slow
def test_bars_are_for_terminals_alone():
    bars = 0
    for path in (SOURCE / "hivlp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
                bars += 1
                assert "disable" in [word.arg for word in node.keywords], f"{path.name}:{node.lineno}"
    assert bars > 10


@pytest.mark.slow
def test_an_index_of_another_model_is_refused(index, photos, tmp_path):
    other = tmp_path / "other"
    HiVLP.from_pretrained("hivlp-mini").save_pretrained(other)
    config = json.loads((other / "config.json").read_text())
    config["name"] = "other"
    (other / "config.json").write_text(json.dumps(config))
    assert "was made with model hivlp-mini, not other" in refusal("search", index, "x", "--model", other)
    assert "was made with model hivlp-mini, not other" in refusal("index", photos, "-o", index, "--model", other)


@pytest.mark.slow
def test_a_long_query_and_odd_words(index):
    assert len(answer("search", index, "word " * 2000)["hits"]) == 5
    assert len(answer("search", index, "🦊 \n ünïcödé 狐")["hits"]) == 5


@pytest.mark.slow
def test_evaluate_on_a_folder(photos, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(photos, folder)
    for path in folder.glob("*.webp"):
        path.with_suffix(".txt").write_text("a " + path.stem.replace("-", " "))
    result = answer("evaluate", folder, "--shortlist", 3)
    assert (result["images"], result["captions"]) == (5, 5)
    for row in (*result["levels"].values(), result["cascade"]):
        assert set(row["text_to_image"]) == {"R@1", "R@5", "R@10"}
        assert row["rsum"] == pytest.approx(6 * row["AR"], abs=0.1)
    assert result["levels"]["fine"]["text_to_image"]["R@5"] == 100
    assert result["cascade"]["shortlist"] == 3 and "retained" in result["cascade"]


@pytest.mark.slow
def test_the_core_runs_without_torch(index):
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'pyarrow', 'onnx', 'resvg_py']))\n"
        "from hivlp.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "search", str(index), "a red car", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["hits"][0]["path"].endswith("red-sports-car.webp")


@pytest.mark.train
def test_the_verbs_are_listed_on_one_screen_and_the_benches_by_their_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) < 60
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name:10} {what}\n" in shown for name, what in BENCHES.items())


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_takes_the_options_that_go_with_it(name, monkeypatch):
    from hivlp.cli import bench

    pytest.importorskip("torch")
    module = importlib.import_module(f"hivlp.bench.{bench.MODULES.get(name, name)}")
    signature, seen = inspect.signature(module.run), []

    def run(**options):
        signature.bind(**options)
        seen.append(options)
        return Report()

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(bench, "load_model", lambda model: f"loaded {model}")
    monkeypatch.setattr(Report, "to_text", lambda report: "")
    assert main(["bench", name]) == 0
    wanted = {option: default for option, (default, benches) in bench.OPTIONS.items() if name in benches}
    if "model" in seen[0]:
        model = seen[0]["model"]
        model = model[0] if isinstance(model, list) else model
        seen[0]["model"] = (model() if callable(model) else model).removeprefix("loaded ")
    assert seen == [wanted]
