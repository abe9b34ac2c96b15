"""UNITER as a re-ranker: its score alone, as LightningDOT re-ranked with it; pictures are regions of a detector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hivlp.errors import DataError
from hivlp.search.fusion import Shown
from hivlp.systems.fusion.model import FusionModel
from hivlp.systems.fusion.settings import Settings
from hivlp.systems.fusion.texts import Tokens
from hivlp.systems.regions import Kept, PictureRegions, RegionFolder, RegionLmdb
from hivlp.systems.uniter import Regions, UniterRanker, load_uniter

LONGEST = 512
"""Tokens of a text: evaluation keeps those that training drops."""


class UniterReranker(FusionModel):
    """UNITER over a source of region features, which finds a picture's by its file name."""

    depth, rule = 100, "score alone"

    def __init__(
        self, network: UniterRanker, tokens: Tokens, regions: Mapping[str, PictureRegions], **about: Any
    ) -> None:
        """A re-ranker.

        Args:
            network: with weights.
            tokens: of bert-base-cased.
            regions: by the file names of region features.
            about: see :class:`FusionModel`.
        """
        super().__init__(**about)
        self._network, self._tokens, self._regions = network, tokens, regions

    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(T,) ids of each text."""
        return self._tokens(texts)

    def read(self, picture: Shown) -> PictureRegions:
        """The regions of a picture.

        Raises:
            DataError: if there are none for a file of this name, or they are another detector's.
        """
        for name in region_names(picture.name.rpartition("/")[2]):
            try:
                regions = self._regions[name]
            except KeyError:
                continue
            if (width := regions.features.shape[1]) != (wanted := self._network.uniter.config.features):
                raise DataError(f"its regions have {width} features each, where the model takes {wanted}")
            return regions
        raise DataError("there are no region features for it")

    def encode_pictures(self, pictures: Sequence[PictureRegions]) -> list[Tensor]:
        """(N, width) states of each picture's regions before the first layer."""
        counts = [len(each.features) for each in pictures]
        seen, placed = (
            pad_sequence([torch.from_numpy(np.asarray(part)) for part in parts], batch_first=True)
            for parts in zip(*pictures, strict=True)
        )
        mask = torch.arange(seen.shape[1]) < torch.tensor(counts)[:, None]
        states = self._network.uniter.embed_regions(Regions(seen, placed, mask))
        return [row[:count] for row, count in zip(states, counts, strict=True)]

    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """See :meth:`FusionModel.match`."""
        scores: Tensor = self._network(texts, text_mask, pictures, picture_mask)
        return scores


def region_names(file: str) -> Iterator[str]:
    """Names that a picture's region features may have.

    As published: ``1000092795.jpg`` of Flickr30k is ``flickr30k_001000092795.npz``,
    ``COCO_val2014_000000391895.jpg`` is ``coco_val2014_000000391895.npz``; then the picture's own name.
    """
    stem = file.rpartition(".")[0] or file
    if stem.startswith("COCO_"):
        yield f"coco_{stem.removeprefix('COCO_')}.npz"
    if stem.isdecimal():
        yield f"flickr30k_{int(stem):012}.npz"
    yield f"{stem}.npz"


def load(settings: Settings) -> UniterReranker:
    """A model folder with ``checkpoint``, ``regions`` (a folder) and ``region_count`` (36; or nothing: 10 to 100)."""
    folder = settings.path("regions")
    kept = Kept(None) if settings.number("region_count", 0) else Kept()
    lmdb = any(folder.glob("*/data.mdb"))
    regions: Mapping[str, PictureRegions] = RegionLmdb(folder, kept) if lmdb else RegionFolder(folder, kept)
    network = load_uniter(settings.path("checkpoint"))
    config = network.uniter.config
    tokens = Tokens(settings.folder, LONGEST, vocabulary=config.vocabulary, positions=config.positions)
    return UniterReranker(network, tokens, regions, **settings.about("checkpoint"))
