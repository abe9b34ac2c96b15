"""The layers of the house: imports go down, never in a circle, and private names stay in their file."""

import ast
from collections import defaultdict
from pathlib import Path

import hivlp

ROOT = Path(hivlp.__file__).parent
FLOORS = (
    ("__init__", "__main__", "cli", "serve"),
    ("bench", "demo", "retrievers"),
    ("index",),
    ("mini",),
    ("train", "systems"),
    ("evaluate",),
    ("search",),
    ("store", "ann"),
    ("encode", "coarse"),
    ("hub",),
    ("formats",),
    ("export",),
    ("model", "objective"),
    ("data",),
    ("config",),
    ("levels", "errors", "linalg", "adam", "files", "plugins", "typed"),
)
FLOOR = {room: number for number, rooms in enumerate(reversed(FLOORS)) for room in rooms}
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_fields_", "_exit", "_pack_"}
"""Names that Python's own classes spell with an underscore, though they are for everyone."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(("hivlp", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """Modules of hivlp that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = {f"{node.module}.{each.name}" for each in node.names}
            found.update(inner & MODULES.keys() or {node.module})
            if inner - MODULES.keys():
                found.add(node.module)
    return {name for name in found if name in MODULES}


IMPORTS = {name: imported(tree) - {name} for name, tree in MODULES.items()}


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} <= FLOOR.keys()


def test_a_file_imports_from_its_own_floor_or_below():
    up = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        # The package itself holds the version, which anyone may name.
        if other != "hivlp" and FLOOR[room(other)] > FLOOR[room(name)]
    ]
    assert not sorted(up)


def test_no_files_import_each_other_in_a_circle():
    # A package's __init__ gathers what its files define; only the files themselves are held against each other.
    files = {name: {other for other in others if other != "hivlp"} for name, others in IMPORTS.items()}
    left = dict(files)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    circles = {name: sorted(others & left.keys()) for name, others in left.items()}
    # What only imports from a circle, without being in one, is not named.
    while outer := [name for name in circles if not any(name in others for others in circles.values())]:
        for name in outer:
            del circles[name]
    assert not circles


def test_rooms_do_not_import_each_other_in_a_circle():
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, others in IMPORTS.items():
        rooms[room(name)] |= {room(other) for other in others if other != "hivlp"} - {room(name)}
    while free := [name for name, others in rooms.items() if not others & rooms.keys()]:
        for name in free:
            del rooms[name]
    assert not rooms


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def defined(tree: ast.Module) -> set[str]:
    """Private names that a file defines, as functions, variables or attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def test_private_names_stay_in_their_file():
    reaches = []
    for name, tree in MODULES.items():
        own = defined(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hivlp"):
                reaches += [f"{name} imports {each.name}" for each in node.names if private(each.name)]
            elif isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
                reaches.append(f"{name}:{node.lineno} uses {node.attr}")
    assert not sorted(reaches)
