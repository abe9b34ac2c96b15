"""The model card (``README.md``): levels, training data, measured recalls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hivlp.config import HiVLPConfig


def model_card(config: HiVLPConfig, metrics: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Markdown with levels, measured recalls, and the recipe's notes as sections.

    Args:
        config: of the model.
        metrics: what :func:`hivlp.train.job.train` measured, by split.
        notes: section title -> text, such as data and licence.
    """
    lines = [
        f"# {config.name}",
        "",
        "An image-text retrieval model with levels, made with hivlp: the coarse vector scans, the fine one decides.",
        "",
        "| level | dims | image layer | text layer |",
        "|---|---|---|---|",
        *(f"| {level.name} | {level.dim} | {level.image_layer} | {level.text_layer} |" for level in config.levels),
        "",
    ]
    for split in ("validation", "test"):
        if split in metrics:
            lines += [f"## Recall on {split}", "", *_table(metrics[split]), ""]
    for title, text in notes.items():
        lines += [f"## {title}", "", text.strip(), ""]
    return "\n".join(lines)


def _table(result: Mapping[str, Any]) -> list[str]:
    shortlist = result["cascade"]["shortlist"]
    rows = [*result["levels"].items(), (f"cascade, shortlist {shortlist}", result["cascade"])]
    lines = [
        f"{result['images']} pictures, {result['captions']} captions, in percent.",
        "",
        "| | text→image R@1/5/10 | image→text R@1/5/10 | AR |",
        "|---|---|---|---|",
    ]
    for name, row in rows:
        cells = [" / ".join(f"{value:.1f}" for value in row[d].values()) for d in ("text_to_image", "image_to_text")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {row['AR']:.1f} |")
    return lines
