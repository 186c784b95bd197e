"""Square attack: proposals for many images at once, several per image in one forward pass."""

from abc import ABC, abstractmethod
from itertools import groupby
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.square.patches import Picture
from robustbench_rkhs.runtime.counter_rng import uniforms

BUNCH = 16
"""Most proposals of one image in one batch."""
ROWS = 256
"""Proposals per batch if there are fewer images than this: a small network is fastest at such batches."""
PATIENCE = 24
"""Rejected queries that add one proposal per batch. An accepted one halves their count, and discards at most one proposal for
each `PATIENCE` counted: so at most two in `PATIENCE` of all queries are wasted."""


class Walk(ABC):
    """The random search of some images, each a flat row of cells, over a chunk of queries.

    The proposals of an image's next few queries are all made from its current state and queried at once. The first accepted one
    changes the state; the later ones are dropped and made again from the new state: the outcome is as if queried one by one.
    How many go together depends on the image's history alone, so the other images in the batch change nothing.
    """

    smooth: ClassVar[bool]
    """Whether its windows have the l2 pattern."""
    windows: ClassVar[int]
    """Number of windows per query."""

    def __init__(
        self, engine: Engine, picture: Picture, at: Tensor, seed: int, state: Tensor, lowest: Tensor, quiet: Tensor
    ) -> None:
        self.engine, self.picture, self.seed = engine, picture, seed
        self.at, self.y, self.state, self.lowest, self.quiet = at, engine.y[at], state, lowest, quiet

    def go(self, begin: int, windows: list[tuple[int, int]]) -> None:
        """Run the queries from number `begin` on; number 0 is the start. A broken image leaves `at` and all tensors beside it."""
        places, signs = self.drawn(begin, windows)
        every = torch.arange(len(self.at), device=self.at.device)
        self.first = self.next = every * len(windows)  # per image: index into the drawn random numbers
        if begin == 0:
            self.ask(self.start(), every, self.next, torch.ones_like(every))
        last = 0
        for (height, width), alike in groupby(windows):  # proposals in one batch have windows of one size
            last += len(list(alike))
            while len(self.at):
                many, total = self.ahead(last)
                if total == 0:
                    break
                rows = torch.repeat_interleave(many, output_size=total)
                query = (self.next - many.cumsum(0) + many)[rows] + torch.arange(total, device=rows.device)
                place, sign = places.index_select(0, query), signs.index_select(0, query)
                self.ask(self.propose(rows, place, sign, height, width), rows, query, many)

    def ahead(self, last: int) -> tuple[Int[Tensor, " some"], int]:
        """Number of proposals per image in the next batch, and in total: none beyond query `last` of the chunk."""
        many = torch.minimum(self.quiet // PATIENCE + 1, self.first + last - self.next)
        total, limit = int(many.sum()), max(min(ROWS, self.engine.batch_size), BUNCH, len(self.at))
        if total > limit:  # the first images go ahead, the others wait
            many = many * (many.cumsum(0) <= limit)
            total = int(many.sum())
        return many, total

    def ask(self, cells: Tensor, rows: Tensor, query: Tensor, many: Tensor) -> None:
        """Query these cells: `many` consecutive rows per image; `rows`: the image of each row, `query`: its query number."""
        value = margin(self.engine.logits(self.at[rows], self.picture.images(cells)), self.y[rows])
        # a proposal of equal margin is accepted, so that the search crosses plateaus
        taken = (value <= self.lowest[rows]).nonzero().flatten()
        reached, quiet = self.next + many, (self.quiet + many).clamp_max_((BUNCH - 1) * PATIENCE)
        if len(taken):
            moved, several = rows[taken].unique_consecutive(return_counts=True)
            first = taken[several.cumsum(0) - several]
            self.state.index_copy_(0, moved, self.reached(moved, cells[first]))
            self.lowest.index_copy_(0, moved, value[first])
            quiet.index_copy_(0, moved, self.quiet[moved] // 2)
            reached.index_copy_(0, moved, query[first] + 1)
        self.next, self.quiet = reached, quiet
        if not (value > 0).all():
            stands = self.engine.standing(self.at)
            if not stands.all():
                self.keep(stands)

    def keep(self, stands: Bool[Tensor, " some"]) -> None:
        """Keep only these images."""
        self.at, self.y, self.quiet, self.first = self.at[stands], self.y[stands], self.quiet[stands], self.first[stands]
        self.next, self.state, self.lowest = self.next[stands], self.state[stands], self.lowest[stands]

    def uniforms(self, count: int, draw: int) -> Float[Tensor, "some count"]:
        """Random numbers of these images."""
        return uniforms(self.engine.keys[self.at], self.seed, count, draw)

    def drawn(self, begin: int, windows: list[tuple[int, int]]) -> tuple[Int[Tensor, "queries some_windows 1"], Tensor]:
        """First cells of the windows and channel patterns per image: all random numbers, in a few operations."""
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
        """The starting images, as cells."""

    @abstractmethod
    def propose(self, rows: Tensor, place: Tensor, sign: Tensor, height: int, width: int) -> Float[Tensor, "rows cells"]:
        """Proposed images, as cells: one per row, from the state of the image that `rows` names."""

    @abstractmethod
    def reached(self, moved: Tensor, cells: Tensor) -> Tensor:
        """The states of these images at these cells."""
