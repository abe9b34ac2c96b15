"""Projection heads: from a tower layer's features to a level's unit vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 1000
ANCHOR = 0.5  # weight of the untrained similarity; chosen on validation among 0, 0.25, 0.5, 1


class FittedHead(nn.Module):
    """A head with a linear part, which a closed form can set (:mod:`hivlp.train.fit`).

    Attributes:
        project: the linear part.
        reads_finest: whether the input is the finest level's own vector, which costs the tower nothing more, or the
            level's layer.
    """

    project: nn.Linear
    reads_finest = False

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Be the linear map ``weight`` (dim, width) with ``bias`` (dim,), and nothing else yet."""
        self.project.weight.copy_(weight)
        if bias is not None:
            self.project.bias.copy_(bias)

    @torch.no_grad()
    def absorb(self, mean: Tensor, deviation: Tensor) -> None:
        """Give for features what it gave for ``(features - mean) / deviation``."""
        for layer in self.input_layers():
            layer.weight.div_(deviation)
            if layer.bias is not None:
                layer.bias.sub_(layer.weight @ mean)

    def input_layers(self) -> tuple[nn.Linear, ...]:
        """The linear maps that read the head's input."""
        return (self.project,)


class LinearHead(FittedHead):
    """One linear map."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(self.project(features), dim=-1)


class ProjectionHead(FittedHead):
    """Fewer dimensions of the finest level's own vector."""

    reads_finest = True

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim, bias=False)

    def forward(self, finest: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(self.project(finest), dim=-1)


class PrefixHead(nn.Module):
    """The first dimensions of the finest level's own vector (Matryoshka; Kusupati et al., 2022)."""

    reads_finest = True

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        if dim > width:
            raise ValueError(f"a prefix of {dim} dims is more than the finest level's {width}")
        self.dim = dim

    def forward(self, finest: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(finest[:, : self.dim], dim=-1)


class MLPHead(FittedHead):
    """A linear map plus one hidden layer as wide as the features; for early layers, which are not linear in meaning."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(self.project(features) + self.out(F.gelu(self.hidden(features))), dim=-1)

    def start(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Be a linear map; the hidden layer adds nothing yet."""
        super().start(weight, bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def input_layers(self) -> tuple[nn.Linear, ...]:
        """The linear maps that read the head's input."""
        return self.project, self.hidden


class PrototypeHead(nn.Module):
    """A linear map of the features plus class values weighted by a classifier's softmax.

    The last ``classes`` inputs are the classifier's logits. With its class names' text embeddings as values, the second
    term is ConSE (Norouzi et al., 2014, eq. 3), which needs no image-text pair at all; training starts from there.
    """

    def __init__(self, width: int, dim: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.project = nn.Linear(width - classes, dim)
        self.values = nn.Parameter(torch.randn(classes, dim) / dim**0.5)
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        pooled, logits = features[:, : -self.classes], features[:, -self.classes :]
        attention = (self.sharpness * logits).softmax(-1)
        return F.normalize(self.project(pooled) + attention @ self.values, dim=-1)


class AnchoredPrototypeHead(nn.Module):
    """A prototype head beside an untrained one, half the dimensions each.

    The anchor stays what no pair has taught: on a few thousand pairs the trained half gains on what it saw and forgets
    some of what it did not, and the sum of both similarities is better than either. Its partner on the text side is
    :class:`AnchoredResidualHead`; their dot product is ``(trained + ANCHOR * untrained) / (1 + ANCHOR)``.
    """

    anchor: Tensor
    anchor_sharpness: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.trained = PrototypeHead(width, dim // 2)
        self.register_buffer("anchor", torch.zeros(CLASSES, dim // 2))
        self.register_buffer("anchor_sharpness", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        attention = (self.anchor_sharpness * features[:, -CLASSES:]).softmax(-1)
        return anchored(self.trained(features), F.normalize(attention @ self.anchor, dim=-1))


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


class AnchoredResidualHead(nn.Module):
    """A residual head beside the features themselves, half the dimensions each."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.trained = ResidualHead(width, dim // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, 2 width), rows of unit length."""
        return anchored(self.trained(features), F.normalize(features, dim=-1))


def anchored(trained: Tensor, untrained: Tensor) -> Tensor:
    """Join two unit vectors into one, so that dot products add up in the ratio 1 : ``ANCHOR``."""
    share = 1 / (1 + ANCHOR)
    return torch.cat([share**0.5 * trained, (1 - share) ** 0.5 * untrained], -1)


class IdentityHead(nn.Module):
    """The features as they are, for a level that is another model's own embedding."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        if width != dim:
            raise ValueError(f"an identity head keeps the width: {width} is not {dim}")

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, width), rows of unit length."""
        return F.normalize(features, dim=-1)


def build_head(kind: str, width: int, dim: int) -> nn.Module:
    """A head by name.

    Raises:
        ValueError: if the kind is unknown or does not fit the sizes.
    """
    if kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}; known: {', '.join(HEADS)}")
    if kind in ("prototype", "anchored_prototype") and width <= CLASSES:
        raise ValueError(f"a {kind} head reads features and {CLASSES} logits, not {width} numbers")
    if kind.startswith("anchored") and dim % 2:
        raise ValueError(f"a {kind} head needs an even number of dims, not {dim}")
    return HEADS[kind](width, dim)


def reads_finest(head: nn.Module) -> bool:
    """Whether a head reads the finest level's vector rather than its level's layer."""
    return bool(getattr(head, "reads_finest", False))


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearHead,
    "projection": ProjectionHead,
    "prefix": PrefixHead,
    "mlp": MLPHead,
    "prototype": PrototypeHead,
    "residual": ResidualHead,
    "anchored_prototype": AnchoredPrototypeHead,
    "anchored_residual": AnchoredResidualHead,
    "identity": IdentityHead,
}
