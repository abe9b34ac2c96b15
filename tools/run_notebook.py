"""Run a notebook's cells in a fresh folder, as Jupyter would, and keep what they print; no Jupyter is needed.

`python tools/run_notebook.py docs/tutorials/NAME.ipynb` prints the outputs; with `--write` it puts them into the file.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def run_cells(cells: list[dict[str, Any]]) -> list[str]:
    """What each code cell prints, and the value of its last expression; names live on from cell to cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(cells, 1):
        tree = ast.parse("".join(cell["source"]), f"cell {number}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        shown = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)  # as the real one, also for bytes
        with contextlib.redirect_stdout(shown):
            exec(compile(tree, f"cell {number}", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)  # noqa: S307
                if value is not None:
                    print(value)
        printed.append(shown.buffer.getvalue().decode())
    return printed


def run(path: Path, *, write: bool = False) -> list[str]:
    """Run a notebook in a folder of its own, which is removed; with ``write``, store the outputs in it."""
    path = path.resolve()
    book = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            printed = run_cells(cells)
        finally:
            os.chdir(before)
    if write:
        for cell, text in zip(cells, printed, strict=True):
            stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
            cell["outputs"] = [stream] if text else []
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return printed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebook")
    arguments = parser.parse_args()
    print("\n".join(run(arguments.notebook, write=arguments.write)))
