"""What the service refuses: strangers, other sites, paths elsewhere, hostile pictures, private addresses, too much."""

from __future__ import annotations

import http.server
import io
import os
import socket
import threading
import time

import pytest
from PIL import Image

from hivlp.errors import PictureError
from hivlp.index import Index
from hivlp.serve import fetching
from hivlp.serve.decoding import Decoders
from hivlp.serve.errors import RequestError
from hivlp.serve.listening import check_exposure
from hivlp.serve.originals import open_original
from hivlp.serve.settings import Settings
from serving import asked, error
from synthetic import FakeEncoder, index_pictures, write_pictures


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    return index_pictures(folder, 6)


def opened(path):
    return {"index": Index.open(path, FakeEncoder())}


def test_other_machines_are_let_in_with_a_token_only():
    for host in ("0.0.0.0", "::", "192.168.1.5", "photos.example"):
        with pytest.raises(ValueError, match="token"):
            check_exposure(host, Settings(), insecure=False)
        check_exposure(host, Settings(token="t"), insecure=False)
        check_exposure(host, Settings(), insecure=True)
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, Settings(), insecure=False)
    for token in ("caf\xe9", "two\nlines", "nul\0"):
        with pytest.raises(ValueError, match="ASCII"):
            check_exposure("127.0.0.1", Settings(token=token), insecure=False)


def test_a_token_is_needed_where_there_is_one(path):
    with asked(opened(path), Settings(token="a secret")) as service:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": b"Bearer \xe9"},
            {"cookie": "hivlp=x"},
        ):
            assert error(service.get("/api/state", headers=headers)) == (401, "unauthorized")
        assert service.get("/api/state", headers={"authorization": "Bearer a secret"}).status_code == 200
        assert service.get("/healthz").status_code == service.get("/").status_code == 200
        assert error(service.get("/?token=wrong")) == (401, "unauthorized")
        sent = service.get("/?token=a+secret")
        cookie = sent.headers["set-cookie"]
        assert sent.status_code == 303 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert "secret" not in cookie
        assert service.get("/api/state", headers={"cookie": cookie.partition(";")[0]}).status_code == 200


def test_a_name_that_a_stranger_could_give_this_machine_is_not_answered_to(path):
    with asked(opened(path), Settings(hosts=("photos.local",))) as service:
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            assert error(service.get("/api/state", headers={"host": host})) == (421, "unknown_host")
        for host in ("localhost:8000", "127.0.0.1:1", "[::1]:8000", "photos.local"):
            assert service.get("/api/state", headers={"host": host}).status_code == 200


def test_of_several_headers_of_one_name_the_first_counts(path):
    settings = Settings(hosts=("photos.local",), token="secret")
    with asked(opened(path), settings) as service:
        wrong, right = ("authorization", "Bearer wrong"), ("authorization", "Bearer secret")
        assert error(service.get("/api/state", headers=[wrong, right])) == (401, "unauthorized")
        assert service.get("/api/state", headers=[right, wrong]).status_code == 200


def test_other_sites_may_not_use_it_unless_they_are_named(path):
    with asked(opened(path), Settings(origins=("https://good.example",))) as service:
        for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            assert error(service("POST", "/search", json={}, headers=headers)) == (403, "cross_origin")
        own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
        assert "access-control-allow-origin" not in service.get("/api/state", headers=own).headers
        good = service.get("/api/state", headers={"origin": "https://good.example", "sec-fetch-site": "cross-site"})
        assert good.headers["access-control-allow-origin"] == "https://good.example"


def test_an_original_is_shown_where_it_was_indexed_and_nowhere_else(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    write_pictures(inside, 1)
    write_pictures(outside, 1)
    good, secret = next(inside.iterdir()), next(outside.iterdir())
    open_original(str(good), []).file.close()
    link = inside / "link.png"
    link.symlink_to(secret)
    hop = inside / "hop"
    hop.symlink_to(outside, target_is_directory=True)
    for path in (link, hop / secret.name, f"{inside}/../out/{secret.name}"):
        with pytest.raises(RequestError, match="outside"):
            open_original(str(path), [inside])
    open_original(str(link), [outside]).file.close()
    (inside / "text.png").write_text("root:x:0:0")
    (inside / "page.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    os.mkfifo(inside / "pipe.png")
    for name in ("text.png", "page.png", "pipe.png"):
        with pytest.raises(RequestError, match="not a picture"):
            open_original(str(inside / name), [inside])
    for path in ("relative.png", "/nothing.png", str(inside), f"{good}\0"):
        with pytest.raises(RequestError):
            open_original(path, [inside])


@pytest.mark.parametrize(
    "address", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
             "/static/..%5capp.py", "/items/1/../../app.py", "/indexes/..%2f..%2f/items"],
)  # fmt: skip
def test_no_address_leads_out_of_the_page_s_folder(status_of, address):
    assert status_of(address) in (403, 404)


@pytest.fixture(scope="module")
def status_of(path):
    """Status of a path as it is written: httpx would tidy it."""
    with asked(opened(path)) as service:

        def ask(raw):
            from urllib.parse import unquote

            async def send():
                told = []
                scope = {
                    "type": "http", "method": "GET", "path": unquote(raw), "raw_path": raw.encode(), "root_path": "",
                    "query_string": b"", "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http",
                    "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
                }  # fmt: skip

                async def receive():
                    return {"type": "http.request", "body": b""}

                async def answer(message):
                    told.append(message)

                await service.asgi(scope, receive, answer)
                assert b"import" not in b"".join(message.get("body", b"") for message in told)
                return told[0]["status"]

            return service.run(send())

        yield ask


def test_paths_to_index_lie_beneath_the_roots(path, tmp_path):
    root = tmp_path / "root"
    write_pictures(root, 1)
    (root / "out").symlink_to("/etc", target_is_directory=True)
    with asked(opened(path), Settings(roots=(root,))) as service:
        for outside in ("/etc", f"{root}/../", f"{root}/out", "/", "relative", f"{root}x", f"{root}\0"):
            status, _ = error(service("POST", "/jobs", json={"paths": [outside]}))
            assert status in (400, 403), outside
        assert error(service("POST", "/items", json={"paths": ["/etc/passwd"]})) == (403, "forbidden")


def test_a_read_only_service_changes_nothing(path):
    with asked(opened(path), Settings(read_only=True)) as service:
        assert error(service("DELETE", "/items/1")) == (403, "forbidden")
        assert error(service("POST", "/items", json={"paths": ["/"]})) == (403, "forbidden")
        assert error(service("POST", "/jobs", json={"paths": ["/"]})) == (403, "forbidden")
        assert service.get("/api/state").json()["indexes"][0]["writable"] is False


def test_a_read_only_service_of_an_index_with_pending_pictures_writes_nothing(tmp_path):
    write_pictures(tmp_path / "pictures", 6)
    with Index.create(tmp_path / "index", model=FakeEncoder()) as index:
        index.add(tmp_path / "pictures", lazy=True)
        assert index.info().pending == 6
    before = {file: file.read_bytes() for file in (tmp_path / "index").rglob("*") if file.is_file()}
    with asked(opened(tmp_path / "index"), Settings(read_only=True)) as service:
        assert len(service.search(query="red").json()["hits"]) == 6
        found = service.search(query=[{"item": 1}, {"text": "red"}], inspect=True).json()
        assert {*found["hits"][0]["scores"]} == {"coarse", "fine"}, "what was computed is used from memory"
    assert before == {file: file.read_bytes() for file in (tmp_path / "index").rglob("*") if file.is_file()}


def bomb():
    """A PNG that claims 2.5 gigapixels."""
    data = bytearray(picture())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(data)


def picture():
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"GIF89a" + b"\xff" * 50, picture()[:40], bomb(), b"<svg/>", b"%PDF-1.4", b"\xff\xd8\xff" * 9],
)
def test_a_hostile_picture_is_refused_in_a_line(path_service, data):
    for answer in (
        path_service("POST", "/search", data={"request": '{"query":[{"upload":"x"}]}'}, files={"x": ("x.png", data)}),
        path_service("POST", "/v1/embeddings", json={"input": "data:,x", "modality": "image"}),
    ):
        assert error(answer) == (400, "bad_request")
        assert "Traceback" not in answer.text and "/" not in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def path_service(path):
    with asked(opened(path), Settings(upload_bytes=1 << 20, json_bytes=1 << 20, body_bytes=3 << 20)) as service:
        yield service


def test_what_is_too_large_is_refused(path_service):
    large = {"x": ("x.png", picture() + b"\0" * (1 << 20))}
    asked_for = {"request": '{"query":[{"upload":"x"}]}'}
    assert error(path_service("POST", "/search", data=asked_for, files=large)) == (413, "too_large")
    assert error(path_service("POST", "/search", content=b" " * (2 << 20))) == (413, "too_large")
    assert error(path_service("POST", "/search", content=b"[" * 100_000)) == (400, "bad_request")
    assert error(path_service("POST", "/search", content=b'{"query":"\xff"}')) == (400, "bad_request")


@pytest.mark.slow
def test_a_decoder_that_dies_harms_nobody_else():
    decoders = Decoders(1)
    try:
        assert decoders.thumbnail(picture(), 160)[:4] == b"RIFF"
        process = decoders._free.get()
        process._child.kill()
        process._child.wait()
        decoders._free.put(process)
        assert decoders.thumbnail(picture(), 160)[:4] == b"RIFF"
        with pytest.raises(PictureError):
            decoders.thumbnail(b"nothing", 160)
        assert decoders.thumbnail(picture(), 160)[:4] == b"RIFF"
    finally:
        decoders.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "::127.0.0.1",
     "2001:0:4136:e378:8000:63bf:80ff:fffe", "nonsense"],
)  # fmt: skip
def test_a_private_address_is_none_of_the_public_network(address):
    assert not fetching.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_a_public_address_is_one(address):
    assert fetching.is_public(address)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://2130706433/", "http://0x7f.1/", "http://0/",
     "http://[::ffff:127.0.0.1]/", "http://127.0.0.1:8000/", "http://user@1.1.1.1/", "ftp://1.1.1.1/", "file:///etc",
     "http://", "http://[fe80::1%25lo]/", "http://1.1.1.1:22/", "http://1.1.1.1\r\nx/", "gopher://x/"],
)  # fmt: skip
def test_an_address_of_this_network_is_not_fetched(url):
    with pytest.raises(RequestError):
        fetching.fetch(url, 1000)


class Moved(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.headers["host"])
        self.send_response(302 if self.path != "/picture" else 200)
        self.send_header("location", self.server.to)
        self.end_headers()
        self.wfile.write(b"content" if self.path == "/picture" else b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def elsewhere(monkeypatch):
    """A server on the loopback that passes for public under one name: ``public.example``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moved)
    server.asked, server.to = [], ""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    real, connect = socket.getaddrinfo, socket.create_connection
    server.names = {"public.example": ["93.184.216.34"]}
    server.connected = []

    def resolve(host, *rest, **options):
        if host in server.names:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (server.names[host].pop(0), 80))]
        return real(host, *rest, **options)

    class Peer:
        def __init__(self, sock):
            self._sock = sock

        def __getattr__(self, name):
            return getattr(self._sock, name)

        def getpeername(self):
            return ("93.184.216.34", 80)

    def to_it(address, *rest):
        server.connected.append(address[0])
        return Peer(connect(("127.0.0.1", server.server_port), *rest))

    monkeypatch.setattr(fetching.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetching.socket, "create_connection", to_it)
    yield server
    server.shutdown()
    server.server_close()


def test_a_public_picture_is_fetched_from_the_address_that_was_checked(elsewhere):
    assert fetching.fetch("http://public.example/picture", 1000) == b"content"
    assert elsewhere.connected == ["93.184.216.34"] and elsewhere.asked == ["public.example"]


def test_a_name_that_changes_its_address_is_not_followed(elsewhere):
    elsewhere.names["public.example"] = ["93.184.216.34", "127.0.0.1"]
    elsewhere.to = "http://public.example/again"
    with pytest.raises(RequestError, match="public addresses"):
        fetching.fetch("http://public.example/", 1000)
    assert elsewhere.connected == ["93.184.216.34"]


@pytest.mark.parametrize("to", ["http://127.0.0.1/", "http://[::1]/", "file:///etc/passwd", "//localhost/"])
def test_a_redirect_into_this_network_is_not_followed(elsewhere, to):
    elsewhere.to = to
    with pytest.raises(RequestError):
        fetching.fetch("http://public.example/", 1000)
    assert len(elsewhere.connected) == 1


def test_redirects_and_bytes_have_an_end(elsewhere):
    elsewhere.names["public.example"] = ["93.184.216.34"] * 10
    elsewhere.to = "http://public.example/again"
    with pytest.raises(RequestError, match="redirected"):
        fetching.fetch("http://public.example/", 1000)
    with pytest.raises(RequestError, match="larger"):
        fetching.fetch("http://public.example/picture", 3)


def test_addresses_are_fetched_where_that_is_allowed_only(path_service):
    answer = path_service.search(query=[{"image": "http://1.1.1.1/x.png"}])
    assert error(answer) == (403, "forbidden")


def test_too_many_searches_are_told_to_come_again_and_all_is_well_after(path):
    import asyncio

    class Slow(FakeEncoder):
        def encode_text(self, texts, *, levels=None):
            time.sleep(0.05)
            return super().encode_text(texts, levels=levels)

    settings = Settings(queue=4, batch=2, threads=1)
    with asked({"index": Index.open(path, Slow())}, settings) as service:

        async def all_at_once():
            asking = [service._client.post("/search", json={"query": f"text {n}"}) for n in range(40)]
            return await asyncio.gather(*asking)

        answers = service.run(all_at_once())
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(good) + len(refused) == 40 and len(good) >= settings.queue and refused
        assert all(answer.headers["retry-after"] for answer in refused)
        assert service.search(query="after").status_code == 200


def test_a_request_that_takes_too_long_is_told_so(path):
    class Slow(FakeEncoder):
        def encode_text(self, texts, *, levels=None):
            time.sleep(0.5)
            return super().encode_text(texts, levels=levels)

    with asked({"index": Index.open(path, Slow())}, Settings(seconds=0.1)) as service:
        assert error(service.search(query="red")) == (503, "timeout")
