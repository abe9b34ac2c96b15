"""Projection heads: from a tower layer's features to a level's unit vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.plugins import Registry


class FittedHead(nn.Module):
    """A head with a linear part, which a closed form can set (:mod:`hivlp.train.distillation.level`).

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

    def __init__(self, width: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim, bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, dim), rows of unit length."""
        return F.normalize(self.project(features), dim=-1)


class ProjectionHead(LinearHead):
    """Fewer dimensions of the finest level's own vector, by a matrix."""

    reads_finest = True

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(width, dim, bias=False)


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

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        if width != dim:
            raise ValueError(f"an identity head keeps the width: {width} is not {dim}")

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, width), rows of unit length."""
        return F.normalize(features, dim=-1)


HEADS: Registry[Callable[[int, int], nn.Module]] = Registry(
    "hivlp.heads",
    {
        "linear": LinearHead,
        "projection": ProjectionHead,
        "prefix": PrefixHead,
        "mlp": MLPHead,
        "residual": ResidualHead,
        "identity": IdentityHead,
    },
)
"""Classes of heads by name; each is built from the width of its input and the dims of its level.

A class may have ``reads_finest`` (see :class:`FittedHead`) and ``reads_classes``: its last inputs are the logits of an
image classifier. ``prototypes()``, if there is one, gives parameters with a learning rate of their own
(``optim.prototype_lr``).
"""


def build_head(kind: str, width: int, dim: int) -> nn.Module:
    """A head by name.

    Raises:
        ValueError: if the kind is unknown or does not fit the sizes.
    """
    head = HEADS.get(kind)
    if head is None:
        raise ValueError(f"unknown head {kind!r}; known: {', '.join(HEADS.names())}")
    return head(width, dim)


def reads_finest(head: object) -> bool:
    """Whether a head, or a class of heads, reads the finest level's vector rather than its level's layer."""
    return bool(getattr(head, "reads_finest", False))
