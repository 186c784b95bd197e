"""LipLT: Lipschitz bounds of logit differences that follow the linear path through the activations."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from robustbench_rkhs.bounds.network import (
    DENSE_SIDE,
    DENSE_SIZE,
    Step,
    _differences,
    as_given,
    materialise,
    merged,
    pair_bounds,
)
from robustbench_rkhs.bounds.operations import UNCOMPUTED
from robustbench_rkhs.lipschitz.activations import slopes
from robustbench_rkhs.lipschitz.bounds import SLACK, TINY, UNIT, Bound, affine, product, spectral, upwards
from robustbench_rkhs.lipschitz.guard import gathered
from robustbench_rkhs.lipschitz.rounding import fan, relative_rounding
from robustbench_rkhs.runtime.clock import ask

WIDE_SIDE, WIDE_SIZE = 4096, 2**24
"""As `DENSE_SIDE` and `DENSE_SIZE`, for routes of dense layers, which are multiplied out without convolutions."""


def liplt_pairs(chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
    r"""Proven upper bounds L[y, j] of the Lipschitz constant of f_y - f_j, zero on the diagonal; never above `pair_bounds`.

    An elementwise activation with slopes in [a, b] is a linear map plus a 1-Lipschitz remainder:

    .. math:: \phi(z) = c z + r \psi(z), \qquad c = (a + b) / 2, \quad r = (b - a) / 2

    So the input of an activation is a sum of linear maps of the image and of the remainders before it. With T_{ki} the linear
    map from remainder i to the input of activation k (each activation between counts as its c), and T_{k0} that from the image,

    .. math:: m_k = \lVert T_{k0} \rVert_2 + \sum_{i < k} r_i \lVert T_{ki} \rVert_2 \, m_i, \qquad
              L_{yj} = \lVert (e_y - e_j)^\top T_0 \rVert_2 + \sum_i r_i \lVert (e_y - e_j)^\top T_i \rVert_2 \, m_i

    For ReLU c = r = 1/2. Branches that are added share the linear path: their maps add. At a layer that is neither affine nor
    elementwise (MaxMin, GroupSort, max-pool, Sandwich, a concatenation ...) the sum restarts, with the layer's bound times the
    bound of all layers before it. T is the exact matrix where it is small or ends in logits, else bounded by the product of its
    layers' bounds; each m_k is at most the product up to there. Cost: one matrix per pair of activations. Raises Uncertifiable as
    `pair_bounds` does.
    Source: Fazlyab et al., NeurIPS 2023.
    """
    simple = pair_bounds(chain, shape, classes)
    last = _walk(chain, _start())
    total = torch.zeros_like(simple)
    for term in last.terms:
        ask()
        total = total + _pairs_of(term, classes)
    coarse = _pairs_of(_Term(last.least, last.since, None), classes)
    found = torch.minimum((total * (1 + SLACK)).nan_to_num(torch.inf, torch.inf), coarse.nan_to_num(torch.inf, torch.inf))
    return torch.minimum(simple, found).fill_diagonal_(0)


def liplt(chain: list[Step]) -> float:
    """Proven upper bound of the Lipschitz constant of the whole chain, by the method of `liplt_pairs`; at most the product."""
    return min(_bound(_walk(chain, _start())), merged(chain))


class _Term(NamedTuple):
    """The contribution of one source to a signal: the source changes by at most `size` per unit of input, `route` is linear."""

    size: float
    route: list[Step]
    source: object
    """The image, or the remainder of an activation or another layer: the same object wherever it is the same vector."""


class _Signal(NamedTuple):
    """A sum of terms; also, the affine map `since` of a value that changes by at most `least` per unit of input."""

    terms: list[_Term]
    least: float
    since: list[Step]


class _Times(nn.Module):
    """The linear part of an activation."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return x * self.value


class _Plus(nn.Module):
    """The linear parts of added branches."""

    def __init__(self, routes: list[list[Step]]) -> None:
        super().__init__()
        self.routes = routes

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch *outputs"]:
        total: Tensor | None = None
        for route in self.routes:
            y = x
            for step in route:
                y = step.module(y)
            total = y if total is None else total + y
        assert total is not None
        return total


fan.register(_Times, lambda module, inputs, outputs: (1, 1))


def _start() -> _Signal:
    """The image itself."""
    return _Signal([_Term(1.0, [], object())], 1.0, [])


def reached(chain: list[Step]) -> dict[str, float]:
    """Proven Lipschitz bounds of what enters each layer as a function of the image, by the layer's path.

    By the method of `liplt_pairs` at every layer that is not affine, inside of branches too; at an affine layer, the product of
    the bounds since the last layer that is not. A branch of a layer is called by its attribute. Cost: that of `liplt`.
    """
    found: dict[str, float] = {}

    def note(path: str, size: float) -> None:
        found[path] = min(found.get(path, math.inf), size)

    _walk(chain, _start(), _Notes(note))
    return found


class _Notes(NamedTuple):
    """Where `_walk` reports the bound of what enters a layer, and the path of the chain in the network."""

    write: Callable[[str, float], None]
    prefix: str = ""

    def path(self, step: Step) -> str:
        return ".".join(filter(None, [self.prefix, step.path]))

    def within(self, step: Step) -> list["_Notes"]:
        """The same for each branch of a step."""
        names = [name for name, child in step.module._modules.items() if child is not None]
        return [_Notes(self.write, f"{self.path(step)}.{name}") for name in names]


def _walk(chain: list[Step], signal: _Signal, notes: _Notes | None = None) -> _Signal:
    """The signal after the chain."""
    for step in chain:
        ask()
        interval = slopes(step.module)
        if notes is not None and not affine(step.module):
            notes.write(notes.path(step), _bound(signal))
        elif notes is not None:
            notes.write(notes.path(step), product([signal.least, _factors(signal.since)]))
        if affine(step.module):
            terms = [term._replace(route=[*term.route, step]) for term in signal.terms]
            signal = _Signal(terms, signal.least, [*signal.since, step])
        elif interval is not None:
            low, high = interval
            size, middle = _bound(signal), (low + high) / 2
            rest = upwards(max(high - middle, middle - low)) if high > low else 0.0
            linear = Step(step.path, _Times(middle), step.inputs, Bound(abs(middle), step.inputs))
            terms = [term._replace(route=[*term.route, linear]) for term in signal.terms]
            signal = _Signal([*terms, _Term(product([rest, size]), [], object())], product([step.bound.value, size]), [])
        elif step.branches and gathered.dispatch(type(step.module)) is gathered.dispatch(object):  # they are added
            signal = _added(step, signal, notes)
        else:
            for branch, inner in zip(step.branches, notes.within(step), strict=True) if notes is not None else ():
                _walk(branch, signal, inner)
            size = product([step.bound.value, _bound(signal)])
            signal = _Signal([_Term(size, [], object())], size, [])
    return signal


def _added(step: Step, signal: _Signal, notes: _Notes | None = None) -> _Signal:
    """The signal after a sum of branches: the linear parts of the branches add, for each term of the signal."""
    within = [None] * len(step.branches) if notes is None else notes.within(step)
    ends = [_walk(branch, signal, inner) for branch, inner in zip(step.branches, within, strict=True)]
    outer, passed = {id(term.source) for term in signal.terms}, len(signal.terms[0].route)
    through, terms = [], list[_Term]()
    for end in ends:
        kept = [term for term in end.terms if id(term.source) in outer]
        if kept:  # all of them, unless a layer that is neither affine nor elementwise restarted the sum
            through.append(kept[0].route[passed:])
        terms += [term for term in end.terms if id(term.source) not in outer]
    if through:
        value = math.fsum(_factors(route) for route in through)
        both = Step(step.path, _Plus(through), step.inputs, Bound(upwards(value) if value else 0.0, step.bound.shape))
        terms = [term._replace(route=[*term.route, both]) for term in signal.terms] + terms
    summed = math.fsum(_bound(end) for end in ends)
    least = min(upwards(summed) if summed else 0.0, product([step.bound.value, _bound(signal)]))
    return _Signal(terms, least, [])


def _bound(signal: _Signal) -> float:
    """Bound on the change of the signal per unit of input."""
    total = math.fsum(product([term.size, _norm(term.route)]) for term in signal.terms)
    return min(upwards(total) if total else 0.0, product([signal.least, _norm(signal.since)]))


def _norm(route: list[Step]) -> float:
    """Bound on the l2 norm of a linear map: that of its matrix where it is small, else the product of its layers' bounds."""
    ask()
    if not route:
        return 1.0
    inputs, outputs = math.prod(route[0].inputs), math.prod(route[-1].bound.shape)
    plain = _factors(route)
    computed = [step for step in route if not isinstance(step.module, (_Times, *UNCOMPUTED))]
    if not computed or (len(computed) == 1 and isinstance(computed[0].module, nn.Linear)):
        return plain  # the norm of a single layer is exact already
    if plain == 0 or not _small(route, inputs, outputs):
        return min(plain, merged(route))
    matrix, error = dense(route)
    return min(plain, spectral(matrix) + error) if matrix.isfinite().all() else plain


def _small(route: list[Step], inputs: int, outputs: int) -> bool:
    """Whether the route's matrix is worked out."""
    plain = all(isinstance(step.module, (nn.Linear, _Times, *UNCOMPUTED)) for step in route)
    side, most = (WIDE_SIDE, WIDE_SIZE) if plain else (DENSE_SIDE, DENSE_SIZE)
    return min(inputs, outputs) <= side and inputs * outputs <= most


def _factors(route: list[Step]) -> float:
    return product([step.bound.value for step in route])


def dense(route: list[Step]) -> tuple[Float64[Tensor, "outputs inputs"], float]:
    """The matrix of a nonempty linear route in float64, and a bound on its error in l2 (Frobenius) norm."""
    matrix = materialise(route)
    computed = [step for step in route if not isinstance(step.module, UNCOMPUTED)]
    if not computed or (len(computed) == 1 and as_given(computed[0].module)):
        return matrix, 0.0  # copied, not computed
    return matrix, _rounding(route)[1] * math.sqrt(max(matrix.shape))


def _rounding(route: list[Step]) -> tuple[float, float]:
    """(norm, error): bounds on a route's l2 norm, and on the rounding of its product with one unit vector.

    A layer multiplies the error of its input by its norm, and adds its own relative error; an underflow adds less than
    TINY. There is one vector per row (or column), so the Frobenius norm of the total error is sqrt(count) times as large.
    """
    norm, error = 1.0, 0.0
    for step in route:
        own, size = 0.0, step.bound.value
        if isinstance(step.module, _Plus):
            parts = [_rounding(part) for part in step.module.routes]
            own = math.fsum(gathered for _, gathered in parts) + 4 * UNIT * len(parts) * math.fsum(part for part, _ in parts)
        elif not isinstance(step.module, UNCOMPUTED):
            own = size * relative_rounding(step.module, math.prod(step.inputs), math.prod(step.bound.shape))
        norm, error = norm * size, size * error + own * (norm + error) + TINY * max(1.0, size)
    return norm * (1 + SLACK), error * (1 + SLACK)


def _pairs_of(term: _Term, classes: int) -> Float64[Tensor, "classes classes"]:
    """The contribution of one term to each difference of logits."""
    if term.size == 0:
        return torch.zeros(classes, classes, dtype=torch.float64)
    matrix, error = dense(term.route) if term.route else (torch.eye(classes, dtype=torch.float64), 0.0)
    return differences(matrix, error) * term.size


def differences(rows: Float64[Tensor, "classes inputs"], error: float) -> Float64[Tensor, "classes classes"]:
    """Bounds on ||row_y - row_j||_2, where the rows have a total error of at most `error`; zero on the diagonal."""
    if not rows.isfinite().all() or not math.isfinite(error):
        return torch.full((len(rows), len(rows)), torch.inf, dtype=torch.float64).fill_diagonal_(0)
    norms = _differences(rows)
    norms = torch.where(norms > 0, (norms * (1 + SLACK)).clamp_min(TINY), 0) + 2 * error
    return norms.fill_diagonal_(0)
