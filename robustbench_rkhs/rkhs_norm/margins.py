"""Margin bound on the adversarial error for a given estimate of the RKHS norm."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.objective import margin

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Reported quantiles of the normalised margins."""
GAMMAS = 7
"""Grid points: the largest margin, halved repeatedly."""


class MarginBound(NamedTuple):
    """The two terms over a grid of gamma at one eps, for one estimate of the norm."""

    norm: float
    eps: float
    normalised: list[float]
    """Quantiles of margin / norm; these would be radii if the norm were a proven bound."""
    gammas: list[float]
    first: list[float]
    """Share of the training images with margin below gamma + 2 eps norm."""
    complexity: list[float]
    """norm B / (gamma sqrt(n)), without constants and logarithms."""


@torch.no_grad()
def margins_of(
    model: nn.Module, x: Float[Tensor, "batch *image"], y: Int[Tensor, " batch"], batch: int = 512
) -> Float64[Tensor, " batch"]:
    """m(x_i) = f_y - max_j f_j of every image, in the model's arithmetic."""
    parts = zip(x.split(batch), y.split(batch), strict=True)
    return torch.cat([margin(model(images), labels).double() for images, labels in parts])


def margin_bound(
    margins: Float64[Tensor, " images"], size: float, images: int, norm: float, eps: float, gammas: Sequence[float] | None = None
) -> MarginBound:
    r"""Both terms of the bound on the adversarial 0-1 error at `eps`, for all gamma > 0 at once with probability 1 - delta:

    .. math:: P\big(\exists \lVert d \rVert_2 \le \varepsilon : \text{label wrong at } x + d\big) \le
              \frac{1}{n} \#\{i : m(x_i) < \gamma + 2 \varepsilon N\}
              + \tilde O\Big(\frac{N B}{\gamma \sqrt n}\Big), \qquad N \ge \max_{y \ne j} \lVert f_y - f_j \rVert_H

    A margin falls by at most eps N within the ball, which shifts the threshold of the ordinary margin bound by eps N; N is not
    fixed beforehand, so the bound is taken over a geometric grid of norms with factor 2: hence 2 eps N. B^2 = mean ||x_i||^2 bounds
    the mean of ||Phi(x_i)||^2 (Phi expands no distance and maps 0 to 0). The soft O hides constants, the logarithms of N, gamma
    and 1/delta, and the number of classes. `margins`: of all `images` training images or a subset, which then estimates the share.

    With a lower bound as N (any entry of the report) neither term is a bound: they show its value if the estimate were the
    norm. With N a proven Lipschitz bound, m(x) > eps N does certify x, but the second term is not of the RKHS norm.
    Source: Bietti et al., ICML 2019, section 4 (binary there; here the margin over all other classes).
    """
    if gammas is None:
        top = float(margins.max()) if len(margins) and float(margins.max()) > 0 else 1.0
        gammas = [top / 2**power for power in range(GAMMAS)]
    first = [float((margins < gamma + 2 * eps * norm).double().mean()) for gamma in gammas]
    complexity = [norm * size / (gamma * math.sqrt(images)) for gamma in gammas]
    scaled = margins / norm if norm > 0 else torch.full_like(margins, torch.inf)
    quantiles = torch.quantile(scaled, torch.tensor(QUANTILES, dtype=scaled.dtype)) if norm > 0 else scaled[: len(QUANTILES)]
    return MarginBound(norm, eps, quantiles.tolist(), list(gammas), first, complexity)
