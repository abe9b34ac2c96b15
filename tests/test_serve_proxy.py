"""The service behind a proxy that ends TLS and has it below a folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hivlp
from hivlp.index import Index
from hivlp.serve.settings import Settings
from serving import asked, error
from synthetic import FakeEncoder, index_pictures

PAGE = Path(hivlp.__file__).parent / "serve" / "page"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    index = Index.open(index_pictures(folder, 2), FakeEncoder())
    with asked({"index": index}, Settings(token="secret", roots=(folder,)), host="photos.example") as service:
        yield service


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_token_s_cookie_is_kept_from_plain_http_where_there_is_tls(service, tls):
    headers = {"x-forwarded-proto": "https"} if tls else {}
    answer = service.get("/?token=secret", headers=headers)
    assert answer.status_code == 303 and ("; Secure" in answer.headers["set-cookie"]) == tls
    assert answer.headers["location"] == "./", "from /photos/?token=… to /photos/"


def test_a_page_whose_host_the_proxy_does_not_pass_on_is_told_what_to_change(service):
    headers = {"authorization": "Bearer secret", "origin": "https://photos.example", "host": "127.0.0.1:8000"}
    answer = service("POST", "/search", json={"query": "red"}, headers=headers)
    assert error(answer) == (403, "cross_origin") and "pass the Host header on" in answer.text
    headers["host"] = "photos.example"
    assert service("POST", "/search", json={"query": "red"}, headers=headers).status_code == 200


def test_events_are_not_held_back_by_a_proxy(service):
    headers = {"authorization": "Bearer secret"}
    root = service.get("/api/state", headers=headers).json()["indexes"][0]["roots"][0]
    job = service("POST", "/jobs", json={"paths": [root]}, headers=headers).json()["id"]
    assert service.get(f"/jobs/{job}/events", headers=headers).headers["x-accel-buffering"] == "no"


def test_the_page_names_nothing_from_the_root_of_its_host():
    text = re.sub(r"<symbol.*", "", (PAGE / "index.html").read_text())
    assert re.findall(r"(?:href|src)=\"(?!static/|\./|#)[^\"]*", text) == []
    asking = re.compile(r"(?:\bfetch|\bimport|EventSource|pushState|replaceState)\(\s*[\"'`]/|/static/")
    assert [file.name for file in (PAGE / "js").glob("*.js") if asking.search(file.read_text())] == []
