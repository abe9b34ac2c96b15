"""The errors a person can cause and mend; the command line prints each as one line."""

from __future__ import annotations


class HivlpError(Exception):
    """Base of every error that hivlp raises on purpose; its text says what to do."""


class ModelError(HivlpError):
    """A model folder is missing, incomplete or does not fit."""


class DataError(HivlpError):
    """A data set cannot be found or read."""


class RecipeError(HivlpError):
    """A training recipe is missing, malformed or contradicts itself."""


class PictureError(HivlpError):
    """One picture cannot be decoded; it is reported and skipped."""


class IndexFolderError(HivlpError):
    """An index folder is missing, damaged, of another model, or cannot be written."""


class DamagedIndexError(IndexFolderError):
    """What an index folder holds is not what was written: `hivlp info --verify` says where, `hivlp repair` mends it."""


class VectorError(HivlpError, ValueError):
    """A vector cannot be stored: it is not finite, not of unit length, or not of the level's shape."""


class QueryError(HivlpError):
    """A query cannot be answered as asked."""


class MissingExtraError(HivlpError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the `{extra}` extra: pip install 'hivlp[{extra}]'")
