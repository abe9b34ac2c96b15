"""Search results as HTML, for notebooks: small thumbnails inside the page, all text escaped."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

PIXELS = 96
"""Longer side of a thumbnail."""
MOST = 50
"""Pictures that are shown; the rest is counted."""
CELL = "display:inline-block;vertical-align:top;width:112px;margin:4px;font-size:11px;overflow-wrap:anywhere"
NONE = "display:inline-block;width:96px;height:64px;line-height:64px;text-align:center;background:#8883"


def text(value: object) -> str:
    """A value as text that is no markup; a file's name that is no UTF-8 is shown escaped."""
    return html.escape(os.fsencode(str(value)).decode("utf-8", "backslashreplace"))


def thumbnail(path: str, pixels: int) -> Image.Image | None:
    """A small upright RGB image of a file; None if it cannot be read."""
    from PIL import Image

    from hivlp.data.pictures import decode
    from hivlp.errors import PictureError

    try:
        image = decode(Path(path), target=pixels)
    except PictureError:
        return None
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return image


def picture(path: str) -> str:
    """A thumbnail of a file as an ``img`` that lies in the page, or words that say why there is none."""
    try:
        there = os.path.isfile(path)  # noqa: PTH113 (a given vector's path may be any text)
    except ValueError:
        there = False
    if not there:
        return f'<span style="{NONE}">no such file</span>'
    image = thumbnail(path, PIXELS)
    if image is None:
        return f'<span style="{NONE}">cannot be read</span>'
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=70)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{data}">'


def card(title: str, path: str, caption: str | None, scores: Mapping[str, float]) -> str:
    """One item: its picture, name, caption and scores."""
    name = os.path.basename(path) or path  # noqa: PTH119
    told = " ".join(f"{text(level)} {value:.3f}" for level, value in scores.items())
    lines = [f"<b>{text(title)} {text(name)}</b>", text(caption or ""), told]
    return f'<div style="{CELL}" title="{text(path)}">{picture(path)}<br>{"<br>".join(filter(None, lines))}</div>'


def cards(shown: Iterable[str], count: int, note: str = "") -> str:
    """Several cards in a row, how many are not shown, and a line below."""
    more = f"<div>and {count - MOST} more</div>" if count > MOST else ""
    return f"<div>{''.join(shown) or 'nothing found'}{more}<div><small>{text(note)}</small></div></div>"
