"""The last search of an index from the shell, so that ``--next`` shows what was not seen yet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hivlp.errors import HivlpError
from hivlp.files.digests import cache_folder
from hivlp.files.scratch import write_whole

MOST_SEEN = 20_000
"""Items that are remembered as seen."""


def remember(index: Path, arguments: Mapping[str, Any], seen: Sequence[int]) -> None:
    """Keep a search and all items that were shown; nothing is wrong if that cannot be done."""
    content = json.dumps({"arguments": arguments, "seen": list(seen)[-MOST_SEEN:]}, default=os.fspath)
    with suppress(OSError):
        _file(index).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(index), lambda place: place.write_text(content, encoding="utf-8"))


def recall(index: Path) -> tuple[dict[str, Any], list[int]]:
    """The arguments of the last search, and the ids of what was shown.

    Raises:
        HivlpError: if there was none.
    """
    try:
        found = json.loads(_file(index).read_text(encoding="utf-8"))
        return dict(found["arguments"]), [int(item) for item in found["seen"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise HivlpError(f"nothing was searched for in {index} before: --next has nothing to go on with") from error


def _file(index: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(index))).hexdigest()[:32]
    return cache_folder() / "searches" / f"{name}.json"
