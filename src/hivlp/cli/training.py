"""The verbs that make a model and judge it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hivlp.evaluate.reranked import Reranking
    from hivlp.evaluate.results import Evaluation

from hivlp.cli.models import DEFAULT_MODEL, load_fusion, load_model
from hivlp.cli.output import UsageError, benchmark_table, composition_table, print_result, recall_table
from hivlp.errors import HivlpError

BENCHMARKS = ("flickr30k", "coco", "sugarcrepe")
"""Published benchmarks, which `--root` finds."""


def run_evaluate(arguments: argparse.Namespace) -> int:
    """``hivlp evaluate``."""
    from hivlp.data.load import load_pairs
    from hivlp.evaluate.evaluation import evaluate

    if arguments.shortlist < 1:
        raise HivlpError("--shortlist must be at least 1")
    if arguments.data in BENCHMARKS:
        return _run_benchmark(arguments)
    if arguments.root is not None or arguments.protocol is not None:
        raise UsageError("evaluate", f"--root and --protocol are for {', '.join(BENCHMARKS)}")
    # The stamps are known to have a test part, and the others need not be compared with it by picture.
    pairs = load_pairs(arguments.data, arguments.split or ("test" if arguments.data == "stamps" else None))
    if arguments.split is None and any(pair.split == "test" for pair in pairs):
        pairs = pairs.of("test")
    model, rerank = load_model(arguments.model, arguments.device), _reranking(arguments)
    result = evaluate(pairs, model, shortlist=arguments.shortlist, rerank=rerank, trec=arguments.trec)
    print_result(arguments, result.to_json, lambda: recall_table(result))
    return 0


def _run_benchmark(arguments: argparse.Namespace) -> int:
    """``hivlp evaluate flickr30k|coco|sugarcrepe``."""
    from hivlp.data.benchmarks.retrieval import read_benchmark
    from hivlp.evaluate.benchmarks import evaluate_benchmark, evaluate_sugarcrepe

    root = arguments.root or Path(arguments.data)
    if arguments.data == "sugarcrepe":
        if arguments.protocol or arguments.split or arguments.rerank or arguments.trec:
            raise UsageError("evaluate", "sugarcrepe has no splits, one protocol and no ranking")
        cases = evaluate_sugarcrepe(root, load_model(arguments.model, arguments.device))
        print_result(arguments, cases.to_json, lambda: composition_table(cases))
        return 0
    if arguments.trec and arguments.protocol == "1k" and arguments.data == "coco":
        raise UsageError("evaluate", "--trec goes with one ranking of all pictures, and the 1k protocol has five")
    data = read_benchmark(arguments.data, root, arguments.split or "test")
    options = {"protocol": arguments.protocol, "shortlist": arguments.shortlist, "rerank": _reranking(arguments),
               "trec": arguments.trec}  # fmt: skip
    result = evaluate_benchmark(data, load_model(arguments.model, arguments.device), **options)
    print_result(arguments, result.to_json, lambda: benchmark_table(result))
    return 0


def _reranking(arguments: argparse.Namespace) -> Reranking | None:
    from hivlp.evaluate.reranked import Reranking

    model = load_fusion(arguments)
    return None if model is None else Reranking(model, arguments.rerank_depth)


def run_train(arguments: argparse.Namespace) -> int:
    """``hivlp train``."""
    from hivlp.train.finetune.recipe import is_finetune
    from hivlp.train.recipe.schema import load_recipe

    if is_finetune(arguments.recipe, tiny=arguments.tiny):
        return _run_finetune(arguments)
    recipe = load_recipe(arguments.recipe, tiny=arguments.tiny)
    if arguments.plan and arguments.resume:
        raise UsageError("train", "--plan is about a run from its beginning: it cannot be given with --resume")
    out = arguments.out or Path("runs") / recipe.name
    if arguments.plan:
        from hivlp.train.recipe.plan import plan

        planned = plan(recipe, out)
        print_result(arguments, planned.to_json, planned.to_text)
        return 0
    from hivlp.train.job import train

    result = train(recipe, out, resume=arguments.resume)
    if result is None:  # one of several processes, and not the one that speaks for them
        return 0

    def text() -> str:
        return f"{_tables(result.recalls)}model written to {out} ({result.seconds:.0f} s)"

    print_result(arguments, lambda: {"model": str(out), **result.to_json()}, text)
    return 0


def _run_finetune(arguments: argparse.Namespace) -> int:
    """``hivlp train`` with a recipe that names a ``system``."""
    from hivlp.train.finetune.job import finetune
    from hivlp.train.finetune.recipe import load_finetune

    recipe = load_finetune(arguments.recipe, tiny=arguments.tiny)
    if arguments.plan:
        raise UsageError("train", f"--plan is for recipes of levels, not for those of {recipe.system}")
    result = finetune(recipe, arguments.out or Path("runs") / recipe.name, resume=arguments.resume)

    def text() -> str:
        return (
            f"AR {result.average_recall:.1f} on validation after step {result.best_step} of {result.steps}; "
            f"model written to {result.model} ({result.seconds:.0f} s)"
        )

    print_result(arguments, result.to_json, text)
    return 0


def run_adapt(arguments: argparse.Namespace) -> int:
    """``hivlp adapt``."""
    from hivlp.train.adapt import AdaptConfig, adapt
    from hivlp.typed import build

    names = ("dims", "code", "text_layer", "steps", "split", "limit", "shortlist")
    config = build(AdaptConfig, {name: getattr(arguments, name) for name in names})
    result = adapt(arguments.model, arguments.data, arguments.out, config)

    def text() -> str:
        learned = f"learned from {result.pictures} pictures and {result.texts} texts"
        return f"{_tables(result.recalls)}{learned}; model written to {arguments.out} ({result.seconds:.0f} s)"

    print_result(arguments, result.to_json, text)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """``hivlp export``."""
    from hivlp.encode import HiVLP
    from hivlp.encode.pretrained import resolve_folder
    from hivlp.export.graphs import export
    from hivlp.formats.conversion import shipped_captions
    from hivlp.formats.dual_encoder import import_dual_encoder
    from hivlp.formats.transformers import FILES, is_transformers_folder

    folder = resolve_folder(arguments.model) if arguments.model == DEFAULT_MODEL else Path(arguments.model)
    if not folder.is_dir() or is_transformers_folder(folder):
        if arguments.out is None:
            raise HivlpError(f"{arguments.model} is not a hivlp model folder; to import it, say where to with -o DIR")
        name = "" if folder.is_dir() else arguments.model
        import_dual_encoder(resolve_folder(folder if folder.is_dir() else name, FILES), arguments.out, name)
        folder = arguments.out
    elif arguments.out is not None:
        raise HivlpError(f"{folder} is a hivlp model folder, whose graphs are written into it: leave out -o")
    cosine = export(folder, texts=shipped_captions() if arguments.precision == "int8" else ())
    model = HiVLP.from_pretrained(folder)
    levels = {level.name: level.dim for level in model.levels}
    result: dict[str, Any] = {"model": str(folder), "levels": levels, "fingerprint": model.fingerprint}
    if cosine is not None:
        result["int8_cosine"] = round(cosine, 5)
    print_result(arguments, lambda: result, lambda: f"image.onnx and text.onnx written to {folder}")
    return 0


def _tables(recalls: Mapping[str, Evaluation]) -> str:
    return "".join(f"{part}\n{recall_table(found)}\n" for part, found in recalls.items())
