"""The model as an attack library sees it: queries are counted, and random state and model are restored afterwards."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.clock import OutOfTime, ask, fitting, left
from robustbench_rkhs.runtime.modes import evaluating


class Counted(nn.Module):
    """A model wrapped for a library: images of any shape in, finite logits out, every pass of an image counted.

    The model is held outside the module tree, so that a library's `.to()`, `.train()` or `.zero_grad()` never reaches it.
    Images come flattened or padded: the model gets the first entries of each, in its own shape and dtype. Logits that are
    not finite become 0 or +-1e30, gradients that are not finite become 0, and a model that ignores its input has gradient
    0 instead of none; otherwise a library would raise, or never end. Each forward pass checks the clock. Where a clock runs, the
    nearest misclassified image of those set by `follow` is kept, as a library that is interrupted returns nothing.
    """

    def __init__(self, model: nn.Module, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self._held = (model,)
        self.shape, self.size, self.dtype = tuple(shape), shape.numel(), dtype
        self.gain: Float[Tensor, " batch"] | None = None
        """A positive factor for each image's logits, or one for all: it changes no prediction."""
        self.forwards = 0
        self.backwards = 0
        self.pace = 0.0
        """Seconds per image of the latest forward pass; 0 before the first."""
        self._followed: _Followed | None = None
        self.eval()

    def forward(self, inputs: Float[Tensor, "batch *any"]) -> Float[Tensor, "batch classes"]:
        ask()
        pixels = inputs.view_as(inputs)
        differentiable = torch.is_grad_enabled() and inputs.requires_grad
        if differentiable:
            pixels.register_hook(self._backward)
        images = pixels.flatten(1)[:, : self.size].reshape(-1, *self.shape).to(self.dtype)
        logits = self._answer(images).to(inputs.dtype)
        if self._followed is not None and len(images):
            self._followed.see(images.detach(), logits.detach())
        self.forwards += len(inputs)
        if differentiable and not logits.requires_grad:
            logits = logits + 0 * pixels.flatten(1).sum(1, keepdim=True)
        if self.gain is not None:
            logits = logits * self.gain[:, None]
        # a copy: a library may write into it
        result: Tensor = logits.nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30).clone()
        return result

    def _backward(self, gradient: Tensor) -> Tensor:
        self.backwards += len(gradient)
        return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    @torch.no_grad()
    def standing(self, x: Float[Tensor, "batch *image"], y: Int[Tensor, " batch"], batch: int = 256) -> Bool[Tensor, " batch"]:
        """Which images the model classifies correctly; logits that are not finite count as wrong. These passes are not counted."""
        right, start = [torch.zeros(0, dtype=torch.bool, device=x.device)], 0
        while start < len(x):
            ask()
            several = 1 if not self.pace and left() < torch.inf else min(batch, fitting(self.pace))
            some = slice(start, start + several)
            logits = self._answer(x[some].reshape(-1, *self.shape).to(self.dtype))
            right.append((logits.argmax(1) == y[some]) & logits.isfinite().all(1))
            start += several
        return torch.cat(right)

    def follow(self, x: Float[Tensor, "batch *image"], y: Int[Tensor, " batch"], norm: Norm, eps: float | None) -> None:
        """From now on, if a clock runs, keep the nearest misclassified image within eps of each of these images."""
        self._followed = _Followed(x, y, norm, eps) if left() < torch.inf else None

    def nearest(self) -> tuple[Float[Tensor, "batch *image"], Bool[Tensor, " batch"]] | None:
        """The images kept since `follow`, and which images have one; None where `follow` was not called."""
        return None if self._followed is None else (self._followed.images, self._followed.distance < torch.inf)

    def _answer(self, images: Tensor) -> Tensor:
        begun = time.monotonic()
        logits: Tensor = self._held[0](images)
        self.pace = (time.monotonic() - begun) / max(len(images), 1)
        return logits

    def spent(self, attacked: Bool[Tensor, " batch"]) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Forward and backward passes, divided evenly among the attacked images, as libraries work on whole batches."""
        return _shares(self.forwards, attacked), _shares(self.backwards, attacked)


class _Followed:
    """The nearest misclassified image seen for each image; a queried row is matched to the image nearest to it.

    This is no claim of success: like everything that attacks return, the images are projected, measured and classified again.
    """

    def __init__(self, x: Tensor, y: Tensor, norm: Norm, eps: float | None) -> None:
        self.x, self.y, self.norm, self.images = x, y, norm, x.clone()
        self.reach = torch.inf if eps is None else eps + 1e-6
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    def see(self, images: Tensor, logits: Tensor) -> None:
        if len(images) == len(self.x):
            of = torch.arange(len(images), device=images.device)
        else:
            of = torch.cdist(images.flatten(1).double(), self.x.flatten(1).double()).argmin(1)
        wrong = ((logits.argmax(1) != self.y[of]) & images.flatten(1).isfinite().all(1)).nonzero().flatten()
        for row, away in zip(wrong.tolist(), distances(self.x[of[wrong]], images[wrong].to(self.x), self.norm), strict=True):
            if away <= self.reach and away < self.distance[of[row]]:
                self.distance[of[row]], self.images[of[row]] = away, images[row].to(self.x)


class Searched(NamedTuple):
    """Adversarial images that a library found."""

    images: Float[Tensor, "batch *image"]
    """As the library returned them; if its time ran out, the nearest misclassified image that it queried, or the image itself."""
    fell: Bool[Tensor, " batch"]
    """Which of them are worth keeping."""
    finished: bool
    """False if the library ran out of time; what it had found by then is kept."""


Search = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, labels) -> the images that a library returns, and which of them are worth keeping."""


def searched(
    counted: Counted,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    norm: Norm,
    eps: float | None,
    search: Search,
) -> Searched:
    """Run a library's search on these images, on as many at once as the clock allows (on all, if none runs).

    `eps`: the budget of the search; None for minimal-norm attacks.
    """
    images, fell, start = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device), 0
    while start < len(x):
        size = min(len(x) - start, fitting(3 * counted.pace))  # per step, forward and backward
        some = slice(start, start + size)
        counted.follow(x[some], y[some], norm, eps)
        try:
            ask()
            images[some], fell[some] = search(x[some], y[some])
        except OutOfTime:
            if kept := counted.nearest():
                images[some], fell[some] = kept
            return Searched(images, fell, False)
        start += size
    return Searched(images, fell, True)


def _shares(total: int, attacked: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Integers that sum to `total`, spread as evenly as possible over the attacked images and 0 elsewhere."""
    shares = torch.zeros(len(attacked), dtype=torch.int64, device=attacked.device)
    images = int(attacked.sum())
    if images:
        places = torch.arange(images, device=attacked.device)
        shares[attacked] = total // images + (places < total % images).long()
    return shares


MARGIN = 10.0
"""The clean margin after scaling by `gain`: cross-entropy is dominated by the runner-up, and float32 resolves both."""


def gain(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The positive factor that scales each image's margin (or a hundredth of its spread, if larger) to MARGIN.

    It changes no prediction, and removes the masking of cross-entropy by the scale of the logits.
    """
    spread = logits.amax(1) - logits.amin(1)
    size = torch.maximum(margin(logits, y), spread / 100)
    return torch.where((size > 0) & size.isfinite(), MARGIN / size.clamp(1e-30, 1e30), 1)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with frozen weights; everything is restored afterwards.

    Frozen weights save weight gradients (29% of FAB on VGG-11) and keep `.grad` untouched. The mode of every submodule is restored,
    and so are buffers that a forward pass wrote to.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        with evaluating(model):
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def counting(model: nn.Module, x: Float[Tensor, "batch *image"]) -> Iterator[Counted]:
    """The model, `frozen`, wrapped for a library's images like `x`."""
    with frozen(model):
        yield Counted(model, x.shape[1:], x.dtype)


@contextmanager
def confined_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside this context, and restore them afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
