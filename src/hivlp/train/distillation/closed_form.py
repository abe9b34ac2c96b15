"""Closed forms that a coarse level starts from: directions of scores, ridge regression, a rotation for signs (ITQ)."""

from __future__ import annotations

import torch
from torch import Tensor

from hivlp.linalg import lean_vec


def score_directions(texts: Tensor, weights: Tensor, pictures: Tensor, count: int) -> Tensor:
    """Orthonormal directions of pictures on which the scores of texts depend most: the span of LeanVec's item map.

    Where texts and pictures spread differently this keeps more of a ranking than the principal directions of either.
    Moments are uncentred, since vectors are compared by their angle to the origin.

    Args:
        texts: (M, D).
        weights: (M,) how much each text counts.
        pictures: (N, D).
        count: how many directions.

    Returns:
        (D, count).
    """
    of_texts = (texts * (weights / weights.sum())[:, None]).T @ texts
    of_pictures = pictures.T @ pictures / len(pictures)
    items, _ = lean_vec(of_pictures.double().numpy(), of_texts.double().numpy())
    basis: Tensor = torch.linalg.qr(torch.from_numpy(items[:, :count])).Q
    return basis.to(texts.dtype)


def ridge(inputs: Tensor, outputs: Tensor, strength: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least squares with an intercept: ``weight`` (out, in) and ``bias`` (out,) of the linear map inputs -> outputs.

    Args:
        inputs: (N, in).
        outputs: (N, out).
        strength: penalty relative to the mean squared (centred) input.
        weights: (N,) how much each row counts; equally by default.
    """
    share = torch.full((len(inputs), 1), 1 / len(inputs)) if weights is None else (weights / weights.sum())[:, None]
    mean_in, mean_out = (share * inputs).sum(0), (share * outputs).sum(0)
    centred = inputs - mean_in
    gram = (share * centred).T @ centred
    gram += strength * gram.diagonal().mean() * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(gram, (share * centred).T @ (outputs - mean_out)).T
    return weight.contiguous(), mean_out - weight @ mean_in


def sign_rotation(vectors: Tensor, rounds: int = 50, seed: int = 0) -> Tensor:
    """The rotation after which signs say most: iterative quantisation (ITQ; Gong & Lazebnik, 2011, equation 2).

    Args:
        vectors: (N, D).
        rounds: alternating steps.
        seed: of the random rotation that it starts from.

    Returns:
        (D, D) orthogonal; ``vectors @ rotation`` is as close to its own signs as it gets.
    """
    width = vectors.shape[1]
    start = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=vectors.dtype)
    rotation: Tensor = torch.linalg.qr(start).Q
    for _ in range(rounds):
        signs = torch.where(vectors @ rotation >= 0, 1.0, -1.0).to(vectors.dtype)
        left, _, right = torch.linalg.svd(signs.T @ vectors)
        rotation = right.T @ left.T
    return rotation
