"""Karpathy's JSON, the splits of COCO and Flickr30k on which retrieval is compared, and COCO's own captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hivlp.data.pairs import Pair, Pairs, split_named, split_of_name, within
from hivlp.data.readers.skips import Skips
from hivlp.data.readers.values import captions_of
from hivlp.errors import DataError
from hivlp.files.reading import parse_json_value, printable, read_text

# COCO's file is mostly token lists; dropping them while parsing keeps memory to a fraction.
_KEYS = frozenset({"images", "filename", "filepath", "split", "sentences", "raw"})
_COCO_KEYS = frozenset({"images", "id", "file_name", "annotations", "image_id", "caption"})
_FOLDERS = ("images", "flickr30k-images", "flickr8k-images")
LIMIT = 1 << 30
"""Bytes of the file, at most; COCO's has 144 MB."""


def read_karpathy(path: Path, images: Path | None = None) -> Pairs:
    """Read a ``dataset_*.json`` in Karpathy's layout or a ``captions_*.json`` in COCO's: all captions of each picture.

    ``restval`` counts as ``train``, as is the custom; COCO's files say their split by their name
    (``captions_val2017.json``). A picture is looked for below ``images`` if given, else below the JSON's folder and
    ``images/`` or ``flickr30k-images/`` beside it, with and without the ``filepath`` that COCO's entries have (or the
    ``val2017`` of its name).

    Raises:
        DataError: naming file and entry, if it has another layout, names a picture outside the folder, or none of the
            pictures is there.
    """
    data = images_of(path, _KEYS | _COCO_KEYS)
    entries = data["images"]
    if "annotations" in data:
        entries = _of_coco(data, path)
    roots = [images] if images is not None else [path.parent / name for name in (".", *_FOLDERS)]
    roots = [root for root in roots if root.is_dir()] or roots[:1]
    pairs, present, skips = [], False, Skips()
    for number, entry in enumerate(entries):
        where = f"{printable(path)}, image {number}"
        pair, candidates = _pair(entry, roots, where)
        found = next((candidate for candidate in candidates if is_file(candidate)), None)
        present = present or found is not None
        if not pair.captions:
            skips.no_caption(where)
        else:
            pairs.append(Pair(pair.id, found or candidates[0], pair.captions, pair.split))
    if entries and not present:
        raise DataError(f"none of the pictures of {path} is in {' or '.join(str(root) for root in roots)}")
    return skips.close(path, pairs)


def images_of(path: Path, keep: frozenset[str]) -> dict[str, Any]:
    """The object in a file of this layout, its ``images`` being a list.

    Args:
        path: of the file.
        keep: keys to keep; all others are dropped while parsing.

    Raises:
        DataError: if it cannot be read, or has another layout.
    """
    data = parse_json_value(read_text(path, LIMIT), printable(path), keep=keep)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise DataError(f"{path} is not in Karpathy's layout: it has no list of images")
    return data


def _of_coco(data: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """COCO's entries in Karpathy's layout.

    Raises:
        DataError: naming the place, if it is not COCO's layout.
    """
    where = f"{printable(path)}, images"
    split, folder = split_of_name(path.stem) or "train", path.stem.removeprefix("captions_")
    found: dict[int, dict[str, Any]] = {}
    try:
        for number, image in enumerate(data["images"]):
            where = f"{printable(path)}, image {number}"
            if image["id"] in found:
                raise DataError(f"{where}: the id {image['id']!r:.40} occurs twice")
            entry = {"filename": image["file_name"], "filepath": folder, "split": split, "sentences": []}
            found[image["id"]] = entry
        where = f"{printable(path)}, annotations"
        for number, annotation in enumerate(data["annotations"]):
            where = f"{printable(path)}, annotation {number}"
            found[annotation["image_id"]]["sentences"].append({"raw": annotation["caption"]})
    except (KeyError, TypeError) as error:
        raise misfit(where, error, "COCO's") from error
    return list(found.values())


def misfit(where: str, error: Exception, layout: str = "Karpathy's") -> DataError:
    """The error for an entry of another layout: what it lacks, or that a value is of another type.

    Args:
        where: file and entry.
        error: that reading the entry raised.
        layout: whose it should have.
    """
    what = f"there is no {error.args[0]!r:.60}" if isinstance(error, KeyError) else "a value is of another type"
    return DataError(f"{where}: not in {layout} layout: {what}")


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; False where the name cannot be looked for."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that is closed
        return False


def _pair(entry: Any, roots: list[Path], where: str) -> tuple[Pair, list[Path]]:
    """What an entry says, and where its picture may lie."""
    name, split, candidates = picture_of(entry, roots, where)
    try:
        captions = captions_of([sentence["raw"] for sentence in entry["sentences"]], where)
    except (KeyError, TypeError) as error:
        raise misfit(where, error) from error
    return Pair(name, candidates[0], captions, split), candidates


def picture_of(entry: Any, roots: Sequence[Path], where: str) -> tuple[str, str, list[Path]]:
    """An entry's file name, its split, and where the picture may lie.

    Args:
        entry: of the list of images.
        roots: folders that may hold the pictures.
        where: file and entry, for the error.

    Raises:
        DataError: if it has another layout, or names a picture outside of its folder.
    """
    try:
        name, folder, split = entry["filename"], entry.get("filepath", ""), split_named(entry["split"])
    except (KeyError, TypeError, AttributeError) as error:
        raise misfit(where, error) from error
    if not isinstance(name, str) or not isinstance(folder, str):
        raise DataError(f"{where}: filename and filepath must be text")
    if split is None:
        raise DataError(f"{where}: there is no split {entry['split']!r:.40}")
    names = [f"{folder}/{name}", name] if folder else [name]
    return name, split, [within(root, each, where) for root in roots for each in names]
