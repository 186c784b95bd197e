"""Deformation penalties: the change of the logits under small deformations of an image, exact and to first order."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.data import Deformations, Split
from robustbench_rkhs.data.deformations import deform, image_shape, tangents
from robustbench_rkhs.nodes.node import Real, Seed, UserError
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.distributed import owned, smallest, world
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode, keys_or_count


class _Deformed(PenaltyNode):
    """Base of both penalties: the choice of images."""

    weight: Real = Field(0.1, ge=0)
    """Multiplier lambda."""
    images: int = Field(32, ge=1)
    """Images of a batch that are deformed, chosen at random; all if the batch has fewer."""
    seed: Seed = 0
    """Seed of the random deformations."""

    def prepare(self, model: nn.Module, split: Split, seed: int) -> "_Deformed":
        """Raises UserError for data that are not images, before the training begins."""
        self._check(split.shape)
        return self

    def _check(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        try:
            return image_shape(shape)
        except UserError as error:
            raise UserError(f"penalty {getattr(self, 'name', '')!r}: {error}") from None

    def _chosen(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen images, their keys, and whether they count (each process always has one, for its graph)."""
        counted = keys_or_count(keys, x)
        lots = torch.tensor([mix(self.seed, key, -1) for key in counted.tolist()], dtype=torch.int64, device=x.device)
        drawn = smallest(lots, self.images)
        here = drawn.nonzero().flatten() if drawn.any() else torch.zeros(1, dtype=torch.int64, device=x.device)
        return x[here].detach(), counted[here.to(counted.device)], drawn[here]


class Stability(_Deformed):
    r"""Penalise each logit's largest squared change under a small deformation.

    .. math:: \lambda \sum_k \max_{i, \tau} \big( f_k(x_i \circ (\mathrm{id} + \tau)) - f_k(x_i) \big)^2

    The maximum is over `images` images of the batch and `deformations.count` random deformations of each, every deformed image
    against its own original. It is found without a graph; only the K winners and their originals are differentiated. Deformed
    images stay in [0, 1], being averages of pixels. BatchNorm uses its running statistics and dropout is off.
    Units: squared logits. Cost: (count + 1) forward passes over `images` images to search, one forward and one backward over
    2 K images (K classes). Raises UserError where inputs are not (channel, height, width).
    Source: Bietti et al., ICML 2019, section 3 (their published code compares with the logits of other images).
    """

    name: Literal["deformation_stability"] = "deformation_stability"
    deformations: Deformations = Deformations(count=32)
    """The deformations, and how many of each image."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        shape = self._check(tuple(x.shape[1:]))
        images, keys, counts = self._chosen(x, keys)
        with per_image(model):
            with torch.no_grad():
                clean = model(images)
                classes = torch.arange(clean.shape[1], device=x.device)
                best = clean.new_full((len(classes),), -torch.inf)
                original = deformed = images.new_zeros(len(classes), *shape)
                for draw in range(self.deformations.count):
                    moved = deform(images, self.deformations(keys, self.seed, shape, draw).to(images))
                    change = (model(moved) - clean).square().masked_fill(~counts[:, None], -torch.inf)
                    largest, where = change.max(dim=0)
                    better = (largest > best)[:, None, None, None]
                    original = torch.where(better, images[where], original)
                    deformed = torch.where(better, moved[where], deformed)
                    best = torch.maximum(best, largest)
            before, after = model(torch.cat([original, deformed])).chunk(2)
        squares = (after - before)[classes, classes].square()
        result: Tensor = self.weight * world() * (squares * owned(best)).sum()
        return result


class Tangent(_Deformed):
    r"""Penalise each logit's largest squared derivative along small deformations: `deformation_stability` to first order.

    .. math:: \lambda \sum_k \max_i \Big\lVert \frac{\partial}{\partial \alpha}
              f_k\Big(x_i + \sum_j \alpha_j t_{ij}\Big) \Big|_{\alpha = 0} \Big\rVert_2^2
              = \lambda \sum_k \max_i \sum_j \langle \nabla f_k(x_i), t_{ij} \rangle^2

    t_ij = d/dt (x_i under t times deformation j) at t = 0, one of `deformations.count` per image. Images are ranked by the squared
    norm. The maximisers are found without a graph over the weights; only they are differentiated twice. BatchNorm uses its
    running statistics and dropout is off.
    Units: squared logits per squared unit of deformation. Cost: K backward passes over `images` images to search, two over K
    images to differentiate (K classes); two forward passes; count tangents per image. Raises UserError where inputs are not
    (channel, height, width).
    Source: Bietti et al., ICML 2019, section 3 (their published code ranks by the signed sum).
    """

    name: Literal["deformation_tangent"] = "deformation_tangent"
    deformations: Deformations = Deformations(count=30)
    """The deformations whose tangents are taken, and how many of each image."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        shape = self._check(tuple(x.shape[1:]))
        images, keys, counts = self._chosen(x, keys)
        along = self._tangents(images, keys, shape)
        with per_image(model):
            leaf = images.clone().requires_grad_()
            columns = model(leaf).unbind(1)
            slopes = []
            for k, column in enumerate(columns):
                (gradient,) = torch.autograd.grad(column.sum(), leaf, retain_graph=k + 1 < len(columns))
                slopes.append(self._slope(gradient, along))
            values, steepest = torch.stack(slopes, 1).masked_fill(~counts[:, None], -torch.inf).max(dim=0)
            leaf = images[steepest].clone().requires_grad_()
            logits = model(leaf)
            (gradient,) = torch.autograd.grad(logits.diagonal().sum(), leaf, create_graph=True)
        squares = self._slope(gradient, along[steepest])
        return self.weight * world() * (squares * owned(values)).sum()

    def _tangents(self, images: Tensor, keys: Tensor, shape: tuple[int, ...]) -> Float[Tensor, "images count pixels"]:
        draws = range(self.deformations.count)
        fields = (self.deformations(keys, self.seed, shape, draw).to(images) for draw in draws)
        return torch.stack([tangents(images, field).flatten(1) for field in fields], 1)

    @staticmethod
    def _slope(gradient: Tensor, along: Float[Tensor, "images count pixels"]) -> Float[Tensor, " images"]:
        """sum_j <gradient, t_j>^2."""
        return torch.einsum("ncp,np->nc", along, gradient.flatten(1)).square().sum(1)
