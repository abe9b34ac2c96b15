"""Validation of plain data (YAML, JSON) into dataclasses, with messages that name the key and the allowed values.

A dataclass's annotations say all: ``int``, ``float``, ``bool``, ``str``, ``Literal``, ``Annotated[…, Between(…)]``,
tuples, mappings, ``X | None`` and other dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from hivlp.errors import RecipeError


@dataclass(frozen=True)
class Between:
    """The numbers that a value may have.

    Attributes:
        least: the smallest.
        most: the largest; None for any finite number.
        above: whether ``least`` itself is too small.
        below: whether ``most`` itself is too large.
    """

    least: float = 0
    most: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is one of them."""
        high = self.most is None or value < self.most or (value == self.most and not self.below)
        return high and (value > self.least or (value == self.least and not self.above))

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}"
        return low if self.most is None else f"{low} and {'below' if self.below else 'at most'} {self.most:g}"


Code = Literal["float", "int8", "binary"]
Count = Annotated[int, Between(1)]
Number = Annotated[int, Between(0)]
Weight = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
ShareBelowOne = Annotated[float, Between(0, 1, below=True)]
Positive = Annotated[float, Between(0, above=True)]
PositiveShare = Annotated[float, Between(0, 1, above=True)]

T = TypeVar("T")


def build(cls: type[T], data: Any, where: str = "") -> T:
    """A dataclass from parsed YAML.

    Args:
        cls: the dataclass.
        data: a mapping of its fields.
        where: what the messages call it.

    Raises:
        RecipeError: naming the key, what was given and what may stand there.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where or 'a recipe'} must be a mapping, not {shown(data)}")
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    for key in data:
        if key not in fields:
            raise RecipeError(f"unknown key {_key(where, key)}{choices(key, fields)}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in data:
            raise RecipeError(f"the key {_key(where, name)} is missing")
    values = {key: value_of(hints[key], value, _key(where, key)) for key, value in data.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}" if where else str(error)) from error


class Checked:
    """Base of dataclasses whose values are checked against their annotations when one is made."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: naming the field.
        """
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(cast(Any, self)):
            try:
                value_of(hints[field.name], getattr(self, field.name), field.name)
            except RecipeError as error:
                raise ValueError(str(error)) from error


def value_of(hint: Any, value: Any, where: str) -> Any:
    """A value as its annotation wants it.

    Raises:
        RecipeError: if it is something else.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = value_of(inner[0], value, where)
        for bound in inner[1:]:
            if isinstance(bound, Between) and not bound.holds(found):
                raise RecipeError(f"{where} must be {bound}, not {shown(value)}")
        return found
    if origin in (Union, UnionType):
        kinds = [kind for kind in inner if kind is not NoneType]
        return None if value is None and len(kinds) < len(inner) else value_of(kinds[0], value, where)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, cast(type, hint)):
            return value
        return build(cast(type, hint), value, where)
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            raise RecipeError(f"{where} is {shown(value)}{choices(value, inner)}")
        return value
    if origin is tuple:
        return _tuple(inner, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a mapping, not {shown(value)}")
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(f"the keys of {where} must be words, not {shown(key)}")
        return {key: value_of(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    return _scalar(hint, value, where)


def choices(given: Any, known: Iterable[Any]) -> str:
    """The end of a message on a word that is not known: the nearest one, and all."""
    words = sorted(str(word) for word in known)
    near = difflib.get_close_matches(str(given), words, 1, 0.6)
    return (f"; did you mean {near[0]}?" if near else ";") + f" known: {', '.join(words) or 'none'}"


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise RecipeError(f"{where} must be a list, not {shown(value)}")
    if inner[-1] is ...:
        return tuple(value_of(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(inner):
        raise RecipeError(f"{where} must have {len(inner)} values, not {len(value)}")
    return tuple(value_of(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(inner, value, strict=True)))


def _scalar(hint: Any, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and isinstance(value, int):
        return value
    if hint is float and number and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word or text"}
    raise RecipeError(f"{where} must be {words.get(hint, hint)}, not {shown(value)}")


def _key(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
