"""Requests that no client of good will sends: each is answered, soon, by what was wrong with it."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import msgspec
import pytest

from hivlp.index import Index
from hivlp.serve.answering import Search
from hivlp.serve.map import Maps
from hivlp.serve.models import SearchRequest
from hivlp.serve.settings import Settings
from hivlp.store.reader import Reader
from serving import asked, error, until
from synthetic import FakeEncoder, index_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    index_pictures(folder, 4)
    return folder


@pytest.fixture(scope="module")
def service(folder):
    index = Index.open(folder / "index", FakeEncoder())
    with asked({"index": index}, Settings(roots=(folder / "pictures",), token="secret")) as service:
        service._client.headers["authorization"] = "Bearer secret"
        yield service


def test_a_condition_lists_pages_of_items_without_the_rest(service, monkeypatch):
    pages = [service.get(f"/items?limit=2&after={after}&where=id<>2").json() for after in (0, 3, 4)]
    assert [[item["id"] for item in page["items"]] for page in pages] == [[1, 3], [4], []]
    assert [page["next"] for page in pages] == [3, None, None]
    monkeypatch.setattr(Reader, "shown", lambda *_: pytest.fail("all that pass were read"))
    assert service.get("/items?limit=1&where=1").json()["next"] == 1
    assert error(service.get("/items", params={"where": "1) OR (1"})) == (400, "bad_request")


@pytest.mark.parametrize(
    "how", [{"shortlist": 1 << 31}, {"group": 0.01}, {"exact": True}, {"offset": 5000}, {"k": 900}]
)
def test_what_takes_long_holds_up_no_loop(service, how):
    vector = [{"vector": [1.0] * 4}]
    search = Search(service.app.service.served(None), msgspec.convert({"query": vector, **how}, SearchRequest), {})
    assert not search.plain
    usual = {"query": vector, "group": True, "shortlist": 500, "threshold": 0.1}
    assert Search(search.served, msgspec.convert(usual, SearchRequest), {}).plain


def test_commits_that_come_faster_than_maps_start_no_more_of_them(tmp_path, monkeypatch):
    go, begun = threading.Event(), []
    monkeypatch.setattr("hivlp.serve.map.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("hivlp.serve.map.drawn", lambda index: begun.append(index) or (go.wait(20) and b"map"))
    maps = Maps()
    for commit in (b"1", b"2", b"3"):
        index = SimpleNamespace(path=tmp_path, store=SimpleNamespace(changes=lambda commit=commit: commit))
        assert maps.of(index) is None
    until(lambda: begun)
    go.set()
    assert until(lambda: maps.of(index)) == b"map" and len(begun) == 2, "of the first commit and of the last"


def test_a_search_is_inspected_down_to_a_depth(service):
    assert error(service.search(query="red", inspect=True, offset=1 << 40)) == (400, "bad_request")


DIGITS = "9" * 5000  # more than Python reads as a number


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", f"/items/{DIGITS}", 404), ("DELETE", f"/items/{DIGITS}", 404), ("GET", "/items/9999999999999999999", 404),
     ("DELETE", "/items/9999999999999999999", 404), ("DELETE", "/items/999999999999999999", 404)],
)  # fmt: skip
def test_ids_that_no_item_can_have_are_not_there(service, method, path, status):
    assert error(service(method, path)) == (status, "not_found")


@pytest.mark.parametrize("origin", ["http://[", "http://127.0.0.1:8000.evil", "null", "http://evil@127.0.0.1:8000"])
def test_an_origin_that_makes_no_sense_is_another_site(service, origin):
    assert error(service("POST", "/search", json={}, headers={"origin": origin})) == (403, "cross_origin")


@pytest.mark.parametrize("host", ["[", "a/b", "a?b.localhost"])
def test_a_host_that_makes_no_sense_harms_no_route(service, host):
    assert error(service("POST", "/jobs/none/pause", headers={"host": host})) == (404, "not_found")


@pytest.mark.parametrize("span", [f"bytes={DIGITS}-", f"bytes=-{DIGITS}", "bytes=-", "bytes=0-1,3-4", "lines=1-2"])
def test_a_range_that_is_none_gives_the_whole(service, span):
    assert service.get("/items/1/original", headers={"range": span}).status_code == 200


def test_a_part_of_what_has_changed_since_is_not_sent(service):
    tag = service.get("/items/1/original").headers["etag"]
    for known, status in ((tag, 206), ('"another"', 200)):
        assert service.get("/items/1/original", headers={"range": "bytes=1-", "if-range": known}).status_code == status


def form(*parts):
    """A form's body, of names of parts and their contents."""
    lines = [b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part for part in parts]
    return b"".join(lines) + b"--b--\r\n"


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "x\0y"])
def test_a_form_in_another_charset_is_refused(service, charset):
    body = form((b"request", b"", b"a" * 400_000 + b"-" + b"z" * 400_000))
    kind = f'multipart/form-data; boundary=b; charset="{charset}"'
    assert error(service("POST", "/search", content=body, headers={"content-type": kind})) == (400, "bad_request")


def test_no_file_of_a_form_takes_another_s_place(service):
    from starlette.requests import Request

    from hivlp.serve.asking import read_form

    body = form(*[(name, b'; filename="x"', b"%d" % n) for n, name in enumerate([b"f", b"f 2", b"f 3", b"f", b"f"])])

    async def receive():
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", b"multipart/form-data; boundary=b; charset=UTF-8")]
    state = {"service": service.app.service}
    request = Request({"type": "http", "method": "POST", "headers": headers, "state": state}, receive)
    _, files, names = service.run(read_form(request))
    assert sorted(files.values()) == [b"0", b"1", b"2", b"3", b"4"] and files.keys() == names.keys()


def test_a_path_that_no_file_system_takes_is_not_there(service, folder):
    path = f"{folder / 'pictures'}/{'a' * 300}"
    answer = service("POST", "/jobs", content=json.dumps({"paths": [path]}))
    assert error(answer) == (404, "not_found")
