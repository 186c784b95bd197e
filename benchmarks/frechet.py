"""The Frechet distance of two sets of images in the hidden features of a classifier."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def measured(network: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden features in float64, and the class of each image."""
    features = torch.cat([network[:-1](part) for part in images.split(500)])
    return features.double(), network[-1](features).argmax(1)


def frechet(one: Tensor, other: Tensor) -> float:
    """|m - n|^2 + tr(C + D - 2 (C D)^(1/2)) of the means and covariances of two sets of features."""
    (c, d), distance = (torch.cov(part.T) for part in (one, other)), (one.mean(0) - other.mean(0)).square().sum()
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    crossed = torch.linalg.eigvalsh(root @ d @ root).clamp_min(0).sqrt().sum()
    return float(distance + c.trace() + d.trace() - 2 * crossed)
