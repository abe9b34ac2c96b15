"""A batch: the pairs of one step, as the towers take them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from hivlp.encode.stream import default_workers
from hivlp.errors import HivlpError
from hivlp.model.tower import Features
from hivlp.train.pretext import Masked, MaskedLanguage
from hivlp.train.recipe.schema import Recipe

Images = Tensor | Features
Texts = tuple[Tensor, Tensor] | Features


@dataclass
class Batch:
    """A process's share of a step's pairs: pixels and tokens, or features where the towers are frozen.

    Attributes:
        image: pixels or features.
        text: tokens or features.
        ids: (B,) equal for pairs that may be exchanged.
        seed: of what the step draws for all processes together.
        masked: words to guess, if the recipe asks for it.
    """

    image: Images
    text: Texts
    ids: Tensor
    seed: int = 0
    masked: Masked | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, size: int) -> list[Batch]:
        """Parts of at most ``size`` pairs."""
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def rows(self, rows: slice) -> Batch:
        """Some of the pairs."""
        return self._map(lambda part: part[rows])

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        image: Images = _changed(self.image, change) if isinstance(self.image, dict) else change(self.image)
        text: Texts
        if isinstance(self.text, dict):
            text = _changed(self.text, change)
        else:
            text = change(self.text[0]), change(self.text[1])
        masked = None if self.masked is None else (change(self.masked[0]), change(self.masked[1]))
        return Batch(image, text, change(self.ids), self.seed, masked)


class Reads(Protocol):
    """What a run read, to be compared when it is resumed."""

    @property
    def digest(self) -> str:
        """Of all of it."""

    def changes(self, before: Any) -> str:
        """What is different since; empty if nothing is."""

    def save(self, path: Path) -> None:
        """Write as JSON."""

    @classmethod
    def load(cls, path: Path) -> Any:
        """What :meth:`save` wrote; None if it is not there or not whole."""


class Batches(Protocol):
    """The batches of a run, step by step, made ahead of the step that takes them.

    Attributes:
        words: which words to mask, if the recipe asks for it.
    """

    words: MaskedLanguage | None

    @property
    def contents(self) -> Reads:
        """What is trained on."""

    @property
    def epoch(self) -> int:
        """Pairs that an epoch visits."""

    def batches(self, first: int, steps: int) -> Iterator[tuple[int, Batch]]:
        """This process's share of each step from ``first`` to before ``steps``; good until the next one is taken."""

    def state(self) -> dict[str, Any]:
        """What :meth:`go_on` needs to go on after the last batch that was given; each process must call this."""

    def go_on(self, state: Any) -> None:
        """Begin where an earlier run's :meth:`state` was taken.

        Raises:
            RecipeError: if it is damaged.
        """

    def pictures(self, most: int) -> NDArray[np.uint8]:
        """(N, S, S, 3) uint8 of at most ``most`` pictures, drawn by the seed."""


def seed_of(recipe: Recipe, step: int) -> int:
    """:attr:`Batch.seed` of a step."""
    return int(np.random.default_rng([recipe.seed, 3, step]).integers(2**62))


def steps_of_epoch(pairs: int, batch_size: int) -> int:
    """How many steps go through so many pairs."""
    return -(-pairs // batch_size)


def workers_of(recipe: Recipe, accelerator: Accelerator) -> int:
    """How many workers of this process make batches: as the recipe says, or its share of the machine's cores."""
    if recipe.compute.workers is not None:
        return recipe.compute.workers
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return max(1, default_workers() // max(1, here))


def share_of(count: int, accelerator: Accelerator) -> slice:
    """Which of a batch's pairs are this process's: consecutive ones, as evenly as can be.

    Raises:
        HivlpError: if there are fewer pairs than processes.
    """
    if count < accelerator.num_processes:
        raise HivlpError(f"a batch of {count} cannot be shared by {accelerator.num_processes} processes")
    edges = np.linspace(0, count, accelerator.num_processes + 1).astype(int)
    return slice(int(edges[accelerator.process_index]), int(edges[accelerator.process_index + 1]))


def _changed(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return {layer: change(part) for layer, part in features.items()}
