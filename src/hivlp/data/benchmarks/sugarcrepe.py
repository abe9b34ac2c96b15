"""SugarCrepe (Hsieh et al., 2023): COCO pictures, each with its caption and one that differs by a small, wrong change.

Seven files, ``add_att.json`` and so on, each an object of numbered cases with ``filename``, ``caption`` and
``negative_caption``; the pictures are those of COCO's ``val2017``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hivlp.data.pairs import within
from hivlp.data.readers.karpathy import is_file
from hivlp.errors import DataError
from hivlp.files.reading import printable, read_json

KINDS = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
"""Ways in which a caption is made wrong, and the files' names."""
_FIELDS = ("filename", "caption", "negative_caption")
SOURCE = "https://github.com/RAIVNLab/sugar-crepe (data/)"
PICTURES = "http://images.cocodataset.org/zips/val2017.zip"


@dataclass(frozen=True)
class Case:
    """One picture with a right and a wrong caption.

    Attributes:
        name: of the picture's file.
        picture: its file.
        caption: the right one.
        negative: the wrong one.
    """

    name: str
    picture: Path
    caption: str
    negative: str


def read_sugarcrepe(root: Path) -> dict[str, list[Case]]:
    """The cases of each kind, in the files' order; a picture that is missing fails when it is read.

    Args:
        root: folder with the seven files (itself, or its folder ``data`` or ``sugarcrepe``) and with ``val2017/``
            (itself, or below ``images`` or ``coco``).

    Raises:
        DataError: in one line: what to download and where it goes, if a file or all pictures are missing; file and
            case, if it has another layout.
    """
    places = [root, root / "data", root / "sugarcrepe"]
    folder = next((place for place in places if is_file(place / f"{KINDS[0]}.json")), root)
    for kind in KINDS:
        if not is_file(folder / f"{kind}.json"):
            raise _missing(folder, f"{kind}.json")
    roots = [root / "val2017", root / "images" / "val2017", root / "coco" / "val2017", root]
    cases = {kind: _cases(folder / f"{kind}.json", roots) for kind in KINDS}
    if not any(is_file(case.picture) for each in cases.values() for case in each):
        raise _missing(root, "picture in val2017")
    return cases


def _missing(root: Path, what: str) -> DataError:
    return DataError(
        f"{printable(root)} has no {what}: the seven files come from {SOURCE} and lie there, the pictures from "
        f"{PICTURES} and lie in val2017/ beside them"
    )


def _cases(path: Path, roots: Sequence[Path]) -> list[Case]:
    found = []
    for key, entry in read_json(path).items():
        where = f"{printable(path)}, case {key:.20}"
        given = [entry.get(name) for name in _FIELDS] if isinstance(entry, dict) else []
        name, caption, negative = (text.strip() if isinstance(text, str) else "" for text in given or [None] * 3)
        if not (name and caption and negative):
            raise DataError(f"{where}: {', '.join(_FIELDS)} must be texts")
        files = [within(folder, name, where) for folder in roots]
        picture = next((file for file in files if is_file(file)), files[0])
        found.append(Case(name, picture, caption, negative))
    return found
