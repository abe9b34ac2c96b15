"""The page of `hivlp serve` in a real browser, over a stand-in for the service: see page_stub.py."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from page_stub import PAGE, Stub

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NPM = Path(__file__).parent.parent / "npm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
TILE = "#grid li:not([hidden])"
EXPECTED = ("429", "503", "ERR_CONNECTION", "ERR_FAILED", "parts.json", "404")
"""What a browser writes to its console of answers that a test asks for."""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def stub():
    stub = Stub()
    yield stub
    stub.shutdown()
    stub.server_close()


@pytest.fixture
def visit(browser, stub):
    """Opens the page; at the end nothing may have gone wrong in it, and its security policy was not touched."""
    contexts, wrong = [], []

    def visit(address="/", **settings):
        settings = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **settings}
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.goto(stub.url + address)
        page.wait_for_selector("html[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not [each for each in wrong if not any(known in each for known in EXPECTED)]


def titles(page, count=3):
    return page.eval_on_selector_all(
        f"{TILE} .open",
        f"""all => all.map(each => [each.closest("li").ariaPosInSet, each.ariaLabel])
        .sort((one, other) => one[0] - other[0]).slice(0, {count}).map(each => each[1])""",
    )


def wait(page, expression):
    """Until an expression holds; Playwright's own waiting is an eval, which the page's security policy forbids."""
    for _ in range(300):
        if page.evaluate(f"!!({expression})"):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"{expression} does not come true")


def search(page, text):
    page.fill("#text", text)
    wait(page, "document.querySelector('#status').textContent !== '' && !document.body.matches('.slow')")


def wait_asked(page, stub, test):
    """The last search that came, once it meets a condition."""
    for _ in range(200):
        if stub.asked and test(stub.asked[-1]):
            return stub.asked[-1]
        page.wait_for_timeout(20)
    raise AssertionError(stub.asked[-1:])


def wait_shown(page, stub, text):
    """Until the first tile is that of a text's answer, which is the last one asked for."""
    first = stub.search({"query": text, "k": 1})["hits"][0]["caption"]
    wait(
        page, f"document.querySelector('{TILE}[aria-posinset=\"1\"] .open')?.ariaLabel.startsWith({json.dumps(first)})"
    )


# Searching.


def test_results_come_as_one_types_and_late_answers_are_not_shown(stub, visit):
    page = visit()
    page.wait_for_selector(f"{TILE} img.there")
    assert page.inner_text("#status") == f"{stub.count} pictures"
    stub.delay = 0.6
    page.locator("#text").press_sequentially("slow")
    page.fill("#text", "a red sports car")
    wait(page, f"document.querySelector('{TILE}[aria-posinset=\"1\"] .open')?.ariaLabel.startsWith('a red sports car')")
    page.wait_for_timeout(700)
    assert titles(page, 1)[0].startswith("a red sports car,") and page.input_value("#text") == "a red sports car"
    wait(page, "performance.getEntriesByName('first-result').length")
    assert "ms" in page.inner_text("#corner")


def test_what_is_asked_is_in_the_address_and_the_back_button_works(stub, visit):
    page = visit("/?q=a+dog&order=newest")
    assert page.input_value("#text") == "a dog" and page.input_value("#order") == "newest"
    assert (stub.asked[-1]["order"], stub.asked[-1]["cut"]) == ("newest", True)
    page.click("#clear")
    wait_asked(page, stub, lambda asked: "query" not in asked)
    assert "q=" not in page.url
    page.go_back()
    wait_asked(page, stub, lambda asked: asked.get("query") == "a dog")
    assert page.input_value("#text") == "a dog"


def test_back_leads_to_where_one_was(stub, visit):
    stub.count = 5000
    page = visit()
    page.evaluate("scrollTo(0, 9000)")
    page.wait_for_timeout(200)
    page.fill("#text", "a dog")
    wait(page, "scrollY === 0")
    page.go_back()
    wait(page, "Math.abs(scrollY - 9000) < 300 && document.querySelector('#grid li:not([hidden]) img.there')")


def test_a_picture_is_pasted_and_mixed_with_a_text(stub, visit):
    page = visit()
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array([1, 2, 3])], "x.png", {type: "image/png"}));
        dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, cancelable: true}));
    }""")
    wait_asked(page, stub, lambda asked: asked.get("query"))
    assert len(stub.uploaded) == 1 and page.locator("#terms .upload").count() == 1
    search(page, "in winter")
    asked = wait_asked(page, stub, lambda asked: len(asked["query"]) == 2)
    assert asked["query"] == [{"text": "in winter", "weight": 1}, {"upload": stub.uploaded[-1], "weight": 1}]
    page.focus("#terms .weight")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    asked = wait_asked(page, stub, lambda asked: asked["query"][1]["weight"] == -0.5)
    page.keyboard.press("Delete")
    wait_asked(page, stub, lambda asked: asked["query"] == "in winter")
    page.focus("#text")
    page.keyboard.press("Shift+Enter")
    asked = wait_asked(page, stub, lambda asked: asked.get("query") == [{"text": "in winter", "weight": 1}])
    assert page.inner_text("#terms .label") == "in winter" and page.input_value("#text") == ""


def test_a_picture_is_dropped(stub, visit):
    page = visit()
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array([1, 2, 3])], "x.png", {type: "image/png"}));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }""")
    wait_asked(page, stub, lambda asked: asked.get("query") and "upload" in asked["query"][0])


def test_more_and_less_like_a_picture(stub, visit):
    page = visit("/?q=a+dog")
    tile = page.locator(TILE).first
    tile.hover()
    tile.locator(".more").click()
    asked = wait_asked(page, stub, lambda asked: isinstance(asked["query"], list))
    liked = asked["query"][1]["item"]
    assert asked["query"] == [{"text": "a dog", "weight": 1}, {"item": liked, "weight": 1}]
    page.locator(f"{TILE} .open").nth(2).focus()
    page.keyboard.press("l")
    asked = wait_asked(page, stub, lambda asked: len(asked["query"]) == 3)
    assert asked["query"][2]["weight"] == -0.5
    assert f"t=1%7Eitem%7E{liked}" in page.url
    page.locator("#terms .remove").first.click()
    wait_asked(page, stub, lambda asked: len(asked["query"]) == 2)


def test_filters_offer_the_values_that_exist(stub, visit):
    page = visit()
    page.click("#show-filters")
    page.click("#filters .value:has-text('red')")
    asked = wait_asked(page, stub, lambda asked: asked.get("where"))
    each = "EXISTS (SELECT 1 FROM json_tree(metadata, '$.\"colour\"') WHERE atom IN (?))"  # of a list, too
    assert asked["where"] == each and asked["params"] == ["red"]
    assert page.inner_text("#narrowed .label") == "colour red"
    page.fill("#filter-year-min", "2010")
    page.press("#filter-year-min", "Enter")
    asked = wait_asked(page, stub, lambda asked: len(asked.get("params", [])) == 2)
    assert asked["where"] == f'{each} AND "year" >= ?' and asked["params"] == ["red", 2010]
    page.fill("#filter-after", "2020-01-31")
    wait_asked(page, stub, lambda asked: asked.get("filter") == {"after": "2020-01-31"})
    stub.asked.clear()
    page.reload()
    page.wait_for_selector("#narrowed li:nth-child(3)")
    wait_asked(page, stub, lambda asked: asked.get("params") == ["red", 2010])  # kept in the address
    page.locator("#narrowed .remove").first.click()
    wait_asked(page, stub, lambda asked: asked.get("params") == [2010])


# The grid.


def test_a_hundred_thousand_pictures_are_one_scroll_bar_and_few_elements(stub, visit):
    stub.count = 100_000
    page = visit()
    assert page.inner_text("#status") == "100,000 pictures"
    tall = page.evaluate("document.body.scrollHeight")
    assert tall > 2_000_000
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    wait(page, f"[...document.querySelectorAll('{TILE}')].some(each => +each.ariaPosInSet > 45000)")
    places = page.eval_on_selector_all(TILE, "all => all.map(each => +each.ariaPosInSet)")
    assert all(44_000 < place < 56_000 for place in places) and len(places) < 200
    assert len(stub.asked) < 12, "what was passed over was not asked for"
    wait(page, "/ 201[45]$/.test(document.querySelector('#when').textContent)")  # it is hidden again after a second
    page.locator(f"{TILE} .open").first.focus()
    page.keyboard.press("End")
    wait(page, "document.activeElement.closest('li')?.ariaPosInSet === '100000'")
    page.select_option("#order", "oldest")
    wait_asked(page, stub, lambda asked: asked["order"] == "oldest")


def test_found_pictures_go_on_as_one_scrolls(stub, visit):
    page = visit("/?q=a")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_asked(page, stub, lambda asked: asked["offset"] >= 80)  # a quick page has asked for the next one already
    for _ in range(100):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(60)
        if page.evaluate(f"!!document.querySelector('[aria-posinset=\"{stub.count}\"]')"):
            break
    else:
        raise AssertionError(f"the last of {stub.count} does not come into sight")
    assert len({asked["offset"] for asked in stub.asked}) == len(stub.asked), "no page twice"


def test_pictures_whose_files_have_gone_are_passed_by(stub, visit):
    stub.gone = {*range(1, stub.count + 1)} - {stub.count - each for each in (0, 1, 2, 165, 166)}
    page = visit()
    page.locator(f"{TILE} .open").first.focus()
    for place in (2, 3, 4):
        page.keyboard.press("ArrowRight")
        wait(page, f"document.activeElement.closest('li')?.ariaPosInSet === '{place}'")
    page.keyboard.press("Home")
    wait(page, "document.activeElement.closest('li')?.ariaPosInSet === '1'")
    page.keyboard.press("Enter")
    page.wait_for_selector(".about .caption strong")
    for number in (1, 2, 165, 166):
        page.keyboard.press("ArrowRight")
        wait(page, f"location.search.includes('item={stub.count - number}')")
    page.keyboard.press("ArrowLeft")
    wait(page, f"location.search.includes('item={stub.count - 165}')")
    stub.gone |= {stub.count, stub.count - 1, stub.count - 2}
    page.goto(stub.url)
    page.wait_for_selector(TILE)  # though none of the first eighty is there
    assert page.is_hidden("#notice")


def test_rows_are_full_and_in_order_whatever_the_shapes(visit):
    page = visit()
    assert page.evaluate("""async () => {
        const { justify } = await import("/static/js/justify.js");
        let seed = 7;
        const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
        for (let round = 0; round < 300; round += 1) {
            const ratios = Array.from({length: 1 + Math.floor(random() * 90)}, () => 0.5 + 2.5 * random());
            const [width, gap, last] = [300 + Math.floor(1500 * random()), 8, round % 2 === 0];
            const { rows, height } = justify(ratios, width, 220, gap, last);
            const shown = rows.flatMap((row) => row.widths);
            if (shown.length !== ratios.length) return `${shown.length} of ${ratios.length}`;
            let top = 0;
            for (const row of rows) {
                if (row.top !== top) return "rows overlap";
                top += row.height + gap;
                const end = row.left.at(-1) + row.widths.at(-1);
                const full = Math.abs(end - width) <= 1;
                if (!full && !(last && row === rows.at(-1) && end <= width + 1)) return `a row of ${end} of ${width}`;
                row.left.slice(1).forEach((left, place) => {
                    if (Math.abs(left - row.left[place] - row.widths[place] - gap) > 1) throw new Error("gaps differ");
                });
            }
            if (height !== top) return "height";
        }
        return true;
    }""") is True  # fmt: skip


def test_copies_are_folded_with_their_number(stub, visit):
    stub.folded = 2
    page = visit("/?q=a+dog")
    assert stub.asked[-1]["group"] is True
    assert page.locator(f"{TILE} .folded").first.inner_text() == "3"
    assert "and 2 like it" in titles(page, 1)[0]


# The keyboard alone.


def test_everything_is_reached_by_the_keyboard(stub, visit):
    page = visit()
    page.wait_for_selector(f"{TILE} img.there")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#text")
    page.keyboard.type("a dog")
    wait_asked(page, stub, lambda asked: asked.get("query") == "a dog")
    wait_shown(page, stub, "a dog")
    page.keyboard.press("ArrowDown")
    wait(page, "document.activeElement.closest('li')?.ariaPosInSet === '1'")
    page.keyboard.press("ArrowRight")
    wait(page, "document.activeElement.closest('li')?.ariaPosInSet === '2'")
    page.keyboard.press("ArrowDown")
    wait(page, "+document.activeElement.closest('li')?.ariaPosInSet > 3")
    page.keyboard.press("ArrowUp")
    wait(page, "+document.activeElement.closest('li')?.ariaPosInSet < 4")
    page.keyboard.press("Home")
    wait(page, "document.activeElement.closest('li')?.ariaPosInSet === '1'")
    page.keyboard.press("Enter")
    page.wait_for_selector(".about .caption strong")
    first = page.inner_text(".about .caption strong")
    page.keyboard.press("ArrowRight")
    wait(page, f"document.querySelector('.about strong').textContent !== {json.dumps(first)}")
    wait(page, "location.search.includes('item=')")
    page.keyboard.press("i")
    page.wait_for_selector(".facts:not([hidden])")
    assert str(PAGE.parent.parent / "assets") in page.inner_text(".facts")
    page.keyboard.press("Escape")
    wait(page, "document.activeElement.closest('li')?.ariaPosInSet === '2'")
    wait(page, "!location.search.includes('item=')")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    wait(page, "document.querySelector('#selection .count')?.textContent === '3 selected'")


def test_a_selection_is_downloaded_as_a_zip_and_its_paths_are_copied(stub, visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True)
    page.locator(f"{TILE} .open").nth(0).click(modifiers=["Control"])
    page.locator(f"{TILE} .open").nth(4).click(modifiers=["Shift"])
    wait(page, "document.querySelector('#selection .count')?.textContent === '5 selected'")
    with page.expect_download() as waiting:
        page.click("text=Download zip")
    content = Path(waiting.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        wanted = stub.files[::-1][:5]
        assert names == [file.name for file in wanted]
        assert [archive.read(name) for name in names] == [file.read_bytes() for file in wanted]
    page.click("text=Copy paths")
    page.wait_for_selector("#toast:has-text('5 paths copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "\n".join(map(str, wanted))
    page.click("text=More like these")
    asked = wait_asked(page, stub, lambda asked: asked.get("query"))
    assert len(asked["query"]) == 5 and page.is_hidden("#selection")


def test_a_picture_that_the_browser_does_not_know_is_one_by_its_name(stub, visit):
    page = visit()
    for name, mime in (("notes.txt", "text/plain"), ("summer.HEIC", "application/octet-stream")):
        page.set_input_files("#picture", files=[{"name": name, "mimeType": mime, "buffer": b"x"}])
    page.wait_for_selector("#toast:has-text('That is no picture.')")
    asked = wait_asked(page, stub, lambda asked: asked.get("query"))
    assert [set(term) - {"weight"} for term in asked["query"]] == [{"upload"}]


def test_a_collection_that_is_not_there_is_named(visit):
    page = visit("/?index=elsewhere")
    page.wait_for_selector("#toast:has-text('There is no collection elsewhere here: this is stub.')")
    page.wait_for_selector(f"{TILE} img.there")


def test_a_long_touch_begins_a_selection_that_touches_go_on_with(visit):
    page = visit(viewport={"width": 390, "height": 740}, has_touch=True, is_mobile=True)
    page.wait_for_selector(f"{TILE} img.there")
    box = page.locator(f"{TILE} .open").nth(1).bounding_box()
    finger = page.context.new_cdp_session(page)
    middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [middle]})
    wait(page, "document.querySelector('#selection .count')?.textContent === '1 selected'")
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.locator(f"{TILE} .open").nth(2).tap()
    wait(page, "document.querySelector('#selection .count')?.textContent === '2 selected'")
    page.locator(f"{TILE} .open").nth(1).tap()
    page.locator(f"{TILE} .open").nth(2).tap()
    wait(page, "document.querySelector('#selection').hidden")
    page.locator(f"{TILE} .open").nth(2).tap()
    wait(page, "location.search.includes('item=')")


def test_a_double_click_opens_one_lightbox_and_back_closes_it_while_it_opens(visit):
    page = visit(reduced_motion="no-preference")
    page.wait_for_selector(f"{TILE} img.there")
    page.evaluate("document.querySelector('#grid li .open').click(); document.querySelector('#grid li .open').click()")
    wait(page, "location.search.includes('item=')")
    assert page.locator(".pswp").count() == 1
    page.evaluate("history.back()")
    wait(page, "!document.querySelector('.pswp')")
    assert "item=" not in page.url


# What one looks into.


def test_the_inspector_shows_times_the_plan_and_moves(stub, visit):
    page = visit("/?q=a+dog")
    page.click("#corner")
    page.wait_for_selector("#inspector svg path.up")
    text = page.inner_text("#inspector")
    assert "encode" in text and "rerank" in text and "coarse" in text
    assert stub.asked[-1]["inspect"] is True and stub.asked[-1]["explain"] is True
    assert page.locator(f"{TILE} .scores").first.is_visible()
    page.keyboard.press("Escape")
    assert page.is_hidden("#inspector") and page.evaluate("document.activeElement.id") == "corner"


@pytest.mark.parametrize("painter", ["glPainter", "canvasPainter"])
def test_points_are_drawn_where_they_are_by_webgl_and_without(visit, painter):
    drawn = visit().evaluate("""async (name) => {
        const painters = await import("/static/js/painter.js");
        const canvas = document.createElement("canvas");
        document.body.append(canvas);
        const painter = painters[name](canvas, Float32Array.from([0, 0, 0.5, 0.5]), false);
        painter.highlight([1]);
        painter.paint({x: 0, y: 0, scale: 1, unit: 100, width: 300, height: 300, ratio: 1});
        const copy = new OffscreenCanvas(300, 300).getContext("2d");
        copy.drawImage(canvas, 0, 0);
        return [[150, 150], [200, 100], [100, 100]].map(([x, y]) => copy.getImageData(x, y, 1, 1).data[3] > 0);
    }""", painter)  # fmt: skip
    assert drawn == [True, True, False]


def test_the_map_shows_opens_and_selects(stub, visit):
    stub.count = 20_000
    page = visit("/?view=map&q=a+dog")
    page.wait_for_selector("#map canvas[data-painter]")
    page.wait_for_selector("#map .legend:has-text('20,000 pictures, 80 of the search marked')")
    page.mouse.move(200, 200)
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(1100, 700, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    asked = wait_asked(page, stub, lambda asked: "id IN" in asked.get("where", ""))
    assert 1 < asked["where"].count(",") + 1 <= 1000
    page.focus("#map canvas")
    page.keyboard.press("+")
    page.keyboard.press("Enter")
    page.wait_for_selector(".about .caption strong")


# Adding pictures.


def test_indexing_shows_its_progress_and_may_be_paused_and_cancelled(stub, visit):
    page = visit()
    page.click("#show-indexing")
    page.fill("#index-path", "/pictures/summer")
    page.click("#indexing .strong")
    page.wait_for_selector("#indexing li[data-state=running]")
    stub.steps.release()
    wait(page, "document.querySelector('#indexing progress').value === 10")
    assert page.inner_text("#indexing .figure") == "10 of 40"
    page.click("text=Pause")
    page.wait_for_selector("#indexing li[data-state=paused]")
    page.click("text=Resume")
    page.wait_for_selector("#indexing li[data-state=running]")
    stub.asked.clear()
    stub.steps.release(3)
    page.wait_for_selector("#indexing li[data-state=done]")
    page.wait_for_selector("#toast:has-text('The pictures are in')")
    wait_asked(page, stub, lambda asked: asked["offset"] == 0)


def test_a_job_that_is_under_way_is_followed_after_a_reload(stub, visit):
    stub.job = {"id": "j1", "state": "running", "done": 0, "total": 40, "path": "/pictures"}
    page = visit()
    page.wait_for_selector("#show-indexing.on")
    page.click("#show-indexing")
    page.click("text=Cancel")
    stub.steps.release()
    page.wait_for_selector("#indexing li[data-state=cancelled]")


def test_pictures_from_here_are_uploaded(stub, visit):
    page = visit()
    page.click("#show-indexing")
    page.set_input_files("#indexing input[type=file]", [str(file) for file in stub.files[:20]])
    page.wait_for_selector("#indexing li[data-state=done]")
    assert page.inner_text("#indexing .figure") == "20 of 20"


# When things are not as they should be.


def test_a_busy_service_is_asked_again(stub, visit):
    page = visit()
    stub.busy = 1
    page.fill("#text", "a dog")
    page.wait_for_selector("#toast:has-text('busy')")
    wait(page, "document.querySelector('#status').textContent === 'Best first'")
    assert "dog" in titles(page, 1)[0]


def test_nothing_found_nothing_there_and_out_of_reach_are_said_with_what_to_do(stub, visit):
    page = visit("/?q=nothing")
    assert page.inner_text("#notice h1") == "Nothing found"
    page.click("text=Show everything")
    page.wait_for_selector(TILE)
    stub.count = 0
    page.reload()
    page.wait_for_selector("#notice:has-text('Nothing here yet')")
    page.route("**/search", lambda route: route.abort())
    page.fill("#text", "a dog")
    page.wait_for_selector("#notice:has-text('Out of reach')")
    stub.count = 300
    page.unroute("**/search")
    page.click("text=Try again")
    page.wait_for_selector(TILE)


def test_without_the_parts_from_npm_the_page_is_plainer_and_works(stub, visit):
    stub.plain = True
    page = visit("/?q=a+dog")
    page.locator(f"{TILE} .open").first.click()
    page.wait_for_selector("dialog.plain-lightbox img")
    first = page.inner_text(".about strong")
    page.keyboard.press("ArrowRight")
    wait(page, f"document.querySelector('.about strong').textContent !== {json.dumps(first)}")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.plain-lightbox", state="detached")


# Looks.


def test_dark_light_and_as_the_system(visit):
    page = visit(color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    page.click("#theme")
    assert page.evaluate(back) == dark
    page.click("#theme")
    assert page.evaluate(back) != dark
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(back) != dark, "the choice is kept"


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_scrolls_one_way_only(visit, width):
    page = visit("/?q=a+dog", viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    page.wait_for_selector(f"{TILE} img.there")
    page.click("#show-filters")
    assert page.evaluate(
        "document.querySelector('#filters').scrollWidth <= document.querySelector('#filters').clientWidth"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#show-filters")
    page.locator(f"{TILE} .open").first.tap()
    page.wait_for_selector(".about .caption strong")
    boxes = page.eval_on_selector_all(".about .acts > *", "all => all.map(each => each.getBoundingClientRect().right)")
    assert max(boxes) <= width


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The script of axe-core, by npm's lock file."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine: axe-core cannot be had")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NPM / name, folder)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=120)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, axe, scheme):
    page = visit("/?q=a+dog&t=-0.5~item~3&w.colour=%5B%22red%22%5D", color_scheme=scheme)

    def check(where):
        page.evaluate(axe)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        serious = [(each["id"], each["nodes"][0]["html"][:200]) for each in found
                   if each["impact"] in ("serious", "critical")]  # fmt: skip
        assert not serious, where

    page.wait_for_selector(f"{TILE} img.there")
    page.click("#show-filters")
    page.click("#corner")
    page.wait_for_selector("#inspector svg")
    page.locator(f"{TILE} .pick").first.dispatch_event("click")
    check("search, filters, inspector, selection")
    page.locator("#inspector button").first.click()
    page.locator(f"{TILE} .open").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".about .caption strong")
    page.keyboard.press("i")
    page.wait_for_timeout(50)
    check("one picture")
    page.keyboard.press("Escape")
    page.click("#show-map")
    page.wait_for_selector("#map canvas[data-painter]")
    check("map")
    page.click("#show-indexing")
    check("adding pictures")
