"""A service that is asked for more than it can do, and one that is asked for long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from tqdm import tqdm

from hivlp.bench.products.rivals.base import Payload
from hivlp.bench.serve.load import Load, run_load
from hivlp.bench.serve.running import Running, free_port, running
from hivlp.index import Index
from hivlp.levels import Vectors

TIMES = 4.0
CLIENTS = 64
MANY = 800
"""Connections of an overload, fewer than a service takes by default."""
POSTED = 10  # items of one request
PAUSE = 0.2  # seconds from one to the next, more where the items would not last
PROBES = 20.0  # lone requests a second, which tell how long an overload is felt
BEFORE, AFTER = 2.0, 10.0  # seconds from the first of them to the overload's end, and from there to the last
WARM = 1.0  # seconds before what is measured while items are posted
CALM = 3.0  # times the calm p99 that a probe may take for the service to have recovered
POLLS = 50  # readings of memory


def overload(
    service: Running,
    folder: Path,
    requests: Sequence[bytes],
    items: Vectors,
    payloads: Sequence[Payload],
    seconds: float,
) -> dict[str, Any]:
    """Goodput while four times the capacity is asked for, and what became of the items that were posted meanwhile.

    Capacity is what 64 clients get, each of which waits for its answers. The overload is an open loop: requests come
    whether or not earlier ones are answered, and who is told to come again does not. Items are posted at the same pace
    during both, so that they differ in what is asked alone.

    Args:
        service: hivlp's, which is killed in the end.
        folder: of its index.
        requests: searches.
        items: (n, d) vectors that it does not hold yet.
        payloads: of them.
        seconds: of the overload, and of the measurement of capacity before it at most.

    Returns:
        ``capacity`` and ``goodput``, requests answered a second, their ratio ``share``; ``alone``, the capacity while
        nothing is posted; ``refused`` (429) and ``failed`` (anything else) requests; ``unsent`` ones, that found no
        connection; ``p50_ms`` and ``p99_ms`` of those answered; ``cpu``, the seconds that ``service``, the ``writer``
        of what is posted, and the load ``generator`` computed in a second of the overload; ``bare_us``, what a server
        that answers everything with the same bytes and the generator compute for a request at this rate, and
        ``bare_share``, what a service would reach on one core with the generator, if refusals took as little;
        ``posted`` items that were acknowledged, ``lost`` ones of them that the index does not hold after a kill;
        ``recovery_s``, from the end of the overload until lone requests take what they take without it.
    """
    some = min(10.0, seconds)
    run_load(service.port, requests, clients=CLIENTS, seconds=seconds / 10)
    calm = run_load(service.port, requests, rate=PROBES, clients=CLIENTS, seconds=some)
    limit = CALM * float(np.percentile(calm.took, 99))
    alone = run_load(service.port, requests, clients=CLIENTS, seconds=some).throughput
    stop = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        pause = max(PAUSE, (WARM + some + seconds) * POSTED / len(items))
        posting = pool.submit(_post, service.port, items, payloads, pause, stop)
        try:
            run_load(service.port, requests, clients=CLIENTS, seconds=WARM)  # the first item starts the writer
            capacity = run_load(service.port, requests, clients=CLIENTS, seconds=some).throughput
            probing = pool.submit(_probe, service.port, requests, max(0.0, seconds - BEFORE))
            before, began = _computed(service), time.perf_counter()
            load = run_load(service.port, requests, rate=TIMES * capacity, clients=MANY, seconds=seconds)
            lasted = time.perf_counter() - began  # longer than the load: the generator starts, the queue is emptied
            shares = [(after - start) / lasted for after, start in zip(_computed(service), before, strict=True)]
        finally:
            stop.set()
        acknowledged, probes = posting.result(), probing.result()
    service.kill()
    with Index.open(folder) as index:
        lost = [path for path in acknowledged if index.get(path) is None]
    refused = load.status == 429
    took = 1000 * load.took[load.good]
    bare = bare_cost(requests, TIMES * capacity, some)
    return {
        "capacity": round(capacity, 1),
        "alone": round(alone, 1),
        "goodput": round(load.throughput, 1),
        "share": round(load.throughput / capacity, 3),
        "seconds": round(load.seconds, 1),
        "asked": round(TIMES * capacity, 1),
        "refused": int(refused.sum()),
        "failed": int((~load.good & ~refused).sum()),
        "unsent": load.unsent,
        "p50_ms": round(float(np.percentile(took, 50)), 2),
        "p99_ms": round(float(np.percentile(took, 99)), 2),
        "cpu": {
            name: round(share, 3)
            for name, share in zip(
                ("service", "writer", "generator"), (*shares, load.cpu_seconds / load.seconds), strict=True
            )
        },
        "bare_us": round(1e6 * bare, 1),
        "bare_share": round(1 - (TIMES - 1) * capacity * bare, 3),
        "posted": len(acknowledged),
        "lost": len(lost),
        "recovery_s": recovery_seconds(probes, load, limit),
    }


def bare_cost(requests: Sequence[bytes], rate: float, seconds: float) -> float:
    """Seconds that a server which does nothing and the load generator compute for a request of an open loop."""
    port = free_port()
    with running([sys.executable, "-m", "hivlp.bench.serve.ceiling", str(port)], port, requests[0], {}) as service:
        before = service.cpu_seconds()
        load = run_load(port, requests, rate=rate, clients=MANY, seconds=seconds)
        return (service.cpu_seconds() - before + load.cpu_seconds) / max(1, len(load.took))


def _probe(port: int, requests: Sequence[bytes], delay: float) -> Load:
    """Lone requests from some time before an overload's end until some time after it."""
    time.sleep(delay)
    return run_load(port, requests, rate=PROBES, clients=CLIENTS, seconds=BEFORE + AFTER)


def _computed(service: Running) -> tuple[float, float]:
    """Seconds that a service itself and its children have computed."""
    own = service.cpu_seconds(children=False)
    return own, service.cpu_seconds() - own


def recovery_seconds(probes: Load, load: Load, limit: float) -> float:
    """Seconds from the end of a load until the last probe that was not answered within ``limit`` seconds."""
    end = load.started + load.seconds
    due = probes.started + probes.began
    bad = ~probes.good | (probes.took > limit)
    late = (due + probes.took)[bad & (due + probes.took > end)]
    return round(max(0.0, float(late.max()) - end), 2) if len(late) else 0.0


def _post(port: int, items: Vectors, payloads: Sequence[Payload], pause: float, stop: threading.Event) -> list[str]:
    """Post some items every ``pause`` seconds until told to stop; gives the paths of those that were acknowledged."""
    acknowledged: list[str] = []
    due = time.perf_counter()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for start in range(0, len(items), POSTED):
            if stop.is_set():
                break
            due += pause
            some = payloads[start : start + POSTED]
            told = [
                {"path": payload.path, "vector": vector.tolist(), "caption": payload.caption, "metadata": {}}
                for vector, payload in zip(items[start : start + POSTED], some, strict=True)
            ]
            try:
                answer = client.post("/items", content=msgspec.json.encode({"vectors": told}))
            except httpx.HTTPError:
                continue
            if answer.status_code == 200 and not answer.json()["failed"]:
                acknowledged += [payload.path for payload in some]
            stop.wait(max(0.0, due - time.perf_counter()))
    return acknowledged


def drift(service: Running, requests: Sequence[bytes], count: int) -> dict[str, Any]:
    """How much more memory a service has after many requests than after the first tenth of them.

    Returns:
        ``requests``; ``before_mb`` and ``after_mb``, memory that is no file's; ``most_mb``, the most of all readings
        between them; ``drift``, the growth as a share.
    """
    readings = []
    part = max(1, count // POLLS)
    for _ in tqdm(range(POLLS), desc="memory", disable=None):
        run_load(service.port, requests, clients=8, seconds=600, count=part)
        readings.append(service.memory() / 2**20)
    before, after = readings[POLLS // 10 - 1], readings[-1]
    return {
        "requests": part * POLLS,
        "before_mb": round(before, 1),
        "after_mb": round(after, 1),
        "most_mb": round(max(readings[POLLS // 10 :]), 1),
        "drift": round(after / before - 1, 4) if before else 0.0,
    }
