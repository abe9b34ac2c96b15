"""What an encoder runs: two ONNX graphs, a tokenizer, and how pictures and texts are prepared for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hivlp.config import HiVLPConfig
from hivlp.files.digests import sha256_of

PRECISIONS = ("float32", "float16", "int8")
"""Of a graph's weights."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk, ready to run.

    Attributes:
        config: levels, preparation and name; ``config.name`` is what people call the model.
        image: the image graph.
        early: level that reads an earlier layer than the finest -> image graph that stops there.
        text: deepest level that is computed -> text graph.
        tokenizer: a ``tokenizer.json``.
        outputs: level -> names that its output may have in a graph of another library, whose vectors are brought to
            unit length after it; empty for our own graphs, whose outputs are named after the levels.
        hashed: files whose content is the model's identity, beside its configuration.
        origin: hex SHA-256 of what the graphs were made of, in place of their own bytes, which differ between versions
            of the library that wrote them.
    """

    config: HiVLPConfig
    image: Path
    text: Mapping[str, Path]
    tokenizer: Path
    early: Mapping[str, Path] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hashed: tuple[Path, ...] = ()
    origin: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that changes a vector.

        Raises:
            OSError: if a file cannot be read.
        """
        if self.origin is not None:
            return self.origin
        digest = hashlib.sha256()
        for path in self.hashed:
            digest.update(sha256_of(path))
        if self.outputs:  # there is no config.json of ours among the files
            picture, text = self.config.picture, self.config.text
            digest.update(json.dumps([repr(picture), repr(text)]).encode())
        return digest.hexdigest()
