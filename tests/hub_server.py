"""A model hub on loopback that speaks the Hugging Face hub's protocol, with failures to order.

Enough of it for ``huggingface_hub``: model info with files and hashes, the tree, and ``resolve`` with ETag and commit
headers and ranges. A repository is a list of commits, each of which maps paths to contents.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".onnx", ".safetensors", ".bin", ".onnx_data")
"""Endings of files that a hub keeps in its large-file storage, and lists a SHA-256 of."""


@dataclass
class Repository:
    commits: list[dict[str, bytes]]
    gated: bool = False
    private: bool = False
    wrong: set[str] = field(default_factory=set)
    """Files whose content is sent with a byte changed."""
    cut: Counter = field(default_factory=Counter)
    """File -> how many transfers of it break off in the middle."""

    def sha(self, number: int) -> str:
        return hashlib.sha1(f"commit {number}".encode()).hexdigest()

    def commit(self, revision: str) -> int | None:
        if revision == "main":
            return len(self.commits) - 1
        return next((n for n in range(len(self.commits)) if self.sha(n) == revision), None)


class Hub:
    """Repositories by id, and the requests that were made (method, path, range)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def add(self, hub_id: str, folder: Path, **settings) -> Repository:
        """A repository with one commit: the files of a folder."""
        self.repositories[hub_id] = Repository([files_of(folder)], **settings)
        return self.repositories[hub_id]

    def fetched(self) -> list[str]:
        """Files whose content was asked for."""
        return [path.split("/resolve/", 1)[1].split("/", 1)[1] for method, path, _ in self.requests
                if method == "GET" and "/resolve/" in path]  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(hub: Hub):
    """The hub, answering on a port of its own until the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            url = urlsplit(self.path)
            hub.requests.append((self.command, url.path, self.headers.get("Range")))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", url.path):
                self.about(found[1], found[2], unquote(found[3] or "main"), parse_qs(url.query))
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
                self.resolve(found[1], unquote(found[2]), unquote(found[3]))
            else:
                self.fail(404, "", "Not found")

        def fail(self, status: int, code: str, message: str):
            self.send({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

        def send(self, value, status: int = 200, headers=()):
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, text in dict(headers).items():
                self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def found(self, hub_id: str, revision: str):
            repository = hub.repositories.get(hub_id)
            if repository is None or (repository.private and not self.headers.get("Authorization")):
                self.fail(404 if repository is None else 401, "RepoNotFound", "Repository not found")
                return None
            number = repository.commit(revision)
            if number is None:
                self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return repository, number

        def about(self, hub_id: str, what: str | None, revision: str, query):
            if (found := self.found(hub_id, revision)) is None:
                return
            repository, number = found
            files = []
            for path, content in sorted(repository.commits[number].items()):
                entry = {"rfilename": path, "size": len(content), "blobId": blob_id(content)}
                if path.endswith(LARGE):
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 134}
                files.append(entry)
            if what == "tree":
                self.send([{"type": "file", "path": each["rfilename"], "oid": each["blobId"], **each}
                           for each in files])  # fmt: skip
                return
            blobs = query.get("blobs", ["false"])[0].lower() in ("true", "1")
            siblings = files if blobs else [{"rfilename": each["rfilename"]} for each in files]
            self.send({"_id": "0", "id": hub_id, "modelId": hub_id, "sha": repository.sha(number), "private": False,
                       "gated": "auto" if repository.gated else False, "disabled": False, "tags": [], "downloads": 0,
                       "likes": 0, "siblings": siblings})  # fmt: skip

        def resolve(self, hub_id: str, revision: str, path: str):
            if (found := self.found(hub_id, revision)) is None:
                return
            repository, number = found
            if repository.gated and self.headers.get("Authorization") != "Bearer accepted":
                status = 403 if self.headers.get("Authorization") else 401
                self.fail(status, "GatedRepo", f"Access to model {hub_id} is restricted")
                return
            content = repository.commits[number].get(path)
            if content is None:
                self.fail(404, "EntryNotFound", "Entry not found")
                return
            etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else blob_id(content)
            if path in repository.wrong:
                content = bytes([content[0] ^ 1]) + content[1:]
            start, status = 0, 200
            if bounds := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                start, status = int(bounds[1]), 206
            self.send_response(status)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Repo-Commit", repository.sha(number))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if repository.cut[path] > 0:
                repository.cut[path] -= 1
                self.wfile.write(content[start : (start + len(content)) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
