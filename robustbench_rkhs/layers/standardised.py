"""Values divided by their own standard deviation: what LayerNorm, GroupNorm and InstanceNorm do before their affine map."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, fan, rule
from robustbench_rkhs.lipschitz.bounds import upwards


class Standardised(nn.Module):
    r"""y = c / sqrt(mean(c^2) + eps), c = x - mean(x), over each of `groups` equal parts of the flattened image.

    .. math:: J = \tfrac{1}{s} \big( I - \tfrac{c c^\top}{n s^2} \big) P, \qquad s^2 = \tfrac{1}{n} \lVert c \rVert^2 + \epsilon

    P takes the mean off (norm 1) and the bracket has eigenvalues 1 and eps / s^2, so ||J|| <= 1 / s <= 1 / sqrt(eps), attained
    where all values of a group are equal. The bound is large: an image that is nearly constant is stretched that much.
    """

    def __init__(self, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps

    def forward(self, x: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch *image"]:
        parts = self.parts(x)
        centred = parts - parts.mean(2, keepdim=True)
        y: Tensor = centred / (centred.square().mean(2, keepdim=True) + self.eps).sqrt()
        return y.reshape(x.shape)

    def parts(self, x: Tensor) -> Float[Tensor, "batch groups values"]:
        """The groups of each image."""
        return x.reshape(len(x), self.groups, -1)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, eps={self.eps}"


@rule.register
def _(module: Standardised, shape: tuple[int, ...]) -> Bound:
    if not module.eps > 0:
        raise Uncertifiable("it divides by a standard deviation that may be zero, as eps is")
    if math.prod(shape) % module.groups:
        raise Uncertifiable(f"expected values in {module.groups} groups, found an input of shape {tuple(shape)}")
    alone = math.prod(shape) == module.groups
    return Bound(0.0 if alone else upwards(1 / math.sqrt(module.eps)), tuple(shape))


fan.register(Standardised, lambda module, inputs, outputs: (inputs // module.groups, inputs // module.groups))
