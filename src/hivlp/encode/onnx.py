"""The default encoder: a model folder's graphs on ONNX Runtime, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from hivlp.config import HiVLPConfig, PictureConfig
from hivlp.encode.base import Picture, as_pictures, as_texts
from hivlp.encode.text import TextTokenizer
from hivlp.errors import ArgumentError, ModelError, PictureError
from hivlp.files.digests import sha256_of
from hivlp.levels import Embeddings, Level

IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER = "image.onnx", "text.onnx", "tokenizer.json"
TEXT_WEIGHTS = "text.bin"


def text_graph(level: str) -> str:
    """File of the text graph that stops at a level."""
    return f"text.{level}.onnx"


class OnnxEncoder:
    """A model folder's ``image.onnx`` and ``text.onnx``, each opened when it is first needed.

    Sessions run on one thread a call and may be called from many threads at once: throughput comes from batches in
    parallel (:func:`hivlp.encode.stream.encode_stream`), not from threads inside one.
    """

    def __init__(self, folder: Path, *, text_batch: int = 64, image_batch: int = 8) -> None:
        """Open a model folder.

        Raises:
            ModelError: if it is no model folder, or lacks the graphs or the tokenizer.
        """
        self.folder = folder
        self.config = HiVLPConfig.load(folder)
        for name in (IMAGE_GRAPH, TEXT_GRAPH, TEXT_WEIGHTS, TOKENIZER):
            if not (folder / name).is_file():
                raise ModelError(f"{folder} has no {name}; run `hivlp export {folder}` to make it")
        self._text_sessions: dict[str, ort.InferenceSession] = {}
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

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over configuration, tokenizer and both graphs."""
        digest = hashlib.sha256()
        for name in ("config.json", TOKENIZER, TEXT_GRAPH, TEXT_WEIGHTS, IMAGE_GRAPH):
            digest.update(sha256_of(self.folder / name))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is opened when it is needed: a copy, in another process too, opens its own."""
        opened = ("_image_session", "_tokenizer")
        return {**{name: value for name, value in vars(self).items() if name not in opened}, "_text_sessions": {}}

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
        parts = []
        session = self._text_session(names[-1])
        # Texts of like length share a batch, so that short ones are not padded to the longest of all.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), self._text_batch):
            ids, mask = self.tokenize([texts[i] for i in order[start : start + self._text_batch]])
            feed = {"input_ids": ids, "attention_mask": mask}
            parts.append(self._run(session, names, feed))
        if not parts:
            return self._empty(names)
        back = np.empty(len(texts), np.int64)
        back[order] = np.arange(len(texts))
        return Embeddings.concatenate(parts).rows(back)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Unit vectors of prepared pictures, (N, size, size, 3) uint8 RGB."""
        names = self._names(None)
        size = self.picture.size
        pixels = np.asarray(pixels)
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3) or pixels.dtype != np.uint8:
            raise ArgumentError(f"pixels must be (N, {size}, {size}, 3) uint8, not {pixels.shape} {pixels.dtype}")
        parts = [
            self._run(self._image_session, names, {"pixels": pixels[start : start + self._image_batch]})
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

    def tokenize(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B, T) int64 ids and mask, cut, padded and lower-cased as the model was trained."""
        return self._tokenizer(texts)

    @staticmethod
    def _run(session: ort.InferenceSession, names: list[str], feed: dict[str, NDArray]) -> Embeddings:  # type: ignore[type-arg]
        # A text tower that was trained with its padding visible (SigLIP) takes no mask.
        known = {value.name for value in session.get_inputs()}
        outputs = session.run(names, {name: array for name, array in feed.items() if name in known})
        return Embeddings(dict(zip(names, outputs, strict=True)))

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self.folder / TOKENIZER, self.config.text)

    def _text_session(self, deepest: str) -> ort.InferenceSession:
        """The graph that computes the levels up to ``deepest`` and nothing above."""
        if deepest not in self._text_sessions:
            last = deepest == self.levels[-1].name
            self._text_sessions[deepest] = open_session(self.folder / (TEXT_GRAPH if last else text_graph(deepest)))
        return self._text_sessions[deepest]

    @cached_property
    def _image_session(self) -> ort.InferenceSession:
        return open_session(self.folder / IMAGE_GRAPH)


def open_session(path: Path) -> ort.InferenceSession:
    """A graph on one thread of the CPU.

    Raises:
        ModelError: if ONNX Runtime does not accept the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelError(f"{path} cannot be opened: {str(error).splitlines()[0]}") from error
