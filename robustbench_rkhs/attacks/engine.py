"""The engine of our own attacks: batches of open images only, no weight gradients, every query counted."""

import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances, into_ball, pull_inside
from robustbench_rkhs.attacks.base import Attacked
from robustbench_rkhs.attacks.library_model import gain
from robustbench_rkhs.attacks.objective import misclassified
from robustbench_rkhs.attacks.passes import Slope, Value, boundaries_of, jacobian_of, slope_of
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.clock import ask, fitting, left

INSIDE = 1 - 1e-6
"""Images are projected to this share of eps, less a bound on rounding, so that rounding cannot move them out of the ball."""

CLEAR = 1e-6
"""A misclassification by less than this share of the largest logit is not kept, and the attack goes on: in another batch, whose
last bits differ, it might be classified correctly. An exact tie is kept."""


class Engine:
    """The images under attack, by position in the batch, with the best found for each, and the queried model.

    An attack works on `open()` and queries by `logits` or `slope`; in every query, each misclassified image inside box and ball is
    kept if it is the nearest so far, and leaves `open()` if a finite eps was given. So no iterate of any attack is lost, and
    no attack can report success by itself. Logits that are not finite are misclassified; gradients that are not finite are 0.
    Each batch of a query checks the clock first, and is split if it would take long; `finished` is False if the time ran out
    before the attack ended. The speed is measured by one uncounted pass if a clock runs, then by every query.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        *,
        norm: Norm,
        box: Box,
        eps: Float64[Tensor, " batch"],
        seed: int = 0,
        batch_size: int = 256,
        expectation: int = 1,
        confirm: int = 0,
        packed: nn.Module | None = None,
    ) -> None:
        self.model, self.x, self.y, self.keys = model, x, y, keys
        self.packed: nn.Module | None = None
        """Where given: what the search asks instead of the model, the same function but for the last bits. What it shows to be
        misclassified counts where the model itself errs too. Cost: a forward pass per such image."""
        self.norm, self.box, self.seed, self.batch_size = norm, box, seed, batch_size
        self.expectation, self.confirm = expectation, confirm
        self.eps = eps
        """The budget of each image; infinite to search for the nearest adversarial image."""
        self.watch: Callable[[Tensor, Tensor], None] | None = None
        """Called with (positions, logits) of every query, if given."""
        self.images = x.clone()
        """The nearest adversarial image found; the image itself where none was."""
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.backwards = torch.zeros_like(self.forwards)
        self.right = torch.ones(len(x), dtype=torch.bool, device=x.device)
        peak = x.flatten(1).abs().amax(1).double().clamp_min(1) if x.numel() else self.distance
        self.rounding = peak * torch.finfo(x.dtype).eps / 2 * (x[:1].numel() ** 0.5 if norm == "l2" else 1)
        """Bound on how far rounding can move an image: at small eps, more than a millionth of it."""
        self.finished = True
        """False once the attack ran out of time."""
        self.pace = _pace(model, x)
        """Seconds of a forward pass per image in the latest query; 0 where no clock runs."""
        every = torch.arange(len(x), device=x.device)
        self.clean = self.logits(every, x) if len(x) else x.new_zeros(0, 1)
        """Logits of the clean images."""
        self.right = self.distance > 0  # an image that is misclassified already: found at distance 0, nothing to attack
        self.packed = packed

    @property
    def broken(self) -> Bool[Tensor, " batch"]:
        """Which images have an adversarial image within eps (the wrong ones have themselves)."""
        return self.distance < torch.inf

    def open(self) -> Int[Tensor, " some"]:
        """Positions still to be attacked: correctly classified and, where eps is finite, not broken yet."""
        return (self.right & ~(self.broken & self.eps.isfinite()) & (self.eps > 0)).nonzero().flatten()

    def standing(self, at: Int[Tensor, " some"]) -> Bool[Tensor, " some"]:
        """Which of these positions are still open."""
        return (self.right & ~(self.broken & self.eps.isfinite()))[at]

    @property
    def asked(self) -> nn.Module:
        """What the search queries: the packed copy where there is one, else the model."""
        return self.model if self.packed is None else self.packed

    @cached_property
    def gain(self) -> Float[Tensor, " batch"]:
        """A positive factor for each image's logits that scales its clean margin to 10: scale does not mask cross-entropy."""
        return gain(self.clean, self.y)

    @torch.no_grad()
    def logits(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> Float[Tensor, "some classes"]:
        """Logits of modified images, one for each of these positions. Cost: `expectation` forward passes each."""
        parts = []
        for some in self._batches(len(at), self.expectation):
            where, part = at[some], images[some]
            logits = self.asked(part)
            for _ in range(self.expectation - 1):
                logits = logits + self.asked(part)
            parts.append(logits / self.expectation if self.expectation > 1 else logits)
            self.forwards.index_add_(0, where, torch.full_like(where, self.expectation))
            self._seen(where, part, parts[-1])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def slope(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], value: Value, *, keep: bool = True) -> Slope:
        """Logits, `value` of them and its gradient. Cost: `expectation` forward and backward passes per image.

        `keep`: False if misclassified images must not count (for an attack that is judged by its last iterate alone).
        """
        parts, rows = [], torch.arange(len(at), device=at.device)
        for some in self._batches(len(at), 3 * self.expectation):
            where, part, row = at[some], images[some], rows[some]
            total: Slope | None = None
            for _ in range(self.expectation):
                one = slope_of(self.asked, part, row, value)
                total = one if total is None else Slope(*(a + b for a, b in zip(total, one, strict=True)))
            assert total is not None
            if self.expectation > 1:
                total = Slope(*(tensor / self.expectation for tensor in total))
            counted = self._counted(where)
            self.forwards += counted
            self.backwards += counted
            if keep:
                self._seen(where, part, total.logits)
            parts.append(total)
        return Slope(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def jacobian(
        self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], classes: Int[Tensor, "some few"] | None = None
    ) -> tuple[Float[Tensor, "some classes"], Float[Tensor, "some few *image"]]:
        """Logits and the gradient of every logit, or of those of each image's `classes`.

        Cost: `expectation` times a forward pass and one backward pass per class.
        """
        answers, rows = [], []
        columns = self.clean.shape[1] if classes is None else classes.shape[1]
        for some in self._batches(len(at), (1 + 2 * columns) * self.expectation):
            where, part, few = at[some], images[some], None if classes is None else classes[some]
            every = [jacobian_of(self.asked, part, few) for _ in range(self.expectation)]
            answers.append(torch.stack([logits for logits, _ in every]).mean(0))
            rows.append(torch.stack([gradients for _, gradients in every]).mean(0))
            counted = self._counted(where)
            self.forwards += counted
            self.backwards += counted * rows[-1].shape[1]
            self._seen(where, part, answers[-1])
        return torch.cat(answers), torch.cat(rows)

    def boundaries(self, at: Int[Tensor, " some"]) -> Float[Tensor, "some classes"]:
        """Linearised distance from these images to the boundary of each class; infinite for an image's own label.

        Cost: `expectation` times a forward pass and a backward pass per class.
        """
        parts = []
        for some in self._batches(len(at), (1 + 2 * self.clean.shape[1]) * self.expectation):
            where = at[some]
            several = [boundaries_of(self.asked, self.x[where], self.y[where], self.norm) for _ in range(self.expectation)]
            self._seen(where, self.x[where], torch.stack([logits for logits, _ in several]).mean(0))
            parts.append(torch.stack([far for _, far in several]).mean(0))
            counted = self._counted(where)
            self.forwards += counted
            self.backwards += counted * parts[-1].shape[1]
        return torch.cat(parts)

    def project(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> Float[Tensor, "some *image"]:
        """Project into the box, then towards the image into a ball slightly smaller than eps (by a millionth and the rounding)."""
        x = self.x[at]
        delta = (images.clamp(0, 1) if self.box == "unit" else images) - x
        return x + into_ball(delta, (self.eps[at] * INSIDE - self.rounding[at]).clamp_min(0).to(x.dtype), self.norm)

    def pull(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], logits: Float[Tensor, "some classes"]) -> None:
        """For attacks whose iterates lie on the sphere: misclassified images that rounding left outside are projected inside and
        queried again. Cost: a forward pass each.
        """
        out = (misclassified(logits, self.y[at]) & self.standing(at)).nonzero().flatten()
        if len(out):
            out = out[distances(self.x[at[out]], images[out], self.norm) > self.eps[at[out]]]
        if len(out):
            at = at[out]
            self.logits(at, pull_inside(self.x[at], images[out], self.norm, self.eps[at], self.box))

    def judge(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> None:
        """The last query of a run: misclassified images are kept, after projection where rounding left them outside."""
        self.pull(at, images, self.logits(at, images))

    def attacked(self) -> Attacked:
        """The result in the form that attacks return."""
        return Attacked(self.images, self.forwards, self.backwards, self.broken, self.finished)

    def _batches(self, images: int, passes: int) -> Iterator[slice]:
        """The batches of a query; the clock is checked before each. `passes`: approximate cost per image, in forward passes."""
        if not images:
            yield slice(0, 0)
        start = 0
        while start < images:
            ask()
            size, begun = min(self.batch_size, images - start, fitting(self.pace * passes)), time.monotonic()
            yield slice(start, start + size)
            self.pace = (time.monotonic() - begun) / (size * passes)
            start += size

    def _counted(self, at: Tensor) -> Tensor:
        """The number of passes that a query of these positions costs per position; a position may occur several times."""
        return torch.bincount(at, minlength=len(self.x)) * self.expectation

    @torch.no_grad()
    def _seen(self, at: Tensor, images: Tensor, logits: Tensor) -> None:
        """Keep the misclassified images that are inside box and ball and the nearest so far."""
        if self.watch is not None:
            self.watch(at, logits)
        wrong = self._clearly_wrong(at, logits)
        if not len(wrong):
            return
        at, images = at[wrong], images[wrong]
        away = distances(self.x[at], images, self.norm)
        better = (away <= self.eps[at]) & (away < self.distance[at]) & images.flatten(1).isfinite().all(1)
        if self.box == "unit":
            flat = images.flatten(1)
            better &= (flat >= 0).all(1) & (flat <= 1).all(1)
        kept = better.nonzero().flatten()
        if self.packed is not None and len(kept):  # what counts is the model itself
            better[kept] = False
            better[kept[self._clearly_wrong(at[kept], self.model(images[kept]))]] = True
            self.forwards.index_add_(0, at[kept], torch.ones_like(kept))
        for _ in range(self.confirm):
            kept = better.nonzero().flatten()
            if len(kept):
                better[kept] = self._errs_again(at[kept], images[kept])
        best, away = at[better], away[better]
        order = away.argsort(stable=True)  # an image may be in the batch several times: keep its nearest, the first of equals
        order = order[best[order].argsort(stable=True)]
        places, several = best[order].unique_consecutive(return_counts=True)
        first = order[several.cumsum(0) - several]
        self.images[places], self.distance[places] = images[better][first], away[first]

    def _clearly_wrong(self, at: Tensor, logits: Tensor) -> Tensor:
        """Which rows are misclassified, and not by less than CLEAR."""
        finite = (logits - logits == 0).all(1)  # half the operations of isfinite
        wrong = ((logits.argmax(1) != self.y.index_select(0, at)) | ~finite).nonzero().flatten()
        if not len(wrong):
            return wrong
        told, y = logits[wrong], self.y[at[wrong]]
        gap = (told.amax(1) - told.gather(1, y[:, None])[:, 0]) / told.abs().amax(1)
        return wrong[~((gap > 0) & (gap < CLEAR))]

    def _errs_again(self, at: Tensor, images: Tensor) -> Tensor:
        """Which images are misclassified in another batch too: in reverse order, after a clean image. Cost: a forward pass each."""
        logits = self.model(torch.cat([images, self.x[at[:1]]]).flip(0)).flip(0)[:-1]
        self.forwards.index_add_(0, at, torch.ones_like(at))
        result: Tensor = (logits.argmax(1) != self.y[at]) | ~logits.isfinite().all(1)
        return result


@torch.no_grad()
def _pace(model: nn.Module, x: Tensor) -> float:
    """Seconds of one forward pass of one image, measured if a clock runs: needed to split a first batch of several."""
    if len(x) < 2 or left() == math.inf:
        return 0.0
    ask()
    begun = time.monotonic()
    model(x[:1])
    return time.monotonic() - begun
