"""TRADES: cross-entropy on the clean image plus the divergence of predictions in a ball around it."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real, Seed
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.base import LossNode
from robustbench_rkhs.training.losses.inner_search import ascend, divergence, keys_or_positions


class Trades(LossNode):
    r"""Cross-entropy on the clean images plus the largest KL divergence of the prediction in the ball around each.

    .. math:: \frac1n \sum_i CE(f(x_i), y_i) + \beta\, KL\big( p(x_i) \,\|\, p(x_i') \big), \qquad
              x_i' \approx \arg\max_{x' \in B_\varepsilon(x_i)} KL\big( p(x_i) \,\|\, p(x') \big)

    p: softmax of the logits. The search starts at x + s N(0, 1) (at x itself KL has no gradient) and takes `steps` steps with
    BatchNorm's running statistics and dropout off, without weight gradients; p(x) is a constant in it. Then clean and
    perturbed images go through the model in one pass, in its current mode: BatchNorm normalises, and updates once, on both
    halves together. Both p(x) and p(x') are differentiated with respect to the weights.
    Units: nats; eps in pixels of [0, 1]. Cost: 1 + `steps` forward and `steps` image-only backward passes, then one pass over
    twice the images forward and backward.
    Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
    """

    attacks: ClassVar[bool] = True

    name: Literal["trades"] = "trades"
    norm: Norm = "linf"
    """Norm of the perturbation."""
    eps: Real = Field(8 / 255, ge=0)
    """Radius of the ball, in pixels of [0, 1]."""
    beta: Real = Field(6.0, ge=0)
    """Weight of the divergence."""
    steps: int = Field(10, ge=1)
    """Gradient steps of the search."""
    step_size: Real | None = Field(None, gt=0)
    """Length of a step, in the norm's unit; default: 2.5 eps / steps."""
    start: Real = Field(1e-3, gt=0)
    """s: standard deviation of the random start, in pixels."""
    box: Box = "unit"
    """`unit`: perturbed images stay in [0, 1]; `none`: anywhere."""
    seed: Seed = 0
    """Seed of the random starts."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        moved = self.search(model, x.detach(), keys)
        clean, perturbed = model(torch.cat([x, moved])).float().chunk(2)
        return functional.cross_entropy(clean, y) + self.beta * divergence(clean, perturbed).mean()

    def search(self, model: nn.Module, x: Tensor, keys: Tensor | None) -> Float[Tensor, "batch *image"]:
        """The perturbed images."""
        noise = draws(keys_or_positions(keys, x), self.seed, x)
        length = self.step_size or 2.5 * self.eps / self.steps
        with per_image(model):
            with torch.no_grad():
                clean = model(x)
            return ascend(
                lambda images: divergence(clean, model(images)),
                x,
                x + self.start * noise,
                norm=self.norm,
                eps=self.eps,
                steps=self.steps,
                step_size=length,
                box=self.box,
            )
