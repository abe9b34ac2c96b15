"""All services on one collection, one after another; what a killed run has measured is not measured again."""

from __future__ import annotations

import inspect
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hivlp.bench.ann.kept import Kept, workplace
from hivlp.bench.ann.real import TESTED, read_wordnet
from hivlp.bench.ann.truth import recall as recall_at
from hivlp.bench.child import ONE_THREAD, listen
from hivlp.bench.products.collection import ITEMS, TEST, Collection, K
from hivlp.bench.products.rivals.base import Effort
from hivlp.bench.products.run import PATIENT, QUIET, collection_of, own_code, versions
from hivlp.bench.report import machine, measured
from hivlp.bench.serve import child as child_process
from hivlp.bench.serve.child import WANTED
from hivlp.bench.serve.load import Load, run_load
from hivlp.bench.serve.overload import drift, overload
from hivlp.bench.serve.report import ServeReport, ahead
from hivlp.bench.serve.running import Running, free_port, running
from hivlp.bench.serve.services import SERVICES, Service
from hivlp.bench.serve.services.base import EMBED, TEXT, VECTOR
from hivlp.encode import HiVLP
from hivlp.encode.stream import default_workers
from hivlp.errors import HivlpError
from hivlp.levels import Vectors

CLIENTS = (1, 8, 64)
LIBRARIES = ("numpy", "onnxruntime", "starlette", "uvicorn")


@dataclass(frozen=True)
class Plan:
    """How long a size measures.

    Attributes:
        seconds: of a round.
        rounds: of a cell, of which the one with most answers counts: other programs may run.
        wanted: recalls.
        overload_seconds: of the overload.
        drift_requests: after which memory is compared.
        build_seconds: an engine may take to be built and tuned.
    """

    seconds: float
    rounds: int
    wanted: Sequence[float]
    overload_seconds: float
    drift_requests: int
    build_seconds: float


PLANS = {
    "small": Plan(1.0, 1, WANTED[:1], 60.0, 100_000, 120.0),
    "real": Plan(2.0, 2, WANTED, 60.0, 100_000, 3600.0),
}


@dataclass(frozen=True)
class Questions:
    """What is asked: (m, d) vectors, the texts that they were made of, and the (m, K) rows of the exact answers."""

    vectors: Vectors
    texts: Sequence[str]
    truth: Any

    def requests(self, service: Service, kind: str, effort: Effort) -> list[bytes]:
        """As a service takes them."""
        if kind == EMBED:
            return [service.embed_request(text) for text in self.texts]
        return [service.search_request(each, effort) for each in (self.texts if kind == TEXT else self.vectors)]

    def recall(self, service: Service, load: Load) -> float:
        """The share of the exact answers among those of a load."""
        numbers = list(load.bodies)
        found = [(service.rows(load.bodies[number]) + [-1] * K)[:K] for number in numbers]
        return round(recall_at(np.array(found), np.asarray(self.truth)[numbers]), 4)


@dataclass(frozen=True)
class Run:
    """A run that may have been killed before.

    Attributes:
        collection: what is indexed and asked.
        questions: that are asked of it.
        folder: of what is built and measured; nothing is left there when all is done.
        model: name of the one that makes vectors of texts.
        plan: how long.
    """

    collection: Collection
    questions: Questions
    folder: Path
    model: str
    plan: Plan

    def measure(self, which: type[Service]) -> dict[str, Any]:
        """``rows`` of a service, and what :meth:`_lasting` says of it."""
        code = own_code() if "hivlp" in which.packages else inspect.getsource(sys.modules[__name__])
        about = [versions(which.packages), code, machine(*LIBRARIES), asdict(self.plan)]
        kept, engine = Kept(self.folder / "measured", {"about": about}), f"{which.__module__}:{which.__name__}"
        found = kept.read(engine)
        if found is None:
            found = {"status": "ok", **self._measured(which)}
            if all(row["status"] == "ok" for row in found["rows"]):
                kept.write(engine, found)
        return found

    def _measured(self, which: type[Service]) -> dict[str, Any]:
        built = self._built(which)
        rows, lasting = [], dict[str, Any]()
        for wanted in self.plan.wanted:
            kinds = [kind for kind in which.kinds if kind == VECTOR or wanted == self.plan.wanted[0]]
            effort, status = built.get("efforts", {}).get(str(wanted)), built["status"]
            if effort is None and status == "ok":
                status = "does not find so much"
            if effort is not None and kinds:
                try:
                    with self._running(which, effort) as service:
                        for kind in kinds:
                            rows += self._cells(which, service, kind, wanted, effort)
                        if which is SERVICES[0] and not lasting:
                            lasting = self._lasting(which(), service, effort)
                    continue
                except HivlpError as error:
                    status = str(error)
            rows += [_row(which, kind, wanted, status=status) for kind in kinds]
        return {"rows": rows, **lasting}

    def _built(self, which: type[Service]) -> dict[str, Any]:
        """``status`` and ``efforts`` of a service's engine, which several services may share."""
        if which.engine is None:
            return {"status": "ok", "efforts": {str(wanted): {} for wanted in self.plan.wanted}}
        folder = self.folder / which.engine.__name__
        kept = Kept(self.folder / "built", {"about": [versions(which.packages), inspect.getsource(child_process)]})
        engine = f"{which.engine.__module__}:{which.engine.__name__}"
        found = kept.read(engine)
        if found is None or not folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            given = [which.__name__, self.model, str(folder), str(self.collection.folder)]
            found = listen(
                "hivlp.bench.serve.child", given, self.plan.build_seconds, {**ONE_THREAD, **PATIENT, **QUIET}
            )
            kept.write(engine, found)
        return found

    def _running(self, which: type[Service], effort: Effort) -> AbstractContextManager[Running]:
        folder, port = self.folder / ("" if which.engine is None else which.engine.__name__), free_port()
        first = self.questions.requests(which(), which.kinds[0], effort)[0]
        return running(which().command(folder, port, effort, self.model), port, first, {**ONE_THREAD, **QUIET})

    def _cells(
        self, which: type[Service], service: Running, kind: str, wanted: float, effort: Effort
    ) -> list[dict[str, Any]]:
        """A row for each number of clients."""
        rows, requests = [], self.questions.requests(which(), kind, effort)
        for clients in CLIENTS:
            before = service.memory()
            run_load(service.port, requests, clients=clients, seconds=self.plan.seconds / 2)
            computed = service.cpu_seconds()
            loads = [
                run_load(service.port, requests, clients=clients, seconds=self.plan.seconds, keep=kind != EMBED)
                for _ in range(self.plan.rounds)
            ]
            computed = (service.cpu_seconds() - computed) / max(1, sum(len(load.took) for load in loads))
            best = max(loads, key=lambda load: load.throughput)
            figures: dict[str, Any] = {} if kind == EMBED else {"recall": self.questions.recall(which(), best)}
            figures |= {
                **spread(best),
                "cpu_ms": round(1000 * computed, 3),
                "failed": int((~best.good).sum()),
                "memory_before_mb": round(before / 2**20, 1),
                "memory_after_mb": round(service.memory() / 2**20, 1),
                "load_cpu": round(best.cpu_seconds / best.seconds, 3),
                "effort": effort,
            }
            rows.append(_row(which, kind, wanted, clients=clients, **figures))
        return rows

    def _lasting(self, ours: Service, service: Running, effort: Effort) -> dict[str, Any]:
        """``drift`` and ``overload`` of hivlp's service, which it does not outlive."""
        told = {"drift": drift(service, self.questions.requests(ours, VECTOR, effort), self.plan.drift_requests)}
        count, items = self.collection.later(), self.collection.read(ITEMS)
        later, payloads = np.asarray(items[count:]), self.collection.payloads()[count:]
        assert ours.engine is not None
        folder = self.folder / ours.engine.__name__ / "index"
        texts = self.questions.requests(ours, TEXT, effort)
        told["overload"] = overload(service, folder, texts, later, payloads, self.plan.overload_seconds)
        return told


def run(size: str, model: HiVLP, services: Sequence[type[Service]] = SERVICES) -> ServeReport:
    """Measure all services, one after another.

    Args:
        size: ``small``, 10,000 words of WordNet, five minutes; ``real``, all 148,730, a quarter of an hour or more.
        model: encodes them, and texts that are searched for.
        services: that are measured, hivlp's first.

    Raises:
        DataError: if WordNet is not there.
        HivlpError: if another run of the same size is under way.
    """
    started = time.perf_counter()
    collection = collection_of(size, model)
    glosses = read_wordnet()[1][TESTED : 2 * TESTED]
    questions = Questions(np.array(collection.read(TEST)), glosses, collection.truth(TEST))
    folder = collection.folder.parent / f"{collection.folder.name}-serve"
    this = Run(collection, questions, folder, model.source, PLANS[size])
    with workplace(folder, f"hivlp bench serve --size {size}"):
        return compare(this, services, started, size)


def compare(run: Run, services: Sequence[type[Service]], started: float, size: str = "") -> ServeReport:
    """The report of a run."""
    found = {}
    for which in tqdm(services, desc="services", disable=None):
        found[which] = run.measure(which)
    rows = [row for each in found.values() for row in each["rows"]]
    first = found[services[0]]
    return ServeReport(
        size=size,
        items=run.collection.later(),
        dim=run.collection.read(ITEMS).shape[1],
        shared_core=default_workers() == 1,
        services=[
            {"service": which.name, "versions": versions(which.packages), "how": which.how} for which in services
        ],
        rows=rows,
        ceiling=ceiling(run.questions.requests(services[0](), VECTOR, {}), run.plan.seconds),
        ahead=ahead(rows, services[0].name),
        goodput_overload=first.get("overload", {}),
        rss_drift=first.get("drift", {}),
        **measured(started, *LIBRARIES),
    )


def ceiling(requests: Sequence[bytes], seconds: float) -> list[dict[str, Any]]:
    """What the load generator gets from a server that does nothing, a row for each number of clients."""
    port = free_port()
    command = [sys.executable, "-m", "hivlp.bench.serve.ceiling", str(port)]
    rows = []
    with running(command, port, requests[0], {}):
        for clients in CLIENTS:
            load = run_load(port, requests, clients=clients, seconds=seconds)
            us = 1e6 * load.cpu_seconds / len(load.took)
            rows.append({"clients": clients, "qps": round(load.throughput, 1), "us": round(us, 1)})
    return rows


def spread(load: Load) -> dict[str, float]:
    """Throughput and times of the requests of a load that were answered."""
    took = 1000 * load.took[load.good]
    shares = {"p50_ms": 50, "p99_ms": 99, "p999_ms": 99.9}
    return {
        "qps": round(load.throughput, 1),
        **{name: round(float(np.percentile(took, share)), 3) for name, share in shares.items()},
    }


def _row(which: type[Service], kind: str, wanted: float, status: str = "ok", **figures: Any) -> dict[str, Any]:
    at = None if kind == EMBED else wanted
    return {"service": which.name, "kind": kind, "recall_wanted": at, "status": status, **figures}
