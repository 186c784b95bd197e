"""Square attack in linf: every pixel is at one end of its range, and one window changes at a time."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_rkhs.attacks.ball import ends
from robustbench_rkhs.attacks.square.patches import window
from robustbench_rkhs.attacks.square.proposals import Walk

TURNED = 16
"""Largest window, in cells, whose signs are flipped where it would change nothing; larger ones hardly ever need it."""


class Stripes(Walk):
    """linf: the state is the perturbed image, every cell at one end of its range."""

    smooth = False
    windows = 1

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        low, high = ends(self.engine.x[self.at], self.engine.eps[self.at], self.engine.box)
        self.ends = torch.cat([self.picture.cells(low), self.picture.cells(high)], 1)

    def keep(self, stands: Bool[Tensor, " some"]) -> None:
        super().keep(stands)
        self.ends = self.ends[stands]

    def start(self) -> Float[Tensor, "some cells"]:
        picture = self.picture
        signs = self.uniforms(picture.channels * picture.width, -1).view(-1, picture.channels, 1, picture.width) < 0.5
        low, high = self.ends.view(-1, 2, picture.channels, picture.height, picture.width).unbind(1)
        return torch.where(signs, low, high).flatten(1)

    def propose(self, rows: Tensor, place: Tensor, sign: Tensor, height: int, width: int) -> Float[Tensor, "rows cells"]:
        state, cells = self.state.index_select(0, rows), self.state.shape[1]
        offsets, _ = window(height, width, self.picture, state.dtype, state.device)
        changed = place[:, 0] + offsets
        other = (sign * cells)[:, :, None].expand(-1, -1, height * width).flatten(1)
        at_ends = changed + (2 * cells * rows)[:, None]
        values = self.ends.take(at_ends + other)
        if height * width <= TURNED:  # flip the signs of windows that would change nothing
            same = (values == state.gather(1, changed)).all(1, keepdim=True)
            values = torch.where(same, self.ends.take(at_ends + (cells - other)), values)
        return state.scatter_(1, changed, values)

    def reached(self, moved: Tensor, cells: Tensor) -> Tensor:
        return cells
