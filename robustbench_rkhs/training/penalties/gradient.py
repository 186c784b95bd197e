"""Gradient penalty: the lower bound sup_x ||grad f(x)||_2 of the RKHS norm, squared."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.runtime.distributed import owned, world
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode


class GradientPenalty(PenaltyNode):
    r"""Penalise each logit's largest squared gradient norm over the batch.

    .. math:: \lambda \sum_k \max_i \lVert \nabla_x f_k(x_i) \rVert_2^2

    The maximisers are found without a graph over the weights; only they are differentiated twice, so class k uses only its
    image k. BatchNorm uses its running statistics and dropout is off, so that gradients are per image.
    Cost: K backward passes over the batch to search, two over K images to differentiate (K classes); two forward passes.
    Source: Bietti et al., "A Kernel Perspective for Regularizing Deep Neural Networks", ICML 2019, section 3.
    """

    regression: ClassVar[bool] = True

    name: Literal["gradient"] = "gradient"
    weight: Real = Field(0.1, ge=0)
    """Multiplier lambda, in squared pixels per squared logit."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        with per_image(model):
            values, steepest = self._norms(model, x).max(dim=0)
            images = x[steepest].detach().requires_grad_()
            logits = model(images)
            (gradient,) = torch.autograd.grad(logits.diagonal().sum(), images, create_graph=True)
        squares = gradient.flatten(1).square().sum(1)
        return self.weight * world() * (squares * owned(values)).sum()

    @staticmethod
    def _norms(model: nn.Module, x: Tensor) -> Float[Tensor, "batch classes"]:
        """||grad f_k(x_i)||_2 of every image i and class k."""
        x = x.detach().requires_grad_()
        columns = model(x).unbind(1)
        norms = []
        for k, column in enumerate(columns):
            (gradient,) = torch.autograd.grad(column.sum(), x, retain_graph=k + 1 < len(columns))
            norms.append(gradient.flatten(1).norm(dim=1))
        return torch.stack(norms, dim=1)
