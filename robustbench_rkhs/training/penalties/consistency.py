"""Consistency under noise: predictions of noisy copies of an image are pulled towards their mean."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import Real, Seed
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode, keys_or_count


class Consistency(PenaltyNode):
    r"""Penalise how much predictions differ under noise, and their entropy, for a classifier that is to be smoothed.

    .. math:: \frac1n \sum_i \Big( \frac{\lambda}{m} \sum_{k=1}^m KL\big( \bar p_i \,\|\, p(x_i + \delta_{ik}) \big)
              + \eta\, H(\bar p_i) \Big), \qquad \bar p_i = \frac1m \sum_k p(x_i + \delta_{ik}), \quad
              \delta_{ik} \sim N(0, \sigma^2 I)

    p: softmax of the logits. The smoothed classifier's radius grows with the share of its noisy copies that agree. Use it beside
    cross-entropy on noisy images: `noise: sigma` in the recipe. Labels are not used. BatchNorm uses its running statistics and
    dropout is off. sigma in pixels of [0, 1]; the value is in nats.
    Cost: `samples` forward passes that are differentiated.
    Source: Jeong & Shin, "Consistency Regularization for Certified Robustness of Smoothed Classifiers", NeurIPS 2020.
    """

    name: Literal["consistency"] = "consistency"
    weight: Real = Field(10.0, ge=0)
    """Multiplier lambda of the divergence."""
    entropy: Real = Field(0.5, ge=0)
    """Multiplier eta of the entropy of the mean prediction."""
    sigma: Real = Field(0.25, gt=0)
    """Standard deviation of the noise, in pixels of [0, 1]: that of the smoothing."""
    samples: int = Field(2, ge=2)
    """m: noisy copies of each image."""
    seed: Seed = 0
    """Seed of the noise."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        x, keys = x.detach(), keys_or_count(keys, x)
        with per_image(model):
            copies = (model(x + self.sigma * draws(keys, self.seed, x, draw)) for draw in range(self.samples))
            logs = torch.stack([logits.float().log_softmax(1) for logits in copies])
        mean = logs.logsumexp(0) - math.log(self.samples)
        share = mean.exp()
        divergence = (share * (mean - logs)).sum(2).mean(0).clamp_min(0)
        return (self.weight * divergence + self.entropy * -(share * mean).sum(1)).mean()
