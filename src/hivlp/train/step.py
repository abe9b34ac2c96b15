"""One step: which pairs, which views of them, and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from hivlp.errors import HivlpError
from hivlp.model.tower import Features
from hivlp.objective import HierarchicalObjective
from hivlp.train.augment import random_view
from hivlp.train.features import Corpus
from hivlp.train.recipe import Recipe

Images = Tensor | Features
Texts = tuple[Tensor, Tensor] | Features


@dataclass
class Batch:
    """A process's share of a step's pairs: pixels and tokens, or features where the towers are frozen."""

    image: Images
    text: Texts
    ids: Tensor

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
        return Batch(image, text, change(self.ids))


@dataclass
class Inputs:
    """What a step draws its batch from; the features are there when the towers are frozen."""

    corpus: Corpus
    views: list[Features] | None = None
    texts: Features | None = None

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
        texts = torch.tensor(variants)[share]
        ids = torch.from_numpy(corpus.caption_ids[rows])[share]
        if self.views is not None and self.texts is not None:
            choice = torch.from_numpy(rng.integers(len(self.views), size=len(rows)))[share]
            index = torch.from_numpy(rows)[share]
            image = {
                layer: torch.stack([view[layer][index] for view in self.views])[choice, torch.arange(len(index))]
                for layer in self.views[0]
            }
            return Batch(image, {layer: features[texts] for layer, features in self.texts.items()}, ids)
        size = recipe.picture.size
        pixels = []
        for place in range(len(rows))[share]:
            own = np.random.default_rng([recipe.seed, 2, step, place])
            pixels.append(random_view(corpus.pixels[rows[place]], size, recipe.augment, own))
        mask = corpus.mask[texts]
        length = int(corpus.lengths[texts].max())
        return Batch(torch.from_numpy(np.stack(pixels)), (corpus.ids[texts, :length], mask[:, :length]), ids)


def batches(
    corpus: Corpus, recipe: Recipe, epoch_steps: int, first: int, steps: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Steps from ``first`` on, each with its rows; an epoch is one shuffle of the repeated corpus."""
    repeated = np.repeat(np.arange(len(corpus)), corpus.repeat)
    size = recipe.optim.batch_size
    for epoch in range(first // epoch_steps, recipe.optim.epochs):
        order = np.random.default_rng([recipe.seed, 0, epoch]).permutation(repeated)
        for number in range(epoch_steps):
            step = epoch * epoch_steps + number
            if first <= step < steps:
                yield step, order[number * size : (number + 1) * size]


def share_of(count: int, accelerator: Accelerator) -> slice:
    """Which of a batch's pairs are this process's: consecutive ones, as evenly as can be.

    Raises:
        HivlpError: if there are fewer pairs than processes.
    """
    if count < accelerator.num_processes:
        raise HivlpError(f"a batch of {count} cannot be shared by {accelerator.num_processes} processes")
    edges = np.linspace(0, count, accelerator.num_processes + 1).astype(int)
    return slice(int(edges[accelerator.process_index]), int(edges[accelerator.process_index + 1]))


def backward(
    model: nn.Module, objective: HierarchicalObjective, batch: Batch, recipe: Recipe, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Terms of the loss, with their gradients left in the parameters.

    With ``micro_batch`` the towers see a few pairs at a time, twice: first for the vectors, from which the loss over
    the whole batch gives each vector's gradient, then again to carry that gradient into the weights (GradCache; Gao et
    al., 2021). The same, to rounding, as the whole batch at once.
    """
    micro = recipe.compute.micro_batch
    if not micro or len(batch) <= micro:
        image, text, more = model(batch.image, batch.text, batch.ids)
        terms: dict[str, Tensor] = objective(image, text, batch.ids)
        accelerator.backward(terms["loss"] + _weighted(more, recipe))
        return {**terms, **{f"pretext/{name}": loss for name, loss in more.items()}}
    return _through_vectors(model, objective, batch, batch.split(micro), recipe, accelerator)


def _through_vectors(
    model: nn.Module,
    objective: HierarchicalObjective,
    batch: Batch,
    parts: list[Batch],
    recipe: Recipe,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    micro = recipe.compute.micro_batch
    states, images, texts = [], [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(batch.ids.device))
            image, text, _ = model(part.image, part.text, part.ids)
            images.append(image)
            texts.append(text)
    sides = [
        {level: torch.cat([part[level] for part in side]).detach().requires_grad_() for level in side[0]}
        for side in (images, texts)
    ]
    terms: dict[str, Tensor] = objective(*sides, batch.ids)
    accelerator.backward(terms["loss"])
    pretext: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        rows = slice(number * micro, (number + 1) * micro)
        last = number == len(parts) - 1
        _set_random_state(states[number], batch.ids.device)
        # Gradients travel between processes once, with the last part.
        with accelerator.no_sync(model) if not last else accelerator.autocast():
            *again, more = model(part.image, part.text, part.ids)
            share = len(part) / len(batch)
            for name, loss in more.items():
                name = f"pretext/{name}"
                pretext[name] = pretext.get(name, torch.zeros_like(loss)) + share * loss.detach()
            carried = torch.zeros((), device=batch.ids.device)
            for vectors, side in zip(again, sides, strict=True):
                for level, vector in vectors.items():
                    if (gradient := side[level].grad) is not None:
                        carried = carried + (vector * gradient[rows]).sum()
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            whole = carried + scale * share * _weighted(more, recipe)
            whole.backward()  # type: ignore[no-untyped-call]
    return {**terms, **pretext}


def _weighted(losses: dict[str, Tensor], recipe: Recipe) -> Tensor | float:
    """The pretext tasks' part of the loss."""
    return sum((getattr(recipe.pretext, name) * loss for name, loss in losses.items()), 0.0)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _changed(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return {layer: change(part) for layer, part in features.items()}
