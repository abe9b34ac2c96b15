"""A stand-in for the service that speaks its HTTP contract over made-up collections: any size, any answer, at once.

What the page does with answers is tested with it: a hundred thousand items, jobs that go on for as long as a test
wants, a service that is busy. The service itself is tested elsewhere, and once with the page.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from contextlib import suppress
from email.parser import BytesParser
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

import hivlp
from hivlp.demo import pictures_folder

PAGE = Path(hivlp.__file__).parent / "serve" / "page"
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
         ".json": "application/json"}  # fmt: skip
TIMINGS = {"encode": 1.93, "coarse": 0.21, "fine": 0.34, "total": 2.48}
COLOURS = ("blue", "green", "red")


class Stub(ThreadingHTTPServer):
    """A stand-in for the service; ``asked`` are the searches that came, ``busy`` answers 429 so many times, ``gone``
    are items whose files are not there: counted, but in no page."""

    daemon_threads = True

    def __init__(self, count: int | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        folder = pictures_folder()
        rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
        self.files = [folder / row["file"] for row in rows]
        self.sizes = [size_of(file) for file in self.files]
        self.captions = [row["caption"] for row in rows]
        self.count = len(rows) if count is None else count
        self.asked: list[dict[str, Any]] = []
        self.uploaded: list[str] = []
        self.busy, self.delay, self.folded, self.plain = 0, 0.0, 0, False
        self.gone: set[int] = set()
        self.job: dict[str, Any] | None = None
        self.steps = threading.Semaphore(0)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def hit(self, number: int, rank: int, scores: dict[str, float]) -> dict[str, Any]:
        """An item; its number counts from 1, and the later the number the newer it is."""
        place = (number - 1) % len(self.files)
        width, height = self.sizes[place]
        months = number * 240 // max(1, self.count)
        taken = f"{2005 + months // 12}-{1 + months % 12:02}-{1 + number % 28:02}T12:00:00"
        metadata = {"taken": taken, "width": width, "height": height, "format": "webp", **fields_of(number)}
        base = f"/indexes/stub/items/{number}"
        return {"rank": rank, "id": number, "path": str(self.files[place]), "caption": self.captions[place],
                "scores": scores, "metadata": metadata, "width": width, "height": height, "taken": taken,
                "duplicates": [{"id": number, "path": "copy.webp"}] * self.folded,
                "thumbnail": f"{base}/thumbnail", "original": f"{base}/original"}  # fmt: skip

    def search(self, asked: dict[str, Any]) -> dict[str, Any]:
        offset, k = asked.get("offset", 0), asked.get("k", 10)
        query = asked.get("query")
        if isinstance(query, str):
            query = [{"text": query}]
        numbers: Any = range(self.count, 0, -1)
        if asked.get("order") == "oldest":
            numbers = range(1, self.count + 1)
        if "id IN" in asked.get("where", ""):
            numbers = [int(number) for number in re.findall(r"\d+", asked["where"])]
        elif asked.get("where"):
            wanted = {str(value) for value in asked["params"]}
            numbers = [number for number in numbers if wanted & set(map(str, fields_of(number).values()))]
        scores: dict[int, float] = {}
        if query:
            words = {word for term in query for word in str(term.get("text", "")).lower().split()} - {"a", "the"}
            liked = {term["item"]: term.get("weight", 1) for term in query if "item" in term}
            for number in range(1, min(self.count, 5000) + 1):
                caption = set(self.captions[(number - 1) % len(self.captions)].lower().split())
                near = sum(weight / (1 + abs(number - item)) for item, weight in liked.items())
                scores[number] = 0.1 + 0.3 * len(words & caption) + 0.5 * near + (number * 37 % 101) / 2000
            numbers = sorted(set(numbers) & scores.keys(), key=lambda number: -scores[number])
            if words == {"nothing"}:
                numbers = []
        total = len(numbers)
        shown = [number for number in numbers[offset : offset + k] if number not in self.gone]
        hits = [self.hit(number, offset + place + 1, {} if not query else
                         {"coarse": scores[number] - (number * 13 % 29) / 100, "fine": scores[number]})
                for place, number in enumerate(shown)]  # fmt: skip
        answer = {"hits": hits, "total": total if not query else None,
                  "next_offset": offset + k if offset + k < total else None,
                  "timings_ms": TIMINGS if query else {"total": 0.4},
                  "plan": [{"stage": "scan", "level": "coarse", "keep": 200},
                           {"stage": "rerank", "level": "fine", "keep": k}] if query else []}  # fmt: skip
        if asked.get("inspect") and query:
            first = sorted(hits, key=lambda hit: -hit["scores"]["coarse"])
            before = {hit["id"]: rank for rank, hit in enumerate(first, start=1)}
            answer["inspect"] = {"stages": [
                {"name": "coarse", "ranks": [[hit["id"], None, before[hit["id"]], hit["scores"]["coarse"]]
                                             for hit in first]},
                {"name": "fine", "ranks": [[hit["id"], before[hit["id"]], rank, hit["scores"]["fine"]]
                                           for rank, hit in enumerate(hits, start=1)]},
            ]}  # fmt: skip
            answer["explain"] = {"reason": "few items: every coarse vector is looked at"}
        return answer


@cache
def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def fields_of(number: int) -> dict[str, Any]:
    return {"colour": COLOURS[number % 3], "year": 2005 + number % 20}


class Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # the page gives up what it no longer needs
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CSP)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.say(json.dumps(value).encode(), "application/json", status, **headers)

    def error(self, status: int, code: str, **headers: str) -> None:
        self.json({"error": {"code": code, "message": f"{code}."}}, status, **headers)

    def do_GET(self) -> None:
        stub, parts = self.server, urlsplit(self.path)
        route = re.sub(r"^/indexes/stub", "", parts.path)
        if route == "/" or route.startswith("/static/"):
            file = PAGE / ("index.html" if route == "/" else route.removeprefix("/static/"))
            if not file.is_file() or (stub.plain and "vendor" in route):
                return self.error(404, "not_found")
            return self.say(file.read_bytes(), TYPES.get(file.suffix, "text/plain"))
        if route == "/api/state":
            index = {"name": "stub", "items": stub.count, "model": "stub", "tuned": False, "fields": {"year": "int"},
                     "roots": ["/pictures"],
                     "levels": [{"name": "coarse", "dim": 64}, {"name": "fine", "dim": 384}],
                     "can_encode": {"text": True, "image": True}, "writable": True}  # fmt: skip
            return self.json({"version": "0", "indexes": [index], "limits": {"upload_bytes": 1 << 20, "k_max": 1000}})
        if route == "/fields":
            colours = [[colour, stub.count // 3] for colour in COLOURS]
            years = [[2005 + year, stub.count // 20] for year in range(20)]
            return self.json({"fields": [
                {"name": "colour", "type": "text", "values": colours if stub.count else [], "min": None, "max": None},
                {"name": "year", "type": "int", "values": years if stub.count else [], "min": 2005, "max": 2024},
            ]})  # fmt: skip
        if route == "/map":
            return self.say(made_map(stub.count), "application/octet-stream")
        if route == "/jobs":
            return self.json({"jobs": [stub.job] if stub.job else []})
        if found := re.fullmatch(r"/jobs/(\w+)/events", route):
            return self.events()
        if route.startswith("/jobs/"):
            return self.json(stub.job)
        if found := re.fullmatch(r"/items/(\d+)(/thumbnail|/original)?", route):
            number = int(found[1])
            if found[2] is None:
                return self.json(stub.hit(number, 1, {}))
            file = stub.files[(number - 1) % len(stub.files)]
            return self.say(file.read_bytes(), "image/webp", Cache_Control="max-age=3600")
        self.error(404, "not_found")

    def do_POST(self) -> None:
        stub, route = self.server, re.sub(r"^/indexes/stub", "", self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        files: list[str] = []
        if "multipart" in self.headers.get("Content-Type", ""):
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = list(BytesParser().parsebytes(head + body).walk())[1:]
            names = [str(part.get_param("name", header="content-disposition")) for part in parts]
            files = [name for name in names if name != "request"]
            body = b"".join(part.get_payload(decode=True) for part, name in zip(parts, names, strict=True)
                            if name == "request")  # fmt: skip
        if route == "/search":
            asked = json.loads(body)
            stub.uploaded += files  # before what tells a test that the search has come
            stub.asked.append(asked)
            if stub.busy:
                stub.busy -= 1
                return self.error(429, "busy", Retry_After="1")
            time.sleep(stub.delay if "slow" in str(asked.get("query")) else 0)
            return self.json(stub.search(asked))
        if route == "/jobs":
            stub.job = {"id": "j1", "state": "running", "done": 0, "total": 40, "path": json.loads(body)["paths"][0]}
            return self.json(stub.job, 202)
        if found := re.fullmatch(r"/jobs/j1/(pause|resume|cancel)", route):
            stub.job["state"] = {"pause": "paused", "resume": "running", "cancel": "cancelled"}[found[1]]
            return self.json(stub.job)
        if route == "/items":
            stub.count += len(files)
            return self.json({"added": len(files), "failed": []})
        self.error(404, "not_found")

    def events(self) -> None:
        """Progress that goes on by ten pictures whenever a test lets it (``steps``)."""
        stub = self.server
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for done in itertools.count(0, 10):
            stub.job["done"] = min(done, 40)
            if done >= 40:
                stub.job["state"] = "done"
            self.wfile.write(f"data: {json.dumps(stub.job)}\n\n".encode())
            self.wfile.flush()
            if stub.job["state"] in ("done", "cancelled"):
                return
            stub.steps.acquire()


def made_map(count: int) -> bytes:
    """Clouds of points, as ``GET /map`` sends them."""
    generator = np.random.default_rng(0)
    centres = generator.uniform(-0.8, 0.8, (12, 2))
    xy = centres[generator.integers(0, 12, count)] + generator.normal(0, 0.08, (count, 2))
    head = json.dumps({"count": count, "dtype": "float32"}).encode() + b"\n"
    return head + np.clip(xy, -1, 1).astype("<f4").tobytes() + np.arange(1, count + 1, dtype="<i8").tobytes()


if __name__ == "__main__":
    import sys

    stub = Stub(*map(int, sys.argv[1:]))
    print(stub.url)
    threading.Event().wait()
