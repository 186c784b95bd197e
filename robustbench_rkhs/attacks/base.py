"""The base class of attacks: images in, images out, and the passes used. Success is measured by the evaluation, not reported."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import Node, Real, Seed, UserError
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.counter_rng import mix


class Attacked(NamedTuple):
    """Adversarial images (the original where nothing better was found) and what each cost."""

    images: Float[Tensor, "batch *image"]
    forwards: Int[Tensor, " batch"]
    """Forward passes spent on each image."""
    backwards: Int[Tensor, " batch"]
    """Backward passes spent on each image."""
    broken: Bool[Tensor, " batch"] | None = None
    """Images that the attack broke and stopped working on; None for an attack that never stops early."""
    finished: bool = True
    """False if the time ran out: an image that it did not break is then untested; it did not survive."""


def unstarted(x: Float[Tensor, "batch *image"]) -> Attacked:
    """What an attack returns if its time ran out before it found anything."""
    nothing = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Attacked(x.clone(), nothing, nothing.clone(), finished=False)


class Attack(Node):
    """Common fields of all attacks. `__call__(model, x, y, keys)`; `keys`: one integer key per image that
    seeds its random numbers."""

    minimal_norm: ClassVar[bool] = False
    """True: runs once without a budget and answers every eps."""

    norm: Norm = "l2"
    """Norm of the distance that is bounded or minimised, with pixels in [0, 1]."""
    box: Box = "unit"
    """`unit`: stay in [0, 1]; `none`: anywhere (kept to reproduce published numbers)."""
    eps: Real | None = None
    """Budget: radius of the ball. The evaluation sets it."""
    seed: Seed = 0
    """Seed of the random numbers."""

    @property
    def scale_invariant(self) -> bool:
        """True where multiplying all logits by a constant cannot change what is found."""
        return False

    @property
    def label(self) -> str:
        """The name in tables."""
        return str(getattr(self, "name", type(self).__name__))

    def aimed(self, *, norm: Norm, eps: float | None, seed: int) -> "Attack":
        """The same attack with this budget; a minimal-norm attack has none."""
        return self.model_copy(update={"norm": norm, "eps": None if self.minimal_norm else eps, "seed": seed})

    def again(self, number: int) -> "Attack":
        """The same attack with other random numbers, for images whose adversarial example could not be reproduced."""
        return self.model_copy(update={"seed": mix(self.seed, number)})

    def budget(self) -> float:
        """The eps of this attack; raises UserError where it is missing or negative."""
        if self.eps is None:
            raise UserError(f"attack {self.label!r} needs an eps, found none")
        if self.eps < 0:
            raise UserError(f"attack {self.label!r}: eps must not be negative, found {self.eps}")
        return self.eps

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor) -> Attacked:
        raise TypeError(f"{type(self).__name__} is not an attack by itself")
