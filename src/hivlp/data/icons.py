"""Icon sets as Iconify packages them for npm (``@iconify-json/noto``, …): drawings with the names their makers gave.

Emoji sets above all: a thousand everyday things, each drawn in several styles. As with Openclipart, what is named like
a held-out stamp is left out.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from hivlp.data import stamps
from hivlp.data.pairs import Pair
from hivlp.errors import DataError, PictureError

DEFAULT_ROOT = Path("node_modules/@iconify-json")
PREFIX = "icons:"

_DRAWN_SIDE = 256
_DEFAULT_SIDE = 16  # of Iconify's format
# Signs that depict nothing: letters, arrows, nations' flags, parts of other emoji.
_NO_PICTURES = re.compile(r"symbols|flags|component|modifiers", re.IGNORECASE)
_SKIN_TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark)(-skin-tone)?(?=-|$)")


@dataclass(frozen=True)
class Icon:
    """The body of one icon, drawn when it is read."""

    body: str
    width: float
    height: float

    def read(self) -> bytes:
        """The icon as an encoded PNG with transparency, 256 pixels on its longer side.

        Raises:
            PictureError: if it cannot be drawn.
        """
        import resvg_py

        box = quoteattr(f"0 0 {self.width} {self.height}")
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox={box}>'
            f"{self.body}</svg>"
        )
        try:
            return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_DRAWN_SIDE, height=_DRAWN_SIDE))
        except (ValueError, OSError) as error:
            raise PictureError(f"cannot be drawn: {error}") from error


def read_icons(name: str, root: Path | None = None) -> list[Pair]:
    """Read one icon set, ordered by name; all are ``train``.

    The caption is the name in words. The id begins with the category, where the set has categories; people in another
    skin tone are the same caption again and are left out.

    Args:
        name: of the set, as in ``@iconify-json/NAME``.
        root: the folder that holds the set's folder; by default the environment's ``HIVLP_ICONS``, or
            ``node_modules/@iconify-json`` where you are.

    Raises:
        DataError: if the set is not installed or is not in Iconify's format.
    """
    root = root or Path(os.environ.get("HIVLP_ICONS") or DEFAULT_ROOT)
    folder = root / name
    if not re.fullmatch(r"[a-z0-9-]+", name) or not (folder / "icons.json").is_file():
        raise DataError(f"no icon set {name!r} in {root}: npm install @iconify-json/{name}, or set HIVLP_ICONS")
    data = _json(folder / "icons.json")
    side = data.get("width", _DEFAULT_SIDE), data.get("height", _DEFAULT_SIDE)
    categories = _categories(folder)
    held_out = stamps.held_out_comparable()
    pairs = []
    try:
        for key, icon in sorted(data["icons"].items()):
            caption, category = " ".join(key.split("-")), categories.get(key, "")
            again = _SKIN_TONE.sub("", key)
            if (again != key and again in data["icons"]) or key.endswith("-skin-tone") or _NO_PICTURES.search(category):
                continue
            if len(re.findall(r"[^\W\d_]", caption)) >= 3 and stamps.comparable(caption) not in held_out:
                drawing = Icon(icon["body"], icon.get("width", side[0]), icon.get("height", side[1]))
                pairs.append(Pair(f"{category}/{key}" if category else key, drawing, (caption,)))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'icons.json'} is not an Iconify set: {error!r}") from error
    return pairs


def _categories(folder: Path) -> dict[str, str]:
    """Icon name -> category, empty for a set without."""
    path = folder / "metadata.json"
    if not path.is_file():
        return {}
    groups = _json(path).get("categories", {})
    if not isinstance(groups, dict):
        raise DataError(f"{path}: categories must be an object")
    return {name: category for category, names in groups.items() for name in names}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds no JSON object")
    return data
