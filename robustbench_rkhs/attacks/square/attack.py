"""The Square attack: random search on the margin, which needs no gradient and so cannot be misled by one."""

from typing import Literal

import torch
from pydantic import Field

from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.square.l2 import Pyramids
from robustbench_rkhs.attacks.square.linf import Stripes
from robustbench_rkhs.attacks.square.patches import Picture, sides
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.runtime.counter_rng import mix

CHUNK = 250
"""Queries whose random numbers are drawn at once; after them the unbroken images are put into full batches again."""
SALT = 0x5173
"""Sets these draws apart from other attacks' under the same seed."""


class Square(EngineAttack):
    r"""Random search on the margin: one square window of the image is changed at a time, and kept where the margin falls.

    .. math:: x^{(i)} = \arg\min_{x' \in \{x^{(i-1)},\, \Pi(x^{(i-1)} + \delta^{(i)})\}} f_y(x') - \max_{j \ne y} f_j(x')

    linf: every pixel is eps above or below its own value (or at the box); it starts as vertical stripes of random sign, and a
    window takes one random sign per channel. l2: it starts as five by five tiles; the offset in one random window is wiped, and
    its length and what is left of eps go to another one, as a pyramid up on one half and down on the other. The windows cover
    `share` of the picture at first and half of it after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the queries.
    (C, H, W) and (H, W) are pictures; any other input is laid out as one near-square grey one.
    Beyond the paper: each image has windows of its own; a linf window of at most 16 pixels that would change nothing has its
    signs turned (the paper draws again); and a proposal of equal margin is taken, so that flat answers are walked over.
    While nothing moves an image, its next proposals, up to 8, are asked at once; the first that is taken moves it, and the later
    ones are made again from there. So it moves as if asked one by one, in fewer and larger batches; and as any misclassified
    proposal is kept, one that is not taken for the search included, the search is at least as strong.
    Cost of a robust image: `queries` forward passes for each restart and one, and those asked in vain: at most a twenty-fourth
    more, 0.8 % as measured on small networks; no backward pass. A broken one leaves at once.
    Raises UserError without an eps, or with an infinite one.
    Source: Andriushchenko et al., ECCV 2020; the schedule and 0.8 are those of AutoAttack (Croce & Hein, ICML 2020).
    """

    name: Literal["square"] = "square"
    queries: int = Field(5000, ge=1)
    """Proposals of each restart that decide where it goes, its start included."""
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
            quiet = torch.zeros_like(engine.y)
            for begin in range(0, self.queries, CHUNK):  # chunk by chunk: the unbroken images are put into full batches again
                for at in engine.open().split(engine.batch_size):
                    walk = kind(engine, picture, at, seed, states[at], lowest[at], quiet[at])
                    walk.go(begin, windows[begin : begin + CHUNK])
                    states[walk.at], lowest[walk.at], quiet[walk.at] = walk.state, walk.lowest, walk.quiet
