"""What people and programs see: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hivlp.evaluate.benchmarks import BenchmarkEvaluation, CompositionEvaluation
    from hivlp.evaluate.results import Evaluation


def print_result(arguments: argparse.Namespace, data: Callable[[], Any], text: Callable[[], str]) -> None:
    """A verb's result, as JSON or for people; only what is asked for is made."""
    output = json.dumps(data(), ensure_ascii=False) if arguments.json else text()
    # A file name may hold bytes that are no text; they are shown escaped instead of failing.
    sys.stdout.buffer.write(output.encode("utf-8", "backslashreplace") + b"\n")


class UsageError(Exception):
    """Wrong usage: what is wrong with how a verb was called.

    Attributes:
        verb: that was called; "" where none was.
    """

    def __init__(self, verb: str, message: str) -> None:
        super().__init__(message)
        self.verb = verb


class FailedResultError(Exception):
    """Failure that is told by a result which is printed already."""


def fail(message: str, code: int = 1, *, verb: str = "", to_json: bool = False) -> int:
    """Say why a verb failed; gives its exit code.

    Args:
        message: why.
        code: the exit code.
        verb: that was called wrongly.
        to_json: say it on stdout, too, as ``{"error": message}``: for whoever reads results there, and has none yet.
    """
    # One line whatever a path in it may contain, and printable whatever the terminal's encoding.
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode("utf-8")
    sys.stderr.write(f"hivlp{verb and ' '}{verb}: error: {line}\n")
    if to_json:
        with suppress(OSError):  # it may be what has failed
            sys.stdout.write(json.dumps({"error": line}) + "\n")
            sys.stdout.flush()
    return code


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal for a job of several parts; gives what to call with the part, how much, and of how much."""
    from tqdm import tqdm

    with tqdm(unit="", disable=None, leave=False) as bar:
        at: tuple[str, int] = ("", 0)

        def follow(what: str, done: int, total: int) -> None:
            nonlocal at
            if what != at[0]:
                bar.reset(total)
                bar.set_description(what)
                at = (what, 0)
            bar.update(done - at[1])
            at = (what, done)

        yield follow


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; gives what to call with how much is done, and of how much."""
    with stages() as follow:
        yield partial(follow, what)


def recall_table(found: Evaluation) -> str:
    """Recalls of an evaluation, a level a line, and the cascade."""
    scores, shortlist = found.scores, found.scores.shortlist
    lines = [
        f"{found.images} pictures, {found.captions} captions",
        f"{'':16}text→image          image→text       AR",
    ]
    for name, recalls in [*scores.levels.items(), (f"cascade ({shortlist})", scores.cascade)]:
        both = (recalls.text_to_image, recalls.image_to_text)
        cells = [" ".join(f"{value:5.1f}" for value in each.values()) for each in both]
        lines.append(f"{name:14}{cells[0]}   {cells[1]}  {recalls.average:5.1f}")
    if (after := scores.reranked) is not None:
        cells = [" ".join(f"{value:5.1f}" for value in each.values())
                 for each in (after.recalls.text_to_image, after.recalls.image_to_text)]  # fmt: skip
        lines.append(f"{'re-ranked':14}{cells[0]}   {cells[1]}  {after.recalls.average:5.1f}")
        lines.append(f"re-ranked by {after.stage['model']}: {after.stage['rule']}, {after.stage['keep']} candidates, "
                     f"{after.pairs} pairs in {after.seconds:.1f} s")  # fmt: skip
    retained = scores.retained["text_to_image"]["R@10"]
    lines.append(f"the cascade keeps {100 * retained:.1f}% of the finest level's text→image R@10")
    if shortlist >= found.images:
        lines.append(f"a shortlist of {shortlist} holds all {found.images} pictures: text→image, nothing can be lost")
    return "\n".join(lines)


def benchmark_table(found: BenchmarkEvaluation) -> str:
    """Recalls by a benchmark's protocol, with what is not as published."""
    head = f"{found.benchmark} {found.split}, protocol {found.protocol}"
    lines = [f"{head}, mean of {len(found.folds)} folds" if found.folds else head, recall_table(found)]
    if found.folds:
        spread = found.to_json()["spread"]["cascade"]
        lines.append(f"standard deviation of the cascade's AR over folds: {spread['AR']}")
    for name, part in found.further.items():
        for way in ("text_to_image", "image_to_text"):
            cells = ", ".join(f"{key} {value:.1f}" for key, value in part["cascade"][way].items())
            lines.append(f"{name} {way} ({part['queries'][way]} queries, cascade): {cells}")
    if not found.complete:
        images, captions = found.published["images"], found.published["captions"] or "not published"
        lines.append(f"not the published benchmark, which has {images} pictures and captions: {captions}")
    return "\n".join(lines)


def composition_table(found: CompositionEvaluation) -> str:
    """Percent of right captions, a kind of change a line."""
    data = found.to_json()
    rows = [(kind, f"{each['cases']:5} cases", each["levels"]) for kind, each in data["kinds"].items()]
    rows.append(("mean", " " * 11, data["mean"]))
    return "\n".join(
        f"{kind:12} {cases}  " + "  ".join(f"{name} {value:5.1f}" for name, value in levels.items())
        for kind, cases, levels in rows
    )
