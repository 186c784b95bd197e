"""Lower and upper bounds of a model's RKHS norm side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_rkhs.bounds import pairs, upper
from robustbench_rkhs.data import Deformations, Split
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.reshaped import as_matrix, weighted
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.rkhs_norm.lower import (
    Bounds,
    deformation_bounds,
    double,
    gradient_bounds,
    perturbation_bounds,
    quotient_bounds,
)
from robustbench_rkhs.runtime.events import PhaseStarted, emit

SLACK = 1e-9
"""Relative tolerance for float64 rounding when a lower bound is compared with a proven one."""


class Unsound(UserError):
    """A lower bound exceeds a proven upper bound: one of them is wrong, so nothing is published."""


def proven(model: nn.Module, shape: tuple[int, ...], classes: int) -> Bounds:
    """Proven Lipschitz bounds of each f_k (as a pair with a zero logit), of each pair and of f. Raises Uncertifiable."""
    whole = upper(model, shape).value
    extended = nn.Linear(classes, classes + 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        extended.weight.copy_(torch.eye(classes + 1, classes, dtype=torch.float64))
    between = pairs(nn.Sequential(model, extended).eval(), shape, classes + 1)
    apart = 1 - torch.eye(classes, dtype=torch.float64)
    root = 2**0.5 * (1 + 1e-15)
    return Bounds(between[:classes, classes].clamp_max(whole), between[:classes, :classes].clamp_max(root * whole) * apart, whole)


def reshaped_product(model: nn.Module) -> float | str:
    """Product of the spectral norms of the reshaped weights, as in the paper; or the reason why it is undefined."""
    known = weighted(model)
    foreign = {type(part).__name__ for part in model.modules() if part not in known and part._parameters}
    if foreign:
        return f"no product: {', '.join(sorted(foreign))} have weights of another kind"
    total = 1.0
    for part in known:
        weight: Tensor = part.weight  # type: ignore[assignment]
        total *= float(torch.linalg.matrix_norm(as_matrix(weight.detach()).double(), 2))
    return total


def check_sound(lower: dict[str, Bounds], bound: Bounds) -> None:
    """Raises Unsound unless every lower bound is at most the proven one, per class and per pair."""
    for name, found in lower.items():
        over = (found.classes > bound.classes * (1 + SLACK)).any() or (found.pairs > bound.pairs * (1 + SLACK)).any()
        if over or found.logits > bound.logits * (1 + SLACK):
            raise Unsound(f"lower bound {name!r} lies above the proven Lipschitz bound: nothing may be published")


class Norms(NamedTuple):
    """The bounds of one model."""

    lower: dict[str, Bounds]
    changes: Bounds | None
    """Largest change of logits under a deformation: a measure of stability, not per unit of input."""
    upper: Bounds | None
    refusal: str
    """The reason if there is no proven bound."""
    reshaped: float | str


def norms(
    model: nn.Module,
    split: Split,
    *,
    eps: Sequence[float] = (0.1, 0.5, 1.0),
    deformations: Deformations | None = None,
    steps: int = 20,
    restarts: int = 3,
    starts: int = 4,
    most_pairs: int = 45,
    seed: int = 0,
) -> Norms:
    r"""Lower bounds of ||f||_H on the images of `split`, and upper bounds of the Lipschitz constant.

    .. math:: \lVert f \rVert_H \ge \frac{|f(a) - f(b)|}{\lVert \Phi(a) - \Phi(b) \rVert_H}
              \ge \frac{|f(a) - f(b)|}{\lVert a - b \rVert_2}

    since Phi expands no distance: gradients, perturbations, deformations and quotients are all of this form, hence lower bounds of
    the Lipschitz constant too, and `upper`, a proven bound of it, caps them all. It is no bound of ||f||_H itself, and neither is
    `reshaped`, which the paper uses in its place. In float64. Raises Unsound where a lower bound exceeds the proven one.
    Cost: K backward passes per image, (steps + 1) restarts forward and backward passes per start and eps, count forwards per image.
    Source: Bietti et al., ICML 2019, section 2.
    """
    if any(budget <= 0 for budget in eps):
        raise UserError(f"expected positive eps, found {', '.join(map(str, eps))}")
    twin, x = double(model), split.x.to("cpu", torch.float64)
    keys, shape = split.index.cpu(), split.shape
    emit(PhaseStarted(phase="lower bounds: gradients"))
    gradient, at = gradient_bounds(twin, x, starts, most_pairs)
    lower = {"gradient": gradient}
    for budget in eps:
        emit(PhaseStarted(phase=f"lower bounds: perturbations, eps {radius_text(budget)}"))
        lower[f"perturbation, eps {radius_text(budget)}"] = perturbation_bounds(twin, at, budget, steps, restarts, seed)
    changes = None
    if len(shape) == 3:
        emit(PhaseStarted(phase="lower bounds: deformations"))
        quotients, changes = deformation_bounds(twin, x, keys, deformations or Deformations(), seed)
        lower["deformation"] = quotients
    emit(PhaseStarted(phase="lower bounds: steepest pairs of points"))
    lower["empirical_lipschitz"] = quotient_bounds(twin, at)
    bound, refusal = None, ""
    try:
        emit(PhaseStarted(phase="proven bounds"))
        bound = proven(model, shape, gradient.classes.shape[0])
    except Uncertifiable as refused:
        refusal = str(refused)
    if bound is not None:
        check_sound(lower, bound)
    return Norms(lower, changes, bound, refusal, reshaped_product(model))
