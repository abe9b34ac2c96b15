"""The verb that measures."""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hivlp.cli.models import DEFAULT_MODEL, load_fusion, load_model
from hivlp.cli.output import UsageError, fail, print_result

if TYPE_CHECKING:
    from hivlp.bench.report import Report

BENCHES = {
    "models": "text queries and pictures of usual architectures, beside plain PyTorch",
    "index": "pictures a second, and where the time goes",
    "lazy": "when pictures are searchable that are indexed lazily, and what searches and the completed index keep",
    "objective": "what each way of making a coarse level keeps of its fine level's first hits",
    "hierarchy": "one level, early and late coarse levels, with distillation and without, trained on scenes",
    "training": "memory and speed of the objective beside a plain one",
    "stream": "start, memory, speed and exact resumption of training on millions of pairs in shards",
    "crash": "whether an index survives kills and failing disks",
    "fuzz": "whether damaged and hostile index folders can do more than be refused",
    "living": "what filters, additions, removals and compaction leave of a tuned index's figures",
    "threads": "throughput and answers of threads that search one index, alone and beside a writer",
    "paper": "milliseconds a query beside UNITER, LightningDOT, METER and CLIP, by pool size",
    "recall": "recall on every data set at hand, each level, cascade, approximate index, beside published rows",
    "ann": "the engine's speed and recall beside other libraries'",
    "products": "an index beside embedded vector databases, payloads, filters and changes included",
    "serve": "`hivlp serve` under load, overload and for long, beside services of other parts",
}
MODULES = {
    "index": "indexing",
    "paper": "paper.run",
    "stream": "stream.run",
    "recall": "recall.run",
    "ann": "ann.run",
    "products": "products.run",
    "serve": "serve.run",
}
"""Modules of :mod:`hivlp.bench` that are not called as their bench is; each has a function ``run``."""
OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "pictures": (400, ("index",)),
    "rounds": (500, ("crash",)),
    "cases": (2000, ("fuzz",)),
    "vectors": (None, ("threads",)),
    "queries": (None, ("threads",)),
    "size": (
        "small",
        ("lazy", "models", "objective", "hierarchy", "paper", "recall", "ann", "products", "serve", "stream"),
    ),
    "plot": (None, ("objective", "hierarchy", "paper", "ann", "products")),
    "seeds": (3, ("hierarchy",)),
    "sentences": (1_000_000, ("ann",)),
    "data": ((), ("recall",)),
    "root": (None, ("recall",)),
    "published": (None, ("recall",)),
    "rerank": (None, ("recall",)),
    "fresh": (False, ("hierarchy", "ann")),
    "model": (
        DEFAULT_MODEL,
        ("index", "objective", "living", "threads", "paper", "recall", "ann", "products", "serve"),
    ),
}
"""Default of each option, and the benches whose ``run`` takes it."""


def run_bench(arguments: argparse.Namespace) -> int:
    """``hivlp bench``."""
    taken: dict[str, Any] = {}
    for option, (default, benches) in OPTIONS.items():
        given = getattr(arguments, option)
        if arguments.name in benches:
            taken[option] = default if given is None else given
        elif given is not None:
            raise UsageError("bench", f"--{option} goes with {', '.join(benches)}, not with {arguments.name}")
    larger = "real" if arguments.name in ("products", "serve") else "full"
    if taken.get("size") not in (None, "small", larger):
        raise UsageError("bench", f"the sizes of {arguments.name} are small and {larger}, not {taken['size']}")
    module = import_module(f"hivlp.bench.{MODULES.get(arguments.name, arguments.name)}")
    if "model" in taken:
        names = [taken["model"]] if isinstance(taken["model"], str) else taken["model"]
        if len(names) > 1 and arguments.name != "recall":
            raise UsageError("bench", f"--model is given once with {arguments.name}: only recall takes several")
        loads = [partial(load_model, name) for name in names]
        one = loads[0] if arguments.name == "threads" else loads[0]()  # by need where vectors may be given
        taken["model"] = [one, *(load() for load in loads[1:])] if arguments.name == "recall" else one
    if "rerank" in taken:
        from hivlp.evaluate.reranked import Reranking

        model = load_fusion(arguments)
        taken["rerank"] = None if model is None else Reranking(model, arguments.rerank_depth)
    report: Report = module.run(**taken)
    print_result(arguments, report.to_json, report.to_text)
    return fail(f"{len(report.failures)} failures") if report.failures else 0
