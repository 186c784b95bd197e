"""ECLipsE-Fast: Lipschitz bounds of logit differences by a quadratic form propagated through the layers; each step proved."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.bounds.liplt import dense, differences
from robustbench_rkhs.bounds.network import Step, merged, pair_bounds
from robustbench_rkhs.bounds.sketch import Layer
from robustbench_rkhs.lipschitz.activations import slopes
from robustbench_rkhs.lipschitz.bounds import SLACK, TINY, UNIT, Uncertifiable, affine, product, upwards
from robustbench_rkhs.lipschitz.euclidean import length, lengths
from robustbench_rkhs.runtime.clock import afford, ask

WIDEST = 4096
"""Largest width of a layer, and of the image, for dense matrices."""
TRIES = 4
"""How often the proof of a step is repeated with more slack before it counts as failed."""


def eclipse_pairs(chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
    r"""Proven upper bounds L[y, j] of the Lipschitz constant of f_y - f_j, zero on the diagonal; never above `pair_bounds`.

    For affine layers W_i separated by elementwise activations with slopes in [a, b], 0 <= a < b. Let u_i be the difference between
    the outputs of activation i at two images, and u_0 the difference d of the images. Propagated through the layers is

    .. math:: u_i^\top N_i u_i \le \ell_i^2 \lVert d \rVert_2^2, \qquad N_0 = I, \quad \ell_0 = 1

    with N_i between zero and one. The step: u_i relates to z = W_i u_{i-1} by (u_i - a z) (b z - u_i) >= 0, entry by entry. With
    any w > 0, W = W_i / w and v = u_{i-1}, the sum of these over w^2 may be subtracted:

    .. math:: v^\top N_{i-1} v \ge v^\top (N_{i-1} + a b W^\top W) v - (a + b) \tfrac{u_i^\top}{w} W v
              + \tfrac{\lVert u_i \rVert^2}{w^2}

    and the right side is at least u_i^T N_i u_i / w^2 for all v and u_i, that is, the claim holds with l_i = w l_{i-1}, where

    .. math:: \begin{pmatrix} N_{i-1} + a b W^\top W & \tfrac{a+b}{2} W^\top \\ \tfrac{a+b}{2} W & I - N_i \end{pmatrix} \succeq 0

    At the last layer |d^T u|^2 <= (d^T N^{-1} d) (u^T N u), so L_yj = l sqrt(d^T N^{-1} d) with d = w_y - w_j. The published
    recursion (ReLU) is N_i = M_i / lambda_i, w^2 = sigma_max(W_i N_{i-1}^{-1} W_i^T) / 2, and N_i the Schur complement. Here w
    and N_i come from it, for [a, b] with the w that keeps N_i furthest from singular, and count only once the matrix above is
    proved positive semidefinite (`proved`) with N_i lowered slightly; otherwise only the product is claimed.

    At a layer that is neither affine nor such an activation (MaxMin, max-pool, residual blocks ...) the recursion restarts, with
    the layer's bound times the bound of all layers before it. Cost: a few products, an inverse and a Cholesky decomposition per
    layer, of its width; the pairs share all but the last product. Raises Uncertifiable as `pair_bounds` does, and where a layer
    or the image is wider than WIDEST. Source: Xu and Sivaranjani, NeurIPS 2024.
    """
    return eclipse_proof(chain, shape, classes)[0]


class Advanced(NamedTuple):
    """A step of the recursion after an activation: the numbers that its proof needs."""

    position: int
    """Index of the activation in the chain."""
    scale: float
    """w of `eclipse_pairs`, rounded up; infinite where nothing could be proved."""
    floor: float
    """N_i >= floor I."""


class Restarted(NamedTuple):
    """A layer at which the recursion restarts."""

    position: int
    factor: float
    """The affine layers between the last form and this layer have W^T W <= factor^2 N; infinite where not proved."""


Witness = list[Advanced | Restarted]
"""The numbers with which all of `eclipse_pairs` can be proved again without a search."""


def eclipse_proof(chain: list[Step], shape: tuple[int, ...], classes: int) -> tuple[Float64[Tensor, "classes classes"], Witness]:
    """`eclipse_pairs`, and the numbers of its proof."""
    simple, witness = pair_bounds(chain, shape, classes), Witness()
    before, form, run, start = 1.0, _identity(), list[Step](), 0
    for position, step in enumerate(chain):
        ask()
        interval = slopes(step.module)
        if affine(step.module):
            run.append(step)
        elif interval is not None and 0 <= interval[0] < interval[1]:
            size = form.size
            form, run = _advanced(form._replace(size=1.0) if size else form, run, step, interval), []
            witness.append(Advanced(position, form.size, form.floor))
            form = form._replace(size=product([size, form.size]))
        else:
            factor = _norm(form, run, step)
            before = product([before, min(product([form.size, factor]), merged(chain[start:position])), step.bound.value])
            witness.append(Restarted(position, factor))
            form, run, start = _identity(), [], position + 1
    if run:
        rows, error = dense(run)
    else:
        rows, error = torch.eye(classes, dtype=torch.float64), 0.0
    found = _pairs(form, rows, error) * before * (1 + SLACK)
    return torch.minimum(simple, found.nan_to_num(torch.inf, torch.inf)).fill_diagonal_(0), witness


def too_wide(layer: Layer) -> str:
    """Why the recursion refuses a layer outside branches by its width alone; empty where it does not."""
    try:
        interval, outputs = slopes(layer.module), math.prod(layer.inputs)
    except Uncertifiable:  # its rule raises with the reason
        return ""
    if interval is None or not 0 <= interval[0] < interval[1] or outputs <= WIDEST:
        return ""
    return _width(layer.path, layer.module, f"{outputs} features are")


def _width(path: str, module: nn.Module, found: str) -> str:
    name = f"{path or 'the model'} ({type(module).__name__})"
    return f"no ECLipsE bound up to {name}: {found} too wide for dense matrices (at most {WIDEST})"


class _Form(NamedTuple):
    """u^T matrix u <= size^2 |d|^2, and matrix >= floor I. No matrix: the identity."""

    matrix: Tensor | None
    size: float
    floor: float


def _identity() -> _Form:
    return _Form(None, 1.0, 1.0)


def _scaled(run: list[Step], step: Step) -> tuple[Tensor, float, float]:
    """The matrix of affine layers over its largest entry, that entry, and the relative error. Raises Uncertifiable if too wide."""
    inputs = math.prod((run[0] if run else step).inputs)
    outputs = math.prod(step.inputs)
    if max(inputs, outputs) > WIDEST:
        raise Uncertifiable(_width(step.path, step.module, f"{inputs} to {outputs} features are"))
    matrix, error = dense(run) if run else (torch.eye(inputs, dtype=torch.float64), 0.0)
    peak = matrix.abs().max().item()
    if peak == 0:
        return matrix, 0.0, error
    scaled = matrix / peak
    return scaled, peak, (error / peak + UNIT * length(scaled) + TINY * scaled.numel()) * (1 + SLACK)


def _advanced(form: _Form, run: list[Step], step: Step, interval: tuple[float, float]) -> _Form:
    """The form after an activation; of infinite size where the step cannot be proved."""
    low, high = interval
    weight, peak, error = _scaled(run, step)
    outputs = len(weight)
    if form.size == 0 or (peak == 0 and error == 0):
        return _Form(None, 0.0, 1.0)
    nothing = _Form(None, math.inf, 1.0)
    if not math.isfinite(form.size) or not weight.isfinite().all() or not math.isfinite(error) or peak == 0:
        return nothing
    before = torch.eye(weight.shape[1], dtype=torch.float64) if form.matrix is None else form.matrix
    afford(sum(weight.shape) ** 3)
    half, both, apart = (low + high) / 2, low * high, ((high - low) / 2) ** 2
    largest = _inner(form.matrix, weight)
    width = math.sqrt(largest * apart * (1 + math.sqrt(1 + both / apart)))  # where the smallest eigenvalue of `after` is largest
    if not 0 < width < math.inf:
        return nothing
    weight, error = weight / width, error / width * (1 + SLACK) + UNIT * length(weight) / width
    slanted = before + both * weight.T @ weight if both else before
    schur = half**2 * weight @ (weight.T if form.matrix is None and not both else torch.linalg.solve(slanted, weight.T))
    schur = (schur + schur.T) / 2
    lowered = 8 * _slack(before, weight, error, torch.eye(outputs, dtype=torch.float64) - schur, interval)
    for _ in range(TRIES):
        afford(8 * float(outputs) ** 3)
        after = (1 - lowered) * torch.eye(outputs, dtype=torch.float64) - schur
        floor = torch.linalg.eigvalsh(after)[0].item() / 2 if after.isfinite().all() else 0.0
        if floor > 0 and above(after, floor) and proved(before, weight, error, after, interval):
            return _Form(after, product([form.size, upwards(peak * width)]), floor)
        lowered *= 16
    return nothing


def proved(
    before: Float64[Tensor, "inputs inputs"],
    weight: Float64[Tensor, "outputs inputs"],
    error: float,
    after: Float64[Tensor, "outputs outputs"],
    interval: tuple[float, float],
) -> bool:
    """Whether the matrix inequality of `eclipse_pairs` holds for exactly these numbers and any weight within `error` (l2 norm).

    The matrix is formed in float64, which changes it by at most `_slack` in norm. It is positive semidefinite if the Cholesky
    decomposition of the matrix, less that slack and its own, succeeds (`positive`). Expects symmetric matrices.
    """
    afford(float(len(before) + len(after)) ** 3)
    matrix = _matrix(before, weight, after, interval)
    return positive(matrix, _slack(before, weight, error, after, interval))


def _matrix(before: Tensor, weight: Tensor, after: Tensor, interval: tuple[float, float]) -> Tensor:
    low, high = interval
    corner = before + low * high * weight.T @ weight if low * high else before
    side = (low + high) / 2 * weight
    identity = torch.eye(len(after), dtype=torch.float64)
    return torch.cat([torch.cat([corner, side.T], 1), torch.cat([side, identity - after], 1)])


def _slack(before: Tensor, weight: Tensor, error: float, after: Tensor, interval: tuple[float, float]) -> float:
    """Bound on the change of the matrix, in l2 norm, by rounding and the error of the weight, from Frobenius norms.

    A product of n terms errs by at most n + 2 units of its absolute values; the weight's error e changes W^T W by at most
    2 e |W| + e^2, and the two sides by e. Four times what is needed.
    """
    low, high = interval
    both, half, size = abs(low * high), abs(low + high) / 2, length(weight)
    entries = length(before) + both * size * size + 2 * half * size + length(after) + math.sqrt(len(after))
    moved = both * (2 * error * size + error * error) + half * error
    return float((4 * (len(weight) + 4) * UNIT * entries + moved + TINY) * (1 + SLACK))


def positive(matrix: Float64[Tensor, "size size"], slack: float = 0.0) -> bool:
    """Whether matrix - slack I is proved positive semidefinite. Only the lower triangle of the symmetric matrix is read.

    A Cholesky decomposition that runs to its end is exact for a matrix at most 2 (n + 2) u trace away, for any order of its
    sums (Demmel 1989; Rump, BIT 2006): it is run on the matrix less twice that.
    """
    if not matrix.isfinite().all() or not math.isfinite(slack):
        return False
    trace = matrix.diagonal().abs().sum().item()
    shift = slack + 4 * (len(matrix) + 2) * UNIT * trace + TINY * len(matrix) ** 2
    lowered = matrix.clone()
    lowered.diagonal().sub_(shift * (1 + SLACK))
    return int(torch.linalg.cholesky_ex(lowered).info) == 0


def above(matrix: Float64[Tensor, "size size"], floor: float) -> bool:
    """Whether matrix >= floor I is proved."""
    return positive(matrix, floor)


def _inner(matrix: Tensor | None, weight: Tensor) -> float:
    """The largest eigenvalue of W N^{-1} W^T, approximately."""
    afford(weight.numel() * weight.shape[1] + 8 * float(min(weight.shape)) ** 3)
    through = weight if matrix is None else torch.linalg.solve_triangular(torch.linalg.cholesky(matrix), weight.T, upper=False).T
    gram = through @ through.T if len(through) <= through.shape[1] else through.T @ through
    return float(max(torch.linalg.eigvalsh(gram)[-1].item(), 0.0))


def _norm(form: _Form, run: list[Step], step: Step) -> float:
    """The bound from the form up to a layer, over the form's size: kappa with W^T W <= kappa^2 N, proved like a step."""
    if form.matrix is None:  # nothing before these layers, or nothing known
        return merged(run)
    if not run:
        return upwards(math.sqrt(1 / form.floor), SLACK)
    weight, peak, error = _scaled(run, step)
    kappa = math.sqrt(_inner(form.matrix, weight)) * (1 + 1e-6) if weight.isfinite().all() else 0.0
    if not 0 < kappa < math.inf or peak == 0:
        return math.inf if peak or error else 0.0
    error = error / kappa * (1 + SLACK) + UNIT * length(weight) / kappa
    if not proved(form.matrix, weight / kappa, error, torch.zeros(len(weight), len(weight), dtype=torch.float64), (0.0, 2.0)):
        return math.inf
    return upwards(peak * kappa)


def _pairs(form: _Form, rows: Tensor, error: float) -> Float64[Tensor, "classes classes"]:
    r"""l sqrt(d^T N^{-1} d) of each pair, rounded up. With s close to N^{-1} d and the rest p = d - N s,

    .. math:: d^\top N^{-1} d = s^\top d + s^\top p + p^\top N^{-1} p \le s^\top d + |s| |p| + |p|^2 / \text{floor}
    """
    if form.size == 0:
        return torch.zeros(len(rows), len(rows), dtype=torch.float64)
    peak = rows.abs().max().item()
    if form.matrix is None or not rows.isfinite().all() or not math.isfinite(error) or peak == 0:
        return differences(rows, error) * form.size
    count, rows = form.matrix.shape[0], rows / peak
    afford(float(count) ** 3)
    error = (error / peak + UNIT * length(rows) + TINY * rows.numel()) * (1 + SLACK)
    solved = torch.linalg.solve(form.matrix, rows.T).T
    rests = lengths(rows - solved @ form.matrix)
    rests = rests + 4 * (count + 4) * UNIT * (lengths(rows) + lengths(solved) * length(form.matrix))
    found = []
    for row, one, rest in zip(rows, solved, rests, strict=True):
        ask()
        d, s, p = row - rows, one - solved, rest + rests
        by = torch.maximum(d.abs().amax(1), p)  # over it, no product under- or overflows
        by = torch.where(by > 0, by, 1.0)
        d, s, p = d / by[:, None], s / by[:, None], p / by
        long, wide = lengths(d) + TINY, lengths(s) + TINY
        rounding = 4 * (count + 8) * UNIT * long * wide
        # the differences d and s round too, by a unit of each entry: the rounded s is used as it is, d with its error
        squared = (s * d).sum(1) + wide * p + p**2 / form.floor + rounding
        found.append(
            (squared.clamp_min(0).sqrt() + 2 * UNIT * long / math.sqrt(form.floor)) * by + 2 * error / math.sqrt(form.floor)
        )
    return torch.stack(found) * (1 + SLACK) * upwards(peak) * form.size
