"""Random search: what falls to queries alone, where gradients said it would not."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import draws, per_image
from robustbench_rkhs.attacks.engine import Engine, EngineAttack
from robustbench_rkhs.diagnostics.walk import margins, reach

CHUNK = 64
"""Queries whose random numbers are drawn at once."""


class RandomSearch(EngineAttack):
    r"""Random blocks of the image pushed to the edge of the ball; a change stays where the margin does not rise.

    .. math:: x' \leftarrow \Pi(x' + s\,\varepsilon\,b) \quad\text{if}\quad m(\Pi(x' + s\,\varepsilon\,b)) \le m(x')

    b: one sign on a random block of pixels (each channel its own; every side of the image the same share, falling from the whole
    image to a single pixel), at length one in the norm. linf: the block is set to x +- eps; l2: the whole is brought back to
    length eps. Equal margins are taken too: on a plateau, as rounded answers make them, it drifts instead of standing still.
    Cost: `queries` forward passes. No gradients. Source: the idea of Andriushchenko et al., ECCV 2020, without its schedule.
    """

    name: Literal["random_search"] = "random_search"
    queries: int = Field(300, ge=1)
    """Forward passes of each image."""

    @property
    def scale_invariant(self) -> bool:
        return True

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        at = engine.open()
        if not len(at):
            return
        now, best = engine.x.clone(), margins(engine.clean, engine.y).clone()
        shape = engine.x.shape[1:]
        sides, channels = (shape[1:], shape[0]) if len(shape) > 1 else (shape, 1)
        numbers, length = now.new_zeros(0), reach(engine)
        for query in range(self.queries):
            if query % CHUNK == 0:
                flat = now.new_zeros(len(now), CHUNK, len(sides) + channels)
                numbers = draws(engine.keys, engine.seed, flat, 1 + query // CHUNK)
            at = at[engine.standing(at)]
            if not len(at):
                return
            given = numbers[at, query % CHUNK]
            share = max(1 - query / (0.7 * self.queries), 0) ** 2
            block = window(given[:, : len(sides)], sides, share)
            signs = given[:, len(sides) :].sign().view(-1, channels, *[1] * len(sides)) * block[:, None]
            moved = self.moved(engine, at, now[at], signs.reshape(len(at), *shape), length[at])
            value = margins(engine.logits(at, moved), engine.y[at])
            better = value <= best[at]
            now[at[better]], best[at[better]] = moved[better], value[better].to(best)

    def moved(self, engine: Engine, at: Tensor, images: Tensor, signs: Tensor, length: Tensor) -> Tensor:
        """The images with the block changed, inside the ball."""
        x, far = engine.x[at], per_image(length, images)
        if self.norm == "linf":
            return engine.project(at, torch.where(signs != 0, x + far * signs, images))
        delta = images - x + far * signs / per_image(signs.flatten(1).norm(dim=1).clamp_min(1), x)
        return engine.project(at, x + delta * (far / per_image(delta.flatten(1).norm(dim=1).clamp_min(1e-30), x)))


def window(given: Float[Tensor, "some sides"], sides: torch.Size, share: float) -> Float[Tensor, "some *image"]:
    """1 on a block of this share of each side (a pixel at least), its place by normal numbers; 0 elsewhere."""
    whole = given.new_ones(len(given), *[1] * len(sides))
    for number, side in enumerate(sides):
        wide = max(1, round(side * share))
        uniform = (1 + torch.erf(given[:, number] / 2**0.5)) / 2
        begin: Int[Tensor, " some"] = (uniform * (side - wide + 1)).long().clamp_max(side - wide)
        places = torch.arange(side, device=given.device)
        inside = (places >= begin[:, None]) & (places < begin[:, None] + wide)
        whole = whole * inside.view(-1, *[side if one == number else 1 for one in range(len(sides))])
    return whole
