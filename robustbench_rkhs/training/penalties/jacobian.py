"""Jacobian penalty: the squared Frobenius norm of the logits' (or probabilities') Jacobian, averaged over the batch."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import unit
from robustbench_rkhs.nodes.node import Real, Seed
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode, keys_or_count


class Jacobian(PenaltyNode):
    r"""Penalise the squared Frobenius norm of the Jacobian, an upper bound of its squared spectral norm.

    .. math:: \frac{\lambda}{n} \sum_i \lVert J(x_i) \rVert_F^2
              \;\approx\; \frac{\lambda}{n} \sum_i \frac{K}{p} \sum_{s=1}^{p} \lVert v_{is}^\top J(x_i) \rVert_2^2,
              \qquad v_{is} \sim \text{uniform on the sphere of } \mathbb{R}^K

    J: K outputs by pixels. The estimate is unbiased, E[v v^T] being I / K; its v are seeded by (seed, key, s). BatchNorm
    uses its running statistics and dropout is off. It averages over images and certifies nothing.
    Cost: one forward pass; K backward passes (p with projections), each differentiated again.
    Source: Hoffman, Roberts & Yaida, arXiv 1908.02729, whose lambda_JR / 2 is our weight.
    """

    name: Literal["jacobian"] = "jacobian"
    weight: Real = Field(0.005, ge=0)
    """Multiplier lambda, in squared pixels per squared logit."""
    projections: int | None = Field(None, ge=1)
    """Random directions p per image; default: the exact norm, by all K outputs."""
    of: Literal["logits", "probabilities"] = "logits"
    """Outputs that are differentiated. Probabilities of confident images hardly change, which hides steep logits."""
    seed: Seed = 0
    """Seed of the random directions."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        images = x.detach().requires_grad_()
        with per_image(model):
            outputs = model(images)
        outputs = outputs.softmax(1) if self.of == "probabilities" else outputs
        squares = x.new_zeros(len(x))
        for direction in self._directions(outputs.detach(), keys_or_count(keys, x)):
            (row,) = torch.autograd.grad(outputs, images, direction, create_graph=True)
            squares = squares + row.flatten(1).square().sum(1)
        scale = 1.0 if self.projections is None else outputs.shape[1] / self.projections
        return self.weight * scale * squares.mean()

    def _directions(self, outputs: Float[Tensor, "batch classes"], keys: Int[Tensor, " batch"]) -> list[Tensor]:
        """The vectors that multiply the Jacobian from the left: unit vectors of all classes, or random ones."""
        if self.projections is None:
            return [one.expand_as(outputs) for one in torch.eye(outputs.shape[1]).to(outputs)]
        return [unit(draws(keys, self.seed, outputs, draw)) for draw in range(self.projections)]
