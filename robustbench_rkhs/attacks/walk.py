"""How the Square attack walks: images on their way through a chunk of queries, several proposals of a state asked at once."""

from abc import ABC, abstractmethod
from itertools import groupby
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.windows import Picture
from robustbench_rkhs.counters import uniforms

BUNCH = 8
"""Proposals of one image that are asked at once, at most."""
PATIENCE = 48
"""Queries that moved nothing for one proposal more at once. A move halves their count, and leaves unused at most one proposal for
each `PATIENCE` counted: so no more than two in `PATIENCE` of all queries are asked in vain."""


class Walk(ABC):
    """Some images, each a flat row of cells, on their way through a chunk of queries.

    The proposals of an image's next few queries are all made from the state that it is in, and asked at once. The first that is
    taken moves it; the later ones are dropped, and made again from where it is then: it moves as if asked one by one.
    How many go together follows from the image's own past alone, so that its company changes nothing.
    """

    smooth: ClassVar[bool]
    """Whether its windows carry the l2 pattern."""
    windows: ClassVar[int]
    """How many windows a query has."""

    def __init__(self, engine: Engine, picture: Picture, at: Tensor, seed: int, state: Tensor, lowest: Tensor, quiet: Tensor) -> None:
        self.engine, self.picture, self.seed = engine, picture, seed
        self.at, self.y, self.state, self.lowest, self.quiet = at, engine.y[at], state, lowest, quiet
        self.done = torch.zeros_like(at)
        """Queries of this chunk that each image has behind it."""

    def go(self, begin: int, windows: list[tuple[int, int]]) -> None:
        """Queries from number `begin` on; number 0 is the start. An image that fell leaves `at` and all that goes with it."""
        self.places, self.signs = self.drawn(begin, windows)
        if begin == 0:
            once = torch.ones_like(self.at)
            self.ask(self.start(), once.cumsum(0) - 1, once - 1, once)
        last = 0
        for (height, width), alike in groupby(windows):  # proposals that are asked at once have windows of one size
            last += len(list(alike))
            while total := int((many := self.ahead(last)).sum()):
                rows = torch.repeat_interleave(many, output_size=total)
                turn = torch.arange(total, device=rows.device) - (many.cumsum(0) - many)[rows]
                query = rows * len(windows) + self.done[rows] + turn
                place, sign = self.places.index_select(0, query), self.signs.index_select(0, query)
                self.ask(self.propose(rows, place, sign, height, width), rows, turn, many)

    def ahead(self, last: int) -> Int[Tensor, " some"]:
        """How many proposals of each image to ask at once, none beyond query `last` of the chunk, and no more than a batch."""
        many = torch.minimum(1 + self.quiet // PATIENCE, last - self.done)
        return many * (many.cumsum(0) <= max(self.engine.batch_size, BUNCH))  # the others wait until the first are through

    def ask(self, cells: Tensor, rows: Tensor, turn: Tensor, many: Tensor) -> None:
        """Ask for these cells: each image's `many` proposals are rows behind each other, each the one at its `turn`."""
        value = margin(self.engine.logits(self.at[rows], self.picture.images(cells)), self.y[rows])
        # a proposal of equal margin is taken: so a model with flat answers is walked over
        taken = (value <= self.lowest[rows]).nonzero().flatten()
        quiet = self.quiet + many
        if len(taken):
            moved, several = rows[taken].unique_consecutive(return_counts=True)
            first = taken[several.cumsum(0) - several]
            self.state.index_copy_(0, moved, self.reached(moved, cells[first]))
            self.lowest.index_copy_(0, moved, value[first])
            quiet.index_copy_(0, moved, self.quiet[moved] // 2)
            many = many.index_copy(0, moved, turn[first] + 1)
        self.quiet, self.done = quiet.clamp_max_((BUNCH - 1) * PATIENCE), self.done + many
        if not (value > 0).all():
            stands = self.engine.standing(self.at)
            if not stands.all():
                self.keep(stands)

    def keep(self, stands: Bool[Tensor, " some"]) -> None:
        """Leave the others out."""
        self.places, self.signs = (drawn.unflatten(0, (len(stands), -1))[stands].flatten(0, 1) for drawn in (self.places, self.signs))
        self.at, self.y, self.done, self.quiet = (tensor[stands] for tensor in (self.at, self.y, self.done, self.quiet))
        self.state, self.lowest = self.state[stands], self.lowest[stands]

    def uniforms(self, count: int, draw: int) -> Float[Tensor, "some count"]:
        """Random numbers of these images."""
        return uniforms(self.engine.keys[self.at], self.seed, count, draw)

    def drawn(self, begin: int, windows: list[tuple[int, int]]) -> tuple[Int[Tensor, "queries some_windows 1"], Tensor]:
        """First cells of the windows and patterns of the channels, image by image: all that is random, in a few operations."""
        picture, first = self.picture, 2 * self.windows
        each = first + 1 + picture.channels
        draw = self.uniforms(len(windows) * each, begin).view(len(self.at), len(windows), each)
        height, width = torch.tensor(windows, device=draw.device).T[:, None, :, None]
        rows, columns = picture.height - height, picture.width - width
        above = torch.minimum((draw[..., : self.windows] * (rows + 1)).long(), rows)
        left = torch.minimum((draw[..., self.windows : first] * (columns + 1)).long(), columns)
        signs = (draw[..., first + 1 :] < 0.5).long()
        if self.smooth:
            signs = 2 * signs + (draw[..., first : first + 1] < 0.5).long()
        return (above * picture.width + left).flatten(0, 1)[..., None], signs.flatten(0, 1)

    @abstractmethod
    def start(self) -> Float[Tensor, "some cells"]:
        """The first images, as cells."""

    @abstractmethod
    def propose(self, rows: Tensor, place: Tensor, sign: Tensor, height: int, width: int) -> Float[Tensor, "rows cells"]:
        """Changed images, as cells: one a row, from the state of the image `rows` names."""

    @abstractmethod
    def reached(self, moved: Tensor, cells: Tensor) -> Tensor:
        """The states of these images at these cells."""
