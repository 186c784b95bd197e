"""Square attack in l2: a proposal moves the norm of one window's perturbation to another window, as a pyramid."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_rkhs.attacks.engine import INSIDE
from robustbench_rkhs.attacks.square.patches import tiles, window
from robustbench_rkhs.attacks.square.proposals import Walk

TINY = 1e-30


class Pyramids(Walk):
    """l2: the state is the offset from the image."""

    smooth = True
    windows = 2

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        engine, picture = self.engine, self.picture
        self.x = picture.cells(engine.x[self.at])
        # slightly less, so that rounding cannot move an image out of the ball
        self.eps = (engine.eps[self.at] * INSIDE - torch.finfo(self.x.dtype).eps).clamp_min(0).to(self.x.dtype)[:, None]
        self.budget = self.eps.square() / picture.channels
        self.pixel = picture.cells(torch.ones_like(engine.x[:1])) if picture.padding else None
        """1 where a cell is a pixel, 0 where it is padding."""

    def keep(self, stands: Bool[Tensor, " some"]) -> None:
        super().keep(stands)
        self.x, self.eps, self.budget = self.x[stands], self.eps[stands], self.budget[stands]

    def start(self) -> Float[Tensor, "some cells"]:
        number, pattern, many = tiles(self.picture.height, self.picture.width)
        number, pattern = number.to(self.x.device), pattern.to(self.x)
        draw = self.uniforms((1 + self.picture.channels) * many, -1).view(-1, 1 + self.picture.channels, many) < 0.5
        turned, signs = draw[:, :1, number], draw[:, 1:, number]
        offset = (torch.where(turned, pattern[0], pattern[1]) * torch.where(signs, 1, -1)).flatten(1)
        if self.pixel is not None:
            offset = offset * self.pixel
        return self.clipped(self.x, offset * (self.eps / offset.norm(dim=1, keepdim=True)))

    def propose(self, rows: Tensor, place: Tensor, sign: Tensor, height: int, width: int) -> Float[Tensor, "rows cells"]:
        channels, length = self.picture.channels, torch.linalg.vector_norm
        moved = self.state.index_select(0, rows)
        # what is left of eps per channel (may be below 0 by rounding), before anything is moved
        used = length(moved, dim=1, keepdim=True)
        spare = torch.addcmul(self.budget.index_select(0, rows), used, used, value=-1 / channels)
        offsets, table = window(height, width, self.picture, moved.dtype, moved.device)
        windows = place + offsets
        into, wiped = windows.unbind(1)
        old = moved.gather(1, windows.flatten(1)).view(-1, 2, channels, height * width)
        before = length(old, dim=3, keepdim=True)
        moved.scatter_(1, wiped, 0)
        rest, second = length(moved.gather(1, into).view(-1, channels, height * width), dim=2), before[:, 1, :, 0]
        # the new window gets the length of both old ones, and a share of what is left of eps
        freed = torch.addcmul(torch.addcmul(spare, rest, rest), second, second).clamp_min_(0).sqrt_()
        pattern = table.index_select(0, sign.flatten()).view(-1, channels, height * width)
        way = torch.addcdiv(pattern, old[:, 0], before[:, 0] + TINY)
        if height * width in (1, self.picture.height * self.picture.width):  # the same window again: the two may cancel out
            way = torch.where(length(way, dim=2, keepdim=True) > 1e-3, way, pattern)
        if self.pixel is not None:
            way = way * self.pixel[0][into][:, None]
        moved.scatter_(1, into, (way * (freed / (length(way, dim=2) + TINY))[:, :, None]).flatten(1))
        return self.clipped(self.x.index_select(0, rows), moved)

    def reached(self, moved: Tensor, cells: Tensor) -> Tensor:
        return cells - self.x.index_select(0, moved)

    def clipped(self, x: Tensor, offset: Tensor) -> Tensor:
        """The image with this offset, each cell clipped to the box."""
        cells = x + offset
        return cells.clamp_(0, 1) if self.engine.box == "unit" else cells
