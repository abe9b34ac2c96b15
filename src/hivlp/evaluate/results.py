"""Results of an evaluation: recall@K by direction, of each level alone and of the cascade over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Recalls:
    """Recall@K in both directions, in percent rounded to two places.

    Attributes:
        text_to_image: ``R@1``, ``R@5``, ``R@10``: captions whose picture is among the K best.
        image_to_text: the same keys: pictures with one of their own captions among the K best.
    """

    text_to_image: Mapping[str, float]
    image_to_text: Mapping[str, float]

    @classmethod
    def of_ranks(cls, to_image: NDArray[np.int64], to_text: NDArray[np.int64]) -> Recalls:
        """Recalls from (M,) ranks of captions' pictures and (N,) ranks of pictures' best captions, counted from 0."""
        both = (
            {f"R@{cutoff}": round(float(100 * (ranks < cutoff).mean()), 2) for cutoff in CUTOFFS}
            for ranks in (to_image, to_text)
        )
        return cls(*both)

    @classmethod
    def mean(cls, parts: Sequence[Recalls]) -> Recalls:
        """Means over folds."""
        return cls(
            *(
                {
                    cutoff: round(fmean(getattr(part, way)[cutoff] for part in parts), 2)
                    for cutoff in getattr(parts[0], way)
                }
                for way in DIRECTIONS
            )
        )

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, in percent."""
        return round(self._sum(), 2)

    @property
    def average(self) -> float:
        """Mean of the six recalls (AR), in percent."""
        return round(self._sum() / 6, 2)

    def _sum(self) -> float:
        return sum(self.text_to_image.values()) + sum(self.image_to_text.values())

    def retained(self, whole: Recalls) -> dict[str, dict[str, float]]:
        """These recalls as shares of others', by direction and cutoff; 1 where there was nothing to keep."""
        return {
            direction: {
                cutoff: round(getattr(self, direction)[cutoff] / value, 4) if value else 1.0
                for cutoff, value in getattr(whole, direction).items()
            }
            for direction in DIRECTIONS
        }

    def to_json(self) -> dict[str, Any]:
        """``text_to_image``, ``image_to_text``, ``AR``, ``rsum``."""
        return {**asdict(self), "AR": self.average, "rsum": self.rsum}


@dataclass(frozen=True)
class Reranked:
    """Recalls of a cascade and a fusion model after it.

    Attributes:
        recalls: of the fusion model's order.
        stage: what it did: model, candidates, rule.
        pairs: that it scored.
        seconds: that this took.
    """

    recalls: Recalls
    stage: Mapping[str, Any]
    pairs: int
    seconds: float

    @classmethod
    def mean(cls, parts: Sequence[Reranked]) -> Reranked:
        """Means over folds; pairs and seconds are summed."""
        recalls = Recalls.mean([part.recalls for part in parts])
        pairs, seconds = sum(part.pairs for part in parts), round(sum(part.seconds for part in parts), 2)
        return cls(recalls, parts[0].stage, pairs, seconds)

    def to_json(self) -> dict[str, Any]:
        """Recalls, ``stage``, ``pairs``, ``seconds``."""
        told = asdict(self)
        del told["recalls"]
        return {**self.recalls.to_json(), **told}


@dataclass(frozen=True)
class Scores:
    """Recalls of one collection.

    Attributes:
        levels: level -> recalls of its float32 vectors alone, coarse to fine.
        cascade: recalls of a search that passes ``shortlist`` candidates from level to level.
        shortlist: candidates that each coarser level hands on.
        reranked: recalls of a fusion model after the cascade, if one was asked.
    """

    levels: Mapping[str, Recalls]
    cascade: Recalls
    shortlist: int
    reranked: Reranked | None = None

    @classmethod
    def mean(cls, parts: Sequence[Scores]) -> Scores:
        """Means over folds of one model's scores."""
        levels = {name: Recalls.mean([part.levels[name] for part in parts]) for name in parts[0].levels}
        after = [part.reranked for part in parts if part.reranked is not None]
        cascade = Recalls.mean([part.cascade for part in parts])
        return cls(levels, cascade, parts[0].shortlist, Reranked.mean(after) if after else None)

    @property
    def retained(self) -> dict[str, dict[str, float]]:
        """Shares of the finest level's recalls that the cascade keeps, by direction and cutoff."""
        return self.cascade.retained(list(self.levels.values())[-1])

    def to_json(self) -> dict[str, Any]:
        """``levels``; ``cascade`` with its ``shortlist`` and what it ``retained`` of the finest level; ``reranked``."""
        levels = {name: recalls.to_json() for name, recalls in self.levels.items()}
        told = {"shortlist": self.shortlist, "retained": self.retained}
        after = {} if self.reranked is None else {"reranked": self.reranked.to_json()}
        return {"levels": levels, "cascade": {**self.cascade.to_json(), **told}, **after}


@dataclass(frozen=True)
class Evaluation:
    """Recalls of a model on pictures with captions.

    Attributes:
        model: its name.
        images: pictures that were read.
        captions: of them.
        skipped: pictures that could not be read, and damaged parts of their source.
        scores: the recalls.
    """

    model: str
    images: int
    captions: int
    skipped: int
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp evaluate --json`` prints."""
        counts = {"images": self.images, "captions": self.captions, "skipped": self.skipped}
        return {"model": self.model, **counts, **self.scores.to_json()}
