"""A parser of CSV and TSV that refuses, by line, what could be read in two ways.

Python's ``csv`` takes a quote that never closes for the start of a cell that runs to the end of the file, and cells
beyond the header's for nothing. Both lose pairs in silence, so that rows are taken apart here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hivlp.data.kinds import PICTURE_SUFFIXES
from hivlp.data.readers.values import column_named
from hivlp.errors import DataError
from hivlp.files.reading import printable, read_lines

FIELD_LIMIT = 1 << 17
"""Characters in one cell, at most."""
DELIMITERS = (",", "\t", ";", "|")
# Between these, programs write text as it is, and a quote is a quote; but a cell in quotes from end to end is one.
LITERAL = "\t|"
LINES_LIMIT = 1000
"""Lines that one quoted cell goes on for, at most."""
CELLS_LIMIT = 10_000
"""Cells in one line, at most."""
_QUOTED = re.compile(r'[^"]*+(?:""[^"]*+)*+"')
_END = re.compile(r"\r\n|\n|\r")
_SEP = re.compile(r"sep=(.)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class _Cell:
    text: str
    quoted: bool = False


class _Open(Exception):
    """A quote opens and does not close on the lines seen so far."""


class _Astray(Exception):
    """A quote opens and closes on another line, in the midst of a cell."""


def read_separated(
    path: Path, image_names: Sequence[str], caption_names: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with a header, each with a description of where it stands.

    The delimiter is the one that makes the header hold both columns: ``,``, tab, ``;`` or ``|``. A quoted cell may hold
    the delimiter and line ends. Blank lines, and lines of nothing but delimiters, are passed over; empty cells beyond
    the header's are no cells. Between commas or semicolons, surplus cells belong to an unquoted caption in the last
    column.

    Args:
        path: of the table.
        image_names: what the column of pictures may be called.
        caption_names: what the column of captions may be called.

    Raises:
        DataError: naming file and line, if a row has too few or too many cells, or a quote never closes.
    """
    lines = _Lines(path)
    table: _Table | None = None
    while (line := lines.next()) is not None:
        where, text = f"{printable(path)}, line {lines.number}", _END.sub("", line)
        if not text.strip():
            continue
        if table is None:
            if lines.number == 1 and (told := _SEP.fullmatch(text)):  # as Excel writes it
                lines.told = told[1]
                continue
            table = _table(lines, line, where, image_names, caption_names)
            continue
        cells = table.cells(lines, line, where)
        if any(cell.text.strip() for cell in cells):
            yield where, table.row(cells, where)


class _Lines:
    """Lines of a file, of which some can be looked at ahead."""

    def __init__(self, path: Path) -> None:
        self._lines = read_lines(path)
        self._ahead: list[str] = []
        self.number = 0
        self.told: str | None = None

    def next(self) -> str | None:
        line = self._ahead.pop(0) if self._ahead else next(self._lines, None)
        self.number += line is not None
        return line

    def peek(self, place: int) -> str | None:
        while len(self._ahead) <= place:
            line = next(self._lines, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[place]

    def drop(self, count: int) -> None:
        del self._ahead[:count]
        self.number += count


def _table(lines: _Lines, line: str, where: str, image_names: Sequence[str], caption_names: Sequence[str]) -> _Table:
    usual = "\t" if lines.told is None and where.split(", line")[0].lower().endswith(".tsv") else ","
    delimiters = dict.fromkeys([lines.told or usual, *DELIMITERS])
    if any(line.count(delimiter) >= CELLS_LIMIT for delimiter in delimiters):
        raise DataError(f"{where}: more than {CELLS_LIMIT} columns")
    tables = [_Table(delimiter) for delimiter in delimiters]
    for table in tables:
        try:
            table.header = [cell.text.strip() for cell in _split(_END.sub("", line), table.delimiter)]
        except _Open:
            continue
        while len(table.header) > 1 and not table.header[-1]:
            table.header.pop()
        names = [column_named(table.header, wanted) for wanted in (image_names, caption_names)]
        if None not in names:
            break
    else:
        raise DataError(
            f"{where}: no {'caption' if any(column_named(each.header, image_names) for each in tables) else 'picture'} "
            f"column; the first line must name the columns: {' or '.join(image_names)} for the pictures, "
            f"{' or '.join(caption_names)} for the captions"
        )
    for name, count in Counter(name.casefold() for name in table.header if name).items():
        if count > 1:
            raise DataError(f"{where}: two columns are called {name!r:.40}")
    table.image, table.caption = (table.header.index(str(name)) for name in names)
    return table


class _Table:
    """How the rows of one table are to be read."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.header: list[str] = []
        self.image = self.caption = 0
        self._shape: str | None = None

    def cells(self, lines: _Lines, line: str, where: str) -> list[_Cell]:
        """The cells of the row that begins with a line; further lines are taken if a quoted cell goes on in them."""
        text, whole, taken = _END.sub("", line), line, 0
        if text.count(self.delimiter) >= CELLS_LIMIT:
            raise DataError(f"{where}: more than {CELLS_LIMIT} cells")
        if '"' not in text:
            return self._checked([_Cell(part) for part in text.split(self.delimiter)], where)
        problem = "a quote opens a cell and does not close before "
        # With the pictures last, a row whose quote has failed to close looks complete.
        complete = self.image > self.caption and self._is_row(text)
        while True:
            try:
                cells = _split(whole.rstrip("\r\n"), self.delimiter)
            except _Astray:
                problem += "the middle of another"
                break
            except _Open:
                following = lines.peek(taken)
                if following is None or complete:
                    problem += "the line does" if complete else "the file does"
                    break
                if self._is_row(following, _shape(text.split(self.delimiter)[0]) if self.image == 0 else None):
                    problem += f"line {lines.number + taken + 1}, which looks like the next row"
                    break
                if len(whole) + len(following) > FIELD_LIMIT or taken == LINES_LIMIT:
                    problem = (
                        f"field larger than {FIELD_LIMIT} characters or {LINES_LIMIT} lines; does a quote not close?"
                    )
                    break
                whole += following
                taken += 1
            else:
                lines.drop(taken)
                return self._checked(cells, where)
        if self.delimiter in LITERAL:
            return self._checked(_split(text, self.delimiter, literal=True), where)
        raise DataError(f"{where}: {problem}")

    def _checked(self, cells: list[_Cell], where: str) -> list[_Cell]:
        if any(len(cell.text) > FIELD_LIMIT for cell in cells):
            raise DataError(f"{where}: field larger than {FIELD_LIMIT} characters; does a quote not close?")
        return cells

    def row(self, cells: list[_Cell], where: str) -> dict[str, str]:
        """Column -> cell, whatever commas the caption has."""
        columns = len(self.header)
        while len(cells) > columns and not cells[-1].text.strip():
            cells.pop()
        if len(cells) > columns:
            rest = cells[columns - 1 :]
            free = self.caption == columns - 1 and self.delimiter not in LITERAL
            joined = free and not any(cell.quoted for cell in rest)
            # A picture's name with a comma in it would come apart the same way.
            if not joined or not _is_picture(cells[self.image].text) or any(_is_picture(cell.text) for cell in rest):
                raise DataError(
                    f"{where}: {len(cells)} cells for {columns} columns; a cell that holds {self.delimiter!r} must be "
                    "in double quotes"
                )
            cells = [*cells[: columns - 1], _Cell(self.delimiter.join(cell.text for cell in rest))]
        if len(cells) < columns:
            raise DataError(f"{where}: {len(cells)} {'cell' if len(cells) == 1 else 'cells'} for {columns} columns")
        self._shape = _shape(cells[self.image].text)
        return {name: cell.text.strip() for name, cell in zip(self.header, cells, strict=True) if name}

    def _is_row(self, line: str, shape: str | None = None) -> bool:
        """Whether a line within a quoted cell is rather a row of its own.

        Args:
            line: to look at.
            shape: of the name of the row's own picture, if it is known; default that of the row before.
        """
        parts = _END.sub("", line).split(self.delimiter)
        if len(parts) < len(self.header) or any(part.endswith('"') and part[0] != '"' for part in parts[: self.image]):
            return False  # or it is where the cell closes, with the picture behind it
        name = parts[self.image]
        # Nobody has tabs in a text that goes over several lines; commas everybody has.
        return self.delimiter != "," or _is_picture(name) or _shape(name) == (shape or self._shape)


def _split(text: str, delimiter: str, *, literal: bool = False) -> list[_Cell]:
    """The cells of a row, which may hold line ends.

    Raises:
        _Open: if the text ends within a quoted cell; never if ``literal``, which takes such a quote as it stands.
    """
    cells: list[_Cell] = []
    place = 0
    while True:
        start = place
        while text[start : start + 1] == " ":
            start += 1
        end = _closing(text, start + 1) if text[start : start + 1] == '"' else None
        if end is not None:
            after = end + 1
            while text[after : after + 1] == " ":
                after += 1
            if after >= len(text) or text[after] == delimiter:
                cells.append(_Cell(text[start + 1 : end].replace('""', '"'), quoted=True))
                if after >= len(text):
                    return cells
                place = after + 1
                continue
            if not literal and ("\n" in text[start:end] or "\r" in text[start:end]):
                raise _Astray
        elif text[start : start + 1] == '"' and not literal:
            raise _Open
        stop = text.find(delimiter, place)
        if stop < 0:
            cells.append(_Cell(text[place:]))
            return cells
        cells.append(_Cell(text[place:stop]))
        place = stop + 1


def _closing(text: str, place: int) -> int | None:
    """Where the quote stands that closes a cell; two of them are one within it."""
    found = _QUOTED.match(text, place)
    return None if found is None else found.end() - 1


def _is_picture(name: str) -> bool:
    name = name.strip().strip('"').lower()
    return name.startswith(("http://", "https://")) or any(name.endswith(suffix) for suffix in PICTURE_SUFFIXES)


def _shape(name: str) -> str:
    """A name with its digits and letters made alike: ``img_0041`` and ``img_7`` have the same."""
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name.strip().strip('"')))
