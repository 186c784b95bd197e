"""How the Square attack moves: images on their way through a chunk of queries, in l2 and in linf."""

from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.ball import ends
from robustbench_rkhs.attacks.engine import INSIDE, Engine
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.windows import Picture, halves, tiles
from robustbench_rkhs.counters import uniforms

TURNED = 16
"""Cells of the largest linf window that is turned round where it would change nothing; larger ones hardly ever would."""
TINY = 1e-30


class Walk:
    """Some images, each a flat row of cells, on their way through a chunk of queries."""

    smooth: ClassVar[bool]
    """Whether its windows carry the l2 pattern."""
    windows: ClassVar[int]
    """How many windows a query has."""

    def __init__(self, engine: Engine, picture: Picture, at: Tensor, seed: int, state: Tensor, lowest: Tensor) -> None:
        self.engine, self.picture, self.at, self.seed, self.state, self.lowest = engine, picture, at, seed, state, lowest
        self.y = engine.y[at]

    def go(self, begin: int, windows: list[tuple[int, int]]) -> None:
        """Queries from number `begin` on; number 0 is the start. An image that fell leaves `at` and all that goes with it."""
        places, signs = self.drawn(begin, windows)
        for step, (height, width) in enumerate(windows):
            if len(self.at) == 0:
                return
            cells = self.propose(places[step], signs[step], height, width) if begin + step else self.start()
            value = margin(self.engine.logits(self.at, self.picture.images(cells)), self.y)
            # a proposal of equal margin is taken: so a model with flat answers is walked over
            better = (value <= self.lowest).nonzero().flatten()
            if len(better):
                self.state.index_copy_(0, better, self.reached(better, cells.index_select(0, better)))
                self.lowest = torch.fmin(value, self.lowest)
            if not (value > 0).all():
                stands = self.engine.standing(self.at)
                if not stands.all():
                    self.keep(stands)
                    places, signs = places[:, stands], signs[:, stands]

    def keep(self, stands: Bool[Tensor, " some"]) -> None:
        """Leave the others out."""
        self.at, self.y, self.state, self.lowest = (tensor[stands] for tensor in (self.at, self.y, self.state, self.lowest))

    def uniforms(self, count: int, draw: int) -> Float[Tensor, "some count"]:
        """Random numbers of these images."""
        return uniforms(self.engine.keys[self.at], self.seed, count, draw)

    def drawn(self, begin: int, windows: list[tuple[int, int]]) -> tuple[Int[Tensor, "steps some windows 1"], Tensor]:
        """First cells of the windows and patterns of the channels for every step: all that is random, in a few operations."""
        picture, first = self.picture, 2 * self.windows
        each = first + 1 + picture.channels
        draw = self.uniforms(len(windows) * each, begin).view(len(self.at), len(windows), each).transpose(0, 1)
        height, width = torch.tensor(windows, device=draw.device).T[:, :, None, None]
        rows, columns = picture.height - height, picture.width - width
        above = torch.minimum((draw[..., : self.windows] * (rows + 1)).long(), rows)
        left = torch.minimum((draw[..., self.windows : first] * (columns + 1)).long(), columns)
        signs = (draw[..., first + 1 :] < 0.5).long()
        if self.smooth:
            signs = 2 * signs + (draw[..., first : first + 1] < 0.5).long()
        return (above * picture.width + left).contiguous()[..., None], signs.contiguous()

    def start(self) -> Tensor:
        """The first images, as cells."""
        raise NotImplementedError

    def propose(self, place: Tensor, sign: Tensor, height: int, width: int) -> Tensor:
        """Changed images, as cells."""
        raise NotImplementedError

    def reached(self, rows: Tensor, cells: Tensor) -> Tensor:
        """The states of these rows at these images."""
        raise NotImplementedError


class Stripes(Walk):
    """linf: a state is the image, every cell of it at one of its two ends."""

    smooth = False
    windows = 1

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        low, high = ends(self.engine.x[self.at], self.engine.eps[self.at], self.engine.box)
        self.ends = torch.cat([self.picture.cells(low), self.picture.cells(high)], 1)

    def keep(self, stands: Tensor) -> None:
        super().keep(stands)
        self.ends = self.ends[stands]

    def start(self) -> Tensor:
        picture = self.picture
        signs = self.uniforms(picture.channels * picture.width, -1).view(-1, picture.channels, 1, picture.width) < 0.5
        low, high = self.ends.view(-1, 2, picture.channels, picture.height, picture.width).unbind(1)
        return torch.where(signs, low, high).flatten(1)

    def propose(self, place: Tensor, sign: Tensor, height: int, width: int) -> Tensor:
        offsets, _ = _window(height, width, self.picture, self.state.dtype, self.state.device)
        window = place[:, 0] + offsets
        other = (sign * self.state.shape[1])[:, :, None].expand(-1, -1, height * width)
        values, cells = self.ends.gather(1, window + other.flatten(1)), self.state.shape[1]
        if height * width <= TURNED:  # what would change nothing is turned round
            same = (values == self.state.gather(1, window)).all(1, keepdim=True)
            values = torch.where(same, self.ends.gather(1, window + (cells - other).flatten(1)), values)
        return self.state.scatter(1, window, values)

    def reached(self, rows: Tensor, cells: Tensor) -> Tensor:
        return cells


class Pyramids(Walk):
    """l2: a state is the offset from the image."""

    smooth = True
    windows = 2

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        engine, picture = self.engine, self.picture
        self.x = picture.cells(engine.x[self.at])
        # a little less, so that rounding cannot take an image out of the ball
        self.eps = (engine.eps[self.at] * INSIDE - torch.finfo(self.x.dtype).eps).clamp_min(0).to(self.x.dtype)[:, None]
        self.budget = self.eps.square() / picture.channels
        self.pixel = picture.cells(torch.ones_like(engine.x[:1])) if picture.padding else None
        """1 where a cell is a pixel."""

    def keep(self, stands: Tensor) -> None:
        super().keep(stands)
        self.x, self.eps, self.budget = self.x[stands], self.eps[stands], self.budget[stands]

    def start(self) -> Tensor:
        number, pattern, many = tiles(self.picture.height, self.picture.width)
        number, pattern = number.to(self.x.device), pattern.to(self.x)
        draw = self.uniforms((1 + self.picture.channels) * many, -1).view(-1, 1 + self.picture.channels, many) < 0.5
        turned, signs = draw[:, :1, number], draw[:, 1:, number]
        offset = (torch.where(turned, pattern[0], pattern[1]) * torch.where(signs, 1, -1)).flatten(1)
        if self.pixel is not None:
            offset = offset * self.pixel
        return self.clipped(offset * (self.eps / offset.norm(dim=1, keepdim=True)))

    def propose(self, place: Tensor, sign: Tensor, height: int, width: int) -> Tensor:
        channels, length = self.picture.channels, torch.linalg.vector_norm
        offsets, table = _window(height, width, self.picture, self.state.dtype, self.state.device)
        windows = place + offsets
        into, wiped = windows.unbind(1)
        old = self.state.gather(1, windows.flatten(1)).view(-1, 2, channels, height * width)
        before = length(old, dim=3, keepdim=True)
        moved = self.state.scatter(1, wiped, 0)
        rest = length(moved.gather(1, into).view(-1, channels, height * width), dim=2)
        # what the new window may have: the length of both old ones, and a share of what no pixel uses (below 0 by rounding)
        used, second = length(self.state, dim=1, keepdim=True), before[:, 1, :, 0]
        spare = torch.addcmul(self.budget, used, used, value=-1 / channels)
        freed = torch.addcmul(torch.addcmul(spare, rest, rest), second, second).clamp_min_(0).sqrt_()
        pattern = table.index_select(0, sign.flatten()).view(-1, channels, height * width)
        way = torch.addcdiv(pattern, old[:, 0], before[:, 0] + TINY)
        if height * width in (1, self.picture.height * self.picture.width):  # the same window again: it may be the very opposite
            way = torch.where(length(way, dim=2, keepdim=True) > 1e-3, way, pattern)
        if self.pixel is not None:
            way = way * self.pixel[0][into][:, None]
        moved.scatter_(1, into, (way * (freed / (length(way, dim=2) + TINY))[:, :, None]).flatten(1))
        return self.clipped(moved)

    def reached(self, rows: Tensor, cells: Tensor) -> Tensor:
        return cells - self.x.index_select(0, rows)

    def clipped(self, offset: Tensor) -> Tensor:
        """The image with this offset, cell by cell inside the box."""
        cells = self.x + offset
        return cells.clamp_(0, 1) if self.engine.box == "unit" else cells


@lru_cache(maxsize=64)
def _window(
    height: int, width: int, picture: Picture, dtype: torch.dtype, device: torch.device
) -> tuple[Int[Tensor, " cells"], Float[Tensor, "4 window"]]:
    """Where a window's cells lie from its first one, in every channel; the pattern in one: stacked or beside, and both minus."""
    channels = torch.arange(picture.channels)[:, None, None] * (picture.height * picture.width)
    offsets = (channels + torch.arange(height)[:, None] * picture.width + torch.arange(width)).flatten()
    pattern = halves(height, width).flatten(1)
    return offsets.to(device), torch.cat([pattern, -pattern]).to(device, dtype)
