"""Thumbnails of hits: on a page of their own, and in terminals that can show pictures."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from hivlp.search.html import text, thumbnail
from hivlp.search.results import Hit

PAGE_PIXELS = 320
"""Longer side of a thumbnail on a page."""
TERMINAL_PIXELS, TERMINAL_COLUMNS = 240, 30
"""Longer side of a thumbnail in a terminal, and its width where it is made of characters."""
_KITTY_CHUNK = 4096


# A page.


def search_page(title: str, hits: Iterable[Hit], note: str = "") -> str:
    """A page of hits with scores and dates, self-contained: its pictures lie in it, and it loads nothing."""
    template = Template((resources.files("hivlp") / "assets" / "search.html").read_text(encoding="utf-8"))
    cards = [_card(hit) for hit in hits]
    found = f"{len(cards)} {'picture' if len(cards) == 1 else 'pictures'}{' · ' if note else ''}{note}"
    when = datetime.now().strftime("%Y-%m-%d %H:%M")
    return template.substitute(
        title=html.escape(title), found=html.escape(found), when=when, cards="".join(cards) or "<p>Nothing found.</p>"
    )


def _card(hit: Hit) -> str:
    image, name = thumbnail(hit.path, PAGE_PIXELS), text(os.path.basename(hit.path))  # noqa: PTH119
    if image is None:
        shown = '<span class="none">cannot be read</span>'
    else:
        data = base64.b64encode(_encoded(image, "WEBP", quality=75)).decode("ascii")
        shown = f'<img alt="{name}" width="{image.width}" height="{image.height}" src="data:image/webp;base64,{data}">'
    scores = " ".join(f"{text(level)} {value:.3f}" for level, value in hit.scores.items())
    facts = [str(hit.metadata.get(key)) for key in ("taken", "camera") if isinstance(hit.metadata.get(key), str)]
    same = f"{len(hit.duplicates)} more of the same" if hit.duplicates else ""
    lines = [hit.caption or "", " · ".join(fact.replace("T", " ") for fact in facts), scores, same]
    below = "".join(f"<small>{text(line)}</small>" for line in lines if line)
    link = html.escape(Path(hit.path).absolute().as_uri())
    return f'<li><a href="{link}" title="{text(hit.path)}">{shown}</a><b>{hit.rank}. {name}</b>{below}</li>'


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# A terminal.


def kitty(image: Image.Image) -> str:
    """An image in the graphics protocol of kitty, Ghostty and Konsole."""
    data = base64.b64encode(_encoded(image, "PNG")).decode("ascii")
    parts = [data[at : at + _KITTY_CHUNK] for at in range(0, len(data), _KITTY_CHUNK)]
    control = ["f=100,a=T,q=2," if number == 0 else "" for number in range(len(parts))]
    more = [int(number + 1 < len(parts)) for number in range(len(parts))]
    return "".join(f"\x1b_G{head}m={m};{part}\x1b\\" for head, m, part in zip(control, more, parts, strict=True)) + "\n"


def iterm(image: Image.Image) -> str:
    """An image in the protocol of iTerm2, WezTerm and mintty."""
    data = base64.b64encode(_encoded(image, "PNG")).decode("ascii")
    return f"\x1b]1337;File=inline=1;width={image.width}px;height={image.height}px:{data}\x07\n"


def sixel(image: Image.Image) -> str:
    """An image as sixels, six rows of pixels at a time, as xterm, foot and Windows Terminal show it."""
    paletted = image.convert("RGB").quantize(255)
    pixels, palette = np.asarray(paletted), (paletted.getpalette() or [])[: 3 * 255]
    used = np.unique(pixels).tolist()
    colours = "".join(
        f"#{colour};2;{';'.join(str(round(value / 2.55)) for value in palette[3 * colour : 3 * colour + 3])}"
        for colour in used
    )
    bands = []
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        weights = (1 << np.arange(len(band)))[:, None]
        rows = [(colour, ((band == colour) * weights).sum(0)) for colour in np.unique(band).tolist()]
        bands.append("$".join(f"#{colour}{_runs(row)}" for colour, row in rows))
    return f'\x1bPq"1;1;{image.width};{image.height}{colours}{"-".join(bands)}\x1b\\\n'


def _runs(row: np.ndarray) -> str:
    """Sixels of one colour in one band, repeated ones counted."""
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    lengths = np.diff(starts, append=len(row))
    return "".join(
        chr(63 + value) * length if length < 4 else f"!{length}{chr(63 + value)}"
        for value, length in zip(row[starts].tolist(), lengths.tolist(), strict=True)
    )


def blocks(image: Image.Image) -> str:
    """An image as half blocks in true colour, two pixels a character, which nearly every terminal shows."""
    width = min(TERMINAL_COLUMNS, image.width)
    height = max(2, 2 * round(image.height * width / image.width / 2))
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    lines = []
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=True):
        pairs = zip(top.tolist(), bottom.tolist(), strict=True)
        lines.append(
            "".join(f"\x1b[38;2;{t[0]};{t[1]};{t[2]};48;2;{b[0]};{b[1]};{b[2]}m▀" for t, b in pairs) + "\x1b[0m\n"
        )
    return "".join(lines)


PROTOCOLS: dict[str, Callable[[Image.Image], str]] = {"kitty": kitty, "iterm": iterm, "sixel": sixel, "blocks": blocks}
"""Ways to show an image in a terminal, by name."""


def protocol(environment: Mapping[str, str]) -> str:
    """The name of the best way that a terminal is known to show pictures in, by its environment."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or "STY" in environment:  # they let nothing else through
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or "ghostty" in (program, term.removeprefix("xterm-")):
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty"):
        return "iterm"
    return "sixel" if "sixel" in term or term in ("foot", "mlterm", "contour") else "blocks"
