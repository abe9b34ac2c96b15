"""Listening of `hivlp serve`: what it says is so, and what it cannot do is said in a line."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import httpx
import pytest

from hivlp.cli import main
from hivlp.errors import ArgumentError, HivlpError
from hivlp.index import Index
from hivlp.serve.listening import listen, urls_of
from hivlp.serve.run import serve
from hivlp.serve.settings import Settings
from serving import answers, until
from synthetic import FakeEncoder


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("extra", [[], ["--json"]], ids=["text", "json"])
def test_a_port_that_is_taken_ends_it_before_it_says_that_it_serves(tmp_path, capsys, taken, extra):
    Index.create(tmp_path / "index", model=FakeEncoder()).close()
    assert main(["serve", str(tmp_path / "index"), "--port", str(taken), *extra]) == 1
    told = capsys.readouterr()
    assert "serving" not in told.err
    line = json.loads(told.out)["error"] if extra else told.err
    assert f"cannot listen at 127.0.0.1, port {taken}: address already in use" in line


@pytest.mark.parametrize("host", ["192.0.2.7", "nowhere.invalid", "a..b"])
def test_an_address_that_is_not_this_machine_s_is_said_in_a_line(host):
    with pytest.raises(HivlpError, match=f"cannot listen at {host}, port 0: \\w+"):
        listen(host, 0)


def test_no_socket_stays_open_where_one_of_two_cannot_be_had(taken, monkeypatch):
    first = ("127.0.0.2", taken)
    places = [(socket.AF_INET, 1, 6, "", place) for place in (first, ("127.0.0.1", taken))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    with pytest.raises(HivlpError, match="in use"):
        listen("two.example", taken)
    socket.create_server(first).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_the_address_that_is_told_is_one_that_a_browser_opens(host):
    sockets = listen(host, 0)
    try:
        for url in urls_of(sockets):
            told = urlsplit(url)
            assert not ipaddress.ip_address(told.hostname).is_unspecified and told.port != 0
            socket.create_connection((told.hostname, told.port), timeout=5).close()
    finally:
        for each in sockets:
            each.close()


@pytest.mark.slow
def test_a_free_port_is_told_and_answers(tmp_path):
    Index.create(tmp_path / "index", model=FakeEncoder()).close()
    command = [sys.executable, "-m", "hivlp", "serve", tmp_path / "index", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            until(lambda: answers(urlsplit(url).port))
            assert httpx.get(f"{url}api/state").json()["indexes"][0]["name"] == "index"
        finally:
            process.terminate()


def test_sockets_that_other_machines_reach_are_not_served_without_a_token():
    with socket.create_server(("0.0.0.0", 0)) as open_to_all, pytest.raises(ArgumentError, match="token"):
        serve({}, Settings(), [open_to_all])
