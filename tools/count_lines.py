"""Lines of Python and C in each room of the library, as a Markdown table."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "hivlp"
SUFFIXES = {".py": "Python", ".c": "C", ".h": "C"}


def counted(root: Path = ROOT) -> dict[str, dict[str, int]]:
    """Files and lines by room: the folders of the package, and `(top)` for the files beside them."""
    rooms: dict[str, dict[str, int]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        inner = path.relative_to(root)
        name = inner.parts[0] if len(inner.parts) > 1 else "(top)"
        room = rooms.setdefault(name, dict.fromkeys(("files", "Python", "C"), 0))
        room["files"] += 1
        room[SUFFIXES[path.suffix]] += len(path.read_text(encoding="utf-8").splitlines())
    return rooms


def table(rooms: dict[str, dict[str, int]]) -> str:
    """Markdown, the largest room first, with a sum."""
    whole = {name: sum(room[name] for room in rooms.values()) for name in ("files", "Python", "C")}
    ordered = sorted(rooms.items(), key=lambda each: -each[1]["Python"] - each[1]["C"])
    rows = [*ordered, ("**all**", whole)]
    lines = ["| room | files | lines of Python | lines of C | together |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {room['files']} | {room['Python']:,} | {room['C']:,} | {room['Python'] + room['C']:,} |"
        for name, room in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(counted(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)))
