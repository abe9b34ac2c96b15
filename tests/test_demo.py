"""The demo, and its page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hivlp.demo import QUERIES, format_text, pictures_folder, run_demo
from hivlp.encode import HiVLP
from hivlp.index import Index

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"), HiVLP.from_pretrained("hivlp-mini"))


def render(page: Path, folder: Path, fragment: str = "") -> tuple[str, str]:
    """The page's DOM after its scripts ran, and the browser's log."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
             f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    command = [CHROMIUM, *flags, "--dump-dom", page.resolve().as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.slow
def test_the_demo_indexes_and_answers(result):
    table = [json.loads(line) for line in (pictures_folder() / "captions.jsonl").read_text().splitlines()]
    assert result.report.added == len(table) >= 300 and not result.report.failed
    answers = dict(result.answers)
    assert set(QUERIES) < set(answers)
    assert answers["a red car"][0].caption == "a red sports car"
    assert "dog" in answers["a dog"][0].caption or "beagle" in answers["a dog"][0].caption
    assert all(len(hits) == 8 for hits in answers.values())
    text = format_text(result)
    assert "a red car" in text and "coarse" in text
    json.dumps(result.to_json())
    with Index.open(result.page.parent / "demo.hivlp") as index:
        assert len(index) == len(table)


def test_every_picture_names_its_source_and_is_in_the_public_domain():
    rows = [json.loads(line) for line in (pictures_folder() / "captions.jsonl").read_text().splitlines()]
    assert {row["file"] for row in rows} == {path.name for path in pictures_folder().glob("*.webp")}
    assert all(row["license"] == "public domain" and row["author"] and row["source"] for row in rows)
    assert sum(path.stat().st_size for path in pictures_folder().iterdir()) < 6_000_000


@pytest.mark.slow
def test_the_page_stands_alone(result):
    page = result.page.read_text(encoding="utf-8")
    assert len(page) < 3_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert "http://" not in page and "https://" not in page
    assert str(result.page.parent) not in page, "no path of the machine that made it"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser(result, tmp_path):
    dom, log = render(result.page, tmp_path)
    assert "CONSOLE" not in log, log
    assert dom.count('class="card"') == 8 * len(result.answers) + result.report.added
    assert len(re.findall(r'<img alt="" data-thumb="\d+" src="data:image/webp', dom)) == 8 * len(result.answers)
    assert '<section id="like" aria-live="polite"></section>' in dom

    # Choosing a picture runs the cascade in the browser; it must find what the index finds.
    with Index.open(result.page.parent / "demo.hivlp") as index:
        item = index.search(like=1, k=1, shortlist=40)[0]
        wanted = [hit.id for hit in index.search(like=item.id, k=3, shortlist=40)]
    dom, log = render(result.page, tmp_path, f"#like={item.id}")
    assert "CONSOLE" not in log, log
    like = dom[dom.index('id="like"') : dom.index('id="q0"')]
    assert f"More like: {item.caption}" in like
    found = [int(number) for number in re.findall(r'data-id="(\d+)"', like)]
    # The page holds vectors of eight bits, the index of thirty-two: neighbours may swap places, not vanish.
    assert found[0] == item.id and len(found) == 8 and set(wanted) <= set(found)
