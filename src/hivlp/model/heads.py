"""Projection heads: from a tower layer's features to a level's unit vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """One linear map."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(self.project(features), dim=-1)


class MLPHead(nn.Module):
    """A linear map plus one hidden layer as wide as the features; for early layers, which are not linear in meaning."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(self.project(features) + self.out(F.gelu(self.hidden(features))), dim=-1)


class PrototypeHead(nn.Module):
    """A linear map plus soft attention over prototypes.

    ``value = softmax(keys · features) @ values``: with a classifier's rows as keys and its class names' text
    embeddings as values this is ConSE (Norouzi et al., 2014, eq. 3), which needs no image-text pair at all, as a
    differentiable head that training starts from.
    """

    def __init__(self, width: int, dim: int, prototypes: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.keys = nn.Linear(width, prototypes)
        self.values = nn.Parameter(torch.randn(prototypes, dim) / dim**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        attention = self.keys(features).softmax(-1)
        return F.normalize(self.project(features) + attention @ self.values, dim=-1)


class ResidualHead(nn.Module):
    """The features themselves plus a learned correction; for towers that already end in an embedding."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        if width != dim:
            raise ValueError(f"a residual head keeps the width: {width} is not {dim}")
        self.project = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        unit = F.normalize(features, dim=-1)
        return F.normalize(unit + self.project(unit), dim=-1)


class IdentityHead(nn.Module):
    """The features as they are, for a level that is another model's own embedding."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, width), rows of unit length."""
        return F.normalize(features, dim=-1)


def build_head(kind: str, width: int, dim: int, prototypes: int = 1000) -> nn.Module:
    """A head by name: linear, mlp, prototype, residual or identity.

    Raises:
        ValueError: if the kind is unknown or does not fit the sizes.
    """
    if kind == "linear":
        return LinearHead(width, dim)
    if kind == "mlp":
        return MLPHead(width, dim)
    if kind == "prototype":
        return PrototypeHead(width, dim, prototypes)
    if kind == "residual":
        return ResidualHead(width, dim)
    if kind == "identity":
        if width != dim:
            raise ValueError(f"an identity head keeps the width: {width} is not {dim}")
        return IdentityHead()
    raise ValueError(f"unknown head {kind!r}; known: linear, mlp, prototype, residual, identity")
