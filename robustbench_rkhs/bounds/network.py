"""Lipschitz bounds of whole networks: chains of layers, merged runs of affine layers, and a bound per pair of classes."""

import copy
import math
from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple, TypeGuard

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.bounds.folding import FoldedLinear
from robustbench_rkhs.bounds.graph import chained
from robustbench_rkhs.bounds.normalising import to_be_traced
from robustbench_rkhs.bounds.operations import UNCOMPUTED
from robustbench_rkhs.bounds.sketch import sketch
from robustbench_rkhs.layers import Concatenate
from robustbench_rkhs.lipschitz.activations import elementwise, slopes
from robustbench_rkhs.lipschitz.bounds import SLACK, TINY, UNIT, Bound, Uncertifiable, affine, product, rule, spectral, upwards
from robustbench_rkhs.lipschitz.euclidean import length, lengths
from robustbench_rkhs.lipschitz.guard import branches, leaves, named
from robustbench_rkhs.lipschitz.rounding import relative_rounding
from robustbench_rkhs.runtime.clock import ask

DENSE_SIDE, DENSE_SIZE = 1024, 2**22
"""A run of affine layers is written as a matrix if its smaller side and its size are at most these."""
BATCH = 64
"""Rows or columns of a matrix materialised at once."""


class Step(NamedTuple):
    """A layer of the model: a float64 copy on the CPU."""

    path: str
    module: nn.Module
    inputs: tuple[int, ...]
    """Input shape without the batch dimension."""
    bound: Bound
    branches: tuple[list["Step"], ...] = ()
    """The branches whose outputs it adds, if it has any."""


def steps(model: nn.Module, shape: tuple[int, ...]) -> list[Step]:
    """The model's layers in the order they run, copied to float64, each with its proven bound for images of `shape`.

    A model of other modules is first rewritten as such layers (`graph.chained`). The model itself is only read. Every weight
    is the current value of the parameters in float64; a parametrized weight is evaluated from them in float64. Raises
    Uncertifiable, naming the layer, where a bound is not proved.
    """
    if not shape or any(not isinstance(side, int) or side < 1 for side in shape):
        raise Uncertifiable(f"expected an image shape of positive numbers without the batch dimension, found {shape}")
    model = opened(model, tuple(shape))
    paths = [path for path, _ in leaves(model)]
    with torch.inference_mode(False), torch.no_grad():
        double = copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)
        chain, now = [], tuple(shape)
        for path, (_, layer) in zip(paths, leaves(double), strict=True):
            ask()
            try:
                chains = tuple(steps(branch, now) for branch in branches(layer))
                _check_kept(chains)
                bound = combined(layer, chains, now) if chains else rule(layer, now)
            except Uncertifiable as refused:
                raise Uncertifiable(f"{named(path, layer)}: {refused}") from None
            chain.append(Step(path, layer, now, bound, chains))
            now = bound.shape
    return chain


def _check_kept(chains: Sequence[list[Step]]) -> None:
    """Raises Uncertifiable where a branch works in place on the input of all branches: the others would read its result."""
    for chain in chains:
        for step in chain:
            if getattr(step.module, "inplace", False):
                raise Uncertifiable(f"its branch works in place ({step.path}) on the image that all branches read")
            if not isinstance(step.module, UNCOMPUTED):
                break


@singledispatch
def combined(module: nn.Module, chains: tuple[list[Step], ...], shape: tuple[int, ...]) -> Bound:
    """The bound of a layer made of branches: that of their sum, unless its type registers another."""
    return joined(chains, shape)


@combined.register
def _(module: Concatenate, chains: tuple[list[Step], ...], shape: tuple[int, ...]) -> Bound:
    return stacked(chains, shape)


def joined(chains: Sequence[list[Step]], shape: tuple[int, ...]) -> Bound:
    """The bound of a sum of chains: the sum of theirs, or `centred` where that is smaller, rounded up.

    Raises Uncertifiable where their shapes differ.
    """
    bounds = [_whole(chain, shape) for chain in chains]
    found = {bound.shape for bound in bounds}
    if len(found) > 1:
        raise Uncertifiable(f"expected branches of one shape, found {' and '.join(map(str, sorted(found)))}")
    total = math.fsum(bound.value for bound in bounds)
    return Bound(min(upwards(total), centred(chains, shape)) if total else 0.0, found.pop())


def stacked(chains: Sequence[list[Step]], shape: tuple[int, ...]) -> Bound:
    """The bound of chains concatenated in dimension 1: the root of the sum of squares, rounded up.

    Raises Uncertifiable where their shapes differ in more than the channels.
    """
    bounds = [_whole(chain, shape) for chain in chains]
    found = {bound.shape[1:] for bound in bounds}
    if len(found) > 1 or not all(bound.shape for bound in bounds):
        raise Uncertifiable(f"expected branches that differ in their channels only, found {[bound.shape for bound in bounds]}")
    total = math.hypot(*(bound.value for bound in bounds))
    return Bound(upwards(total) if total else 0.0, (sum(bound.shape[0] for bound in bounds), *found.pop()))


def _whole(chain: list[Step], shape: tuple[int, ...]) -> Bound:
    return Bound(merged(chain), chain[-1].bound.shape if chain else tuple(shape))


def centred(chains: Sequence[list[Step]], shape: tuple[int, ...]) -> float:
    r"""A tighter bound of S x + W_2 a(W_1 x + b), a an activation with slopes in [l, h]; infinite for other forms or sizes.

    .. math:: L = \lVert S + m W_2 W_1 \rVert + d \lVert W_2 \rVert \lVert W_1 \rVert, \quad m = (l + h) / 2, \ d = (h - l) / 2

    Proof: a(z) - m z has slopes in [-d, d] entry by entry, hence is d-Lipschitz in l2; the rest, m W_2 W_1 x, is added to S x
    before the norm is taken. For ReLU m = d = 1/2. Never above ||S|| + h ||W_2|| ||W_1|| where l = 0 and h = 2 m, up to rounding.
    """
    straight = [chain for chain in chains if all(map(straightens, chain))]
    bent = [chain for chain in chains if not all(map(straightens, chain))]
    if len(straight) != 1 or len(bent) != 1:
        return math.inf
    turns = [number for number, step in enumerate(bent[0]) if not straightens(step)]
    if len(turns) != 1 or not elementwise(bent[0][turns[0]].module):
        return math.inf
    before, after = bent[0][: turns[0]], bent[0][turns[0] + 1 :]
    run, inputs, outputs = before + after, math.prod(shape), math.prod(_whole(bent[0], shape).shape)
    if not run or not _small(inputs, outputs):
        return math.inf
    low, high = slopes(bent[0][turns[0]].module) or (0.0, 0.0)
    middle, half = (low + high) / 2, max(high - (low + high) / 2, (low + high) / 2 - low)
    body = materialise(run) * middle
    shortcut = materialise(straight[0]) if straight[0] else torch.eye(inputs, dtype=torch.float64)
    error = abs(middle) * _materialised_error(run) + (_materialised_error(straight[0]) if straight[0] else 0.0)
    error += 4 * UNIT * (length(body) + length(shortcut))
    return upwards(spectral(body + shortcut) + error + upwards(half * product([merged(before), merged(after)])))


def straightens(step: Step) -> bool:
    """Whether a step is affine: by its type, or because all of its branches are."""
    return affine(step.module) or (bool(step.branches) and all(straightens(part) for chain in step.branches for part in chain))


def upper(module: nn.Module, shape: tuple[int, ...]) -> Bound:
    r"""Proven upper bound of the module's Lipschitz constant on images of `shape` (no batch dimension), and its output
    shape.

    .. math:: \lVert f(x) - f(x') \rVert_2 \le L \lVert x - x' \rVert_2 \quad \text{for all } x, x'

    in real arithmetic with the current weights. The bounds of successive layers multiply; where a run of affine layers is
    small, the exact norm of its matrix replaces a larger product. Units: logits per unit l2 of input.
    Raises Uncertifiable where a layer has no rule or does not take the shape of its input, or a weight is NaN or
    infinite.
    """
    chain = steps(module, shape)
    return Bound(merged(chain), chain[-1].bound.shape if chain else tuple(shape))


def pairs(model: nn.Module, shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
    r"""Proven upper bounds L[y, j] of the Lipschitz constant of f_y - f_j, zero on the diagonal.

    .. math:: L_{yj} = L_{\text{prefix}} \, \lVert (e_y - e_j)^\top M \rVert_2

    M is the exact matrix of the trailing run of affine layers; without one, sqrt(2) times the product. So a model that
    is affine throughout has the exact constant (up to a relative 1e-9).
    Raises Uncertifiable as `upper` does, and where the model does not end in `classes` logits.
    """
    return pair_bounds(steps(margins_of(opened(model, tuple(shape))), shape), shape, classes)


def pair_bounds(chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
    """`pairs` of a chain of steps."""
    found = chain[-1].bound.shape if chain else tuple(shape)
    if found != (classes,):
        raise Uncertifiable(f"no proven bound for pairs of classes: expected {classes} logits, found outputs of shape {found}")
    start = len(chain)
    while start > 0 and straightens(chain[start - 1]):
        start -= 1
    prefix, run = merged(chain[:start]), chain[start:]
    apart = 1 - torch.eye(classes, dtype=torch.float64)
    if not run:
        return torch.where(apart > 0, apart * (upwards(prefix * math.sqrt(2)) if prefix else 0.0), 0)
    if prefix == 0 or product([step.bound.value for step in run]) == 0:
        return torch.zeros_like(apart)
    norms = _differences(materialise(run))
    norms = torch.where(norms > 0, (norms * (1 + SLACK)).clamp_min(TINY), 0) + 2 * _materialised_error(run)
    constant = _equal_rows(run)
    if constant is not None:
        norms = norms.masked_fill(constant, 0)
    return torch.where((apart > 0) & (norms > 0), (norms * prefix * (1 + SLACK)).clamp_min(TINY), 0)


def merged(chain: list[Step]) -> float:
    """Product of the layers' bounds; for a run of affine layers, the norm of its exact matrix where that is known and
    smaller."""
    factors, run = [], list[Step]()
    for step in chain:
        if straightens(step):
            run.append(step)
            continue
        factors += [_run_norm(run), step.bound.value]
        run = []
    return product([*factors, _run_norm(run)])


def _run_norm(run: list[Step]) -> float:
    total = product([step.bound.value for step in run])
    computed = [step for step in run if not isinstance(step.module, UNCOMPUTED)]
    alone = len(computed) == 1 and isinstance(computed[0].module, nn.Linear)  # the norm of a single layer is exact already
    if not computed or alone or total == 0:
        return total
    inputs, outputs = math.prod(run[0].inputs), math.prod(run[-1].bound.shape)
    if not _small(inputs, outputs):
        return total
    exact = spectral(materialise(run)) + _materialised_error(run)
    return min(total, upwards(exact))


def _small(inputs: int, outputs: int) -> bool:
    return min(inputs, outputs) <= DENSE_SIDE and inputs * outputs <= DENSE_SIZE


def materialise(run: list[Step]) -> Float64[Tensor, "outputs inputs"]:
    """The matrix of a run of affine layers: by rows (vector-Jacobian products), or by columns where those are fewer."""
    shape, inputs, outputs = run[0].inputs, math.prod(run[0].inputs), math.prod(run[-1].bound.shape)
    parts = []
    by_rows = outputs <= inputs or min(inputs, outputs) > DENSE_SIDE
    with torch.inference_mode(False), torch.enable_grad():
        for some in torch.eye(outputs if by_rows else inputs, dtype=torch.float64).split(BATCH):
            x = torch.zeros(len(some), *shape, dtype=torch.float64, requires_grad=True)
            y = x
            for step in run:
                ask()
                y = step.module(y)
            if by_rows:
                (part,) = torch.autograd.grad(y, x, some.view_as(y))
            else:  # x -> J^T v is linear in v, and its adjoint is J
                v = torch.zeros_like(y, requires_grad=True)
                (pulled,) = torch.autograd.grad(y, x, v, create_graph=True)
                (part,) = torch.autograd.grad(pulled, v, some.view_as(pulled))
            parts.append(part.detach().flatten(1))
    matrix = torch.cat(parts)
    return matrix if by_rows else matrix.T


def _differences(rows: Float64[Tensor, "classes inputs"]) -> Float64[Tensor, "classes classes"]:
    """||row_y - row_j||_2."""
    norms = []
    for row in rows:
        ask()
        norms.append(lengths(rows - row))
    return torch.stack(norms)


def _materialised_error(run: list[Step]) -> float:
    """Bound on the rounding in `materialise`, in Frobenius norm: zero for a single nn.Linear, whose rows are copied.

    Each product adds its relative error; an underflow adds less than TINY, times the bound of later layers. That is for
    one row (or column): the total error is larger by the root of their number.
    """
    computed = [step for step in run if not isinstance(step.module, UNCOMPUTED)]
    if len(computed) <= 1 and all(as_given(step.module) for step in computed):
        return 0.0
    count = max(math.prod(run[0].inputs), math.prod(run[-1].bound.shape))
    relative, floor = 0.0, TINY
    for step in computed:
        relative += _relative(step)
        floor *= _growth(step)
    return (relative * product([_size(step) for step in run]) + floor) * math.sqrt(count)


def as_given(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer's matrix is a weight of the model; a folded one combines several layers, with rounding."""
    return isinstance(module, nn.Linear) and not isinstance(module, FoldedLinear)


def _size(step: Step) -> float:
    """Bound of an affine step without cancellation: the rounding of its branches is relative to it."""
    if not step.branches:
        return step.bound.value
    return upwards(math.fsum(product([_size(part) for part in chain]) for chain in step.branches))


def _relative(step: Step) -> float:
    """Rounding of a product with an affine step, relative to `_size`: that of its branches, and one unit per addition."""
    if not step.branches:
        return relative_rounding(step.module, math.prod(step.inputs), math.prod(step.bound.shape))
    each = (sum(_relative(part) for part in chain if not isinstance(part.module, UNCOMPUTED)) for chain in step.branches)
    return max(each) + 4 * UNIT * len(step.branches)


def _growth(step: Step) -> float:
    """The largest factor by which an affine step amplifies an underflow inside it."""
    if not step.branches:
        return max(1.0, step.bound.value)
    return math.fsum(math.prod(_growth(part) for part in chain) for chain in step.branches)


def opened(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The model itself if it is a chain of known layers, otherwise an equivalent chain (`graph.chained`)."""
    try:
        for _ in leaves(model):
            pass
    except Uncertifiable as refused:
        if not to_be_traced(model):
            raise Uncertifiable(sketch(model, shape).refusal or str(refused)) from None
        return chained(model, shape)
    return model


def margins_of(chain: nn.Module) -> nn.Module:
    """A chain without a log-softmax at its end: all differences of its outputs are the same, and so are classes and margins."""
    if not isinstance(chain, nn.Sequential) or not len(chain):
        return chain
    last = chain[-1]
    if type(last) is nn.LogSoftmax and last.dim in (1, -1):
        return margins_of(_with_end(chain, None))
    inner = margins_of(last) if type(last) is nn.Sequential else last
    return chain if inner is last else _with_end(chain, inner)


def _with_end(chain: nn.Sequential, last: nn.Module | None) -> nn.Sequential:
    *kept, (name, _) = chain._modules.items()
    shorter = nn.Sequential()
    shorter._modules.update([*kept, *([] if last is None else [(name, last)])])
    shorter.training = chain.training
    return shorter


def _equal_rows(run: list[Step]) -> Tensor | None:
    """Pairs of classes with bit-identical weights in the last layer: their logits differ by a constant."""
    computed = [step for step in run if not isinstance(step.module, UNCOMPUTED)]
    last = computed[-1].module if computed else None
    if last is None or not as_given(last) or len(computed[-1].bound.shape) != 1:
        return None
    rows = last.weight
    return torch.stack([(rows == row).all(1) for row in rows])
