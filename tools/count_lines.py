"""Lines of Python and C in each room of the library, as a Markdown table: `python tools/count_lines.py`.

`python tools/count_lines.py ann/c 'bench/fuzz*.py'` counts the code of some files and folders below `src/hivlp`. Code
is what is left without blank lines, comments and docstrings.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "hivlp"
COLUMNS = ("files", "Python", "C", "lines", "code")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_of_python(text: str) -> int:
    """Lines of a Python file that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {line for each in tokens if each.type not in SILENT for line in range(each.start[0], each.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def code_of_c(text: str) -> int:
    """Lines of a C file that hold code."""
    return sum(bool(line.strip()) for line in re.sub(r"/\*.*?\*/|//[^\n]*", _newlines, text, flags=re.S).splitlines())


def _newlines(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


def code_of(path: Path) -> int:
    """Lines of a file that hold code."""
    text = path.read_text(encoding="utf-8")
    return code_of_python(text) if path.suffix == ".py" else code_of_c(text)


def sources(root: Path) -> list[Path]:
    """Files of Python and C in a folder, or the file itself."""
    found = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [path for path in found if path.suffix in (".py", ".c", ".h") and path.is_file()]


def code_in(names: str, root: Path = ROOT) -> int:
    """Lines of code in files and folders, named below the root by patterns with spaces between them.

    Raises:
        ValueError: if a pattern matches nothing.
    """
    total = 0
    for name in names.split():
        found = {path for match in root.glob(name) for path in sources(match)}
        if not found:
            raise ValueError(f"{name} is not in {root}")
        total += sum(map(code_of, found))
    return total


def counted(root: Path = ROOT) -> dict[str, Counter[str]]:
    """Files and lines by room: the folders of the package, and `(top)` for the files beside them."""
    rooms: dict[str, Counter[str]] = {}
    for path in sources(root):
        inner, lines = path.relative_to(root), len(path.read_text(encoding="utf-8").splitlines())
        room = rooms.setdefault(inner.parts[0] if len(inner.parts) > 1 else "(top)", Counter())
        room.update(files=1, lines=lines, code=code_of(path))
        room["Python" if path.suffix == ".py" else "C"] += lines
    return rooms


def table(rooms: dict[str, Counter[str]]) -> str:
    """Markdown, the largest room first, with a sum."""
    rows = [*sorted(rooms.items(), key=lambda each: -each[1]["lines"]), ("**all**", sum(rooms.values(), Counter()))]
    head = ["room", "files", "lines of Python", "lines of C", "together", "of them code"]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|"]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(f'{room[each]:,}' for each in COLUMNS)} |" for name, room in rows]
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        print("\n".join(f"{code_in(name):6,} {name}" for name in sys.argv[1:]))
    else:
        print(table(counted()))
