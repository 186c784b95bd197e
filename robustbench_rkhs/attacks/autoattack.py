"""AutoAttack, run through the package of its authors: the fixed-budget standard of the field."""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.base import Attack, Attacked, unstarted
from robustbench_rkhs.attacks.library_model import Counted, confined_randomness, counting, gain, searched
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.counter_rng import mix

PARTS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The attacks of each version, in the library's order."""
KNOWN = sorted({part for parts in PARTS.values() for part in parts})


class AutoAttack(Attack):
    r"""An ensemble of attacks at one budget, each on the images that the earlier ones did not break.

    .. math:: \exists x' \in B_\varepsilon(x) \cap [0,1]^d : \arg\max_k f_k(x') \ne y \; ?

    standard: APGD on cross-entropy, APGD on targeted DLR, targeted FAB, Square (5000 queries). plus: also untargeted APGD-DLR
    and FAB, 5 restarts. rand: APGD on both losses, averaged over 20 passes, for randomized models. custom:
    `attacks`, with the settings of standard. Targeted attacks try min(9, classes - 1) targets. With fewer than four classes,
    which the DLR losses cannot take, classes that are never predicted are appended. Square needs a picture with a side that it
    can tile: other inputs are passed to it as the first pixels of a square picture, and to the other attacks as one column.
    Images that are misclassified to begin with, and those that nothing broke, are returned unchanged. Random numbers are seeded by
    (seed, keys of the block): another block gets other ones.
    Cost per robust image: 7,852 forward and 1,910 backward passes at ten classes (standard).
    Raises UserError for a missing or negative eps, for box `none` and for images outside [0, 1] (AutoAttack knows no other box).
    Source: Croce & Hein, ICML 2020; package pyautoattack 0.2.0.
    """

    name: Literal["autoattack"] = "autoattack"
    version: Literal["standard", "plus", "rand", "custom"] = "standard"
    """Which ensemble."""
    attacks: tuple[str, ...] = ()
    """The attacks of `custom`: apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square."""
    batch_size: int = Field(256, ge=1)
    """Images per batch."""
    rescale: bool = False
    """Multiply all logits by the positive constant that puts the block's median margin at 10: no prediction changes, and
    cross-entropy is not masked. False: the published protocol, whose other losses see every scale alike."""

    @model_validator(mode="after")
    def _battery(self) -> "AutoAttack":
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError(f"attacks go with version custom, found version {self.version!r} and attacks {self.attacks}")
        for attack in self.attacks:
            if attack not in KNOWN:
                raise ValueError(f"unknown attack {attack!r} of AutoAttack; {did_you_mean(attack, KNOWN)}")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The attacks that run, in order."""
        return PARTS.get(self.version, self.attacks)

    @property
    def scale_invariant(self) -> bool:
        return self.rescale or any(part != "apgd-ce" for part in self.parts)

    @property
    def label(self) -> str:
        if self.version == "standard":
            return self.name
        return f"{self.name}:{'+'.join(self.attacks) if self.version == 'custom' else self.version}"

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
    ) -> Attacked:
        eps = self.budget()
        if self.box != "unit":
            raise UserError(f"AutoAttack knows only box 'unit', the images in [0, 1], found box {self.box!r}")
        if len(x) and (x.amin() < 0 or x.amax() > 1):
            raise UserError(f"AutoAttack expects images in [0, 1], found {x.amin():.4g} to {x.amax():.4g}")
        seed, images = mix(self.seed, *keys.tolist()), x.clone()
        with counting(model, x) as counted, confined_randomness(seed), _silence():
            try:
                standing = counted.standing(x, y)
            except OutOfTime:
                return unstarted(x)
            finished = True
            attacked, claimed = standing & (eps > 0), ~standing
            for parts, square in self._plan(x):
                try:
                    left = (attacked & counted.standing(images, y)).nonzero().squeeze(1)
                except OutOfTime:
                    finished = False
                    break
                done = searched(counted, x[left], y[left], self.norm, eps, partial(self._search, counted, parts, square, eps, seed))
                images[left] = torch.where(per_image(done.fell, done.images), done.images, x[left])
                moved = done.images != x[left].float().to(x)  # the library changes the images that it broke, and no others
                claimed[left] |= moved.flatten(1).any(1)
                if not done.finished:
                    finished = False
                    break
            return Attacked(images, *counted.spent(attacked), claimed, finished)

    def _plan(self, x: Tensor) -> list[tuple[tuple[str, ...], int | None]]:
        """Which attacks run on which form of the images: all as they are, or Square separately, on squares of this side."""
        if x.dim() == 4 and _tiles(*x.shape[2:]):
            return [(self.parts, None)]
        side = max(5, math.isqrt(max(x.shape[1:].numel() - 1, 0)) + 1)
        while not _tiles(side, side):
            side += 1
        runs = [(tuple(part for part in self.parts if part != "square"), 0), (("square",), side)]
        return [(parts, form) for parts, form in runs if set(parts) & set(self.parts)]

    def _search(
        self, counted: Counted, parts: tuple[str, ...], square: int | None, eps: float, seed: int, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = self._run(counted, x, y, parts, square, eps, seed)
        return found, ~counted.standing(found, y) & found.flatten(1).isfinite().all(1)

    def _run(
        self, counted: Counted, x: Tensor, y: Tensor, parts: tuple[str, ...], square: int | None, eps: float, seed: int
    ) -> Tensor:
        from pyautoattack import AutoAttack as Library  # imported here: reading a recipe must not need it

        flat = x.flatten(1).float()
        padding = square * square - flat.shape[1] if square else 0
        shown = functional.pad(flat, (0, padding), value=0.5)
        shown = shown.view(x.shape if square is None else (-1, 1, square, square) if square else (*flat.shape, 1, 1))
        counted.gain = None
        with torch.no_grad():
            logits = counted(shown)
        if logits.shape[1] < 2:
            return x  # one class: there is no other class to reach
        if self.rescale:
            counted.gain = gain(logits, y).median()[None]
            logits = logits * counted.gain
        library = Library(
            _AtLeastFour(counted, logits),
            norm="L2" if self.norm == "l2" else "Linf",
            eps=eps,
            seed=seed,
            device=x.device,
            version="standard" if self.version == "custom" else self.version,
        )
        library.attacks_to_run = list(parts)
        library.fab.n_target_classes = library.apgd_targeted.n_target_classes = min(9, logits.shape[1] - 1)
        found, _ = library.run_standard_evaluation(shown, y, batch_size=self.batch_size)
        result: Tensor = found.flatten(1)[:, : flat.shape[1]].reshape(x.shape).to(x.dtype)
        return result


class _AtLeastFour(nn.Module):
    """Logits of at least four classes: the appended ones lie a constant below the lowest real one.

    They lie so far below (a thousand spreads of the clean logits, plus 100) that no attack can reach them, cross-entropy does not
    see them, and the DLR losses become the margin over an almost constant denominator: the same direction at any scale.
    A denominator that shrank with the margin would make the DLR loss of two classes constant, with no gradient at all.
    """

    def __init__(self, counted: Counted, clean: Float[Tensor, "batch classes"]) -> None:
        super().__init__()
        self.counted = counted
        self.missing = max(4 - clean.shape[1], 0)
        self.below = max(1000 * (clean.amax(1) - clean.amin(1)).max().item(), 100.0)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.counted(images)
        low = logits.amin(1, keepdim=True) - self.below
        return torch.cat([logits, low.expand(-1, self.missing)], 1) if self.missing else logits


def _tiles(height: int, width: int) -> bool:
    """Whether Square can tile such a picture: its squares are a fifth of the height and must fit inside."""
    side = height // 5
    margin = (height - 5 * side) // 2
    if side <= 1:
        return side == 1 and width >= 5
    return margin + height // side * side <= height and margin + width // side * side <= width


@contextmanager
def _silence() -> Iterator[None]:
    """Switch the library's logger off, and restore the tracing of debuggers and coverage, which it drops."""
    logger, tracing = logging.getLogger("auto-attack"), sys.gettrace()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
        sys.settrace(tracing)
