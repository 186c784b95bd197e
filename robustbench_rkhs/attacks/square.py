"""The Square attack: random search on the margin, which needs no gradient and so cannot be misled by one."""

from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import ends
from robustbench_rkhs.attacks.engine import INSIDE, Engine, EngineAttack
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.windows import Picture, halves, sides, tiles
from robustbench_rkhs.counters import mix, uniforms
from robustbench_rkhs.node import Real, UserError

CHUNK = 250
"""Queries whose random numbers are drawn at once; after them what still stands is put into full batches again."""
TURNED = 16
"""Cells of the largest linf window that is turned round where it would change nothing; larger ones hardly ever would."""
TINY = 1e-30
SALT = 0x5173
"""Sets these draws apart from other attacks' under the same seed."""


class Square(EngineAttack):
    r"""Random search on the margin: one square window of the image is changed at a time, and kept where the margin falls.

    .. math:: x^{(i)} = \arg\min_{x' \in \{x^{(i-1)},\, \Pi(x^{(i-1)} + \delta^{(i)})\}} f_y(x') - \max_{j \ne y} f_j(x')

    linf: every pixel is eps above or below its own value (or at the box); it starts as vertical stripes of random sign, and a
    window takes one random sign a channel. l2: it starts as five by five tiles; the offset in one random window is wiped, and
    its length and what is left of eps go to another one, as a pyramid up on one half and down on the other. The windows cover
    `share` of the picture at first and half of it after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the queries.
    (C, H, W) and (H, W) are pictures; any other input is laid out as one near-square grey one.
    Cost of a robust image: `queries` forward passes for each restart and one, no backward pass. One that fell leaves at once.
    Raises UserError without an eps, or with an infinite one.
    Source: Andriushchenko et al., ECCV 2020; the schedule and 0.8 are those of AutoAttack (Croce & Hein, ICML 2020).
    """

    name: Literal["square"] = "square"
    queries: int = Field(5000, ge=1)
    """Forward passes of each restart, its start included."""
    share: Real = Field(0.8, gt=0, le=1)
    """Share of the picture that the first windows cover."""
    restarts: int = Field(1, ge=1)
    """Starts, each from random stripes or tiles."""

    @property
    def scale_invariant(self) -> bool:
        return True

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        if not engine.eps.isfinite().all():
            raise UserError(f"attack {self.label!r} searches a ball, found an infinite eps; give every image a finite one")
        if engine.clean.shape[1] < 2:
            return  # one class: nothing to change to
        picture = Picture.of(tuple(engine.x.shape[1:]))
        kind = Stripes if engine.norm == "linf" else Pyramids
        windows = [sides(self.share, query, self.queries, picture, kind.smooth) for query in range(self.queries)]
        for restart in range(self.restarts):
            seed = mix(engine.seed, SALT, restart)
            states, lowest = torch.zeros_like(picture.cells(engine.x)), torch.full_like(engine.clean[:, 0], torch.inf)
            for begin in range(0, self.queries, CHUNK):  # chunk by chunk: what stands is put into full batches again
                for at in engine.open().split(engine.batch_size):
                    walk = kind(engine, picture, at, seed, states[at], lowest[at])
                    walk.go(begin, windows[begin : begin + CHUNK])
                    states[walk.at], lowest[walk.at] = walk.state, walk.lowest


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
        # what the new window may have: the length of both old ones, and a share of what no pixel uses
        spare = torch.addcmul(self.budget, used := length(self.state, dim=1, keepdim=True), used, value=-1 / channels).clamp_min_(0)
        freed = torch.addcmul(torch.addcmul(spare, rest, rest), before[:, 1, :, 0], before[:, 1, :, 0]).sqrt_()
        way = torch.addcdiv(
            table.index_select(0, sign.flatten()).view(-1, channels, height * width), old[:, 0], before[:, 0] + TINY
        )
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
) -> tuple[Int[Tensor, " window"], Float[Tensor, "4 window"]]:
    """Where the cells of a window lie from its first one, in every channel; the pattern in one: stacked or beside, and both minus."""
    channels = torch.arange(picture.channels)[:, None, None] * (picture.height * picture.width)
    offsets = (channels + torch.arange(height)[:, None] * picture.width + torch.arange(width)).flatten()
    pattern = halves(height, width).flatten(1)
    return offsets.to(device), torch.cat([pattern, -pattern]).to(device, dtype)
