"""Whether a model's answer to an image is a function of that image: asked alone, again, and in company of several sizes."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robustbench_rkhs.bounds.coarse import coarse_steps
from robustbench_rkhs.evaluation.diagnostics import sampled
from robustbench_rkhs.evaluation.predictions import answer
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.runtime.heartbeat import beat
from robustbench_rkhs.verdicts import BATCH_DEPENDENT, RANDOMISED, Diagnosis

IMAGES = 16
"""Images that are asked."""
BLOCKS = (2, 3, 5, 8, 16)
"""Sizes of the company that each of them is asked in."""
DIFFER = 1e-4
"""Answers further apart than this share of their spread differ: summation order alone moves float32 by a few 1e-6 of it."""
ROUNDING = {True: 2.0**-5, False: 2.0**-18}
"""And than this share of the largest logit: rounding at the size of the logits, in half precision (True) and in float32."""
FEWEST = 2
"""Images that must differ, of two or more: one can lie on the edge of a rounding step."""
SHARE = 0.25
"""Share of a budget's remaining time that the questions may take."""
PASSES = 14
"""Passes of each image, besides the block of the evaluation's size."""


@torch.no_grad()
def independence(
    model: nn.Module,
    x: Float[Tensor, "batch *image"],
    logits: Float[Tensor, "batch classes"],
    keys: list[int],
    seed: int,
    block: int = 100,
    clock: Clock | None = None,
) -> Diagnosis:
    """`batch_dependent`, or `randomised` where the same question alone gets different answers already.

    `logits`: the answers of the evaluation to all images, in its blocks. A sample of 16 images is asked alone, in blocks of 2 to 16
    in changing company, beside bright, dark and inverted pictures, all in one block of the evaluation's size, and alone again.
    Of a smoothed classifier its base is asked, which may draw at random. BatchNorm on the batch's own statistics, a mean over the
    batch, a cache that outlives a call, and random layers all show. Cost: at most 14 passes of each image of the sample, and a
    block of images once. Where a quarter of what is left on `clock` does not allow that, fewer images are asked, two at least, and
    questions for which there is no time are left out; the answers of the evaluation are compared all the same.
    """
    smooth = isinstance(model, Smoothed)
    asked: nn.Module = model.base if isinstance(model, Smoothed) else model
    rows = torch.tensor(sampled(keys, IMAGES, seed), dtype=torch.int64, device=x.device)
    if not len(rows):
        return Diagnosis(BATCH_DEPENDENT, False, 0.0, 0.0, "no images to ask about", 0.0)
    ask = _Asking(asked, Clock() if clock is None or clock.budget is None else Clock(SHARE * clock.left()))
    first = torch.cat([ask.once(x[row][None]) for row in rows[:FEWEST]])
    rows = rows[: max(FEWEST, ask.fitting(PASSES))]
    images, found, again = x[rows], list[Tensor](), list[Tensor]()
    alone = torch.cat([first, *(ask.once(one[None]) for one in images[FEWEST:])])
    if not smooth:
        found.append(logits.to(alone)[rows])
    strange = torch.cat([1 - images[:1], torch.zeros_like(images[:1]), torch.ones_like(images[:1])])
    try:
        for number, size in enumerate(BLOCKS):
            turned = images.roll(number * 5 + 1, 0)
            found.append(ask.in_blocks(turned, size).roll(-number * 5 - 1, 0))
        found.append(torch.cat([ask.in_time(torch.cat([strange, one[None], strange.flip(0)]))[3:4] for one in images]))
        found.append(ask.in_time(torch.cat([images, x[: max(block - len(images), 0)]]))[: len(images)])
        again.append(ask.in_blocks(images, 1))
    except OutOfTime:  # what was asked counts
        pass
    coarse = bool(coarse_steps(asked, images[:1]))
    drawn = differing(alone, again, coarse)
    moved = differing(alone, found, coarse)
    fewest = min(FEWEST, len(images))
    changed = torch.stack([one.argmax(1) != alone.argmax(1) for one in [alone, *found, *again]]).any(0)
    random = int(drawn.sum()) >= fewest
    name, which = (RANDOMISED, drawn) if random and not smooth else (BATCH_DEPENDENT, moved)
    how = "asked twice alone" if name == RANDOMISED else "asked alone and in company"
    words = f"{how}, {int(which.sum())} of {len(images)} images get other logits; {int(changed.sum())} get another class somewhere"
    tripped = int(which.sum()) >= fewest and not (random and smooth)
    return Diagnosis(name, tripped, float(which.double().mean()), 0.0, words, ask.passes / len(images))


def differing(
    alone: Float[Tensor, "some classes"], others: list[Float[Tensor, "some classes"]], coarse: bool
) -> Bool[Tensor, " some"]:
    """Which images have other logits in any of these answers."""
    spread = alone.amax(1) - alone.amin(1)
    allowed = DIFFER * spread + ROUNDING[coarse] * alone.abs().amax(1)
    apart = torch.stack([(one - alone).abs().amax(1) for one in [alone, *others]]).amax(0)
    result: Tensor = ~(apart <= allowed)
    return result


class _Asking:
    """Questions to a model, whose pace is measured, so that those for which there is no time are not asked."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self.model, self.clock, self.passes, self.pace = model, clock, 0, math.inf

    def fitting(self, passes: int) -> int:
        """Images for which there is time, at so many passes of each."""
        return int(min(max(self.clock.left(), 0.0) / max(passes * self.pace, 1e-9), IMAGES))

    def once(self, images: Tensor) -> Tensor:
        """The answer, whatever time it takes."""
        beat()
        begun = Clock()
        found: Tensor = answer(self.model, images)
        self.pace = min(self.pace, begun.passed() / len(images))
        self.passes += len(images)
        return found.detach().clone()  # a model may return the same memory every time

    def in_time(self, images: Tensor) -> Tensor:
        """The answer. Raises OutOfTime where it would come too late."""
        if self.pace * len(images) > self.clock.left():
            raise OutOfTime
        return self.once(images)

    def in_blocks(self, images: Tensor, size: int) -> Tensor:
        return torch.cat([self.in_time(block) for block in images.split(size)])
