"""`hivlp serve` as people run it: a process that is killed, hung up on, told to end, and has another one beside it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from hivlp import Client
from hivlp.index import Index
from hivlp.serve.app import create_app
from hivlp.serve.client import ServiceError
from serving import start, until
from synthetic import write_pictures

pytestmark = pytest.mark.slow
MINI = "hivlp-mini"


@pytest.fixture
def made(tmp_path):
    write_pictures(tmp_path / "first", 6)
    with Index.create(tmp_path / "index", model=MINI) as index:
        index.add(tmp_path / "first")
    return tmp_path


@pytest.fixture
def run(made):
    running = []

    def run(*options, **more):
        process, port = start(made / "index", "--root", made, *options, **more)
        client = Client(f"http://127.0.0.1:{port}")
        running.append((process, client))
        return process, client

    yield run
    for process, client in running:
        client.close()
        process.kill()
        process.wait()


def test_a_job_goes_on_after_a_kill(made, run):
    write_pictures(made / "more", 1200)
    process, client = run()
    job = client.index([made / "more"])
    until(lambda: 0 < client.job(job["id"])["done"] < 1200)
    process.kill()
    process.wait()
    stored = len_of(made / "index")
    assert 6 < stored < 1206
    _, client = run()
    done = until(lambda: (now := client.job(job["id"]))["state"] == "done" and now)
    assert done["result"]["added"] + done["result"]["skipped"] == 1200
    assert len_of(made / "index") == 1206


def test_a_job_is_paused_resumed_and_cancelled(made, run):
    write_pictures(made / "more", 1500)
    _, client = run()
    url = f"{client.url}/jobs"
    job = client.index([made / "more"])["id"]
    until(lambda: client.job(job)["done"])
    assert httpx.post(f"{url}/{job}/pause").json()["state"] == "paused"
    # A short change is made although a job waits, and what was stored stays.
    assert client.remove([1])["removed"] == 1
    assert httpx.post(f"{url}/{job}/resume").json()["state"] in ("queued", "running")
    assert httpx.post(f"{url}/{job}/cancel").json()["state"] == "cancelled"
    events = httpx.get(f"{url}/{job}/events", timeout=20).text
    assert '"state": "cancelled"' in events
    assert httpx.post(f"{url}/{job}/resume").status_code == 409
    assert len_of(made / "index") < 1505


def test_an_upload_goes_with_its_item_and_other_pictures_stay(made, run):
    _, client = run()
    mine = next((made / "first").iterdir())
    with mine.open("rb") as file:
        form = {"files": ("mine.png", file.read() + b"more")}
    added = httpx.post(f"{client.url}/items", files=form, timeout=30).json()
    ((path, number),) = added["ids"].items()
    assert Path(path).exists()
    assert client.remove([number, 1])["removed"] == 2
    assert not Path(path).parent.exists() and len(list((made / "first").iterdir())) == 6


def test_a_picture_elsewhere_that_an_index_calls_an_upload_stays(made, run):
    uploads = made / "index" / "serve" / "uploads"
    uploads.mkdir(parents=True)
    (uploads / "link").symlink_to(made / "first")
    with Index.open(made / "index") as index:
        index.relocate(made / "first", uploads / "link")
        index.relocate(uploads / "link" / "00001.png", uploads / ".." / "00001.png")
    shutil.copy(made / "first" / "00001.png", uploads.parent)
    _, client = run()
    assert client.remove([1, 2])["removed"] == 2
    assert (made / "first" / "00000.png").exists() and (uploads.parent / "00001.png").exists()


def test_two_services_of_one_index_see_each_other_s_changes(made, run):
    (_, one), (_, other) = run(), run()
    write_pictures(made / "new", 2, start=50)
    added = one.add((made / "new").iterdir())
    assert added["added"] == 2
    assert {item["id"] for item in other.items()} == {1, 2, 3, 4, 5, 6, 7, 8}
    assert other.remove([7])["removed"] == 1
    assert one.get(7) is None and one.search("red", k=20)
    counts = []
    threads = [
        threading.Thread(target=lambda each=each, number=number: counts.append(each.remove([number])["removed"]))
        for each, number in ((one, 1), (other, 2), (one, 3), (other, 4))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 4 and len_of(made / "index") == 3


def test_a_service_opens_its_index_anew_when_hung_up_on_and_ends_when_told_to(made, run):
    process, client = run()
    assert len(client.search("red", k=20)) == 6 and client.remove([1])["removed"] == 1
    (made / "index").rename(made / "old")
    with Index.create(made / "index", model=MINI) as index:
        write_pictures(made / "others", 3, start=90)
        index.add(made / "others")
    process.send_signal(signal.SIGHUP)
    until(lambda: found(client) == 3)
    assert client.remove([1]) == {"removed": 1, "items": 2}, "in the new folder"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)


def found(client):
    """How many a search finds, or None while the index that the service still holds is not in its place."""
    try:
        return len(client.search("red", k=20))
    except ServiceError as refused:
        assert refused.status == 503 and "open it again" in str(refused)
        return None


def test_a_service_that_ends_lets_those_go_who_follow_a_job(made, run):
    write_pictures(made / "more", 400)
    process, client = run()
    job = f"{client.url}/jobs/{client.index([made / 'more'])['id']}"
    assert httpx.post(f"{job}/pause").json()["state"] == "paused", "so that nothing more is to be told"
    with httpx.stream("GET", f"{job}/events", timeout=60) as events:
        lines = events.iter_lines()
        assert '"state": "paused"' in next(lines)
        process.send_signal(signal.SIGTERM)
        assert not any(line.startswith("data") for line in lines)
    assert process.wait(20) in (0, -signal.SIGTERM), "before requests are cut off"


def test_what_was_loaded_is_told_once_it_is(made):
    ready = threading.Event()
    app = create_app({"x": Index.open(made / "index")}, on_ready=ready.set)
    with TestClient(app):
        assert ready.wait(60) and app.service.ready
        assert app.service.served("x").is_small, "its items were counted"


def test_a_watched_folder_is_kept_in_step(made, run):
    (made / "watched").mkdir()
    write_pictures(made / "watched", 2, start=20)
    _, client = run("--watch", made / "watched")
    until(lambda: client.state()["indexes"][0]["items"] == 8)


def test_search_and_doctor_from_the_shell(made, run):
    _, client = run(environment={"HIVLP_TOKEN": "secret"})
    command = [sys.executable, "-m", "hivlp"]
    refused = subprocess.run([*command, "search", client.url, "red"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "token" in refused.stderr
    environment = {**os.environ, "HIVLP_TOKEN": "secret"}
    found = subprocess.run(
        [*command, "search", client.url, "red", "--paths"], capture_output=True, text=True, check=True, env=environment
    )
    assert len(found.stdout.splitlines()) == 6
    told = subprocess.run([*command, "doctor", made / "index"], capture_output=True, text=True, check=True)
    assert "6 items of hivlp-mini" in told.stdout
    refused = subprocess.run(
        [*command, "serve", made / "index", "--host", "0.0.0.0"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1 and "--insecure" in refused.stderr


def len_of(path):
    with Index.open(path) as index:
        return len(index)
