"""The verb that measures."""

from __future__ import annotations

import argparse
from typing import Any

from hivlp.cli.models import load_model
from hivlp.cli.output import fail, print_result

BENCHES = {
    "index": "pictures a second, and where the time goes",
    "objective": "what each way of making a coarse level keeps of its fine level's first hits",
    "hierarchy": "what a second level costs the finest one",
    "training": "memory and speed of the objective beside a plain one",
    "exit": "what a coarse level from an early layer saves",
    "crash": "whether an index survives kills and failing disks",
    "fuzz": "whether damaged and hostile index folders can do more than be refused",
    "living": "what filters, additions, removals and compaction leave of a tuned index's figures",
    "ann": "the engine's speed and recall beside other libraries'",
}


def run_bench(arguments: argparse.Namespace) -> int:
    """``hivlp bench``."""
    result: dict[str, Any]
    match arguments.name:
        case "index":
            from hivlp.bench import indexing

            result, text = indexing.run(load_model(arguments.model), arguments.pictures), indexing.format_text
        case "objective":
            from hivlp.bench import objective

            result, text = (
                objective.run(arguments.size, load_model(arguments.model), arguments.plot),
                objective.format_text,
            )
        case "hierarchy":
            from hivlp.bench import hierarchy

            result, text = hierarchy.run(), hierarchy.format_text
        case "training":
            from hivlp.bench import training

            result, text = training.run(), training.format_text
        case "exit":
            from hivlp.bench import early_exit

            result, text = early_exit.run(load_model(arguments.model)), early_exit.format_text
        case "crash":
            from hivlp.bench import crash

            result, text = crash.run(arguments.rounds), crash.format_text
        case "fuzz":
            from hivlp.bench import fuzz

            result, text = fuzz.run(arguments.cases), fuzz.format_text
        case "living":
            from hivlp.bench import living

            result, text = living.run(load_model(arguments.model)), living.format_text
        case "ann":
            from hivlp.bench.ann import run as ann

            model = load_model(arguments.model)
            result = ann.run(arguments.size, model, arguments.plot, fresh=arguments.fresh)
            text = ann.format_text
    print_result(arguments, lambda: result, lambda: text(result))
    return fail(f"{len(result['failures'])} failures") if result.get("failures") else 0
