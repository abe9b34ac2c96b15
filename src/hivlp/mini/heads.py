"""Prototype heads over an image classifier's softmax (ConSE), alone or beside an untrained anchor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.model.heads import ResidualHead

CLASSES = 1000
ANCHOR = 0.5  # weight of the untrained similarity in training; chosen on validation among 0, 0.25, 0.5, 1
# Of a text that asks, chosen on photographs and validation stamps: weight of the untrained similarity, temperature of
# the softmax over classes, and how much of what it sees is added to what it says.
ASKED, CLASS_TEMPERATURE, SEEN = 0.75, 0.07, 0.5


class PrototypeHead(nn.Module):
    """A linear map of the features plus class values weighted by a classifier's softmax.

    The last ``classes`` inputs are the classifier's logits. With its class names' text embeddings as values, the second
    term is ConSE (Norouzi et al., 2014, eq. 3), which needs no image-text pair at all; training starts from there.
    """

    reads_classes = True

    def __init__(self, width: int, dim: int, classes: int = CLASSES) -> None:
        super().__init__()
        if width <= classes:
            raise ValueError(f"a prototype head reads features and {classes} logits, not {width} numbers")
        self.classes = classes
        self.project = nn.Linear(width - classes, dim)
        self.values = nn.Parameter(torch.randn(classes, dim) / dim**0.5)
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        pooled, logits = features[:, : -self.classes], features[:, -self.classes :]
        attention = (self.sharpness * logits).softmax(-1)
        return F.normalize(self.project(pooled) + attention @ self.values, dim=-1)

    def prototypes(self) -> list[nn.Parameter]:
        """What learns at a rate of its own."""
        return [self.values, self.sharpness]


class AnchoredPrototypeHead(nn.Module):
    """A prototype head beside an untrained one, half the dimensions each.

    The anchor stays what no pair has taught: on a few thousand pairs the trained half gains on what it saw and forgets
    some of what it did not, and the sum of both similarities is better than either. Its partner on the text side is
    :class:`AnchoredResidualHead`; their dot product in training is ``(trained + ANCHOR * untrained) / (1 + ANCHOR)``.
    """

    reads_classes = True
    anchor: Tensor
    anchor_sharpness: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.trained = PrototypeHead(width, _half(dim))
        self.register_buffer("anchor", torch.zeros(CLASSES, dim // 2))
        self.register_buffer("anchor_sharpness", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        attention = (self.anchor_sharpness * features[:, -CLASSES:]).softmax(-1)
        return anchored(self.trained(features), F.normalize(attention @ self.anchor, dim=-1))


class AnchoredResidualHead(nn.Module):
    """A residual head beside the features themselves, half the dimensions each.

    Outside training, the untrained half also says what pictures of such a text would show to the image classifier: the
    mean of the classes' vectors, weighted by a softmax over the text's similarity to them. And it weighs :data:`ASKED`
    rather than :data:`ANCHOR`, since what people ask is less like the training captions than these are like each other.

    Attributes:
        classes: (CLASSES, dim / 2) the image head's ``anchor``; zeros add nothing.
    """

    classes: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.trained = ResidualHead(width, _half(dim))
        self.register_buffer("classes", torch.zeros(CLASSES, dim // 2))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, 2 width), rows of unit length."""
        trained, unit = self.trained(features), F.normalize(features, dim=-1)
        if self.training:
            return anchored(trained, unit)
        likely = (unit @ self.classes.T / CLASS_TEMPERATURE).softmax(-1)
        seen = F.normalize(unit + SEEN * F.normalize(likely @ self.classes, dim=-1), dim=-1)
        return anchored(trained, seen, ASKED**2 / ANCHOR)


def anchored(trained: Tensor, untrained: Tensor, odds: float = ANCHOR) -> Tensor:
    """Join two unit vectors into one, their squared lengths in the ratio 1 : ``odds``.

    Dot products of two such vectors add up in the ratio 1 : the geometric mean of their odds.
    """
    share = 1 / (1 + odds)
    return torch.cat([share**0.5 * trained, (1 - share) ** 0.5 * untrained], -1)


def _half(dim: int) -> int:
    if dim % 2:
        raise ValueError(f"an anchored head needs an even number of dims, not {dim}")
    return dim // 2
