"""Takes the pictures of the page in docs/images: `python tools/screenshots.py [OUT]`.

It indexes the pictures that ship with the package, serves them, and drives a real Chromium. Needs the `dev` extra, and
Chromium on the PATH.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from hivlp import HiVLP, Index
from hivlp.demo import pictures_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PORT = 8791
URL = f"http://127.0.0.1:{PORT}"
QUERY = "something to eat"
FRAME = (960, 640)
MOST_BYTES = 2_000_000


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with served():
        take_all(out)


@contextmanager
def served() -> Iterator[None]:
    """The pictures that ship with the package, indexed and served at :data:`URL`."""
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder) / "pictures.hivlp")
        command = [sys.executable, "-m", "hivlp", "serve", str(Path(folder) / "pictures.hivlp"), "--port", str(PORT),
                   "--root", str(pictures_folder())]  # fmt: skip
        with subprocess.Popen(command) as service:
            try:
                wait_for(f"{URL}/readyz")
                yield
            finally:
                service.terminate()


def make_index(place: Path) -> None:
    folder = pictures_folder()
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    captions = {str(folder / row["file"]): row["caption"] for row in rows}
    with Index.create(place, model=HiVLP.from_pretrained("hivlp-mini")) as index:
        index.add(folder, captions=captions)


def wait_for(address: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def take_all(out: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        light = browser.new_page(viewport={"width": 1280, "height": 800})
        start(light)
        search(light, QUERY)
        shoot(light, out / "page-search.webp")
        light.click("#corner")
        light.wait_for_selector("#inspector svg circle")
        light.wait_for_timeout(300)
        shoot(light, out / "page-inspector.webp")
        light.click("#inspector button")
        light.click("#clear")
        light.click("#show-map")
        light.wait_for_selector("#map canvas[data-painter]", timeout=60_000)
        light.wait_for_timeout(1500)
        shoot(light, out / "page-map.webp")

        phone = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark", has_touch=True,
                                 is_mobile=True, device_scale_factor=2)  # fmt: skip
        start(phone)
        search(phone, "flowers")
        shoot(phone, out / "page-phone.webp")
        animate(browser.new_page(viewport={"width": FRAME[0], "height": FRAME[1]}), out / "page.webp")
        browser.close()


def start(page: Page) -> None:
    page.goto(URL)
    page.wait_for_selector("#grid img.there")
    page.wait_for_timeout(500)


def search(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.wait_for_timeout(900)


def shoot(page: Page, place: Path) -> None:
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").save(place, "WEBP", quality=82, method=6)


def animate(page: Page, place: Path) -> None:
    """Typing, more like one, less like another, and the map, as one animated picture."""
    frames: list[tuple[Image.Image, int]] = []

    def keep(milliseconds: int) -> None:
        frames.append((Image.open(io.BytesIO(page.screenshot())).convert("RGB"), milliseconds))

    start(page)
    keep(900)
    page.focus("#text")
    for letter in QUERY:
        page.keyboard.type(letter)
        page.wait_for_timeout(250)
        if letter != " ":
            keep(130)
    keep(900)
    tile = page.locator("#grid li:not([hidden])[aria-posinset='2']")
    tile.hover()
    page.wait_for_timeout(200)
    keep(500)
    tile.locator(".more").click()
    page.wait_for_timeout(700)
    page.mouse.move(2, 300)
    keep(1500)
    page.wait_for_selector("#toast", state="hidden")
    page.locator("#terms .remove").last.click()
    page.click("#clear")
    page.click("#show-map")
    page.wait_for_selector("#map canvas[data-painter]", timeout=60_000)
    page.wait_for_timeout(500)
    keep(900)
    for _ in range(6):
        page.mouse.move(330, 360)
        page.mouse.wheel(0, -160)
        page.wait_for_timeout(400)
        keep(160)
    page.mouse.move(2, 300)
    page.wait_for_timeout(300)
    keep(1800)
    pictures, times = zip(*frames, strict=True)
    for quality in (70, 50, 35):
        pictures[0].save(place, "WEBP", save_all=True, append_images=pictures[1:], duration=list(times), loop=0,
                         quality=quality, method=4, kmin=1, kmax=1)  # fmt: skip
        if place.stat().st_size <= MOST_BYTES:
            return
    raise SystemExit(f"{place} is larger than {MOST_BYTES} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "images")
