"""Webdataset: tar files in which neighbours with the same key are one sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hivlp.data.kinds import PICTURE_SUFFIXES
from hivlp.data.pairs import Pair, Pairs, split_of_folders, split_of_shard
from hivlp.data.readers.skips import Skips
from hivlp.data.readers.table import CAPTION_COLUMNS, row_split
from hivlp.data.readers.tar import Member, TarDamage, members
from hivlp.data.readers.values import captions_of, clean_captions
from hivlp.errors import DataError, PictureError
from hivlp.files.reading import one_line, open_regular, parse_json, printable, reason

# If a sample holds a picture twice, the first of these counts.
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", *sorted(PICTURE_SUFFIXES - {".jpg", ".jpeg", ".png", ".webp"}))
_TEXTS = (".txt", ".json")
_TEXT_LIMIT = 1 << 20


@dataclass(frozen=True)
class TarMember:
    """A file inside an uncompressed tar, read from its place without unpacking."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The member's content.

        Raises:
            PictureError: if the tar cannot be read or has become shorter.
        """
        with open_regular(self.tar, PictureError) as file:
            try:
                file.seek(self.offset)
                content = file.read(self.size)
            except OSError as error:
                raise PictureError(f"cannot be read from {self.tar}: {error.strerror}") from error
        if len(content) < self.size:
            raise PictureError(f"cannot be read from {self.tar}: the file is too short")
        return content


def read_webdataset(tars: Sequence[Path], root: Path) -> Pairs:
    """Read tar files whose samples have a picture and captions (txt or json).

    Each line of a ``txt`` is a caption; without a ``txt``, a ``json`` holds a caption or a list of them under one of
    :data:`hivlp.data.readers.table.CAPTION_COLUMNS`. Files are of one sample if their names are the same up to the
    first dot, as webdataset has it; where such neighbours hold several pictures, each goes
    with the text whose name is its own but for the suffix (``img.v2.jpg`` and ``img.v2.txt``). A split named by the
    ``json``, the tar, its folders or the member's folders, in this order, is the sample's. Nothing is unpacked to disk,
    and pictures stay in the tar until they are read.

    A tar that is damaged counts up to there; a sample that is damaged, or whose key the tar has had before, is passed
    over. All are named in the log.

    Args:
        tars: in the order wanted.
        root: the folder that their names start from.

    Raises:
        DataError: naming file and place, if nothing is left because a tar or its captions cannot be read.
    """
    skips = Skips()
    pairs: list[Pair] = []
    for tar in tars:
        split = split_of_shard(tar, root)
        shard = tar.relative_to(root).with_suffix("").as_posix()
        for key, picture, captions, said in _samples(tar, skips):
            here = said or split or split_of_folders(key) or "train"
            pairs.append(Pair(f"{shard}/{key}", TarMember(tar, picture.offset, picture.size), captions, here, shard))
    return skips.close(root, pairs)


Sample = tuple[str, Member, tuple[str, ...], str | None]
"""A picture's name but for its suffix, the picture, its captions, and the split that its ``json`` says."""


def _samples(path: Path, skips: Skips) -> Iterator[Sample]:
    """The complete samples of a tar."""
    found = 0
    damage: list[str] = []
    seen: set[str] = set()
    try:
        with open_regular(path) as file:
            for key, group in groups(file, damage):
                if key in seen:
                    skips.damage(again(path, key))
                    continue
                if key:
                    seen.add(key)
                for sample in samples(file, path, key, group, skips):
                    found += 1
                    yield sample
    except DataError as error:
        skips.damage(error)
    except OSError as error:
        damage.append(reason(error))
    for problem in damage:
        kept = f"; samples before that are kept: {found}" if found else ""
        skips.damage(f"{printable(path)} is not a readable, uncompressed tar file: {problem}{kept}")


def again(path: Path | str, key: str) -> str:
    """What is said of a key that occurs in a tar once more."""
    return f"{printable(path)}, sample {printable(key)}: a key that has been there before; the first counts"


def groups(file: BinaryIO, damage: list[str]) -> Iterator[tuple[str, list[Member]]]:
    """Neighbours with the same key, as far as the tar is sound; what is wrong then is added to ``damage``.

    Raises:
        OSError: if the file cannot be read.
    """
    for key, group in groupby(_until_damage(file, damage), _key):
        yield key, list(group)


def _until_damage(file: BinaryIO, damage: list[str]) -> Iterator[Member]:
    """The members, as far as the tar is sound; what is wrong then is added to ``damage``."""
    try:
        yield from members(file)
    except TarDamage as error:
        damage.append(str(error))


def _key(member: Member) -> str:
    """The name up to the first dot of its last part."""
    path = PurePosixPath(member.name)
    return str(path.parent / path.name.partition(".")[0]) if path.name.partition(".")[0] else ""


def samples(file: BinaryIO, path: Path | str, key: str, group: list[Member], skips: Skips) -> Iterator[Sample]:
    """What neighbours with the same key hold: mostly one sample; none if it is not whole.

    Raises:
        OSError: if the file cannot be read.
    """
    pictures: dict[str, dict[str, Member]] = {}
    texts: dict[str, dict[str, Member]] = {}
    for member in group:
        name = PurePosixPath(member.name)
        suffix = name.suffix.lower()
        if key and (suffix in _PICTURES or suffix in _TEXTS):
            of_kind = pictures if suffix in _PICTURES else texts
            held = of_kind.setdefault(str(name.with_suffix("")), {})
            if held.setdefault(suffix, member) is not member:
                skips.damage(f"{printable(path)}: {printable(member.name)} has been there before; the first counts")
    if pictures and not texts:
        skips.no_caption(f"{printable(path)}, sample {key}")
        return
    for stem, held in pictures.items():
        # "0.jpg" and "0.caption.txt" are of one sample too, if there is but one picture they can be of.
        told = texts.get(stem) or (next(iter(texts.values())) if len(pictures) == len(texts) == 1 else None)
        if told is None:
            if not pictures.keys() & texts.keys():
                skips.no_caption(f"{printable(path)}, picture {stem}")
            continue  # beside the picture that the text is of: a mask, another size
        picture = next(held[suffix] for suffix in _PICTURES if suffix in held)
        where = f"{printable(path)}, sample {stem}"
        try:
            captions, split = _told(file, told, where)
        except DataError as error:
            skips.damage(error)
            continue
        if captions:
            yield stem, picture, captions, split
        else:
            skips.no_caption(where)


def _told(file: BinaryIO, texts: dict[str, Member], where: str) -> tuple[tuple[str, ...], str | None]:
    """The captions and the split that a sample's texts tell."""
    captions: tuple[str, ...] = ()
    if ".txt" in texts:
        captions = clean_captions(_text(file, texts[".txt"], where).splitlines())
    if ".json" not in texts:
        return captions, None
    try:
        record = parse_json(_text(file, texts[".json"], where), where)
    except DataError:
        if captions:  # which are sound, whatever stands beside them
            return captions, None
        raise
    if not captions:
        captions = next((found for name in CAPTION_COLUMNS if (found := captions_of(record.get(name), where))), ())
    return captions, row_split(record, where)


def _text(file: BinaryIO, member: Member, where: str) -> str:
    if member.size > _TEXT_LIMIT:
        raise DataError(f"{where}: {printable(member.name)} is too large for captions")
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {printable(member.name)} is not UTF-8 text: {one_line(error)}") from error
