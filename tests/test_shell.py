"""The shell on a photo library: filters, mixes, pages of thumbnails, terminals, pipes, and keeping in step."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hivlp.cli import main, thumbnails
from hivlp.demo import pictures_folder
from hivlp.search.results import Duplicate, Hit

NAMES = ("cello", "blue-car", "apple-core", "beagle-sniffing-the-ground", "slice-of-pepperoni-pizza")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    place = tmp_path_factory.mktemp("shell")
    folder = place / "photos"
    for year, name in zip((2018, 2019, 2020, 2021, None), NAMES, strict=True):
        target = folder / str(year or "undated") / f"{name}.webp"
        target.parent.mkdir(parents=True)
        shutil.copyfile(pictures_folder() / target.name, target)
        if year:
            target.with_suffix(".xmp").write_text(
                '<x xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:exif="http://ns.adobe.com/exif/1.0/">'
                f'<rdf:Description exif:DateTimeOriginal="{year}-07-01T12:00:00" exif:GPSLatitude="33,51.0S" '
                'exif:GPSLongitude="151,12.0E"/></x>'
            )
    shutil.copyfile(folder / "2018" / "cello.webp", folder / "2018" / "copy.webp")
    assert main(["index", str(folder), "-o", str(place / "x.hivlp")]) == 0
    return place


@pytest.fixture
def shell(library, tmp_path, monkeypatch, capfdbinary):
    """Runs a line in this process; gives standard output, as JSON where it was asked for, and what was said beside."""
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))

    def run(*words: object, code: int = 0):
        arguments = [str(library / "x.hivlp") if word == "INDEX" else str(word) for word in words]
        capfdbinary.readouterr()
        assert main(arguments) == code
        out, err = capfdbinary.readouterr()
        run.said = err.decode()
        return json.loads(out) if "--json" in words else out

    return run


def names(found: dict) -> list[str]:
    return [Path(hit["path"]).stem for hit in found["hits"]]


def test_equal_files_are_one_hit_with_their_number(shell):
    found = shell("search", "INDEX", "a cello", "--json")
    assert len(found["hits"]) == 5 and names(found)[0] in ("cello", "copy")
    assert len(found["hits"][0]["duplicates"]) == 1
    text = shell("search", "INDEX", "a cello").decode()
    assert "+1 the same" in text.splitlines()[0] and "\n     = [" not in text
    assert len(shell("search", "INDEX", "a cello", "--no-fold", "--json")["hits"]) == 6


def test_words_filter_and_without_a_query_photos_come_by_date(shell):
    assert names(shell("search", "INDEX", "a car", "--after", 2019, "--before", 2021, "--json"))[0] == "blue-car"
    assert names(shell("search", "INDEX", "--after", 2019, "--json")) == [
        "beagle-sniffing-the-ground", "apple-core", "blue-car"
    ]  # fmt: skip
    assert len(shell("search", "INDEX", "x", "--near", "-33.85,151.2,5", "--json")["hits"]) == 4
    assert names(shell("search", "INDEX", "--order", "oldest", "-k", 3, "--folder", "2020", "--json")) == ["apple-core"]
    text = shell("search", "INDEX", "--order", "newest").decode()
    assert "2021-07-01" in text.splitlines()[0]


def test_what_is_missing_is_said(shell):
    found = shell("search", "INDEX", "x", "--camera", "Leica", "--json")
    assert found["hits"] == [] and "no picture tells its camera; known are: format, height" in found["hint"]
    assert "known are" in shell.said


def test_mixed_queries_are_typed_with_signs(shell, library):
    car = library / "photos" / "2019" / "blue-car.webp"
    assert names(shell("search", "INDEX", "a", "dog", "+", car, "--json"))[:2] != []
    both = names(shell("search", "INDEX", f'"food" + {car} - "a dog"', "-k", 2, "--json"))
    assert "blue-car" in both and "beagle-sniffing-the-ground" not in both
    assert "without a minus" in (shell("search", "INDEX", "-", "snow", code=1), shell.said)[1]


def test_like_takes_an_item_a_path_and_any_picture(shell, library, tmp_path):
    car = library / "photos" / "2019" / "blue-car.webp"
    item = next(h["id"] for h in shell("search", "INDEX", "car", "--json")["hits"] if h["path"] == str(car))
    by_id = names(shell("search", "INDEX", "--like", item, "--json"))
    assert names(shell("search", "INDEX", "--like", car, "--json")) == by_id and "blue-car" not in by_id
    other = tmp_path / "other.webp"
    shutil.copyfile(car, other)
    assert names(shell("search", "INDEX", "--like", other, "--json"))[0] == "blue-car"


@pytest.mark.slow
def test_the_next_page_shows_what_was_not_seen(shell):
    pages = [names(shell("search", "INDEX", "food", "-k", 2, "--json"))]
    pages += [names(shell("search", "INDEX", "--next", "--json")) for _ in range(3)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert len({name for page in pages for name in page}) == 5
    shell("search", "INDEX", "x", "--next", code=2)


def test_nothing_goes_on_where_nothing_was_searched_for(shell, tmp_path):
    shell("search", tmp_path, "--next", code=1)
    assert "nothing was searched for" in shell.said


def test_paths_for_pipes(shell, library):
    lines = shell("search", "INDEX", "food", "--paths").splitlines()
    assert len(lines) == 5 and all(Path(os.fsdecode(line)).is_file() for line in lines)
    assert shell("search", "INDEX", "food", "--print0") == b"".join(line + b"\0" for line in lines)


def test_a_page_of_thumbnails_is_written_and_opened(shell, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    page = tmp_path / "deep" / "page.html"
    shell("search", "INDEX", "<b>food</b>", "--page", page)
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == 5 and "<b>food" not in text and "&lt;b&gt;food" in text
    assert "2021-07-01" in text and "1 more of the same" in text and "fine 0." in text
    assert not re.findall(r'(?:src|href)="(?!data:|file://)', text), "it loads nothing"
    for data in re.findall(r'src="data:image/webp;base64,([^"]+)"', text):
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= thumbnails.PAGE_PIXELS
    assert opened == []
    shell("search", "INDEX", "food", "--open")
    assert opened == [(tmp_path / "cache" / "search.html").as_uri()]


def test_odd_names_and_files_that_are_gone_do_no_harm_on_a_page(tmp_path):
    odd = os.fsdecode(b'/nowhere/"><script>alert(1)</script>\xff.jpg')
    hit = Hit(1, 1, odd, "<i>", {"fine": 0.5}, {"taken": '"><script>', "camera": 3}, [Duplicate(2, "x")])
    text = thumbnails.search_page("</title><script>", [hit])
    assert "<script>" not in text and "<i>" not in text and "cannot be read" in text


@pytest.mark.parametrize("name", list(thumbnails.PROTOCOLS))
def test_terminals_show_pictures_on_request(shell, name):
    shown = shell("search", "INDEX", "food", "--show", name, "-k", 1)
    begins = {"kitty": b"\x1b_Gf=100", "iterm": b"\x1b]1337;File=", "sixel": b"\x1bPq", "blocks": b"\x1b[38;2;"}
    assert shown.startswith(begins[name]) and b"pizza" in shown.splitlines()[-1]
    assert b"\x1b" not in shell("search", "INDEX", "food", "--show"), "a pipe is no terminal"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "x"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_terminals_are_known_by_their_environment(environment, name):
    assert thumbnails.protocol(environment) == name


def sixels(text: str) -> np.ndarray:
    """A sixel picture's pixels, as a terminal draws them."""
    head = re.match(r'\x1bPq"1;1;(\d+);(\d+)', text)
    width, height = map(int, head.groups())
    body = text[head.end() : text.index("\x1b\\")]
    colours = {
        int(number): [int(value) for value in values.split(";")]
        for number, values in re.findall(r"#(\d+);2;(\d+;\d+;\d+)", body)
    }
    body = re.sub(r"#\d+;2;\d+;\d+;\d+", "", body)
    pixels = np.zeros((height, width, 3), np.uint8)
    for number, band in enumerate(body.split("-")):
        for row in band.split("$"):
            colour = re.match(r"#(\d+)", row)
            column = 0
            for count, sign in re.findall(r"(?:!(\d+))?([?-~])", row[colour.end() :]):
                for _ in range(int(count or 1)):
                    for bit in range(6):
                        if (ord(sign) - 63) >> bit & 1:
                            pixels[6 * number + bit, column] = np.array(colours[int(colour[1])]) * 2.55
                    column += 1
            assert column == width
    return pixels


def test_sixels_draw_the_picture():
    pixels = np.random.default_rng(0).integers(0, 8, (31, 23, 3), dtype=np.uint8) * 32
    pixels[5:20, 3:15] = (255, 0, 0)
    image = Image.fromarray(pixels)
    drawn = sixels(thumbnails.sixel(image))
    expected = np.asarray(image.quantize(255).convert("RGB"))
    assert np.abs(drawn.astype(int) - expected).max() <= 3


@pytest.mark.slow
def test_a_library_that_changes_and_moves(shell, library, tmp_path):
    folder, place = tmp_path / "photos", tmp_path / "y.hivlp"
    shutil.copytree(library / "photos", folder)
    assert shell("index", folder, "-o", place, "--exclude", "undated/", "--json")["added"] == 5
    (folder / "2019").rename(folder / "last year")
    shutil.rmtree(folder / "2018")
    text = shell("index", folder, "-o", place, "--exclude", "undated/").decode()
    assert "0 added, 0 updated, 1 moved, 2 skipped" in text and "2 of them are missing" in text
    assert "not read: 1 × excluded by undated/" in text
    assert len(shell("search", place, "x", "--json")["hits"]) == 3
    assert len(shell("search", place, "x", "--missing", "--no-fold", "--json")["hits"]) == 5
    shell("index", folder, "-o", place, "--prune", "--json")
    folder.rename(tmp_path / "moved")
    shell("index", folder, "-o", place, code=1)
    assert "has 4 items of it: hivlp relocate" in shell.said
    assert "relocate" in (shell("search", place, "x", "--json")["hint"])
    assert shell("relocate", place, folder, tmp_path / "moved", "--json") == {"moved": 4, "replaced": 0}
    assert len(shell("search", place, "x", "--json")["hits"]) == 4
    shell("relocate", place, folder, tmp_path / "nowhere", code=1)


@pytest.mark.slow
def test_watch_tells_what_it_took_in_until_it_is_interrupted(library, tmp_path):
    folder, place = tmp_path / "photos", tmp_path / "y.hivlp"
    shutil.copytree(library / "photos", folder)
    command = [sys.executable, "-m", "hivlp", "watch", folder, "-o", place, "--every", "0.2", "--prune", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        first = json.loads(process.stdout.readline())
        assert first["added"] == 6
        (folder / "2018" / "copy.webp").unlink()
        assert json.loads(process.stdout.readline())["pruned"] == 1
        process.send_signal(2)
        assert process.wait(20) == 0
