"""Exclude patterns: files and folders that a walk passes over, as globs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from hivlp.errors import DataError

DEFAULTS = (
    # Network storage: thumbnails, waste bins, snapshots.
    "@eaDir/",
    "@Recycle/",
    "@Recently-Snapshot/",
    "#recycle/",
    "#snapshot/",
    "$RECYCLE.BIN/",
    "System Volume Information/",
    "lost+found/",
    "__MACOSX/",
    # Previews and thumbnails that photo programs keep beside the originals.
    "*.lrdata/",
    "**/*.photoslibrary/resources/",
    "**/*.photoslibrary/private/",
    "**/*.photolibrary/Thumbnails/",
    "**/CaptureOne/Cache/",
    "**/appdata_*/preview/",
)
"""What is excluded of itself."""


class Exclude:
    """A set of exclude patterns.

    A pattern without a slash matches names of files and folders at any depth; one with a slash inside matches paths
    below the root, where ``**`` stands for any folders. One that ends in a slash matches folders alone. Case does not
    count.

    Attributes:
        patterns: as they were given.
    """

    def __init__(self, patterns: Iterable[str] = (), *, defaults: bool = True) -> None:
        """Patterns beside the defaults.

        Args:
            patterns: globs.
            defaults: whether :data:`DEFAULTS` apply, too.

        Raises:
            DataError: if one is empty or no text.
        """
        if isinstance(patterns, str):
            patterns = [patterns]
        self.patterns = tuple(patterns)
        for pattern in self.patterns:
            if not isinstance(pattern, str) or not pattern.strip("/"):
                raise DataError(f"a pattern of what to exclude is a text such as 'thumbs' or '*.tmp', not {pattern!r}")
        self._rules = [_Rule(pattern) for pattern in (*self.patterns, *(DEFAULTS if defaults else ()))]

    def match(self, inside: str, *, folder: bool) -> str | None:
        """The first pattern that a path below a root matches by itself; None if none does.

        Args:
            inside: the path from the root on, with ``/`` between its parts.
            folder: whether it is one.
        """
        name = inside.rpartition("/")[2]
        for rule in self._rules:
            if (folder or not rule.folders) and rule.regex.match(inside if rule.whole else name):
                return rule.pattern
        return None

    def leaves_out(self, inside: str) -> bool:
        """Whether a file's path below a root, or that of a folder on the way to it, matches a given pattern."""
        parts = inside.split("/")
        given = {*self.patterns}
        return any(
            self.match("/".join(parts[:count]), folder=count < len(parts)) in given
            for count in range(1, len(parts) + 1)
        )


class _Rule:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.folders = pattern.endswith("/")
        bare = pattern.strip("/")
        self.whole = "/" in bare or pattern.startswith("/")
        text = "".join("(?:[^/]+/)*" if part == "**" else _glob(part) + "/" for part in bare.split("/"))
        self.regex = re.compile(text.removesuffix("/") + r"\Z", re.IGNORECASE | re.DOTALL)


def _glob(part: str) -> str:
    """A glob for one name as a regular expression that stays within it."""
    translated = fnmatch.translate(part)
    # fnmatch wraps what it makes; a star must not cross a slash, and there is none in a name.
    return translated.removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z").replace(".*", "[^/]*")
