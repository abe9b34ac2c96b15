"""Closed forms in which the learning of a coarse level starts."""

from __future__ import annotations

import torch
from torch import Tensor


def score_directions(texts: Tensor, weights: Tensor, pictures: Tensor, count: int) -> Tensor:
    """Orthonormal directions of pictures on which the scores of texts depend most.

    The singular value decomposition of all scores ``texts @ pictures.T`` without forming it, from second moments
    (uncentred: vectors are compared by their angle to the origin). Where texts and pictures spread differently this
    keeps more of a ranking than either's own principal directions; LeanVec-OOD (Tepper et al., 2024) builds on the same
    observation.

    Args:
        texts: (M, D).
        weights: (M,) how much each text counts.
        pictures: (N, D).
        count: how many directions.

    Returns:
        (D, count).
    """
    text_moment = (texts * (weights / weights.sum())[:, None]).T @ texts
    values, vectors = torch.linalg.eigh(pictures.T @ pictures / len(pictures))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    leading = torch.linalg.eigh(root @ text_moment @ root).eigenvectors.flip(1)[:, :count]
    basis: Tensor = torch.linalg.qr(text_moment @ root @ leading).Q
    return basis


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


def score_factors(texts: Tensor, weights: Tensor, pictures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One linear map for pictures and one for texts whose dot products approximate all scores best.

    The truncated singular value decomposition of ``texts @ pictures.T``, again from second moments, its singular values
    shared evenly; what LeanVec-OOD (Tepper et al., 2024) approximates by alternating steps.

    Args:
        texts: (M, D).
        weights: (M,) how much each text counts.
        pictures: (N, D).
        count: how many dimensions.

    Returns:
        (D, count) for pictures, and (D, count) for texts.
    """
    text_root, text_inverse = _roots((texts * (weights / weights.sum())[:, None]).T @ texts)
    picture_root, picture_inverse = _roots(pictures.T @ pictures / len(pictures))
    left, values, right = torch.linalg.svd(text_root @ picture_root)
    share = values[:count].sqrt()
    return picture_inverse @ right[:count].T * share, text_inverse @ left[:, :count] * share


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a second moment, and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    roots = values.clamp(min=values[-1] * 1e-9).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


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
