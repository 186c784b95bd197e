"""GloRo: an extra logit for "not certified", from Lipschitz bounds of the differences of logits."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.bounds.differentiable import gram_pairs
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.training.losses.base import LossNode


class Gloro(LossNode):
    r"""Cross-entropy with an extra class, whose logit is the highest that another class could reach within eps.

    .. math:: f_\bot(x) = \max_{i \ne j} f_i(x) + \varepsilon L_{ji}, \quad j = \arg\max_i f_i(x), \qquad
              \ell = CE(f(x), y) + \beta \big( \log \textstyle\sum_i e^{f_i(x)} + e^{f_\bot(x)} - \log \sum_i e^{f_i(x)} \big)

    L: `bounds.differentiable.gram_pairs`, differentiable upper bounds (not power iteration, which is below the norm): training uses
    the same kind of bound as the certificate, whose norms are only tighter. beta = 1: cross-entropy over classes + 1 logits, the
    published loss. Larger beta: its form after TRADES, as the bracket is the divergence of f from f with the added logit.
    Raises Uncertifiable, naming the layer, where a layer with parameters has no such bound.
    Units: nats; eps in l2 pixels of [0, 1]. Cost: one forward pass, and `iterations` matrix products for each layer and step.
    Source: Leino, Wang & Fredrikson, "Globally-Robust Neural Networks", ICML 2021; norms by Gram iteration, Delattre et al.,
    ICML 2023.
    """

    name: Literal["gloro"] = "gloro"
    eps: Real = Field(0.5, ge=0)
    """Radius of the l2 ball, in pixels of [0, 1]."""
    beta: Real = Field(1.0, ge=0)
    """Weight of the added logit; 1 is the published loss."""
    iterations: int = Field(6, ge=1)
    """Gram iterations per layer: the bound exceeds the norm by a factor of at most rank^(2^-(iterations + 1))."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        logits = model(x).float()
        pairs = gram_pairs(model, tuple(x.shape[1:]), logits.shape[1], self.iterations).float()
        predicted = logits.argmax(1)
        raised = (logits + self.eps * pairs[predicted]).scatter(1, predicted[:, None], -torch.inf).amax(1)
        uncertain = functional.softplus(raised - logits.logsumexp(1)).mean()
        return functional.cross_entropy(logits, y) + self.beta * uncertain
