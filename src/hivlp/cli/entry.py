"""One run of the command: the verb, and what becomes of its errors."""

from __future__ import annotations

import argparse
import logging
import os
import sqlite3
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial

from hivlp.cli.output import FailedResultError, UsageError, fail
from hivlp.cli.parser import build_parser
from hivlp.errors import HivlpError, MissingExtraError, missing_module


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    given = [*(sys.argv[1:] if argv is None else argv)]
    failed = partial(fail, to_json="--json" in given)
    # Pillow warns of odd tags in pictures that it then reads well enough; what it cannot read is reported by name.
    warnings.filterwarnings("ignore", module="PIL")
    logging.basicConfig(level=logging.WARNING, format="hivlp: %(message)s", stream=sys.stderr)
    try:
        arguments = build_parser().parse_args(given)
        run: Callable[[argparse.Namespace], int] = arguments.run
        code = run(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return failed(str(error), 2, verb=error.verb)
    except FailedResultError as error:
        return fail(str(error))
    except HivlpError as error:
        return failed(str(error))
    except KeyboardInterrupt:
        return failed("interrupted; what was reported is stored", 130)
    except BrokenPipeError:
        # The reader of our output (such as `head`) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "hivlp":
            raise
        if arguments.verb in ("train", "adapt", "export"):
            return failed(str(MissingExtraError(f"`hivlp {arguments.verb}`", "train")))
        return failed(missing_module(error.name))
    except MemoryError:
        return failed("there is not enough memory for this")
    except (OSError, sqlite3.Error) as error:
        return failed(str(error))
