"""The engine of our own attacks: batches of open images only, no weight gradients, every query counted."""

import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances, into_ball, pull_inside
from robustbench_rkhs.attacks.base import Attacked
from robustbench_rkhs.attacks.hidden_logits import Outputs, Reader
from robustbench_rkhs.attacks.hyperplane import distance_in_box
from robustbench_rkhs.attacks.library_model import gain
from robustbench_rkhs.attacks.near_misses import NearMisses
from robustbench_rkhs.attacks.objective import likeliest_classes, misclassified
from robustbench_rkhs.attacks.packed_copy import HalfPrecision
from robustbench_rkhs.attacks.passes import Pass, Slope, Value, gap_slopes, slope_of
from robustbench_rkhs.attacks.twins import CLEAR, twins_of
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.clock import ask, fitting, left

INSIDE = 1 - 1e-6
"""Images are projected to this share of eps, less a bound on rounding, so that rounding cannot move them out of the ball."""

MANY = 200
"""Up to so many classes, targets are the nearest of all by linearised distance; above, the nearest of the LIKELIEST by logit."""
LIKELIEST = 50


class Column(NamedTuple):
    """f_y - f_k for one class k of each image of a batch."""

    rows: slice
    """Which of the queried images these are."""
    place: int
    """The column of the class in `classes`."""
    gap: Float[Tensor, " rows"]
    gradient: Float[Tensor, "rows *image"]
    wrong: Bool[Tensor, " rows"]
    """Which images the model misclassifies."""


def mean(values: list[Tensor]) -> Tensor:
    """The mean of the passes of a randomized model; the value itself of a single one."""
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)


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
        through: bool = True,
    ) -> None:
        self.model, self.x, self.y, self.keys = model, x, y, keys
        self.read = Reader(model, through)
        """What the search asks, with the logits behind its output (if `through`), which attacks minimise. The output alone decides
        what is misclassified."""
        self.packed: nn.Module | None = None
        """Where given: what the search asks instead of the model, the same function but for the last bits. What it shows to be
        misclassified counts where the model itself errs too. Cost: a forward pass per such image. Not where logits are hidden."""
        self.near: NearMisses | None = None
        """Where the search asks a copy in half precision: what it may have missed."""
        self._own_reader = self.read
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
        self.spread: Float[Tensor, " batch"] | None = None
        """The largest less the smallest output of each clean image."""
        self.twins: Bool[Tensor, "batch classes"] | None = None
        """Classes that no picture tells from an image's label, where there are any: they are no targets."""
        clean, self.clean = self._own(every, x) if len(x) else (x.new_zeros(0, 1), x.new_zeros(0, 1))
        """Logits of the clean images."""
        self.right = self.distance > 0  # an image that is misclassified already: found at distance 0, nothing to attack
        self.spread = clean.amax(1) - clean.amin(1)
        self._far: Float[Tensor, "batch classes"] | None = None
        self.twins = twins_of(self.read, x, y, self.clean, self.right, norm)
        self.clean = self._apart(every, self.clean)
        if packed is not None and not self.read.hides:
            self.packed, self.read = packed, Reader(packed, through=False)
            if isinstance(packed, HalfPrecision) and len(x):
                self.near = NearMisses(x, self.clean, self._copied(), y)

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

    def searches_again(self) -> bool:
        """Turn from a copy in half precision to the network itself, for the open images that came close; whether there are any.

        No other image is open afterwards: the search in half precision holds for them. What is close follows from the copy's
        error, also at the lowest point that it found for each open image. Cost: a forward pass of each open image.
        """
        if self.near is None:
            return False
        near, at = self.near, self.open()
        self.packed, self.near, self.read, self._far = None, None, self._own_reader, None
        if len(at):
            near.compare(at, self.logits(at, near.points[at]))
        self.right = self.right & near.came_close()
        return bool(len(self.open()))

    @torch.no_grad()
    def _copied(self) -> Tensor:
        """The clean images' logits by the copy. Cost: a forward pass each."""
        assert self.packed is not None
        told = torch.cat([self.packed(self.x[some]) for some in self._batches(len(self.x), 1)])
        self.forwards += 1
        return self._apart(torch.arange(len(told), device=told.device), told)

    @cached_property
    def gain(self) -> Float[Tensor, " batch"]:
        """A positive factor for each image's logits that scales its clean margin to 10: scale does not mask cross-entropy."""
        return gain(self.clean, self.y)

    @torch.no_grad()
    def logits(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> Float[Tensor, "some classes"]:
        """Logits of modified images, one for each of these positions. Cost: `expectation` forward passes each."""
        return self._own(at, images)[1]

    def judged(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> tuple[Tensor, Bool[Tensor, " some"]]:
        """Logits, and which of the images the model misclassifies. Cost: as for `logits`."""
        own, logits = self._own(at, images)
        return logits, misclassified(own, self.y[at])

    @torch.no_grad()
    def _own(self, at: Tensor, images: Tensor) -> Outputs:
        parts = []
        for some in self._batches(len(at), self.expectation):
            where, part = at[some], images[some]
            told = self.read(part)
            for _ in range(self.expectation - 1):
                told = Outputs(*(a + b for a, b in zip(told, self.read(part), strict=True)))
            if self.expectation > 1:
                told = Outputs(*(tensor / self.expectation for tensor in told))
            told = told._replace(logits=self._apart(where, told.logits))
            parts.append(told)
            self.forwards.index_add_(0, where, torch.full_like(where, self.expectation))
            self._seen(where, part, *told)
        return Outputs(*(torch.cat(column) for column in zip(*parts, strict=True))) if len(parts) > 1 else parts[0]

    def slope(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], value: Value, *, keep: bool = True) -> Slope:
        """Logits, `value` of them and its gradient. Cost: `expectation` forward and backward passes per image.

        `keep`: False if misclassified images must not count (for an attack that is judged by its last iterate alone).
        """
        parts, rows = [], torch.arange(len(at), device=at.device)
        for some in self._batches(len(at), 3 * self.expectation):
            where, part, row = at[some], images[some], rows[some]
            total: Pass | None = None
            lowered = value if self.twins is None else self._without_twins(where, value)
            for _ in range(self.expectation):
                one = slope_of(self.read, part, row, lowered)
                total = one if total is None else Pass(*(a + b for a, b in zip(total, one, strict=True)))
            assert total is not None
            if self.expectation > 1:
                total = Pass(*(tensor / self.expectation for tensor in total))
            counted = self._counted(where)
            self.forwards += counted
            self.backwards += counted
            logits = self._apart(where, total.logits)
            if keep:
                self._seen(where, part, total.own, logits)
            parts.append(Slope(logits, total.value, total.gradient, misclassified(total.own, self.y[where])))
        return Slope(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def gap_slopes(
        self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], classes: Int[Tensor, "some few"]
    ) -> Iterator[Column]:
        """f_y - f_k and its gradient for each column k of `classes`, batch by batch and one at a time.

        Cost: `expectation` times a forward pass and one backward pass per column.
        """
        for some in self._batches(len(at), (1 + 2 * classes.shape[1]) * self.expectation):
            where, part, few = at[some], images[some], classes[some]
            runs, wrong = [gap_slopes(self.read, part, self.y[where], few) for _ in range(self.expectation)], None
            for place in range(few.shape[1]):
                told = [next(run) for run in runs]
                if wrong is None:
                    own = mean([outputs.own for outputs, _, _ in told])
                    self._seen(where, part, own, self._apart(where, mean([outputs.logits for outputs, _, _ in told])))
                    self.forwards += self._counted(where)
                    wrong = misclassified(own, self.y[where])
                self.backwards += self._counted(where)
                yield Column(some, place, mean([gap for _, gap, _ in told]), mean([slope for _, _, slope in told]), wrong)

    def gaps(
        self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], classes: Int[Tensor, "some few"]
    ) -> tuple[Float[Tensor, "some few"], Float[Tensor, "some few *image"], Bool[Tensor, " some"]]:
        """f_y - f_k and its gradient for these classes k, all at once, and which images the model misclassifies.

        Cost: as for `gap_slopes`.
        """
        gaps, gradients = images.new_zeros(classes.shape), images.new_zeros(*classes.shape, *images.shape[1:])
        wrong = torch.zeros_like(at, dtype=torch.bool)
        for rows, place, gap, gradient, erred in self.gap_slopes(at, images, classes):
            gaps[rows, place], gradients[rows, place], wrong[rows] = gap, gradient, erred
        return gaps, gradients, wrong

    def others(self, at: Int[Tensor, " some"]) -> Int[Tensor, "some few"]:
        """The classes among which targets are chosen, likeliest first: all but the label, or the LIKELIEST of more than MANY."""
        classes = self.clean.shape[1]
        return likeliest_classes(self.clean[at], self.y[at], classes - 1 if classes <= MANY else LIKELIEST)

    def nearest(self, at: Int[Tensor, " some"], count: int) -> Int[Tensor, "some few"]:
        """The `count` classes whose boundary is nearest by linearisation at the image, nearest first; at most all but the label.

        Cost: a forward pass, and a backward pass for each of the `others`, once per image; nothing where all are asked for.
        """
        classes = self.others(at)
        if not 0 < count < classes.shape[1] or not len(at):
            return classes[:, :count]
        if self._far is None:
            self._far = torch.full_like(self.clean, torch.nan)
        fresh = self._far[at].isnan().all(1).nonzero().flatten()
        if len(fresh):
            where, few = at[fresh], classes[fresh]
            self._far[where] = torch.inf
            for rows, place, gap, gradient, _ in self.gap_slopes(where, self.x[where], few):
                far = distance_in_box(self.x[where[rows]], gap, gradient, self.norm, self.box)
                self._far[where[rows], few[rows, place]] = far
        far, logits = self._far[at].gather(1, classes), self.clean[at].gather(1, classes)
        order = far.argsort(dim=1, stable=True)
        far, logits = far.gather(1, order), logits.gather(1, order)
        copies = torch.zeros_like(far, dtype=torch.bool)
        copies[:, 1:] = (far[:, 1:] == far[:, :-1]) & (logits[:, 1:] == logits[:, :-1])  # a copy of a class comes last
        order = order.gather(1, copies.to(torch.uint8).argsort(dim=1, stable=True))
        return classes.gather(1, order)[:, :count]

    def project(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> Float[Tensor, "some *image"]:
        """Project into the box, then towards the image into a ball slightly smaller than eps (by a millionth and the rounding)."""
        x = self.x[at]
        delta = (images.clamp(0, 1) if self.box == "unit" else images) - x
        return x + into_ball(delta, (self.eps[at] * INSIDE - self.rounding[at]).clamp_min(0).to(x.dtype), self.norm)

    def pull(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], wrong: Bool[Tensor, " some"]) -> None:
        """For attacks whose iterates lie on the sphere: misclassified images that rounding left outside are projected inside and
        queried again. Cost: a forward pass each.
        """
        out = (wrong & self.standing(at)).nonzero().flatten()
        if len(out):
            out = out[distances(self.x[at[out]], images[out], self.norm) > self.eps[at[out]]]
        if len(out):
            at = at[out]
            self.logits(at, pull_inside(self.x[at], images[out], self.norm, self.eps[at], self.box))

    def judge(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> None:
        """The last query of a run: misclassified images are kept, after projection where rounding left them outside."""
        self.pull(at, images, self.judged(at, images)[1])

    def _apart(self, at: Tensor, logits: Tensor) -> Tensor:
        """The logits, with those of a label's twins at the smallest."""
        if self.twins is None:
            return logits
        return torch.where(self.twins[at], logits.detach().amin(1, keepdim=True), logits)

    def _without_twins(self, where: Tensor, value: Value) -> Value:
        return lambda logits, rows: value(self._apart(where, logits), rows)

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
    def _seen(self, at: Tensor, images: Tensor, own: Tensor, logits: Tensor) -> None:
        """Keep the misclassified images that are inside box and ball and the nearest so far; `own`: the model's output."""
        if self.watch is not None:
            self.watch(at, logits)
        wrong = self._clearly_wrong(at, own)
        if self.near is not None:
            lower = self.near.lower(at, logits)
            lower = lower[distances(self.x[at[lower]], images[lower], self.norm) <= self.eps[at[lower]]]
            self.near.keep(at[lower], images[lower], logits[lower])
            wrong = self.near.rows(at, logits, wrong)
        if not len(wrong):
            return
        at, images = at[wrong], images[wrong]
        away = distances(self.x[at], images, self.norm)
        better = (away <= self.eps[at]) & (away < self.distance[at]) & images.flatten(1).isfinite().all(1)
        if self.box == "unit":
            flat = images.flatten(1)
            better &= (flat >= 0).all(1) & (flat <= 1).all(1)
        if self.near is not None:
            better = self.near.doubted(at, logits[wrong], better)
        told = own[wrong]
        kept = better.nonzero().flatten()
        if self.packed is not None and len(kept):  # what counts is the model itself
            answers = self.model(images[kept])
            self.forwards.index_add_(0, at[kept], torch.ones_like(kept))
            if self.near is not None:
                self.near.learn(at[kept], logits[wrong][kept], self._apart(at[kept], answers))
            told[kept], better[kept] = answers, False
            better[kept[self._clearly_wrong(at[kept], answers)]] = True
        kept = (better & (told.amax(1) == told.gather(1, self.y[at][:, None])[:, 0])).nonzero().flatten()
        if len(kept):  # an exact tie may be one of this batch alone
            better[kept] = self._errs_again(at[kept], images[kept])
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
        top, spread = told.amax(1), told.amax(1) - told.amin(1)
        gap = top - told.gather(1, y[:, None])[:, 0]
        spread = spread if self.spread is None else torch.maximum(spread, self.spread[at[wrong]])
        return wrong[~((gap > 0) & (gap < CLEAR * spread))]

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
