"""What the docs promise about themselves; `make docs` checks the links between their pages."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search_your_photos", "bring_your_vectors"])
def test_a_tutorial_runs_from_its_first_cell_to_its_last(name):
    assert any(tool("run_notebook").run(TUTORIALS / f"{name}.ipynb"))


@pytest.mark.train
def test_the_training_tutorial_runs_from_its_first_cell_to_its_last():
    assert any(tool("run_notebook").run(TUTORIALS / "train_and_adapt.ipynb"))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_a_page_outside_the_site_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_every_experiment_says_when_what_and_with_which_verdict():
    found = sorted((ROOT / "docs" / "experiments").glob("20*.md"))
    assert found
    for path in found:
        head = re.match(r"---\ndate: (\S+)\nquestion: .+\nverdict: .+\n---\n# (.+)\n", path.read_text(encoding="utf-8"))
        assert head, path.name
        assert path.name.startswith(head[1]), path.name
        assert ("negative" in path.name) == head[2].startswith("Negative: "), path.name


def test_lines_are_counted_by_room(tmp_path):
    (tmp_path / "room" / "c").mkdir(parents=True)
    (tmp_path / "top.py").write_text("a = 1\n")
    (tmp_path / "room" / "one.py").write_text('"""Two\nlines."""\n\n# A comment.\nb = """\ntext"""  # code\n')
    (tmp_path / "room" / "c" / "two.h").write_text("/* Two\n * lines. */\nint a; /* code */\n")
    (tmp_path / "room" / "page.html").write_text("<p>\n")
    assert tool("count_lines").counted(tmp_path) == {
        "room": {"files": 2, "lines": 9, "code": 3, "Python": 6, "C": 3},
        "(top)": {"files": 1, "lines": 1, "code": 1, "Python": 1},
    }
    assert tool("count_lines").code_in("room/*.py top.py", tmp_path) == 3
    assert tool("count_lines").code_in("room", tmp_path) == 3


def test_files_whose_lines_are_counted_are_there():
    page = (ROOT / "docs" / "lines.md").read_text(encoding="utf-8")
    named = re.findall(r"<!-- code: (.+?) -->", page)
    assert named and all(tool("count_lines").code_in(names) > 0 for names in named)
