"""Query vectors: a text, a picture, an item or given vectors as one unit vector a level."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hivlp.ann import native
from hivlp.coarse.maps import COARSE, FINE, CoarseMaps, NoCoarseLevel
from hivlp.encode.base import Encoder, Picture, as_picture, as_texts, check_encoder, unpacked
from hivlp.errors import ArgumentError, IndexFolderError, MissingExtraError, ModelError, QueryError
from hivlp.index.language_hint import LanguageHint
from hivlp.levels import Level, Vectors, off_torch
from hivlp.search.stages import Query
from hivlp.store.records import About

GivenVectors = Mapping[str, Any] | ArrayLike
"""Vectors as callers give them: by level; or as an array, of the finest level, where that is enough."""


class QueryEncoder:
    """What turns queries into vectors: the index's model, loaded when it is first needed, and its coarse maps.

    Attributes:
        maps: what makes the levels of given vectors; None where a model does.
    """

    def __init__(self, path: Path, about: About, maps: CoarseMaps | NoCoarseLevel | None) -> None:
        """No model is loaded yet.

        Args:
            path: of the index, for messages.
            about: what it was made with.
            maps: of an index of given vectors.
        """
        self.maps = maps
        self._path, self._about = path, about
        self._model: Encoder | None = None
        self._lock, self._hint = threading.Lock(), LanguageHint()

    @property
    def model(self) -> Encoder | None:
        """The model, if one is loaded."""
        return self._model

    def attach(self, model: Encoder) -> None:
        """Use this model.

        Raises:
            IndexFolderError: if the index was made with another one.
        """
        check_encoder(model)
        about = self._about
        if self.maps is not None:
            check_width(model, self.maps)
        elif model.levels != about.levels or model.fingerprint != about.fingerprint:
            same = " (the same name, but other weights or settings)" if model.name == about.model else ""
            raise IndexFolderError(
                f"{self._path} was made with model {about.model}, not {model.name}{same}: "
                "use that model, or index the pictures again into a new folder"
            )
        self._model = model

    def need_model(self) -> Encoder:
        """The model; of an index that was opened without, the one that it was made with, loaded now.

        Raises:
            QueryError: if the index knows none, or it cannot be loaded.
            IndexFolderError: if it has changed since.
        """
        with self._lock:
            if self._model is None:
                from hivlp.encode.pretrained import HiVLP

                if not self._about.source:
                    raise QueryError(
                        f"{self._path} was made of embeddings alone: search by vector or item, "
                        "or give their model: Index.open(path, model=...)"
                    )
                try:
                    self.attach(HiVLP.from_pretrained(self._about.source))
                except (ModelError, MissingExtraError) as error:
                    raise QueryError(
                        f"the model of {self._path} cannot be loaded: {error}; or give it: Index.open(path, model=...)"
                    ) from error
            assert self._model is not None
            return self._model

    def of_one(self, text: str | None, image: Picture | str | None, vector: GivenVectors | None) -> Query:
        """The vectors of one text, picture or given vector."""
        text = unpacked(text)
        if text is not None:
            if not isinstance(text, str):
                many = " (search_many takes many)" if isinstance(text, Iterable) else ""
                raise ArgumentError(f"a query is one text, not {type(text).__name__}{many}")
            return self.of_many(text, None)[0]
        if image is not None:
            seen = self.need_model().encode_image([as_picture(image)])
            # A picture is spread as the items are: their map suits it, as it does an item that others shall be like.
            return self.of_vectors(seen if self.maps is None else self.maps.of_items(seen.fine))
        return self.of_vectors(self._by_level(vector))

    def of_many(self, texts: str | Iterable[str] | None, vectors: Any, *, hint: bool = True) -> list[Query]:
        """The vectors of many texts, or of (queries, dim) given ones; with a ``hint`` where the model cannot read."""
        if texts is not None:
            listed = as_texts(texts)
            for number, text in enumerate(listed, start=1):
                if not text.strip():
                    raise QueryError("the query is empty" if len(listed) == 1 else f"query {number} is empty")
            if not listed:
                return []
            model = self.need_model()
            if hint:
                self._hint.look(model, listed)
            words = model.encode_text(listed)
            vectors = words if self.maps is None else {FINE: words.fine}
        vectors, levels = self._by_level(vectors), self._about.levels
        try:
            shapes = {name: np.shape(array) for name, array in vectors.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise QueryError("vectors must be (queries, dim) arrays of numbers") from error
        sizes = {shapes[level.name][:1] for level in levels if level.name in shapes}
        if len(sizes) != 1 or any(len(shape) < 2 for shape in shapes.values()):
            raise QueryError(f"every level needs a (queries, dim) array with a row for each query, not {shapes}")
        ((count,),) = sizes
        if self._tells_coarse(vectors):
            return [_FromFine(fine, self._coarse) for fine in unit_rows(vectors, levels[-1], count)]
        by_level = [unit_rows(vectors, level, count) for level in levels]
        return list(zip(*by_level, strict=True))

    def of_vectors(self, vectors: Mapping[str, Any]) -> Query:
        """The (dim,) unit vector of each level; of given embeddings the fine one tells the coarse one.

        Raises:
            QueryError: see :func:`unit_vector`.
        """
        levels = self._about.levels
        if self._tells_coarse(vectors):
            return _FromFine(unit_vector(vectors, levels[-1]), self._coarse)
        return [unit_vector(vectors, level) for level in levels]

    def _tells_coarse(self, vectors: Mapping[str, Any]) -> bool:
        """Whether the fine vector of a query tells the coarse one, which was not given."""
        return isinstance(self.maps, CoarseMaps) and COARSE not in vectors

    def _coarse(self, fine: Vectors) -> Vectors:
        """The (m,) coarse vector of a (dim,) fine one: as the maps have it, without letting go of the lock."""
        assert isinstance(self.maps, CoarseMaps)
        coarse, length = native.unit(native.project(self.maps.query, fine))
        return coarse if 0 < length < math.inf else self.maps.of_queries(fine[None])[COARSE][0]

    def _by_level(self, vectors: Any) -> Mapping[str, Any]:
        """What was given as vectors, by level; where the finest one is enough, it need not be named."""
        levels = self._about.levels
        if isinstance(vectors, Mapping):
            return vectors
        if self.maps is not None or len(levels) == 1:
            return {levels[-1].name: vectors}
        names = ", ".join(level.name for level in levels)
        raise ArgumentError(f"vectors are given by level ({names}), as in {{'{levels[-1].name}': …}}")


def check_width(model: Encoder, maps: CoarseMaps | NoCoarseLevel) -> None:
    """Whether a model's vectors are as long as the given ones.

    Raises:
        IndexFolderError: if not.
    """
    width, fine = maps.levels[-1].dim, model.levels[-1].dim
    if fine != width:
        raise IndexFolderError(
            f"{model.name} makes vectors of {fine} dims, the embeddings have {width}: use their model"
        )


class _FromFine(Sequence[Vectors]):
    """Unit vectors of a query of which the fine one is known: the coarse one is made when it is first needed."""

    __slots__ = ("_coarse", "_fine", "_make")

    def __init__(self, fine: Vectors, make: Callable[[Vectors], Vectors]) -> None:
        self._fine, self._make = fine, make
        self._coarse: Vectors | None = None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: Any) -> Any:
        if place in (-1, 1):
            return self._fine
        coarse = self._coarse
        if coarse is None:
            coarse = self._coarse = self._make(self._fine)
        return (coarse, self._fine)[place]


def unit_vector(vectors: Mapping[str, Any], level: Level) -> Vectors:
    """The (dim,) unit vector of one level.

    Raises:
        QueryError: if the level is missing, or its vector has the wrong length, is zero or is not finite.
    """
    vector = _numbers(vectors, level)
    if vector.shape == (1, level.dim):
        vector = vector[0]
    if vector.shape != (level.dim,):
        raise QueryError(f"level {level.name}: a vector of shape {vector.shape} where ({level.dim},) is needed")
    unit, length = native.unit(vector)
    if not 0 < length < math.inf:
        raise QueryError(f"level {level.name}: the vector is {'zero' if length == 0 else 'not finite'}")
    return unit


def unit_rows(vectors: Mapping[str, Any], level: Level, count: int) -> Vectors:
    """The (count, dim) unit vectors of one level, each as :func:`unit_vector` makes it.

    Raises:
        QueryError: if the level is missing, or a vector has the wrong length, is zero or is not finite.
    """
    rows = _numbers(vectors, level)
    if rows.shape == (count, 1, level.dim):
        rows = rows[:, 0]
    if rows.shape != (count, level.dim):
        raise QueryError(f"level {level.name}: vectors of shape {rows.shape} where ({count}, {level.dim}) is needed")
    units, lengths = native.units(rows)
    for number in np.flatnonzero(~((lengths > 0) & (lengths < math.inf))).tolist():
        what = "zero" if lengths[number] == 0 else "not finite"
        raise QueryError(f"level {level.name}: the vector of query {number + 1} is {what}")
    return units


def _numbers(vectors: Mapping[str, Any], level: Level) -> Vectors:
    """Vectors of one level as they were given, as float32 in C order."""
    if level.name not in vectors:
        raise QueryError(
            f"the query has no vector for level {level.name}: this index's model gives one for each level, "
            'all of which are asked for by name, as {"coarse": …, "fine": …}'
        )
    try:
        given = np.asarray(off_torch(vectors[level.name]))
        if given.dtype.kind not in "fiu":
            raise TypeError(given.dtype)
        if given.dtype == np.float32 and given.flags.c_contiguous:
            return given
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(given, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QueryError(f"level {level.name}: not a vector of numbers") from error
