"""A safe YAML loader with YAML 1.2 scalars that refuses duplicate keys and exploding aliases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml

from hivlp.errors import RecipeError

BYTES, NODES = 1 << 20, 50_000  # of a recipe, aliases written out
DEPTH = 50


def read_yaml(path: Path) -> Any:
    """What a YAML file says, by the types of YAML 1.2: ``1e-4`` is a number, ``no`` and ``12:30`` are words.

    Raises:
        RecipeError: naming the file, and the line where there is one.
    """
    if not path.exists():
        raise RecipeError(f"no recipe at {path}")
    try:
        if not path.is_file():
            raise RecipeError("not a file")
        with path.open("rb") as file:
            data = file.read(BYTES + 1)
        if len(data) > BYTES:
            raise RecipeError(f"larger than {BYTES >> 20} MB")
        loader = _Loader(data.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except RecursionError as error:
        raise RecipeError(f"{path} cannot be read: nested too deeply") from error
    except (RecipeError, OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Nodes once aliases are written out; an alias of an alias of an alias may stand for billions."""
    if depth > DEPTH:
        raise RecipeError("nested too deeply")
    if id(node) not in known:
        known[id(node)] = NODES  # what holds itself is endless
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known, depth + 1) for part in inner)
    if known[id(node)] >= NODES:
        raise RecipeError("its aliases stand for too much")
    return known[id(node)]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data, with YAML 1.2's scalars; a key that stands twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, Any]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise RecipeError(f"line {key.start_mark.line + 1}: the key {key.value} stands there twice")
                seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))  # type: ignore[no-untyped-call]


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", "~|null|Null|NULL|", "~nN")
_Loader.yaml_implicit_resolvers[""] = [_Loader.yaml_implicit_resolvers["~"][0]]
_resolve("int", "[-+]?(?:0|[1-9][0-9]*)", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
         r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789")  # fmt: skip
_resolve("merge", "<<", "<")
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan")),
)
