"""The command line: thin verbs over the library.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure with a one-line reason, 2 wrong usage.
Heavy modules are imported inside the verb that needs them, so that ``hivlp --help`` answers at once.
"""

from hivlp.cli.bench import BENCHES
from hivlp.cli.entry import main
from hivlp.cli.parser import build_parser

__all__ = ["BENCHES", "build_parser", "main"]
