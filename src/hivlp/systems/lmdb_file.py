"""LMDB files that others have made, opened to be read only."""

from __future__ import annotations

from pathlib import Path

from hivlp.errors import DataError, MissingExtraError
from hivlp.files.reading import one_line, printable

LONGEST_KEY = 511  # bytes, LMDB's own limit


class LmdbFile:
    """An LMDB environment of one database.

    LMDB trusts what it maps: a file that is cut short is refused here, before a read beyond its end can kill the
    process, but one whose pages somebody forged is not recognised. Open those of people whom you trust.
    """

    def __init__(self, folder: Path, what: str) -> None:
        """Map the file.

        Args:
            folder: with ``data.mdb``.
            what: is read, for the error of a missing package.

        Raises:
            DataError: if it is no LMDB file, or cut short.
            MissingExtraError: if ``lmdb`` is not installed.
        """
        try:
            import lmdb
        except ImportError as error:
            raise MissingExtraError(what, "systems") from error
        self._where, self._error = printable(folder), lmdb.Error
        try:
            self._env = lmdb.open(str(folder), readonly=True, create=False, lock=False)
            pages = self._env.info()["last_pgno"] + 1
            least, size = pages * self._env.stat()["psize"], (folder / "data.mdb").stat().st_size
        except (lmdb.Error, OSError) as error:
            raise DataError(f"{self._where} cannot be read: {one_line(error)}") from error
        if size < least:
            self._env.close()
            raise DataError(f"{self._where} cannot be read: data.mdb is cut short, {size} of {least} bytes")

    def get(self, name: str) -> bytes | None:
        """The value of a key; None if there is none.

        Raises:
            DataError: if the file is damaged.
        """
        key = name.encode("utf-8", "surrogatepass")
        if not 0 < len(key) <= LONGEST_KEY:
            return None
        try:
            with self._env.begin() as transaction:
                value: bytes | None = transaction.get(key)
        except self._error as error:
            raise DataError(f"{self._where} cannot be read: {one_line(error)}") from error
        return value

    def close(self) -> None:
        """Let go of the file."""
        self._env.close()
