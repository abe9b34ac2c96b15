"""The verb that measures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hivlp.cli.models import load_model
from hivlp.cli.output import fail, print_result, usage

if TYPE_CHECKING:
    from hivlp.bench.report import Report

BENCHES = {
    "index": "pictures a second, and where the time goes",
    "objective": "what each way of making a coarse level keeps of its fine level's first hits",
    "hierarchy": "what a second level costs the finest one",
    "training": "memory and speed of the objective beside a plain one",
    "exit": "what a coarse level from an early layer saves",
    "crash": "whether an index survives kills and failing disks",
    "fuzz": "whether damaged and hostile index folders can do more than be refused",
    "living": "what filters, additions, removals and compaction leave of a tuned index's figures",
    "threads": "throughput and answers of threads that search one index, alone and beside a writer",
    "ann": "the engine's speed and recall beside other libraries'",
    "products": "an index beside embedded vector databases, payloads, filters and changes included",
}


def run_bench(arguments: argparse.Namespace) -> int:
    """``hivlp bench``."""
    larger = "real" if arguments.name == "products" else "full"
    if arguments.size not in ("small", larger):
        return usage("bench", f"the sizes of {arguments.name} are small and {larger}, not {arguments.size}")
    report = _measure(arguments)
    print_result(arguments, report.to_json, report.to_text)
    return fail(f"{len(report.failures)} failures") if report.failures else 0


def _measure(arguments: argparse.Namespace) -> Report:
    match arguments.name:
        case "index":
            from hivlp.bench import indexing

            return indexing.run(load_model(arguments.model), arguments.pictures)
        case "objective":
            from hivlp.bench import objective

            return objective.run(arguments.size, load_model(arguments.model), arguments.plot)
        case "hierarchy":
            from hivlp.bench import hierarchy

            return hierarchy.run()
        case "training":
            from hivlp.bench import training

            return training.run()
        case "exit":
            from hivlp.bench import early_exit

            return early_exit.run(load_model(arguments.model))
        case "crash":
            from hivlp.bench import crash

            return crash.run(arguments.rounds)
        case "fuzz":
            from hivlp.bench import fuzz

            return fuzz.run(arguments.cases)
        case "living":
            from hivlp.bench import living

            return living.run(load_model(arguments.model))
        case "threads":
            from hivlp.bench import threads

            return threads.run(lambda: load_model(arguments.model), arguments.vectors, arguments.queries)
        case "products":
            from hivlp.bench.products import run as products

            return products.run(arguments.size, load_model(arguments.model), arguments.plot)
        case _:
            from hivlp.bench.ann import run as ann

            return ann.run(arguments.size, load_model(arguments.model), arguments.plot, fresh=arguments.fresh)
