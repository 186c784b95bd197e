"""Adversarial images that survive being saved in 8 bits: the nearest image of pixels k/255 that is still misclassified."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances, into_ball, per_image
from robustbench_rkhs.attacks.counted import answered
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.nodes.threat_model import Norm

SCALES = (1.0, 1.01, 1.03, 1.06, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0)
"""How much further than the given image the line from the clean one is followed."""
STEPS = 40
"""Steps down the gradient, for images that no rounding of that line breaks."""
TRIES = 12
"""Attempts to bring each image that was found nearer."""


class OnGrid(NamedTuple):
    """Adversarial images of pixels k / (2^bits - 1), where some were found."""

    images: Float[Tensor, "batch *image"]
    """The image that was given where none was found."""
    answer: Int[Tensor, " batch"]
    """The class predicted for each; -1 where its logits are not finite."""
    found: Bool[Tensor, " batch"]


def grid(images: Float[Tensor, "batch *image"], bits: int) -> Float[Tensor, "batch *image"]:
    """The nearest images of pixels k / (2^bits - 1), as they are when read from a file: an integer divided in their type."""
    levels = int(2**bits) - 1
    whole: Tensor = (images.double() * levels).round().clamp(0, levels)
    return whole.to(images.dtype) / levels


@torch.no_grad()
def on_grid(
    model: nn.Module,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    given: Float[Tensor, "batch *image"],
    limit: Float64[Tensor, " batch"],
    norm: Norm,
    bits: int = 8,
) -> OnGrid:
    r"""For each adversarial image `given` for x, the nearest one of pixels k / (2^bits - 1) that is found within `limit` of x.

    Rounding to the nearest level moves each pixel by up to half a level and may undo the attack. So the line from x through the
    image is followed further, rounded, and asked; where that fails, rounded images go down the gradient of the margin, each
    pixel to a level within the limit. What is found is brought nearer: along the line back to x, and by taking back, one level at
    a time, those changes that the margin gains least from. Each counts only if the model errs on it in a batch and
    alone. Distances are of the rounded image, in float64.
    Cost: at most 24 forward passes, and where the line fails 40 forward and backward passes more.
    """
    search = _Search(model, x, y, limit, norm, bits)
    for images in search.along(given):
        search.ask(search.every, images)
    lost = (~search.found).nonzero().flatten()
    if len(lost):
        search.descend(lost, given[lost])
    search.shorten()
    return search.confirmed(given)


class _Search:
    """The nearest adversarial image on the grid so far."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, limit: Tensor, norm: Norm, bits: int) -> None:
        self.model, self.x, self.y, self.limit, self.norm, self.bits = model, x, y, limit.to(x.device), norm, bits
        self.level = 1 / (2**bits - 1)
        self.best, self.distance = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    @property
    def every(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def found(self) -> Tensor:
        return self.distance < torch.inf

    def ask(self, rows: Tensor, images: Tensor) -> None:
        """Keep those of these images on the grid that are adversarial, within the limit, and nearer than what is known."""
        away = distances(self.x[rows], images, self.norm)
        worth = ((away <= self.limit[rows]) & (away < self.distance[rows])).nonzero().flatten()
        if len(worth):
            wrong = worth[answered(self.model, images[worth]) != self.y[rows[worth]]]
            self.best[rows[wrong]], self.distance[rows[wrong]] = images[wrong], away[wrong]

    def along(self, given: Tensor) -> Iterator[Tensor]:
        """Rounded images on the line from x through the given one, and the last within the limit."""
        delta, away = given - self.x, distances(self.x, given, self.norm).clamp_min(1e-12)
        for scale in SCALES:
            yield self.rounded(self.every, (self.x + scale * delta).clamp(0, 1))
        for share in (0.97, 1.0):
            reach = (share * self.limit / away).clamp(max=SCALES[-1])
            yield self.rounded(self.every, (self.x + per_image(reach, self.x).to(self.x) * delta).clamp(0, 1))

    def rounded(self, rows: Tensor, images: Tensor) -> Tensor:
        """On the grid; in linf no further from x than the limit, pixel by pixel."""
        snapped = grid(images, self.bits)
        if self.norm != "linf":
            return snapped
        x, limit = self.x[rows].double(), per_image(self.limit[rows], images)
        over = (snapped.double() - x).abs() > limit
        inner = grid(snapped - torch.sign(snapped - self.x[rows]) * self.level, self.bits)
        return torch.where(over & ((inner.double() - x).abs() <= limit), inner, snapped)

    def gradient(self, rows: Tensor, images: Tensor) -> Tensor:
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            gap = margin(self.model(leaf), self.y[rows]).sum()
            (slope,) = torch.autograd.grad(gap, leaf, materialize_grads=True) if gap.requires_grad else (torch.zeros_like(leaf),)
        return slope.nan_to_num(0.0, 0.0, 0.0)

    def descend(self, rows: Tensor, start: Tensor) -> None:
        """Steps down the margin's gradient, taken where the rounded image lies, within the limit."""
        x, size = self.x[rows], self.x[0].numel()
        slack = 0.5 * self.level * (size**0.5 if self.norm == "l2" else 1.0)
        reach = torch.minimum(self.limit[rows], 3 * distances(x, start, self.norm) + slack)
        moving = start.clone()
        for step in range(STEPS):
            images = self.rounded(rows, moving)
            self.ask(rows, images)
            slope = self.gradient(rows, images)
            flat = slope.flatten(1)
            unit = slope.sign() if self.norm == "linf" else slope / per_image(flat.norm(dim=1).clamp_min(1e-30), slope)
            length = reach * (0.25 * (1 - step / STEPS) + 0.02)
            room = reach * (0.9 + 0.1 * step / STEPS) if self.norm == "l2" else reach
            moved = moving - per_image(length, x).to(x) * unit
            moving = (x + into_ball(moved - x, room.to(x), self.norm)).clamp(0, 1)

    def shorten(self) -> None:
        """Bring what was found nearer."""
        low = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        high = torch.ones_like(low)
        far = self.best.clone()
        for _ in range(TRIES // 2):
            rows = self.found.nonzero().flatten()
            if not len(rows):
                return
            middle = (low + high) / 2
            before = self.distance.clone()
            self.ask(rows, self.rounded(rows, self.x[rows] + per_image(middle[rows], self.x).to(self.x) * (far - self.x)[rows]))
            nearer = self.distance < before
            high, low = torch.where(nearer, middle, high), torch.where(nearer, low, middle)
        share = 0.5
        rows = self.found.nonzero().flatten()
        for _ in range(TRIES // 2):
            before = self.distance.clone()
            self.ask(rows, self.taken_back(rows, share))
            share = share if bool((self.distance[rows] < before[rows]).any()) else share / 2

    def taken_back(self, rows: Tensor, share: float) -> Tensor:
        """One level less of this share of the changed pixels: those from which the margin gains least for their length."""
        best, x = self.best[rows], self.x[rows]
        delta = (best - x).flatten(1)
        worth = (-self.gradient(rows, best).flatten(1) * delta.sign()) / delta.abs().clamp_min(1e-12)
        changed = delta.abs() >= 0.75 * self.level
        worth = worth.masked_fill(~changed, torch.inf)
        count = (share * changed.sum(1)).ceil().long()
        chosen = worth.argsort(1).argsort(1) < count[:, None]
        less = best.flatten(1) - torch.where(chosen & changed, delta.sign() * self.level, torch.zeros_like(delta))
        return grid(less.view_as(best), self.bits)

    def confirmed(self, given: Tensor) -> OnGrid:
        """What was found, if the model errs on it in a batch and alone."""
        rows = self.found.nonzero().flatten()
        said = answered(self.model, self.best[rows])
        alone = torch.cat([answered(self.model, self.best[row : row + 1]) for row in rows.tolist()] or [said])
        sure = rows[(said == alone) & (said != self.y[rows])]
        found = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        found[sure] = True
        images = torch.where(per_image(found, given), self.best, given)
        answer = torch.full_like(self.y, -1)
        answer[rows] = said
        return OnGrid(images, answer, found)
