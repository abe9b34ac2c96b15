"""The verbs that make an index and look after it."""

from __future__ import annotations

import argparse
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.cli.models import DEFAULT_MODEL, index_model, load_model
from hivlp.cli.output import FailedResultError, UsageError, fail, print_result, progress, stages
from hivlp.errors import ArgumentError, HivlpError

if TYPE_CHECKING:
    from hivlp.index import AddReport, Index
    from hivlp.index.filling import FillReport
    from hivlp.store.fields.declared import FieldCounts


def run_index(arguments: argparse.Namespace) -> int:
    """``hivlp index``: exit 1 only if nothing could be done; broken pictures are part of the result."""
    from tqdm import tqdm

    fitting = [name for name in ("column", "queries", "dims", "fit") if getattr(arguments, name) is not None]
    if bool(arguments.paths) == (arguments.embeddings is not None):
        raise UsageError("index", "give either PATH or --embeddings SOURCE")
    if arguments.relative and arguments.embeddings is not None:
        raise UsageError("index", "--relative goes with PATH: vectors keep the paths that they came with")
    if fitting and arguments.embeddings is None:
        raise UsageError("index", f"--{fitting[0]} goes with --embeddings")
    if arguments.lazy and arguments.embeddings is not None:
        raise UsageError("index", "--lazy goes with pictures, not with --embeddings")
    try:
        fields = _fields(arguments.field)
    except ArgumentError as error:
        raise UsageError("index", str(error)) from error
    if arguments.embeddings is not None:
        return _index_embeddings(arguments, fields)
    from hivlp.store.making import new_or_nothing
    from hivlp.store.names import existing

    paths = [existing(path) for path in arguments.paths]
    for path in paths:
        if not path.exists():
            raise HivlpError(f"{path} does not exist{_known_below(arguments.out, path)}")
    with (
        new_or_nothing(arguments.out),
        _open_or_create(arguments, fields) as index,
        tqdm(desc="pictures", unit="", disable=None) as bar,
        stages() as follow,
    ):
        if not bar.disable:
            _count(paths, arguments.exclude, bar)
        report = index.add(
            *paths,
            exclude=arguments.exclude,
            prune=arguments.prune,
            reread=arguments.reread,
            lazy=arguments.lazy,
            on_progress=lambda done: bar.update(done.seen - bar.n),
            on_tune=follow,
        )
        bar.close()
        filled = _complete(arguments, index, report)
        counts = index.info().fields
        print_result(
            arguments,
            lambda: report.to_json() | ({} if filled is None else {"lazy": filled.to_json()}) | _counted(counts),
            lambda: "\n".join([_added(report, arguments.out), *_filled(filled), *map(str, counts.values())]),
        )
        if report.useless:
            raise FailedResultError("nothing could be read")
    return 0


def _complete(arguments: argparse.Namespace, index: Index, report: AddReport) -> FillReport | None:
    """Compute the finer levels of pending pictures, now or earlier added with ``--lazy``; None where there are none."""
    from tqdm import tqdm

    if arguments.lazy and index.model is not None and (why := index.why_not_lazy) is not None:
        sys.stderr.write(f"hivlp: --lazy gains nothing: {why}\n")
    if not report.pending:
        return None
    sys.stderr.write(
        f"hivlp: all pictures are searchable after {report.seconds:.1f} s; {report.pending} of {report.items} by the "
        "coarsest level alone, until their finer levels are computed (Ctrl-C ends it, `hivlp index` goes on)\n"
    )
    with tqdm(desc="finer levels", unit="", total=report.pending, disable=None) as bar, stages() as follow:
        filled = index.complete(on_progress=lambda done: bar.update(done.filled - bar.n), on_tune=follow)
    if filled.busy:
        sys.stderr.write("hivlp: another process is computing them\n")
    report.pending = filled.pending
    return filled


def _filled(report: FillReport | None) -> list[str]:
    """What became of pending pictures, in lines."""
    if report is None:
        return []
    lines = [f"pending: {failure.path}: {failure.error}" for failure in report.failed]
    return [*lines, f"{report.filled} completed, {report.pending} pending ({report.seconds:.1f} s)"]


def _known_below(out: Path, path: Path) -> str:
    """What to do about a folder that is not there, if an index holds items of it."""
    from hivlp.index import Index

    if not Index.exists(out):
        return ""
    with Index.open(out) as index:
        count = len(index.named(str(path)))
    return f"; {out} has {count} items of it: hivlp relocate them, or remove them" if count else ""


def _count(paths: list[Path], exclude: list[str], bar: Any) -> None:
    """Tell a bar how many pictures there are, as soon as that is known."""
    from hivlp.data.exclude import Exclude
    from hivlp.data.walk import count_pictures

    def count() -> None:
        bar.total = count_pictures(paths, Exclude(exclude))
        bar.refresh()

    threading.Thread(target=count, name="hivlp-count", daemon=True).start()


def run_watch(arguments: argparse.Namespace) -> int:
    """``hivlp watch``: until interrupted."""
    from hivlp.index.watching import EVERY, notified, watch

    told = arguments.every is None and notified()
    seconds = arguments.every or EVERY

    def show(report: AddReport) -> None:
        if report.added + report.updated + report.moved + report.pruned + len(report.failed) or not shown:
            print_result(arguments, report.to_json, lambda: _added(report, arguments.out))
            sys.stdout.flush()
            shown.append(True)

    shown: list[bool] = []
    how = "as the system tells of changes" if told else f"by a look every {seconds:g} s"
    with _open_or_create(arguments, {}) as index:
        sys.stderr.write(f"hivlp: keeping {arguments.out} in step, {how}; Ctrl-C ends it\n")
        if arguments.every is None and not told:
            sys.stderr.write("hivlp: with the package watchfiles, changes are seen at once: pip install watchfiles\n")
        try:
            watch(
                index, arguments.paths, exclude=arguments.exclude, prune=arguments.prune, every=arguments.every,
                on_report=show, on_error=lambda message: sys.stderr.write(f"hivlp: {message}; trying again\n"),
                on_complete=lambda report: sys.stderr.write(f"hivlp: {_filled(report)[-1]}\n"),
            )  # fmt: skip
        except KeyboardInterrupt:
            return 0
    return 0


def run_relocate(arguments: argparse.Namespace) -> int:
    """``hivlp relocate``."""
    from hivlp.index import Index

    with Index.open(arguments.index) as index:
        moved, replaced = index.relocate(arguments.old, arguments.new)
    if not arguments.new.exists():
        sys.stderr.write(f"hivlp: {arguments.new} does not exist on this machine\n")
    print_result(
        arguments,
        lambda: {"moved": moved, "replaced": replaced},
        lambda: f"{moved} items moved" + (f", {replaced} gave way to items that are there already" if replaced else ""),
    )
    return 0


def _fields(given: Sequence[str]) -> dict[str, str]:
    """Fields as ``--field NAME:TYPE`` declares them.

    Raises:
        ArgumentError: if one cannot be declared, or comes twice.
    """
    from hivlp.store.fields.declared import checked_fields

    fields: dict[str, str] = {}
    for text in given:
        name, colon, kind = text.partition(":")
        if not colon:
            raise ArgumentError(f"--field takes NAME:TYPE, such as year:int, not {text!r:.80}")
        if name in fields:
            raise ArgumentError(f"--field {name} is given twice: {name}:{fields[name]} and {text}")
        fields[name] = kind
    checked_fields(fields)
    return fields


def _counted(counts: Mapping[str, FieldCounts]) -> dict[str, Any]:
    """What ``--json`` adds where fields are declared."""
    return {"fields": {name: count.to_json() for name, count in counts.items()}} if counts else {}


def _index_embeddings(arguments: argparse.Namespace, fields: dict[str, str]) -> int:
    from tqdm import tqdm

    from hivlp.index import Index
    from hivlp.index.from_embeddings import index_embeddings

    with progress("fit") as follow, tqdm(desc="vectors", unit="", disable=None) as bar, stages() as follow_tuning:
        report = index_embeddings(
            arguments.out,
            arguments.embeddings,
            column=arguments.column,
            queries=arguments.queries,
            dims=arguments.dims,
            method=arguments.fit,
            vectors=arguments.vectors,
            fields=fields,
            model=load_model(arguments.model, arguments.device) if arguments.model else None,
            on_fit=follow,
            on_progress=lambda done: bar.update(done.seen - bar.n),
            on_tune=follow_tuning,
        )

    with Index.open(arguments.out) as index:
        counts = index.info().fields

    def text() -> str:
        lines = [_added(report.added, arguments.out), *map(str, counts.values())]
        if report.fit is not None:
            fit = report.fit.to_json()
            recalls = ", ".join(f"{name} {100 * value:.2f}%" for name, value in fit["recall@10"].items())
            judged = f"; recall@10 in a shortlist of {fit['shortlist']}: {recalls}" if recalls else ""
            lines.append(f"coarse level of {fit['dims']} dims by {fit['method']} ({fit['seconds']:.1f} s){judged}")
        return "\n".join(lines)

    print_result(arguments, lambda: report.to_json() | _counted(counts), text)
    return 0


def _open_or_create(arguments: argparse.Namespace, fields: dict[str, str]) -> Index:
    from hivlp.index import Index
    from hivlp.index.from_embeddings import check_codec

    path, model, device = arguments.out, arguments.model, arguments.device
    if Index.exists(path):
        index = Index.open(path)
        check_codec(index, arguments.vectors)
        index.check_relative(arguments.relative)
        index.attach(index_model(index, model, device))
        index.declare(fields)
        return index
    loaded = load_model(model or DEFAULT_MODEL, device)
    vectors = arguments.vectors or "float16"
    return Index.create(path, model=loaded, vectors=vectors, fields=fields, relative=arguments.relative)


def _added(report: AddReport, out: Path) -> str:
    moved, pruned = (
        f"{count} {what}, " if count else "" for count, what in ((report.moved, "moved"), (report.pruned, "pruned"))
    )
    lines = [f"failed: {failure.path}: {failure.error}" for failure in report.failed]
    lines += [
        f"not read: {passed.count} × {kind} (such as {passed.first}): {passed.why}"
        for kind, passed in report.not_read.items()
    ]
    lines.append(
        f"{report.added} added, {report.updated} updated, {moved}{report.skipped} skipped, {pruned}"
        f"{len(report.failed)} failed; {report.items} items in {out} ({report.seconds:.1f} s)"
    )
    if report.missing:
        lines.append(f"{report.missing} of them are missing: no search shows them; --prune removes them")
    return "\n".join(lines)


def run_tune(arguments: argparse.Namespace) -> int:
    """``hivlp tune``."""
    from hivlp.index import Index
    from hivlp.search.operating_points import DEFAULT_RECALL

    if arguments.plot is not None:
        import matplotlib  # noqa: F401 (missing, it is said before the work and not after it)
    recall = DEFAULT_RECALL if arguments.recall is None else arguments.recall
    with Index.open(arguments.index) as index:
        vectors = arguments.queries is not None and arguments.queries.suffix == ".npy"
        if vectors and arguments.model is not None:
            raise UsageError("tune", "--model goes with what it encodes, not with vectors")
        if not vectors and (arguments.model or index.model_source):
            index.attach(index_model(index, arguments.model))
        with stages() as follow:
            report = index.tune(arguments.queries, recall=recall, on_progress=follow)
    if arguments.plot is not None:
        report.plot(arguments.plot)
    print_result(arguments, report.to_json, lambda: str(report))
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """``hivlp remove``."""
    from hivlp.index import Index
    from hivlp.store.names import existing

    if arguments.id and not all(map(_is_id, arguments.items)):
        raise UsageError("remove", "--id goes with whole numbers")
    with Index.open(arguments.index) as index:
        wanted: list[int | str] = []
        for item in arguments.items:
            is_id = _is_id(item) and not arguments.path
            if is_id and not arguments.id and (index.named(item) or existing(item).exists()):
                raise HivlpError(f"{item} could be an item's id or a path: write --id {item} or ./{item}")
            wanted.append(int(item) if is_id else item)
        removed = index.remove(wanted)
        items = len(index)
    print_result(
        arguments, lambda: {"removed": removed, "items": items}, lambda: f"{removed} removed; {items} items left"
    )
    return 0


def _is_id(text: str) -> bool:
    """Whether a person writes ids like this."""
    return re.fullmatch("0|[1-9][0-9]{0,18}", text) is not None


def run_info(arguments: argparse.Namespace) -> int:
    """``hivlp info``."""
    from hivlp.index import Index

    if arguments.verify:
        from hivlp.index.verify import verify

        with progress("rows") as follow:
            report = verify(arguments.index, follow)
        print_result(arguments, report.to_json, lambda: str(report))
        return 0 if report.ok else fail(report.summary())
    with Index.open(arguments.index) as index:
        info = index.info()
    print_result(arguments, info.to_json, lambda: str(info))
    return 0


def run_repair(arguments: argparse.Namespace) -> int:
    """``hivlp repair``: exit 1 only if the index cannot be used; what is not repaired is part of the result."""
    from hivlp.errors import DamagedIndexError
    from hivlp.index import Index
    from hivlp.store.repair import beyond_repair

    try:
        index = Index.open(arguments.index)
    except DamagedIndexError as error:
        raise DamagedIndexError(beyond_repair(str(error))) from error
    with index, progress("vectors") as follow:
        try:
            index.attach(index_model(index, arguments.model))
        except HivlpError as error:
            if arguments.model is not None:
                raise
            sys.stderr.write(f"hivlp: pictures will not be encoded again: {error}\n")
        report = index.repair(follow)
    print_result(arguments, report.to_json, lambda: str(report))
    return 0


def run_compact(arguments: argparse.Namespace) -> int:
    """``hivlp compact``."""
    from hivlp.index import Index

    with Index.open(arguments.index) as index:
        with progress("vectors") as follow, stages() as follow_tuning:
            freed = index.compact(follow, follow_tuning)
        items = len(index)
    print_result(arguments, lambda: {"freed": freed, "items": items}, lambda: f"{freed} rows freed; {items} items")
    return 0


def run_merge(arguments: argparse.Namespace) -> int:
    """``hivlp merge``."""
    from hivlp.index import Index

    with Index.open(arguments.index) as index:
        with progress("items") as follow, stages() as follow_tuning:
            merged = index.merge(arguments.other, follow, follow_tuning)
        items = len(index)
    print_result(arguments, lambda: {"added": merged, "items": items}, lambda: f"{merged} added; {items} items")
    return 0
