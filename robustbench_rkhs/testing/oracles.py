"""Models with closed-form distances and logits, as ground truth for the checks."""

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """A linear classifier, correctly classified images, and their exact distances to the nearest decision boundary."""

    model: nn.Module
    x: Tensor
    y: Tensor
    l2: Tensor
    linf: Tensor

    def distance(self, norm: str) -> Tensor:
        return self.l2 if norm == "l2" else self.linf


def affine(
    classes: int = 10,
    shape: tuple[int, ...] = (1, 4, 4),
    scale: float = 1.0,
    seed: int = 0,
    images: int = 32,
    margin_scale: float = 1.0,
) -> Affine:
    r"""f = scale * (W x + b), with images in [0.4, 0.6] and boundaries near the grey image, so that the box never binds.

    .. math:: r = \min_{j \ne y} \frac{f_y - f_j}{\lVert w_y - w_j \rVert_*}, \qquad * = 2 \text{ (l2)}, 1 \text{ (linf)}

    Draws twelve times `images` candidates and keeps the first whose distance is between a third of the median and three times
    it: nearer ones would test only the rounding. `margin_scale` moves the images away from grey (below 1: towards it), which
    scales their margins. Distances in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    size = prod(shape)
    weight = torch.randn(classes, size, generator=generator) / size**0.5
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(size, classes))
    with torch.no_grad():
        model[1].weight.copy_(scale * weight)
        model[1].bias.copy_(-scale * 0.5 * weight.sum(1) + scale * 0.01 * torch.randn(classes, generator=generator))
        x = 0.5 + margin_scale * (torch.rand(12 * images, *shape, generator=generator) * 0.2 - 0.1)
        exact = nn.functional.linear(x.flatten(1).double(), model[1].weight.double(), model[1].bias.double())
        y = exact.argmax(1)
        gaps = exact.gather(1, y[:, None]) - exact
        pairs = model[1].weight.double()[y][:, None] - model[1].weight.double()[None]
        l2, linf = ((gaps / pairs.norm(p, dim=2)).scatter(1, y[:, None], torch.inf).amin(1).clamp_min(0) for p in (2, 1))
    typical = l2.median()
    kept = ((l2 > typical / 3) & (l2 < 3 * typical)).nonzero().squeeze(1)[:images]
    return Affine(model.eval(), x[kept], y[kept], l2[kept], linf[kept])


def masking_model(classes: int = 10, margin: float = 30.0, distance: float = 0.71, images: int = 16) -> Affine:
    """Every image has logit margin 30 and flips at l2 distance 0.71: cross-entropy's gradient is under 1e-11.

    Class 0 against the others along one direction; the images differ only across it. True robust accuracy at eps 1: 0%.
    """
    shape, size = (1, 4, 4), 16
    generator = torch.Generator().manual_seed(0)
    direction = torch.tensor([1.0, -1.0]).repeat(size // 2) / size**0.5
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(size, classes))
    across = torch.rand(images, size, generator=generator) * 0.1 - 0.05
    across -= (across @ direction)[:, None] * direction
    with torch.no_grad():
        model[1].weight.copy_(torch.where(torch.arange(classes)[:, None] == 0, 0.5, -0.5) * direction * margin / distance)
        model[1].bias.copy_(torch.where(torch.arange(classes) == 0, margin / 2, -margin / 2))
        model[1].bias.sub_(model[1].weight @ torch.full((size,), 0.5))
        # separate the other classes slightly, so that the runner-up is unique
        model[1].bias[2:] -= 0.01 * torch.arange(classes - 2)
    flip = torch.full((images,), distance, dtype=torch.float64)
    linf = flip * 1 / direction.abs().sum().item()
    return Affine(model.eval(), (0.5 + across).view(-1, *shape), torch.zeros(images, dtype=torch.int64), flip, linf)


def constant_model(classes: int = 10, answer: int = 0, attached: bool = True) -> nn.Module:
    """The same logits for every image: its gradient is exactly zero, or absent if not `attached` to the input."""
    return _Constant(classes, answer, attached).eval()


class _Constant(nn.Module):
    def __init__(self, classes: int, answer: int, attached: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(answer), classes).float())
        self.attached = attached

    def forward(self, x: Tensor) -> Tensor:
        held = 0 * x.flatten(1).sum(1, keepdim=True) if self.attached else 0
        logits: Tensor = self.logits.expand(len(x), -1) + held
        return logits


def bent(classes: int = 10, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> nn.Sequential:
    """A small convolution-BatchNorm-dropout network with random weights: it has all the state that an attack could disturb."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * prod(shape[1:]), classes))


@torch.no_grad()
def dense(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix (outputs, inputs) of a linear module on inputs of `shape`: its outputs on the identity basis, without the bias."""
    like = next(module.parameters(), torch.zeros(1))
    basis = torch.eye(prod(shape), dtype=like.dtype, device=like.device).view(-1, *shape)
    zero = module(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    matrix: Tensor = (module(basis) - zero).flatten(1).T
    return matrix
