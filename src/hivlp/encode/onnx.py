"""The default encoder: a model's graphs on ONNX Runtime, without torch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.data.texts import TextTokenizer
from hivlp.encode.base import Picture, as_pictures, as_texts
from hivlp.encode.session import Session, providers
from hivlp.errors import ArgumentError, ModelError, PictureError
from hivlp.formats.model_files import ModelFiles
from hivlp.formats.own import open_own
from hivlp.levels import Embeddings, Level

CALL_TOKENS = 16
"""Tokens of padding that take about as long as one more call."""


class OnnxEncoder:
    """A model's image and text graphs, each opened when it is first needed.

    Sessions run on one thread a call and may be called from many threads at once: throughput comes from batches in
    parallel (:func:`hivlp.encode.stream.encode_stream`), not from threads inside one.

    Attributes:
        files: what is run.
        device: where, one of :data:`hivlp.encode.session.DEVICES`.
        source: how to load the same model again: a folder, or a name with its revision; empty if nobody knows.
    """

    def __init__(
        self, files: ModelFiles | Path, *, device: str = "cpu", text_batch: int = 64, image_batch: int = 8
    ) -> None:
        """Make an encoder of a model's files, or of a hivlp model folder.

        Raises:
            ModelError: if it is no model folder, or lacks the graphs or the tokenizer; or the device is not there.
        """
        self.files = files if isinstance(files, ModelFiles) else open_own(files)
        self.config = self.files.config
        providers(device)  # what is not there is said before pictures are decoded
        self.device, self.source = device, ""
        self._text_sessions: dict[str, Session] = {}
        self._early_sessions: dict[str, Session] = {}
        self._opening = threading.Lock()
        self._text_batch, self._image_batch = text_batch, image_batch

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.name

    @property
    def levels(self) -> tuple[Level, ...]:
        """Coarse to fine."""
        return self.config.levels

    @property
    def picture(self) -> PictureConfig:
        """How pictures are prepared."""
        return self.config.picture

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that changes a vector: configuration, tokenizer and graphs."""
        return self.files.fingerprint

    def __getstate__(self) -> dict[str, Any]:
        """Without what is opened when it is needed: a copy, in another process too, opens its own."""
        opened = ("_image_session", "_tokenizer", "_opening")
        kept = {name: value for name, value in vars(self).items() if name not in opened}
        return {**kept, "_text_sessions": {}, "_early_sessions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        vars(self).update(state)
        self._opening = threading.Lock()

    def encode_text(self, texts: str | Iterable[str], *, levels: str | Iterable[str] | None = None) -> Embeddings:
        """Unit vectors of the texts at the named levels (default all).

        Layers above those that the named levels read are not computed: a graph that stops there is used.

        Args:
            texts: one text or many.
            levels: their names, or the name of one.

        Returns:
            (N, dim) float32 a level. A ``str`` is a batch of one, so that its vectors are (1, dim).

        Raises:
            ArgumentError: if there is anything but text.
            ModelError: if a level is not one of the model's.
        """
        texts = as_texts(texts)
        names = self._names(levels)
        if not texts:
            return self._empty(names)
        session = self._text_session(names[-1])
        ids, mask = self.tokenize(texts)
        whole = self.config.text.pad_to_max
        # Texts of like length share a batch, and are cut to the longest of it: padding is not computed.
        lengths = np.full(len(ids), ids.shape[1]) if whole else np.maximum(mask.sum(1), 1)
        order = np.argsort(lengths, kind="stable")
        parts = []
        # On the CPU a call takes as long as some tokens do; elsewhere few calls are best.
        padding = CALL_TOKENS if self.device == "cpu" else None
        for start, end in batches_of(lengths[order], self._text_batch, padding):
            rows = order[start:end]
            length = int(lengths[rows].max())
            feed = {"input_ids": ids[rows, :length], "attention_mask": mask[rows, :length]}
            parts.append(self._run(session, names, self._text_feed(session, feed)))
        back = np.empty(len(texts), np.int64)
        back[order] = np.arange(len(texts))
        return Embeddings.concatenate(parts).rows(back)

    def encode_pixels(self, pixels: NDArray[np.uint8], *, levels: str | Iterable[str] | None = None) -> Embeddings:
        """Unit vectors of prepared pictures, (N, size, size, 3) uint8 RGB, at the named levels (default all).

        Layers above those that the named levels read are not computed: a graph that stops there is used.

        Raises:
            ArgumentError: if the pixels are of another shape or type.
            ModelError: if a level is not one of the model's, or there is no graph that stops at it.
        """
        names = self._names(levels)
        shape = self.picture.shape
        pixels = np.asarray(pixels)
        if pixels.shape[1:] != shape or pixels.dtype != np.uint8:
            wanted = ", ".join(map(str, ("N", *shape)))
            raise ArgumentError(f"pixels must be ({wanted}) uint8, not {pixels.shape} {pixels.dtype}")
        session = self._image_session if names[-1] not in self.files.early else self._early_session(names[-1])
        parts = [
            self._run(session, names, self._image_feed(session, pixels[start : start + self._image_batch]))
            for start in range(0, len(pixels), self._image_batch)
        ]
        return Embeddings.concatenate(parts) if parts else self._empty(names)

    def encode_image(self, pictures: Picture | str | Iterable[Picture | str]) -> Embeddings:
        """Unit vectors of pictures given as files, bytes or PIL images.

        Args:
            pictures: one or many; a string is a path.

        Returns:
            (N, dim) float32 a level; (1, dim) for one picture.

        Raises:
            PictureError: if one cannot be decoded.
        """
        pictures = as_pictures(pictures)
        parts = [
            self.encode_pixels(np.stack([self._pixels(picture) for picture in pictures[start : start + 8]]))
            for start in range(0, len(pictures), 8)
        ]
        return Embeddings.concatenate(parts) if parts else self._empty(self._names(None))

    def encode(
        self,
        inputs: str | Picture | Iterable[str | Picture],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        level: str | None = None,
    ) -> NDArray[np.float32]:
        """Unit vectors of texts and pictures at one level, as sentence-transformers' CLIP models give them.

        Args:
            inputs: one or many: a ``str`` is a text; a :class:`pathlib.Path`, bytes or a PIL image is a picture.
            batch_size: inputs that are encoded between two steps of the bar.
            show_progress_bar: whether to show one, on standard error.
            level: its name; default the finest.

        Returns:
            (n, dim) float32; (dim,) for one input that is no list.

        Raises:
            ArgumentError: if an input is neither.
            ModelError: if the model has no such level.
        """
        from hivlp.encode.mixed_inputs import encode

        return encode(self, inputs, batch_size, show_progress_bar, level)

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        # Now, and not before: who looks for a text should not wait for what decodes pictures.
        from hivlp.data.pictures import load_pixels, prepare, to_rgb

        if isinstance(picture, Image.Image):
            return prepare(to_rgb(picture), self.picture)
        try:
            return load_pixels(picture, self.picture)
        except PictureError as error:
            if isinstance(picture, Path):
                raise PictureError(f"{picture} {error}") from error
            raise

    def _names(self, levels: str | Iterable[str] | None) -> list[str]:
        known = [level.name for level in self.levels]
        levels = None if levels is None else as_texts(levels)
        if levels == []:
            raise ModelError(f"no level of model {self.name} is named; it has {', '.join(known)}")
        for name in levels or ():
            if name not in known:
                raise ModelError(f"model {self.name} has no level {name!r}; it has {', '.join(known)}")
        return [name for name in known if levels is None or name in levels]

    def _empty(self, names: list[str]) -> Embeddings:
        dims = {level.name: level.dim for level in self.levels}
        return Embeddings({name: np.empty((0, dims[name]), np.float32) for name in names})

    def vocabulary(self) -> list[str]:
        """The pieces that the tokenizer spells texts with."""
        return sorted(self._tokenizer.backend.get_vocab())

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text of which the tokenizer knows some part by no token."""
        return self._tokenizer.unknown_words(text)

    def tokenize(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B, T) int64 ids and mask, cut, padded and lower-cased as the model was trained."""
        return self._tokenizer(texts)

    def _run(self, session: Session, names: list[str], feed: dict[str, NDArray[Any]]) -> Embeddings:
        outputs = session.run([self._output(session, name) for name in names], feed)
        if not self.files.outputs:
            return Embeddings(dict(zip(names, outputs, strict=True)))
        vectors = {}
        for level, output in zip((level for level in self.levels if level.name in names), outputs, strict=True):
            if output.shape[1:] != (level.dim,):
                raise ModelError(f"{session.path} gives vectors of shape {output.shape[1:]}, not of {level.dim} dims")
            rows = output.astype(np.float32)
            vectors[level.name] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return Embeddings(vectors)

    def _output(self, session: Session, level: str) -> str:
        """The graph's output for a level."""
        known = self.files.outputs.get(level, (level,))
        for name in known:
            if name in session.outputs:
                return name
        if self.files.outputs and len(session.outputs) == 1:
            return str(session.outputs[0])
        raise ModelError(f"{session.path} gives {', '.join(session.outputs)}, none of which is {' or '.join(known)}")

    def _text_feed(self, session: Session, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Tokens as a graph takes them: one that was traced at one length is filled up to it."""
        ids, mask = feed["input_ids"], feed["attention_mask"]
        length = session.fixed(1) or ids.shape[1]
        if ids.shape[1] > length:
            raise ModelError(f"{session.path} takes {length} tokens, {ids.shape[1]} were given")
        if ids.shape[1] < length:
            room = ((0, 0), (0, length - ids.shape[1]))
            ids, mask = np.pad(ids, room, constant_values=self.config.text.pad_id), np.pad(mask, room)
        return {"input_ids": ids, "text": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def _image_feed(self, session: Session, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Pixels as a graph takes them: bytes (N, S, S, 3), or (N, 3, S, S) normalised, as most libraries have them."""
        name, value = next(iter(session.inputs.items()))
        if value.type == "tensor(uint8)":
            return {name: pixels if value.shape[-1] in (3, pixels.shape[-1]) else pixels.transpose(0, 3, 1, 2)}
        mean, std = np.array(self.picture.mean, np.float32), np.array(self.picture.std, np.float32)
        return {name: ((pixels - mean) / std).transpose(0, 3, 1, 2)}

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self.files.tokenizer, self.config.text)

    def _text_session(self, deepest: str) -> Session:
        """The graph that computes the levels up to ``deepest`` and nothing above."""
        if deepest not in self._text_sessions:
            self._text_sessions[deepest] = Session(self.files.text[deepest], self.device)
        return self._text_sessions[deepest]

    @cached_property
    def _image_session(self) -> Session:
        return Session(self.files.image, self.device)

    def _early_session(self, level: str) -> Session:
        """The image graph that stops at a level, once it is known to give what the whole graph gives.

        Raises:
            ModelError: if there is none, or it is of other weights.
        """
        with self._opening:
            if level not in self._early_sessions:
                path = self.files.early[level]
                again = f"`hivlp export {path.parent}` makes it"
                if not path.is_file():
                    raise ModelError(f"{path.parent} has no {path.name}, which stops at level {level}: {again}")
                session = Session(path, self.device)
                noise = np.random.default_rng(0).integers(0, 256, (1, *self.picture.shape), np.uint8)
                early, whole = (
                    self._run(each, [level], self._image_feed(each, noise)) for each in (session, self._image_session)
                )
                if not np.array_equal(early[level], whole[level]):
                    raise ModelError(f"{path} does not give the vectors of {self.files.image.name}: {again} anew")
                self._early_sessions[level] = session
            return self._early_sessions[level]


def batches_of(lengths: NDArray[np.int64], most: int, padding: int | None) -> Iterator[tuple[int, int]]:
    """Start and end of each batch of texts of ascending length.

    Args:
        lengths: (n,) tokens of each text; n is at least 1.
        most: texts of a batch.
        padding: tokens by which a batch's texts may be shorter than its longest, all together; None for any number.
    """
    start = padded = 0
    for place in range(1, len(lengths)):
        padded += (place - start) * int(lengths[place] - lengths[place - 1])
        if place - start == most or (padding is not None and padded > padding):
            yield start, place
            start, padded = place, 0
    yield start, len(lengths)
