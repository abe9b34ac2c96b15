"""One optimiser step: the batch, its random views, and the gradients (GradCache with micro-batches)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from hivlp.errors import HivlpError
from hivlp.model.hivlp_model import LevelVectors
from hivlp.model.tower import Features
from hivlp.objective import HierarchicalObjective
from hivlp.objective.gather import total
from hivlp.train.inputs.augment import random_view
from hivlp.train.inputs.features import Corpus
from hivlp.train.pretext import Masked, MaskedLanguage, Matching
from hivlp.train.recipe.schema import Recipe

Images = Tensor | Features
Texts = tuple[Tensor, Tensor] | Features

FAILED = "so training has failed: try a lower optim.lr, optim.clip or another compute.precision"


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
        seed = int(np.random.default_rng([recipe.seed, 3, step]).integers(2**62))
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


def steps_of_epoch(pairs: int, batch_size: int) -> int:
    """How many steps go through so many pairs."""
    return -(-pairs // batch_size)


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


def share_of(count: int, accelerator: Accelerator) -> slice:
    """Which of a batch's pairs are this process's: consecutive ones, as evenly as can be.

    Raises:
        HivlpError: if there are fewer pairs than processes.
    """
    if count < accelerator.num_processes:
        raise HivlpError(f"a batch of {count} cannot be shared by {accelerator.num_processes} processes")
    edges = np.linspace(0, count, accelerator.num_processes + 1).astype(int)
    return slice(int(edges[accelerator.process_index]), int(edges[accelerator.process_index + 1]))


@dataclass
class Losses:
    """What a step minimises.

    Attributes:
        objective: of the levels.
        matching: pairs told from look-alikes, if the recipe asks for it.
        recipe: the weights.
    """

    objective: HierarchicalObjective
    matching: Matching | None
    recipe: Recipe

    def of_vectors(
        self, image: LevelVectors, text: LevelVectors, ids: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all losses that need nothing but vectors, and each by name."""
        terms: dict[str, Tensor] = self.objective(image, text, ids)
        loss = terms["loss"]
        if self.matching is not None:
            finest = self.objective.levels[-1]
            found = self.matching(image[finest], text[finest], ids, seed)
            loss = loss + self.recipe.pretext.matching * found
            terms["pretext/matching"] = found
        return loss, terms


def backward(
    model: nn.Module, losses: Losses, batch: Batch, recipe: Recipe, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Terms of the loss over all processes, with their gradients left in the parameters.

    With ``micro_batch`` the towers see a few pairs at a time, twice: first for the vectors, from which the loss over
    the whole batch gives each vector's gradient, then again to carry that gradient into the weights (GradCache; Gao et
    al., 2021). The result equals that of the whole batch at once but for rounding.

    Raises:
        HivlpError: if the loss is no number.
    """
    micro = recipe.compute.micro_batch
    if not micro or len(batch) <= micro:
        image, text, more = model(batch.image, batch.text, batch.masked)
        loss, terms = losses.of_vectors(image, text, batch.ids, batch.seed)
        accelerator.backward(loss + _weighted(more, recipe, accelerator))
    else:
        terms, more = _through_vectors(model, losses, batch, batch.split(micro), recipe, accelerator)
    shares = [part.detach().clone() for part in more.values()]
    total(shares)
    terms |= {f"pretext/{name}": part for name, part in zip(more, shares, strict=True)}
    for name, term in terms.items():
        if not bool(term.detach().isfinite()):
            raise HivlpError(f"{name} is {float(term.detach())}, {FAILED}")
    return terms


def _through_vectors(
    model: nn.Module, losses: Losses, batch: Batch, parts: list[Batch], recipe: Recipe, accelerator: Accelerator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    micro = recipe.compute.micro_batch
    states, images, texts = [], [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(batch.ids.device))
            image, text, _ = model(part.image, part.text, part.masked)
            images.append(image)
            texts.append(text)
    sides = [
        {level: torch.cat([part[level] for part in side]).detach().requires_grad_() for level in side[0]}
        for side in (images, texts)
    ]
    loss, terms = losses.of_vectors(sides[0], sides[1], batch.ids, batch.seed)
    accelerator.backward(loss)
    pretext: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        rows = slice(number * micro, (number + 1) * micro)
        last = number == len(parts) - 1
        _set_random_state(states[number], batch.ids.device)
        # Gradients travel between processes once, with the last part.
        with accelerator.no_sync(model) if not last else accelerator.autocast():
            *again, more = model(part.image, part.text, part.masked)
            for name, value in more.items():
                pretext[name] = pretext.get(name, torch.zeros_like(value)) + value.detach()
            carried = torch.zeros((), device=batch.ids.device)
            for vectors, side in zip(again, sides, strict=True):
                for level, vector in vectors.items():
                    if (gradient := side[level].grad) is not None:
                        carried = carried + (vector * gradient[rows]).sum()
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            whole = carried + scale * _weighted(more, recipe, accelerator)
            whole.backward()  # type: ignore[no-untyped-call]
    return terms, pretext


def _weighted(losses: dict[str, Tensor], recipe: Recipe, accelerator: Accelerator) -> Tensor | float:
    """The pretext tasks' part of the loss, of which each process has a share, while gradients are averaged."""
    parts: list[Tensor] = [getattr(recipe.pretext, name) * loss for name, loss in losses.items()]
    return sum(parts, 0.0) * float(accelerator.num_processes)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _changed(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return {layer: change(part) for layer, part in features.items()}
