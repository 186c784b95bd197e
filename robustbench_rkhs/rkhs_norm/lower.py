"""Lower bounds of the RKHS norm from gradients, perturbations, deformations and quotients |g(a) - g(b)| / ||a - b||."""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import project, unit
from robustbench_rkhs.data import Deformations
from robustbench_rkhs.data.deformations import deform
from robustbench_rkhs.runtime.counter_rng import draws

NEAREST = 1e-3
"""Least distance of a pair of points: for closer pairs, rounding of the logits would affect the quotient."""
ROWS = 512
"""Batch size of the searches."""


class Bounds(NamedTuple):
    """Bounds for each logit, each difference of two logits and the whole logit vector, per unit of l2 input distance."""

    classes: Float64[Tensor, " classes"]
    """Bounds for f_k."""
    pairs: Float64[Tensor, "classes classes"]
    """Bounds for f_y - f_j, symmetric, zero on the diagonal."""
    logits: float
    """Bound for f as a map to l2."""

    def largest(self, other: "Bounds") -> "Bounds":
        """Elementwise maximum of both."""
        return Bounds(
            torch.maximum(self.classes, other.classes), torch.maximum(self.pairs, other.pairs), max(self.logits, other.logits)
        )


class Combinations(NamedTuple):
    """Starting points of a search: image, quantity to maximise, and first direction."""

    x: Float64[Tensor, "rows *image"]
    rows: Float64[Tensor, "rows classes"]
    """Coefficients of the logits; a row of zeros stands for the l2 norm of all of them."""
    direction: Float64[Tensor, "rows *image"]


def double(model: nn.Module) -> nn.Module:
    """A float64 copy on the CPU in eval mode: rounding must not lift a lower bound over a proven one."""
    return copy.deepcopy(model).to("cpu", torch.float64).eval().requires_grad_(False)


def jacobians(model: nn.Module, x: Float64[Tensor, "batch *image"]) -> Float64[Tensor, "batch classes pixels"]:
    """d f_k / d x of each image: K backward passes."""
    x = x.detach().requires_grad_()
    columns = model(x).unbind(1)
    return torch.stack([_gradient(column, x, keep=True) for column in columns], 1).flatten(2)


def gradient_bounds(
    model: nn.Module, x: Float64[Tensor, "batch *image"], starts: int, most_pairs: int
) -> tuple[Bounds, Combinations]:
    r"""sup over the images of :math:`\lVert \nabla f_k \rVert_2, \lVert \nabla (f_y - f_j) \rVert_2, \lVert J \rVert_2`.

    Also returns starting points for the searches: the `starts` steepest images of each class, of the `most_pairs` steepest pairs
    and of all logits.
    """
    every = []
    for images in x.split(32):
        jacobian = jacobians(model, images)
        between = torch.stack([(jacobian - jacobian[:, k : k + 1]).norm(dim=2) for k in range(jacobian.shape[1])], 1)
        every.append((jacobian, between, torch.linalg.matrix_norm(jacobian, 2)))
    jacobian, between, spectral = (torch.cat(part) for part in zip(*every, strict=True))
    classes, starts = jacobian.shape[1], min(starts, len(x))
    eye = torch.eye(classes, dtype=x.dtype)
    found = Bounds(jacobian.norm(dim=2).amax(0), between.amax(0), float(spectral.max()))
    upper_half = found.pairs.triu(1).flatten()
    count = min(most_pairs, classes * (classes - 1) // 2)
    chosen = [(int(flat) // classes, int(flat) % classes) for flat in upper_half.topk(count).indices]
    entries = [(eye[k], jacobian[:, k].norm(dim=1)) for k in range(classes)]
    entries += [(eye[k] - eye[j], between[:, k, j]) for k, j in chosen]
    where, rows, directions = [], [], []
    for row, steepness in entries:
        best = steepness.topk(starts).indices
        for sign in (1.0, -1.0):
            where.append(best)
            rows.append((sign * row).expand(starts, -1))
            directions.append(sign * torch.einsum("k,nkp->np", row, jacobian[best]))
    best = spectral.topk(starts).indices
    where.append(best)
    rows.append(torch.zeros(starts, classes, dtype=x.dtype))
    directions.append(torch.linalg.svd(jacobian[best], full_matrices=False).Vh[:, 0])
    images = x[torch.cat(where)]
    return found, Combinations(images, torch.cat(rows), unit(torch.cat(directions).view_as(images)))


def _increase(change: Tensor, rows: Tensor) -> Tensor:
    """The quantity that a search maximises: a combination of the logits' changes, or their l2 norm if the row is zero."""
    return torch.where(rows.any(1), (change * rows).sum(1), change.square().sum(1).clamp_min(1e-300).sqrt())


def _sorted(values: Tensor, rows: Tensor) -> Bounds:
    """The largest value found for each combination."""
    classes = rows.shape[1]
    single, between, together = torch.zeros(classes).to(values), torch.zeros(classes, classes).to(values), 0.0
    for value, row in zip(values.tolist(), rows, strict=True):
        taken = row.nonzero().flatten().tolist()
        if not taken:
            together = max(together, value)
        elif len(taken) == 1:
            single[taken[0]] = max(float(single[taken[0]]), value)
        else:
            y, j = taken
            between[y, j] = between[j, y] = max(float(between[y, j]), value)
    return Bounds(single, between, together)


def perturbation_bounds(
    model: nn.Module, at: Combinations, eps: float, steps: int = 20, restarts: int = 3, seed: int = 0
) -> Bounds:
    r"""sup over the starts of :math:`\max_{\lVert d \rVert_2 \le \varepsilon} (g(x + d) - g(x)) / \varepsilon`.

    g: f_k and f_y - f_j, with both signs. Normalised ascent in the ball, no box (f is a function on all of space), from eps times
    the steepest direction, then from random points; the best iterate counts.
    """
    best = []
    keys = torch.arange(len(at.x))
    for x, rows, direction, key in zip(*(part.split(ROWS) for part in (*at, keys)), strict=True):
        with torch.no_grad():
            before = model(x)
        largest = torch.zeros(len(x), dtype=x.dtype)
        for restart in range(restarts):
            start = eps * direction if restart == 0 else eps * unit(draws(key, seed, x, restart))
            moved = x + start
            for step in range(steps + 1):
                moved = project(x, moved, "l2", eps, "none").detach().requires_grad_()
                value = _increase(model(moved) - before, rows)
                largest = torch.maximum(largest, value.detach())
                if step < steps:
                    moved = moved.detach() + eps * max(2.5 / steps, 0.25) * (1 - step / steps) * unit(_gradient(value, moved))
        best.append(largest / eps)
    return _sorted(torch.cat(best), at.rows)


def quotient_bounds(model: nn.Module, at: Combinations, steps: int = 50, length: float = 0.1) -> Bounds:
    r"""empirical_lipschitz: :math:`\max |g(a) - g(b)| / \lVert a - b \rVert_2` over pairs of points, by ascent on both.

    Both points move freely: this looks beyond the images, for the Lipschitz constant itself.
    """
    best = []
    for x, rows, direction in zip(*(part.split(ROWS) for part in at), strict=True):
        here, there = x, x + length * direction
        largest = torch.zeros(len(x), dtype=x.dtype)
        for step in range(steps + 1):
            here, there = here.detach().requires_grad_(), there.detach().requires_grad_()
            distance = (there - here).flatten(1).norm(dim=1)
            value = _increase(model(there) - model(here), rows) / distance.clamp_min(NEAREST)
            largest = torch.where(distance >= NEAREST, torch.maximum(largest, value.detach()), largest)
            if step < steps:
                rate = length * (1 - step / steps)
                first, second = (_gradient(value, point, keep=point is here) for point in (here, there))
                here, there = here + rate * unit(first), there + rate * unit(second)
        best.append(largest)
    return _sorted(torch.cat(best), at.rows)


@torch.no_grad()
def deformation_bounds(
    model: nn.Module, x: Float64[Tensor, "batch *image"], keys: Tensor, deformations: Deformations, seed: int = 0
) -> tuple[Bounds, Bounds]:
    r"""sup over images and deformations of :math:`|g(x_\tau) - g(x)| / \lVert x_\tau - x \rVert_2`, and of the change itself."""
    clean, shape = model(x), tuple(x.shape[1:])
    none = torch.zeros(clean.shape[1], dtype=x.dtype)
    quotients = changes = Bounds(none, torch.zeros(len(none), len(none), dtype=x.dtype), 0.0)
    for draw in range(deformations.count):
        moved = deform(x, deformations(keys, seed, shape, draw).to(x))
        distance = (moved - x).flatten(1).norm(dim=1)
        change = model(moved) - clean
        between = (change[:, :, None] - change[:, None]).abs()
        over = torch.where(distance >= NEAREST, 1 / distance.clamp_min(NEAREST), 0.0)
        for scaled in (False, True):
            by = over if scaled else torch.ones_like(over)
            length = float((change.norm(dim=1) * by).max())
            now = Bounds((change.abs() * by[:, None]).amax(0), (between * by[:, None, None]).amax(0), length)
            if scaled:
                quotients = quotients.largest(now)
            else:
                changes = changes.largest(now)
    return quotients, changes


def _gradient(value: Tensor, x: Tensor, keep: bool = False) -> Tensor:
    """d value / d x; zero where the model ignores its input."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num()
