"""Final line search: secant steps between each image and its nearest adversarial example."""

import torch
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.objective import margin


@torch.no_grad()
def nearer(engine: Engine, among: Tensor | None = None) -> None:
    r"""Bracketed secant steps of the margin m on the line from image to adversarial example, for images without a finite eps.

    `among`: the images; default: all that are broken.

    .. math:: t = t^* + 0.05\, (t_1 - t^*), \qquad t^* = t_0 + (t_1 - t_0)\, \frac{m(t_0)}{m(t_0) - m(t_1)}

    The queried point lies a twentieth of the way from the secant's zero back to the adversarial end, so that a linear margin is
    crossed. The engine keeps nearer examples. Cost: 3 forward passes per image (the first computes the current margin).
    Source: the final search of Croce & Hein, ICML 2020.
    """
    near = engine.right & engine.broken & engine.eps.isinf()
    at = near.nonzero().flatten() if among is None else among[near[among]]
    if len(at) == 0:
        return
    x, y = engine.x[at], engine.y[at]
    offset = engine.images[at] - x
    low, high = torch.zeros_like(engine.distance[at]), torch.ones_like(engine.distance[at])
    over = margin(engine.clean[at], y).double()
    under = margin(engine.logits(at, engine.images[at]), y).double()
    for _ in range(2):
        crossing = low + (high - low) * over / (over - under)
        crossing = torch.where(crossing.isfinite(), crossing, (low + high) / 2)
        share = crossing + 0.05 * (high - crossing)
        seen, adversarial = engine.judged(at, x + per_image(share.to(x.dtype), x) * offset)
        found = margin(seen, y).double()
        low, over = torch.where(adversarial, low, share), torch.where(adversarial, over, found)
        high, under = torch.where(adversarial, share, high), torch.where(adversarial, found, under)
