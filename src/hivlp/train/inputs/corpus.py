"""Batches of a training set that is decoded and tokenised before the first step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from hivlp.data.contents import Contents
from hivlp.model.tower import Features
from hivlp.train.inputs.augment import random_view
from hivlp.train.inputs.batch import Batch, seed_of, share_of, steps_of_epoch, workers_of
from hivlp.train.inputs.features import Corpus
from hivlp.train.pretext import MaskedLanguage
from hivlp.train.recipe.schema import Recipe


@dataclass
class Inputs:
    """What a step draws its batch from; the features are there when the towers are frozen.

    Attributes:
        corpus: pictures and captions.
        views: features of each view of the pictures.
        texts: features of the captions.
        words: which words to mask, if the recipe asks for it.
    """

    corpus: Corpus
    views: list[Features] | None = None
    texts: Features | None = None
    words: MaskedLanguage | None = None

    def batch(self, recipe: Recipe, step: int, rows: NDArray[np.int64], share: slice) -> Batch:
        """A random view of each picture and a random variant of each caption.

        Every choice is a function of the seed, the step and the place in the step's batch, whoever makes it.

        Args:
            recipe: seed and augmentation.
            step: number of the step.
            rows: the pairs of the whole batch.
            share: which of them are this process's.
        """
        corpus = self.corpus
        rng = np.random.default_rng([recipe.seed, 1, step])
        variants = [corpus.variants[row][rng.integers(len(corpus.variants[row]))] for row in rows]
        whole = torch.tensor(variants)
        texts = whole[share]
        seed = seed_of(recipe, step)
        ids = torch.from_numpy(corpus.caption_ids[rows])[share]
        if self.views is not None and self.texts is not None:
            choice = torch.from_numpy(rng.integers(len(self.views), size=len(rows)))[share]
            index = torch.from_numpy(rows)[share]
            image = {
                layer: torch.stack([view[layer][index] for view in self.views])[choice, torch.arange(len(index))]
                for layer in self.views[0]
            }
            return Batch(image, {layer: features[texts] for layer, features in self.texts.items()}, ids, seed)
        size = recipe.picture.size
        pixels = []
        for place in range(len(rows))[share]:
            own = np.random.default_rng([recipe.seed, 2, step, place])
            pixels.append(random_view(corpus.pixels[rows[place]], size, recipe.augment, own))
        mask = corpus.mask[texts]
        length = int(corpus.lengths[texts].max())
        masked = None
        if self.words is not None:
            ids_masked, counts = self.words.draw(corpus.ids[whole], corpus.mask[whole], seed)
            masked = ids_masked[share, :length], counts[share, :length]
        tokens = corpus.ids[texts, :length], mask[:, :length]
        return Batch(torch.from_numpy(np.stack(pixels)), tokens, ids, seed, masked)


def batches(
    corpus: Corpus, recipe: Recipe, epoch_steps: int, first: int, steps: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Steps from ``first`` on, each with its rows; an epoch is one shuffle of the repeated corpus.

    An epoch that is no multiple of the batch is cut into batches as even as can be, rather than into whole ones and a
    rest, which might be a single pair without anything to tell it from.
    """
    repeated = np.repeat(np.arange(len(corpus)), corpus.repeat)
    for epoch in range(first // epoch_steps, recipe.optim.epochs):
        order = np.random.default_rng([recipe.seed, 0, epoch]).permutation(repeated)
        for number, rows in enumerate(np.array_split(order, epoch_steps)):
            step = epoch * epoch_steps + number
            if first <= step < steps:
                yield step, rows


class CorpusBatches:
    """Batches of a corpus, made by threads while earlier steps are computed: each is a function of its step alone."""

    def __init__(self, recipe: Recipe, inputs: Inputs, accelerator: Accelerator) -> None:
        self.inputs, self._recipe, self._accelerator = inputs, recipe, accelerator
        self.words: MaskedLanguage | None = None

    @property
    def contents(self) -> Contents:
        """The pictures and captions."""
        return self.inputs.corpus.contents

    @property
    def epoch(self) -> int:
        """Pairs that an epoch visits, with repetitions."""
        return int(self.inputs.corpus.repeat.sum())

    def batches(self, first: int, steps: int) -> Iterator[tuple[int, Batch]]:
        """This process's share of each step from ``first`` to before ``steps``."""
        recipe, accelerator = self._recipe, self._accelerator
        self.inputs.words = self.words
        threads = workers_of(recipe, accelerator)

        def made(step: int, rows: NDArray[np.int64]) -> Batch:
            return self.inputs.batch(recipe, step, rows, share_of(len(rows), accelerator))

        each = steps_of_epoch(self.epoch, recipe.optim.batch_size)
        taken = batches(self.inputs.corpus, recipe, each, first, steps)
        if not threads:
            yield from ((step, made(step, rows)) for step, rows in taken)
            return
        pool = ThreadPoolExecutor(threads)
        ahead: deque[tuple[int, Future[Batch]]] = deque()
        try:
            for step, rows in taken:
                ahead.append((step, pool.submit(made, step, rows)))
                if len(ahead) > threads:
                    step, batch = ahead.popleft()
                    yield step, batch.result()
            while ahead:
                step, batch = ahead.popleft()
                yield step, batch.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def state(self) -> dict[str, Any]:
        """Nothing: the step says all."""
        return {}

    def go_on(self, state: Any) -> None:
        """Nothing to do."""

    def pictures(self, most: int) -> NDArray[np.uint8]:
        """(N, S, S, 3) uint8 of at most ``most`` pictures, drawn by the seed."""
        corpus = self.inputs.corpus
        return corpus.pixels[np.random.default_rng(self._recipe.seed).permutation(len(corpus))[:most]]
