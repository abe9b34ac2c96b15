"""Kept picture tokens: what a fusion model makes of a picture before it sees a text, computed once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hivlp.errors import DataError
from hivlp.files.npy import read_npy
from hivlp.files.scratch import write_whole

HALF = torch.float16
"""What tokens are kept in."""
MEMORY = 1 << 30
"""Bytes of tokens that a model keeps in memory."""


class KeptTokens:
    """Tokens of pictures in float16: those last used in memory, and all in a folder, if one is given.

    Attributes:
        computed: pictures whose tokens were computed.
        found: pictures whose tokens were there.
    """

    def __init__(self, fingerprint: str, folder: Path | None = None, memory: int = MEMORY) -> None:
        """Nothing is kept yet, but what is in the folder.

        Args:
            fingerprint: of the model and its preparation of pictures; others' tokens are not taken.
            folder: for files, one a picture; it grows by :attr:`bytes_per_item` for each.
            memory: bytes in memory, at most.
        """
        self._fingerprint, self._folder, self._memory = fingerprint, folder, memory
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self.computed = self.found = 0

    @property
    def bytes_per_item(self) -> int:
        """Mean size of what is held in memory; 0 if nothing is."""
        return self._bytes // max(1, len(self._held))

    def get(self, keys: Sequence[str], compute: Callable[[list[int]], Sequence[Tensor | None]]) -> list[Tensor | None]:
        """The (N, width) float16 tokens of each picture, None for those that cannot be read.

        They are rounded to float16 whether they were kept or not, so that scores do not depend on it.

        Args:
            keys: of the pictures, each once.
            compute: makes the tokens of those at the given places.
        """
        there = {place: held for place, key in enumerate(keys) if (held := self._read(key)) is not None}
        missing = [place for place in range(len(keys)) if place not in there]
        self.found += len(there)
        found: dict[int, Tensor | None] = dict(there)
        for place, tokens in zip(missing, compute(missing) if missing else (), strict=True):
            found[place] = None if tokens is None else tokens.detach().to("cpu", HALF).contiguous()
            if (half := found[place]) is not None:
                self.computed += 1
                self._keep(keys[place], half)
                self._write(keys[place], half)
        return [found[place] for place in range(len(keys))]

    def _read(self, key: str) -> Tensor | None:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        if self._folder is None or not (path := self._path(key)).is_file():
            return None
        try:
            tokens = torch.from_numpy(read_npy(path, limit=self._memory, ndim=2).astype(np.float16, copy=False))
        except DataError:  # damaged: computed again, and written over
            return None
        self._keep(key, tokens)
        return tokens

    def _keep(self, key: str, tokens: Tensor) -> None:
        self._held[key] = tokens
        self._bytes += tokens.nbytes
        while self._bytes > self._memory and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= oldest.nbytes

    def _write(self, key: str, tokens: Tensor) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(key), lambda path: _save(path, tokens))

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(f"{self._fingerprint}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / f"{name}.npy"


def _save(path: Path, tokens: Tensor) -> None:
    with path.open("wb") as file:
        np.save(file, tokens.numpy(), allow_pickle=False)
