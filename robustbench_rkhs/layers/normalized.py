"""A last layer with rows of length one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.borders import checked, finite, precise
from robustbench_rkhs.layers.lowered import linear, lowered
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, fan, rule
from robustbench_rkhs.lipschitz.bounds import spectral, weights
from robustbench_rkhs.runtime.precision import without_autocast


class LinearNormalized(nn.Module):
    r"""A last layer with 1-Lipschitz logits; all logits together need not be 1-Lipschitz.

    .. math:: y_k = \frac{w_k^\top x}{\lVert w_k \rVert_2} + b_k, \qquad 1 \le L \le \sqrt{\mathrm{classes}}, \qquad
              L_{yj} = \lVert \hat w_y - \hat w_j \rVert_2 \le 2

    As it is affine, each pair of classes gets its own bound (`bounds.pairs`), which is its purpose; its own bound is its exact
    norm. A row of zeros stays zero. Evaluated in float64, which is certified. Cost: one product.
    Source: Singla et al., ICLR 2022 (last-layer normalisation).
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        checked("LinearNormalized", "zeros", features=features, classes=classes)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(classes, features)))
        self.bias = nn.Parameter(torch.zeros(classes))

    def matrix(self) -> Float[Tensor, "classes features"]:
        """The rows of length one, in float64."""
        with without_autocast(self.weight):
            weight = precise(self.weight)
            peak = weight.detach().abs().amax(1, keepdim=True)
            scaled = weight / torch.where(peak > 0, peak, 1)
            return scaled / torch.where(peak > 0, scaled.square().sum(1, keepdim=True), 1).sqrt()

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch classes"]:
        return functional.linear(x, self.matrix().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


@lowered.register
def _(layer: LinearNormalized) -> nn.Module:
    return linear(layer.matrix().to(layer.bias.dtype), layer.bias)


@rule.register
def _(module: LinearNormalized, shape: tuple[int, ...]) -> Bound:
    finite(module)
    classes, features = module.weight.shape
    if not shape or shape[-1] != features:
        raise Uncertifiable(f"expected {features} features, found an input of shape {shape}")
    return Bound(spectral(weights(module.matrix(), "matrix")), (*shape[:-1], classes))


affine.register(LinearNormalized, lambda module: True)


@fan.register
def _(module: LinearNormalized, inputs: int, outputs: int) -> tuple[int, int]:
    return module.weight.shape[1], module.weight.shape[0]
