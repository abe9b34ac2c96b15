"""Validation recall during training, the best weights, and early stopping."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hivlp.data.contents import Contents, read_pixels
from hivlp.data.load import load_pairs
from hivlp.data.texts import TextTokenizer
from hivlp.errors import DataError, PictureError, RecipeError
from hivlp.evaluate.recall import score
from hivlp.files.scratch import write_whole
from hivlp.levels import Embeddings
from hivlp.model.hivlp_model import HiVLPModel, distinct_state
from hivlp.train.inputs.features import tokenize
from hivlp.train.recipe.schema import Recipe, split_of

logger = logging.getLogger(__name__)
BATCH = 64


@dataclass
class Best:
    """The best measurement so far, and how many have come since."""

    recall: float = -1.0
    step: int = 0
    since: int = 0

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Best:
        """What a checkpoint kept.

        Raises:
            RecipeError: if it is something else.
        """
        try:
            return cls(float(kept["recall"]), int(kept["step"]), int(kept["since"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError("the checkpoint is damaged: train into a new folder, or without --resume") from error


class Validation:
    """Validation pairs, ready to be encoded by a model in training."""

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer) -> None:
        """Decode and tokenise once.

        Raises:
            DataError: if no picture can be read.
        """
        source, split = split_of(recipe.validation or "")
        pixels: list[NDArray[np.uint8]] = []
        texts: list[str] = []
        owner: list[int] = []
        hashes: list[str] = []
        pairs = load_pairs(source, split)[: recipe.watch.limit]
        for pair in pairs:
            content, prepared = read_pixels(pair, recipe.picture)
            hashes.append(content)
            if isinstance(prepared, PictureError):
                logger.warning("skipped %s: %s", pair.id, prepared)
                continue
            pixels.append(prepared)
            texts += pair.captions
            owner += [len(pixels) - 1] * len(pair.captions)
        if not pixels:
            raise DataError(f"{recipe.validation} holds no readable picture to watch")
        self.contents = Contents.of(pairs, hashes)
        self._pixels = torch.from_numpy(np.stack(pixels))
        self._ids, self._mask = tokenize(tokenizer, texts)
        self._owner = np.array(owner)
        self._shortlist = recipe.shortlist

    @torch.no_grad()
    def recalls(self, model: HiVLPModel, levels: tuple[str, ...], device: torch.device) -> dict[str, float]:
        """AR of each of these levels and of the cascade over them, in percent."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        images = [model.encode_image(part.to(device)) for part in torch.split(self._pixels, BATCH)]
        texts = [
            model.encode_text(ids.to(device), mask.to(device))
            for ids, mask in zip(torch.split(self._ids, BATCH), torch.split(self._mask, BATCH), strict=True)
        ]
        for module, training in modes:  # not ``model.train()``: frozen parts stay in evaluation mode
            module.training = training
        result = score(_joined(images, levels), _joined(texts, levels), self._owner, self._shortlist)
        return {**{level: result.levels[level].average for level in levels}, "cascade": result.cascade.average}


def keep_best(best: Best, recall: float, step: int, model: nn.Module, path: Path | None) -> None:
    """Note a measurement, and write the weights if it is the best one (on the process that has a path)."""
    if recall > best.recall:
        best.recall, best.step, best.since = recall, step, 0
        if path is not None:
            state = {name: tensor.cpu() for name, tensor in distinct_state(model).items()}
            write_whole(path, lambda place: save_file(state, place))
    else:
        best.since += 1


def load_best(model: nn.Module, path: Path) -> None:
    """Put the best weights back."""
    model.load_state_dict(load_file(path), strict=False)


def _joined(parts: list[dict[str, Tensor]], levels: tuple[str, ...]) -> Embeddings:
    return Embeddings({level: torch.cat([part[level] for part in parts]).float().cpu().numpy() for level in levels})
