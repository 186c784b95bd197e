"""ALMA: the distance and the margin in one augmented Lagrangian."""

from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.nearer import nearer
from robustbench_rkhs.attacks.starts import Seen, StartsAttack
from robustbench_rkhs.node import Real

EVERY = 10
"""Steps between two looks at whether the constraint came nearer."""


class ALMA(StartsAttack):
    name: Literal["alma"] = "alma"
    steps: int = Field(100, ge=1)
    step_size: Real = Field(0.5, gt=0)
    last: Real = Field(0.01, gt=0)
    penalty: Real = Field(4.0, gt=0)
    gamma: Real = Field(1.2, ge=1)
    momentum: Real = Field(0.9, ge=0, lt=1)
    beta: Real = Field(0.5, ge=0, lt=1)
    bias: str = "held"
    beyond: Real = Field(0.1, ge=0)

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        super().search(engine)
        nearer(engine)

    def begin(self, delta, away):
        one = torch.ones_like(away)
        return one, self.penalty * one, torch.full_like(away, torch.inf), torch.zeros_like(delta), torch.zeros_like(delta)

    def move(self, seen: Seen, kept):
        mu, rho, looked, velocity, square = kept
        n = normal(seen.gradient, self.norm)
        short = torch.where(seen.wrong, -seen.gap, seen.gap)
        short = (torch.where(short.isfinite(), short, 0) / seen.away.clamp_min(1e-300)).clamp(-1, 1)
        fade = self.last ** (seen.step / self.steps)
        if self.bias == "both":
            short = short + self.beyond * fade
        elif self.bias == "held":
            short = short + self.beyond * fade * seen.held
        else:
            short = short + torch.where(seen.wrong, 0.0, self.beyond * fade)
        if seen.step % EVERY == 0:
            stuck = (short > 0) & (short > 0.95 * looked) & seen.never
            rho, looked = torch.where(stuck, self.gamma * rho, rho), short
        pull = torch.where(short >= 0, mu + 2 * mu * rho * short + rho**2 * short**2 / 2, mu / (1 - rho * short.clamp_max(0)) ** 2)
        keep = self.beta if seen.step else 0.0
        velocity = keep * velocity + (1 - keep) * n * per_image(pull.to(n.dtype), n)
        mu = (self.momentum * mu + (1 - self.momentum) * pull).clamp(1e-6, 1e12)
        length = (self.step_size * fade * seen.away).to(n.dtype)
        if self.norm == "l2":
            v = seen.delta - velocity * per_image(length, n)
            size = per_image(v.flatten(1).norm(dim=1), v)
            delta = v * (1 - per_image(length, v) / size.clamp_min(1e-38)).clamp_min(0)
        else:
            square = keep * square + (1 - keep) * n**2
            h = square.sqrt()
            h = h / per_image(h.flatten(1).sum(1), h).clamp_min(1e-38)
            v = seen.delta - per_image(length, n) * torch.where(h > 0, velocity / torch.where(h > 0, h, 1), 0)
            delta = shrunk(v, h, length)
        return delta, (mu, rho, looked, velocity, square)


def normal(g, norm):
    if norm == "l2":
        return unit(g)
    peak = per_image(g.flatten(1).abs().amax(1), g)
    g = g / torch.where(peak > 0, peak, 1)
    total = per_image(g.flatten(1).abs().sum(1), g)
    return g / torch.where(total > 0, total, 1)


def shrunk(v, h, length):
    """clip(v, tau), with sum h (|v| - tau)+ = length: Newton from 0 never passes the root."""
    a, w = v.flatten(1).abs(), h.flatten(1)
    tau = a.new_zeros(len(a), 1)
    for _ in range(30):
        over = (a > tau) & (w > 0)
        total = torch.where(over, w, 0).sum(1, keepdim=True)
        new = ((torch.where(over, w * a, 0).sum(1, keepdim=True) - length[:, None]) / total.clamp_min(1e-38)).clamp_min(0)
        if not (new > tau).any():
            break
        tau = torch.maximum(tau, new)
    limit = per_image(tau[:, 0], v)
    return torch.maximum(torch.minimum(v, limit), -limit)
