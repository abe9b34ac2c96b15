"""What `mkdocs build` adds to the pages: tables made from the repository, notebooks as pages, heads of experiments."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils.meta import get_data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import count_lines  # noqa: E402

BESIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie at the top of the repository, where people look for them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    for name, page in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = notebook(Path(file.abs_src_path or ""))
        files.append(File.generated(config, file.src_uri.removesuffix("ipynb") + "md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in `<!-- table: NAME -->` and `<!-- code: FILES -->`; put an experiment's date and so on below its title."""
    if "verdict" in page.meta:
        title, rest = markdown.split("\n", 1)
        said = f"**Question.** {page.meta['question']}\n\n**Verdict.** {page.meta['verdict']}"
        markdown = f"{title}\n\n*{page.meta['date']}*\n\n{said}\n{rest}"
    if page.file.src_uri.startswith("tutorials/"):
        return markdown
    markdown = re.sub(r"(\]\([^)]*)\.ipynb\)", r"\1.md)", markdown)
    markdown = re.sub(r"<!-- code: (.+?) -->", lambda found: f"{count_lines.code_in(found[1]):,}", markdown)
    return re.sub(r"<!-- table: (\w+) -->", lambda found: TABLES[found[1]](), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show what docstrings name, such as :class:`Name`, as code."""
    return re.sub(r":(?:class|meth|func|data|mod|attr):<code>~?", "<code>", html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads anything from another host: the site is read offline."""
    loaded = re.findall(r'(?:\ssrc=|<link[^>]*\shref=)"((?:https?:)?//[^"]+)"', output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from another host: {loaded[0]}")
    return output


def notebook(path: Path) -> str:
    """Markdown of a notebook, with what its cells printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        shown = "".join("".join(output.get("text", "")) for output in cell["outputs"]).rstrip()
        if shown:
            parts.append(f'```text title="printed"\n{shown}\n```')
    parts.insert(1, f"*This page is a [notebook]({path.name}); the tests run it.*")
    return "\n\n".join(parts) + "\n"


def experiments() -> str:
    """All experiments, newest first."""
    rows = []
    for path in sorted((ROOT / "docs" / "experiments").glob("20*.md"), reverse=True):
        text, meta = get_data(path.read_text(encoding="utf-8"))
        title = re.search(r"^# (.+)$", text, re.M)
        link = f"[{title[1] if title else path.stem}]({path.name})"
        rows.append(f"| <span class='date'>{meta['date']}</span> | {link} | {meta['question']} | {meta['verdict']} |")
    return "\n".join(["| date | experiment | question | verdict |", "|---|---|---|---|", *rows])


def floors() -> str:
    """The floors of the house as the test of them has them, top first."""
    tree = ast.parse((ROOT / "tests" / "test_floors.py").read_text(encoding="utf-8"))
    found: Any = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FLOORS"
    )
    there = {path.stem for path in count_lines.ROOT.iterdir()} - {"__init__", "__main__"}
    rows = ["  ".join(room for room in rooms if room in there) for rooms in found]
    rows = [row for row in rows if row]
    return "\n".join(["```text", *(f"{len(rows) - at:2}  {row}" for at, row in enumerate(rows)), "```"])


def verbs() -> str:
    """The help of every verb."""
    import argparse
    import os

    os.environ["COLUMNS"] = "88"
    from hivlp.cli.parser import build_parser

    parser = build_parser()
    choices = next(each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    helps = {name: sub.format_help().rstrip() for name, sub in choices.items()}
    return "\n\n".join(f"## hivlp {name}\n\n```text\n{text}\n```" for name, text in helps.items())


def models() -> str:
    """The curated table of models."""
    from hivlp.hub.table import MODELS

    rows = [
        "| name | repository | commit | format | dims | M parameters | languages | licence | recall |",
        "|" + "---|" * 9,
    ]
    for name, entry in MODELS.items():
        recall = "–" if entry.recall is None else f"{entry.recall} ({entry.recall_source})"
        size = "–" if entry.parameters_m is None else f"{entry.parameters_m:g}"
        cells = (
            f"`{name}`",
            entry.hub_id,
            f"`{entry.revision[:7]}` ({entry.revision_source})" if entry.revision else "not verified",
            entry.format,
            entry.dims,
            size,
            entry.languages,
            f"{entry.licence} ({entry.licence_source or 'not verified'})" if entry.licence else "not verified",
            recall,
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def recall() -> str:
    """Every run of `hivlp bench recall` in docs/recall, its data sets apart, then published rows once."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "docs" / "recall").glob("*.json"))]
    parts, published = [], {}
    for run in runs:
        machine = run["machine"]
        parts.append(f"`{run['command']}`, {machine['cpu']}, {machine['cores']} cores, {run['seconds']:.0f} s.\n")
        parts += [f"Short of the aim: {each}.\n" for each in run["short"]]
        measured = [row for row in run["rows"] if row["kind"] == "measured"]
        published |= {(row["dataset"], row["model"], row["way"]): row for row in run["rows"] if row not in measured}
        for name, about in run["datasets"].items():
            whole = "" if about.get("complete", True) else ", not the whole benchmark"
            parts.append(f"**{name}**: {about['images']:,} pictures, {about['captions']:,} captions{whole}\n")
            parts.append(_recalls([row for row in measured if row["dataset"] == name]))
    names = dict.fromkeys(row["dataset"] for row in published.values())
    parts += [f"**{name}, published**\n\n" + _recalls([row for row in published.values() if row["dataset"] == name])
              for name in names]  # fmt: skip
    return "\n".join(parts)


def _recalls(rows: list[dict[str, Any]]) -> str:
    head = "| system | way | text→image R@1 / 5 / 10 | image→text R@1 / 5 / 10 | AR | kept | | note |"
    lines = [head, "|" + "---|" * 8]
    for row in rows:
        sides = ("not published" if side is None else " / ".join(f"{value:.1f}" for value in side.values())
                 for side in (row["text_to_image"], row["image_to_text"]))  # fmt: skip
        kept = "" if row["retained"] is None else f"{100 * row['retained']:.1f}%"
        spread = f" ± {row['spread']['AR']:.1f}" if row.get("spread") else ""
        cells = (row["model"], row["way"], *sides, f"{row['AR']:.1f}{spread}", kept, row["kind"], row["note"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


TABLES = {
    "recall": recall,
    "experiments": experiments,
    "floors": floors,
    "models": models,
    "lines": lambda: count_lines.table(count_lines.counted()),
    "verbs": verbs,
}
