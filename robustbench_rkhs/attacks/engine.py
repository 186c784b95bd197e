"""The engine our own attacks run in: only undecided images in a batch, no weight gradients, every answer counted and kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import Box, Norm, distances, ends, per_image
from robustbench_rkhs.attacks.contract import Attack, Attacked
from robustbench_rkhs.attacks.counting import frozen, gain
from robustbench_rkhs.attacks.through import through
from robustbench_rkhs.node import UserError

INSIDE = 1 - 1e-6
"""Images are projected to this share of eps, so that rounding cannot take them out of the ball again."""

Value = Callable[[Tensor, Tensor], Tensor]
"""(logits, rows) -> one number a row, to be lowered; `rows`: which of the images asked about these logits belong to."""


class Slope(NamedTuple):
    """What a forward and a backward pass say of some images."""

    logits: Float[Tensor, "some classes"]
    value: Float[Tensor, " some"]
    gradient: Float[Tensor, "some *image"]
    """d value / d image; 0 where it is not finite, or the model ignores the image."""


class Engine:
    """Images under attack, by position in the batch: what is known of each, and the model to ask.

    An attack works on `open()` and asks by `logits` or `slope`; whatever it asks, each misclassified image inside box and ball is
    kept if it is the nearest so far, and leaves `open()` where a finite eps was given. So no iterate of any attack is lost, and
    none can report success by itself. Answers that are not finite are misclassified; gradients that are not finite are 0.
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
    ) -> None:
        self.model, self.x, self.y, self.keys = model, x, y, keys
        self.norm, self.box, self.seed, self.batch_size, self.expectation = norm, box, seed, batch_size, expectation
        self.eps = eps
        """Each image's own budget; infinite where the nearest adversarial image is looked for."""
        self.images = x.clone()
        """The nearest adversarial image found; the image itself where none was."""
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.backwards = torch.zeros_like(self.forwards)
        self.right = torch.ones(len(x), dtype=torch.bool, device=x.device)
        every = torch.arange(len(x), device=x.device)
        self.clean = self.logits(every, x) if len(x) else x.new_zeros(0, 1)
        """Logits of the images themselves."""
        self.right = self.distance > 0  # a wrong image was found at distance 0: nothing to attack

    @property
    def fallen(self) -> Bool[Tensor, " batch"]:
        """Which images have an adversarial image within eps (the wrong ones have themselves)."""
        return self.distance < torch.inf

    def open(self) -> Int[Tensor, " some"]:
        """Positions still to be attacked: right as they are and, where eps is finite, not fallen yet."""
        return (self.right & ~(self.fallen & self.eps.isfinite()) & (self.eps > 0)).nonzero().flatten()

    def standing(self, at: Int[Tensor, " some"]) -> Bool[Tensor, " some"]:
        """Which of these positions are still open."""
        return (self.right & ~(self.fallen & self.eps.isfinite()))[at]

    @cached_property
    def gain(self) -> Float[Tensor, " batch"]:
        """A positive factor of each image's logits that puts its clean margin at 10: cross-entropy is not masked by scale."""
        return gain(self.clean, self.y)

    @torch.no_grad()
    def logits(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> Float[Tensor, "some classes"]:
        """Answers to images that stand for those at these positions. Cost: `expectation` forward passes each."""
        parts = []
        for where, part in zip(at.split(self.batch_size), images.split(self.batch_size), strict=True):
            logits = self.model(part)
            for _ in range(self.expectation - 1):
                logits = logits + self.model(part)
            parts.append(logits / self.expectation if self.expectation > 1 else logits)
            self._seen(where, part, parts[-1])
        self.forwards.index_add_(0, at, torch.full_like(at, self.expectation))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def slope(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], value: Value) -> Slope:
        """Answers, `value` of them and its gradient. Cost: `expectation` forward and backward passes each."""
        parts, rows = [], torch.arange(len(at), device=at.device)
        for where, part, row in zip(*(tensor.split(self.batch_size) for tensor in (at, images, rows)), strict=True):
            total: Slope | None = None
            for _ in range(self.expectation):
                one = self._slope(row, part, value)
                total = one if total is None else Slope(*(a + b for a, b in zip(total, one, strict=True)))
            assert total is not None
            if self.expectation > 1:
                total = Slope(*(tensor / self.expectation for tensor in total))
            self._seen(where, part, total.logits)
            parts.append(total)
        counted = self._counted(at)
        self.forwards += counted
        self.backwards += counted
        return Slope(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def jacobian(
        self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]
    ) -> tuple[Float[Tensor, "some classes"], Float[Tensor, "some classes *image"]]:
        """Answers and the gradient of every logit. Cost: `expectation` times a forward pass and one backward pass a class."""
        answers, rows = [], []
        for where, part in zip(at.split(self.batch_size), images.split(self.batch_size), strict=True):
            every = [self._jacobian(part) for _ in range(self.expectation)]
            answers.append(torch.stack([logits for logits, _ in every]).mean(0))
            rows.append(torch.stack([columns for _, columns in every]).mean(0))
            self._seen(where, part, answers[-1])
        found = torch.cat(answers)
        counted = self._counted(at)
        self.forwards += counted
        self.backwards += counted * found.shape[1]
        return found, torch.cat(rows)

    def project(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> Float[Tensor, "some *image"]:
        """Into the box, then towards the image at the position into its ball (l2: one a millionth smaller)."""
        x = self.x[at]
        if self.norm == "linf":  # exact: at small eps the rounding of x + eps alone is more than a millionth of it
            low, high = ends(x, self.eps[at], self.box)
            return torch.maximum(torch.minimum(images, high), low)
        delta = (images.clamp(0, 1) if self.box == "unit" else images) - x
        eps = per_image((self.eps[at] * INSIDE).to(x.dtype), x)
        length = per_image(delta.flatten(1).norm(dim=1), x)
        return x + delta * (eps / torch.maximum(length, eps)).nan_to_num(nan=1.0)

    def attacked(self) -> Attacked:
        """What the attack contract asks for."""
        return Attacked(self.images, self.forwards, self.backwards)

    def _counted(self, at: Tensor) -> Tensor:
        """How many passes a question about these positions is, for each position; one may be there several times."""
        return torch.bincount(at, minlength=len(self.x)) * self.expectation

    def _slope(self, rows: Tensor, images: Tensor, value: Value) -> Slope:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model(leaf)
            lowered = value(logits, rows)
            gradient = _gradient(lowered.sum(), leaf)
        return Slope(logits.detach(), lowered.detach(), gradient)

    def _jacobian(self, images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model(leaf)
            last = logits.shape[1] - 1
            columns = [_gradient(logits[:, k].sum(), leaf, keep=k < last) for k in range(last + 1)]
        return logits.detach(), torch.stack(columns, 1)

    @torch.no_grad()
    def _seen(self, at: Tensor, images: Tensor, logits: Tensor) -> None:
        """Keep the misclassified images that are inside, where they are the nearest so far."""
        finite = (logits - logits == 0).all(1)  # half the operations of isfinite
        wrong = ((logits.argmax(1) != self.y.index_select(0, at)) | ~finite).nonzero().flatten()
        if not len(wrong):
            return
        at, images = at[wrong], images[wrong]
        away = distances(self.x[at], images, self.norm)
        better = (away <= self.eps[at]) & (away < self.distance[at]) & images.flatten(1).isfinite().all(1)
        if self.box == "unit":
            flat = images.flatten(1)
            better &= (flat >= 0).all(1) & (flat <= 1).all(1)
        best, away = at[better], away[better]
        if len(best) > len(best.unique()):  # an image stands in the batch several times: the farthest first, the nearest last
            order = away.argsort(descending=True)
            for place, image, length in zip(best[order].tolist(), images[better][order], away[order].tolist(), strict=True):
                self.images[place], self.distance[place] = image, length
            return
        self.images[best], self.distance[best] = images[better], away


def _gradient(value: Float[Tensor, ""], x: Tensor, keep: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


class EngineAttack(Attack):
    """Common fields of the attacks that run in the engine: each says in `search(engine)` what it asks the model."""

    batch_size: int = Field(256, ge=1)
    """Images at once: bounds the memory, changes no draw."""
    expectation: int = Field(1, ge=1)
    """Passes that every answer and gradient is the mean of (expectation over transformations), for a model that draws: the cost is
    as many times as high."""
    straight_through: tuple[str, ...] = ()
    """Names of submodules whose backward pass is replaced by the identity (BPDA), for layers without a useful gradient. They must
    keep the shape of what they are given."""

    def search(self, engine: Engine) -> None:
        """Ask the model; the engine keeps what fell."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        eps: Float64[Tensor, " batch"] | None = None,
    ) -> Attacked:
        """`eps`: a budget for each image, in place of the field."""
        with self.engaged(model, x, y, keys, eps) as engine:
            self.search(engine)
            return engine.attacked()

    @contextmanager
    def engaged(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, eps: Float64[Tensor, " batch"] | None = None
    ) -> Iterator[Engine]:
        """The engine for these images; the model is given back as it was."""
        if self.box == "unit" and len(x) and (x.amin() < 0 or x.amax() > 1):
            raise UserError(f"box 'unit' expects images in [0, 1], found {x.amin():.4g} to {x.amax():.4g}")
        if eps is None:
            value = torch.inf if self.minimal_norm else self.budget()
            eps = torch.full((len(x),), value, dtype=torch.float64, device=x.device)
        with frozen(model), through(model, self.straight_through):
            yield Engine(
                model,
                x,
                y,
                keys,
                norm=self.norm,
                box=self.box,
                eps=eps,
                seed=self.seed,
                batch_size=self.batch_size,
                expectation=self.expectation,
            )
