"""Registries of names: a built-in table, extended by entry points of installed packages.

A package adds to a registry by an entry point in its ``pyproject.toml``::

    [project.entry-points."hivlp.readers"]
    ".lmdb" = "some_package:READER"

This package's own names come first and cost nothing; the entry points of installed packages are read when a name is
not among them, and an object is imported when its name is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name: a table, then the entry points of one group."""

    def __init__(self, group: str, table: Mapping[str, T]) -> None:
        """Register a table.

        Args:
            group: of the entry points, such as ``hivlp.readers``.
            table: this package's own objects.
        """
        self._group, self._known = group, dict(table)

    def get(self, name: str) -> T | None:
        """The object of a name; None if nothing is registered under it."""
        if name not in self._known and name in self._plugged():
            self._known[name] = self._plugged()[name].load()
        return self._known.get(name)

    def names(self) -> list[str]:
        """All names, this package's table first."""
        return list(dict.fromkeys([*self._known, *self._plugged()]))

    def _plugged(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self._group)


@functools.cache
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    """Reading the metadata of every installed package takes milliseconds, so it is done once for each group."""
    return {point.name: point for point in entry_points(group=group)}
