"""A residual block: two branches added."""

from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, branches, rule


class Residual(nn.Module):
    r"""The sum of two branches on the same input.

    .. math:: y = b(x) + s(x), \qquad \mathrm{Lip}(y) \le \mathrm{Lip}(b) + \mathrm{Lip}(s)

    Cost: that of its branches and one addition. Source: He et al., CVPR 2016.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch *outputs"]:
        result: Tensor = self.body(x) + self.shortcut(x)
        return result


@branches.register
def _(module: Residual) -> list[nn.Module]:
    return [module.body, module.shortcut]


@rule.register
def _(module: Residual, shape: tuple[int, ...]) -> Bound:
    raise Uncertifiable("its bound is computed from its branches, by `bounds`")
