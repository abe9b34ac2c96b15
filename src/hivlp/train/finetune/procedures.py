"""Losses of the published fine-tuning procedures, and the scores by which their weights are chosen.

UNITER learns from the hardest of many candidates (Chen et al., 2020, section 4.2), METER tells a picture's text from
random ones (Dou et al., 2022, appendix A), LightningDOT from the others in its batch (Sun et al., 2021, equation 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hivlp.config import PictureConfig
from hivlp.data.pairs import Pair
from hivlp.data.pictures import load_pixels
from hivlp.errors import DataError, RecipeError
from hivlp.systems.fusion.meter import IMAGENET_MEAN, IMAGENET_STD
from hivlp.systems.fusion.model import CLIP_MEAN, CLIP_STD
from hivlp.systems.fusion.texts import Tokens
from hivlp.systems.fusion.uniter import region_names
from hivlp.systems.lightningdot import LightningDot, contrastive_loss, load_image_tower, load_lightningdot
from hivlp.systems.meter import Meter, MeterConfig, load_meter
from hivlp.systems.regions import PictureRegions, RegionFolder, RegionLmdb
from hivlp.systems.uniter import Regions, UniterConfig, UniterRanker, load_uniter
from hivlp.train.finetune.recipe import FinetuneRecipe
from hivlp.train.starting import load_part
from hivlp.typed import build

ROBERTA_PAD = 1
"""Id of RoBERTa's padding, from which it counts positions."""


@dataclass(frozen=True)
class Examples:
    """Pictures and the captions of each.

    Attributes:
        pictures: with at least one caption each.
        captions: all of them.
        owner: (T,) row of each caption's picture.
    """

    pictures: Sequence[Pair]
    captions: Sequence[str]
    owner: NDArray[np.int64]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Examples:
        """The pairs' own."""
        owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
        return cls(pairs, [caption for pair in pairs for caption in pair.captions], owner)

    def draw_other(self, rng: np.random.Generator, picture: int, count: int) -> NDArray[np.int64]:
        """Captions of other pictures, at random with replacement."""
        found = rng.integers(len(self.captions), size=4 * count + 16)
        others: NDArray[np.int64] = found[self.owner[found] != picture][:count]
        return others


class Procedure(Protocol):
    """One system's fine-tuning."""

    @property
    def network(self) -> nn.Module:
        """The network whose parameters learn."""

    def loss(self, examples: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Scalar, of a step's captions."""

    def scores(self, pictures: Sequence[Pair], captions: Sequence[str]) -> Tensor:
        """(pictures, captions) of all pairs."""


class UniterProcedure:
    """A caption with the hardest of ``pool`` pictures, and its picture with the hardest captions.

    Loss: ``mean max(0, margin + σ(wrong) - σ(right))``. Candidates are scored without gradients in evaluation mode.
    """

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self._recipe = recipe
        self.network: UniterRanker = (
            UniterRanker(build(UniterConfig, recipe.size, "size"))
            if recipe.checkpoint is None
            else load_uniter(Path(recipe.checkpoint))
        )
        self._tokens = Tokens(Path(recipe.tokenizer), recipe.max_tokens)
        self._regions = region_source(recipe)

    def loss(self, examples: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """See :meth:`Procedure.loss`."""
        parts = []
        for row in rows:
            own, text = int(examples.owner[row]), examples.captions[row]
            wrong = rng.integers(len(examples.pictures), size=2 * self._recipe.pool)
            pictures = [examples.pictures[n] for n in wrong[wrong != own][: self._recipe.pool]]
            texts = [examples.captions[n] for n in examples.draw_other(rng, own, self._recipe.pool)]
            right = examples.pictures[own]
            parts += [self._hardest(right, text, pictures, [text]), self._hardest(right, text, [right], texts)]
        return torch.stack(parts).mean()

    def _hardest(self, right: Pair, text: str, pictures: Sequence[Pair], texts: Sequence[str]) -> Tensor:
        count = max(len(pictures), len(texts))
        pairs = [(pictures[n % len(pictures)], texts[n % len(texts)]) for n in range(count)]
        training = self.network.training
        with torch.no_grad():
            scores = self._score(pairs, training=False)
        hardest = scores.topk(min(self._recipe.negatives, count)).indices.tolist()
        found = self._score([(right, text), *(pairs[n] for n in hardest)], training=training).sigmoid()
        return (self._recipe.margin + found[1:] - found[:1]).clamp(min=0).mean()

    def scores(self, pictures: Sequence[Pair], captions: Sequence[str]) -> Tensor:
        """See :meth:`Procedure.scores`."""
        return torch.stack(
            [self._score([(picture, text) for text in captions], training=False) for picture in pictures]
        )

    def _score(self, pairs: Sequence[tuple[Pair, str]], *, training: bool) -> Tensor:
        device = next(self.network.parameters()).device
        tokens, mask = padded(self._tokens([text for _, text in pairs]), 0, device)
        regions = batched([self._regions(picture) for picture, _ in pairs], device)
        self.network.train(training)
        scores: Tensor = self.network(tokens, mask, self.network.uniter.embed_regions(regions), regions.mask)
        return scores


class MeterProcedure:
    """A picture with its caption and random ones: cross-entropy over their ranking logits, and matching beside it.

    For matching, half of the pictures are others; its head stays as it is, as published.
    """

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self._recipe = recipe
        self.network: Meter = (
            Meter(build(MeterConfig, recipe.size, "size"))
            if recipe.checkpoint is None
            else load_meter(Path(recipe.checkpoint), int(recipe.size.get("size", 384)))
        )
        self.network.itm_score.requires_grad_(False)
        self._tokens = Tokens(Path(recipe.tokenizer), recipe.max_tokens)
        clip = self.network.config.vision == "clip"
        mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
        self._picture = PictureConfig(self.network.config.size, "crop", mean, std)

    def loss(self, examples: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """See :meth:`Procedure.loss`."""
        network, each = self.network, 1 + self._recipe.negatives
        image = network.encode_image(self._pixels([examples.pictures[examples.owner[row]] for row in rows]))
        # Uniformly of all captions, the picture's own others among them, as published.
        chosen = [[row, *rng.integers(len(examples.captions), size=each - 1)] for row in rows]
        states, mask = self._texts([examples.captions[number] for some in chosen for number in some])
        logits = network.fuse(states, mask, image.repeat_interleave(each, 0)).view(len(rows), each)
        ranking = F.cross_entropy(logits.float(), torch.zeros(len(rows), dtype=torch.long, device=logits.device))
        kept = torch.from_numpy(rng.random(len(rows)) < 0.5).to(image.device)
        other = network.encode_image(
            self._pixels([examples.pictures[n] for n in rng.integers(len(examples.pictures), size=len(rows))])
        )
        seen = torch.where(kept[:, None, None], image, other)
        matched = network.itm_score.fc(network.pooled(states[::each], mask[::each], seen))
        return ranking + F.cross_entropy(matched.float(), kept.long())

    def scores(self, pictures: Sequence[Pair], captions: Sequence[str]) -> Tensor:
        """See :meth:`Procedure.scores`."""
        states, mask = self._texts(captions)
        images = (self.network.encode_image(self._pixels([picture])) for picture in pictures)
        return torch.stack([self.network.fuse(states, mask, one.expand(len(states), -1, -1)) for one in images])

    def _texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = padded(self._tokens(texts), ROBERTA_PAD, next(self.network.parameters()).device)
        return self.network.encode_text(tokens, mask), mask

    def _pixels(self, pictures: Sequence[Pair]) -> Tensor:
        device = next(self.network.parameters()).device
        pixels = np.stack([load_pixels(picture.read(), self._picture) for picture in pictures])
        found = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
        mean, std = (
            torch.tensor(value, device=device)[:, None, None] for value in (self._picture.mean, self._picture.std)
        )
        return (found - mean) / std


class LightningDotProcedure:
    """Captions and pictures of a batch told from each other, by the inner product of their vectors."""

    def __init__(self, recipe: FinetuneRecipe) -> None:
        size = build(UniterConfig, recipe.size, "size")
        if recipe.checkpoint is None:
            self.network = LightningDot(size, size)
        elif recipe.text_checkpoint is None:
            self.network = load_lightningdot(Path(recipe.checkpoint))
        else:
            tower = load_image_tower(Path(recipe.checkpoint))
            self.network = LightningDot(tower.config, size)
            self.network.img_model.bert = tower
            load_part(self.network.txt_model.bert, "text_checkpoint", recipe.text_checkpoint)
        self._tokens = Tokens(Path(recipe.tokenizer), recipe.max_tokens)
        self._regions = region_source(recipe)

    def loss(self, examples: Examples, rows: NDArray[np.int64], _: np.random.Generator) -> Tensor:
        """See :meth:`Procedure.loss`."""
        images = self._images([examples.pictures[examples.owner[row]] for row in rows])
        return contrastive_loss(images, self._texts([examples.captions[row] for row in rows]))

    def scores(self, pictures: Sequence[Pair], captions: Sequence[str]) -> Tensor:
        """See :meth:`Procedure.scores`."""
        return self._images(pictures) @ self._texts(captions).T

    def _images(self, pictures: Sequence[Pair]) -> Tensor:
        device = next(self.network.parameters()).device
        return self.network.encode_regions(batched([self._regions(picture) for picture in pictures], device))

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self.network.encode_text(*padded(self._tokens(texts), 0, next(self.network.parameters()).device))


PROCEDURES: Mapping[str, Callable[[FinetuneRecipe], Procedure]] = {
    "uniter": UniterProcedure,
    "meter": MeterProcedure,
    "lightningdot": LightningDotProcedure,
}


def region_source(recipe: FinetuneRecipe) -> Callable[[Pair], PictureRegions]:
    """What finds a picture's regions by its file name.

    Raises:
        DataError: if the folder holds none, and from what is returned, if a picture has none.
    """
    folder = Path(recipe.regions or "")
    lmdb = any(folder.glob("*/data.mdb"))
    regions: Mapping[str, PictureRegions] = RegionLmdb(folder) if lmdb else RegionFolder(folder)

    def find(picture: Pair) -> PictureRegions:
        for name in region_names(picture.id.rpartition("/")[2]):
            try:
                return regions[name]
            except KeyError:
                continue
        raise DataError(f"{folder} has no region features of {picture.id}")

    return find


def padded(parts: Sequence[Tensor], value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask of texts."""
    lengths = torch.tensor([len(part) for part in parts])
    tokens = pad_sequence(list(parts), batch_first=True, padding_value=value)
    return tokens.to(device), (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)


def batched(pictures: Sequence[PictureRegions], device: torch.device) -> Regions:
    """Regions of some pictures as one batch."""
    features, boxes = (
        pad_sequence([torch.from_numpy(np.asarray(part)) for part in parts], batch_first=True).to(device)
        for parts in zip(*pictures, strict=True)
    )
    counts = torch.tensor([len(each.features) for each in pictures])
    return Regions(features, boxes, (torch.arange(features.shape[1]) < counts[:, None]).to(device))


def procedure_of(recipe: FinetuneRecipe) -> Procedure:
    """The procedure of a recipe, with its weights.

    Raises:
        ModelError: if weights or tokenizer cannot be read, or do not fit.
        RecipeError: if the recipe names half of what LightningDOT starts from.
    """
    if recipe.checkpoint is None and recipe.text_checkpoint is not None:
        raise RecipeError("text_checkpoint goes with checkpoint, a pre-trained image tower")
    return PROCEDURES[recipe.system](recipe)
