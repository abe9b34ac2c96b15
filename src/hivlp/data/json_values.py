"""Values of Python, numpy and pandas as JSON holds them: what callers store with an item."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hivlp.errors import DataError


def is_missing(value: Any) -> bool:
    """Whether a value is none: None, a NaN, pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def as_json(value: Any, where: str, depth: int = 0) -> Any:
    """A value as JSON gives it back; numpy's are Python's.

    Args:
        value: whatever a caller has.
        where: stands in messages for the place that it comes from.
        depth: of lists and mappings around it.

    Raises:
        DataError: if JSON cannot hold it.
    """
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufUO":
        value = value.tolist()
    if value is None:
        return None
    if depth > 100:
        raise DataError(f"{where} is nested too deeply")
    match value:
        case bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise DataError(f"{where} is {value}, which JSON has no number for: give None, or leave it out")
            return float(value)
        case list() | tuple():
            return [as_json(each, f"{where}[{place}]", depth + 1) for place, each in enumerate(value)]
    if hasattr(value, "items"):
        return {_key(name, where): as_json(each, f"{where}: {name}", depth + 1) for name, each in value.items()}
    raise DataError(f"{where} must be JSON, not {type(value).__name__} {value!r:.40}")


def _key(name: Any, where: str) -> str:
    if isinstance(name, (str, int, np.integer)) and not isinstance(name, bool):
        return str(name)
    raise DataError(f"{where}: a key must be a text, not {name!r:.40}")
