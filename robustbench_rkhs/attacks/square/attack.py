"""The Square attack: random search on the margin, without gradients, so that masked gradients cannot mislead it."""

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
from robustbench_rkhs.runtime.heartbeat import staged

CHUNK = 250
"""Queries whose random numbers are drawn at once; after them the unbroken images are regrouped into full batches."""
SALT = 0x5173
"""Separates these random numbers from those of other attacks with the same seed."""


class Square(EngineAttack):
    r"""Random search on the margin: change one square window at a time, and keep the change if the margin falls.

    .. math:: x^{(i)} = \arg\min_{x' \in \{x^{(i-1)},\, \Pi(x^{(i-1)} + \delta^{(i)})\}} f_y(x') - \max_{j \ne y} f_j(x')

    linf: every pixel is eps above or below its own value (or at the box); it starts as vertical stripes of random sign, and a
    window takes one random sign per channel. l2: it starts as five by five tiles; the offset in one random window is set to 0, and
    its length and what is left of eps go to another one, as a pyramid, up on one half and down on the other. The windows cover
    `share` of the picture at first and half of it after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the queries.
    (C, H, W) and (H, W) are pictures; any other input is laid out as one near-square grey picture.
    Beyond the paper: each image has its own windows; a linf window of at most 16 pixels that would change nothing has its
    signs flipped (the paper draws again); and a proposal of equal margin is accepted, so that the search crosses plateaus.
    While no proposal is accepted, an image's next proposals, up to 16, are queried at once; the first accepted one changes the
    state, and the later ones are made again from there. So the search is the same as one by one, in fewer and larger batches;
    and as every misclassified proposal is kept, even a discarded one, it is at least as strong.
    Cost per robust image: `queries` forward passes per restart, one more, and the discarded ones: at most a twelfth
    more, 1.8 % as measured on small networks; no backward pass. A broken image leaves at once.
    Raises UserError without an eps, or with an infinite one.
    Source: Andriushchenko et al., ECCV 2020; the schedule and 0.8 are those of AutoAttack (Croce & Hein, ICML 2020).
    """

    name: Literal["square"] = "square"
    queries: int = Field(5000, ge=1)
    """Proposals per restart that count for the search, the start included."""
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
            raise UserError(f"attack {self.label!r} expects a finite eps for every image, found an infinite one")
        if engine.clean.shape[1] < 2:
            return  # one class: there is no other class to reach
        picture = Picture.of(tuple(engine.x.shape[1:]))
        kind = Stripes if engine.norm == "linf" else Pyramids
        windows = [sides(self.share, query, self.queries, picture, kind.smooth) for query in range(self.queries)]
        for restart in staged(range(self.restarts)):
            seed = mix(engine.seed, SALT, restart)
            states, lowest = torch.zeros_like(picture.cells(engine.x)), torch.full_like(engine.clean[:, 0], torch.inf)
            quiet = torch.zeros_like(engine.y)
            chunks = range(0, self.queries, CHUNK)  # after each, the unbroken images are regrouped into full batches
            for begin in staged(chunks):
                for at in staged(engine.open().split(engine.batch_size)):
                    walk = kind(engine, picture, at, seed, states[at], lowest[at], quiet[at])
                    walk.go(begin, windows[begin : begin + CHUNK])
                    states[walk.at], lowest[walk.at], quiet[walk.at] = walk.state, walk.lowest, walk.quiet
