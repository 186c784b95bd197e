"""A layer of your own with a proven bound: the layer and its rule in one file."""

import torch
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, rule


class Rotate(nn.Module):
    """Turns the plane of the first two features by a learnt angle: 1-Lipschitz, as a rotation keeps every length."""

    def __init__(self) -> None:
        super().__init__()
        self.angle = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, 0], x[:, 1]
        turned = [self.angle.cos() * first - self.angle.sin() * second, self.angle.sin() * first + self.angle.cos() * second]
        return torch.cat([torch.stack(turned, 1), x[:, 2:]], 1)


@rule.register
def _(module: Rotate, shape: tuple[int, ...]) -> Bound:
    return Bound(1 + 1e-12, shape)  # a little above one: sine and cosine are rounded
