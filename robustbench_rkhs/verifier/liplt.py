"""Re-check of LipLT bounds: the linear path through the activations, with recomputed norms of products."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .activations import Activation
from .affine import Diagonal
from .chain import FREE, Branches, Chain, dense, differences, run_norm, times
from .norms import UNIT
from .operations import Operation, Shape, expected

Path = tuple[int, ...]
"""Position of an operation: its index, then inside branches the branch's index and so on."""


class Times(Diagonal):
    """The linear part of an activation: multiplication by the midpoint of its slope interval."""

    def __init__(self, inputs: Shape, middle: float) -> None:
        super().__init__(inputs, np.zeros(1), np.array([middle]), np.zeros(1))


class Term(NamedTuple):
    """Contribution of one source: it changes by at most `size` per unit of input, then passes through linear operations."""

    size: float
    route: list[Operation]
    source: object


class Signal(NamedTuple):
    """A sum of terms; also equal to `since` applied to a quantity that changes by at most `least` per unit of input."""

    terms: list[Term]
    least: float
    since: list[Operation]


def pairs(chain: Chain, witness: Any, classes: int) -> np.ndarray:
    r"""Recomputed bounds of logit differences.

    An activation with slopes in [a, b] is c z plus a rest that is r-Lipschitz, c = (a + b) / 2 and r = (b - a) / 2, entry by entry.
    So what reaches an activation is a sum of linear maps of the image and of the rests before it, and changes by at most the sum of
    their norms times what each source changes. Other layers start anew, with their own bound times what reaches them; so do the
    activations that the witness names, which changes how tight this is and nothing else.
    """
    fine = isinstance(witness, list) and all(isinstance(path, list) and all(type(at) is int for at in path) for path in witness)
    expected(fine, "expected a list of positions as witness")
    walk = _Walk({tuple(path) for path in witness})
    last = walk.along(chain, Signal([Term(1.0, [], object())], 1.0, []), ())
    total = np.zeros((classes, classes))
    for term in last.terms:
        total = total + _apart(term.size, term.route, classes)
    result: np.ndarray = np.minimum(total * (1 + 4 * len(last.terms) * UNIT), _apart(last.least, last.since, classes))
    return result


def reached(chain: Chain) -> dict[Path, float]:
    """Lipschitz bounds of the maps from the image to what enters each operation, by its position; nested for branches."""
    found: dict[Path, float] = {}
    _Walk(set(), found).along(chain, Signal([Term(1.0, [], object())], 1.0, []), ())
    return found


def _apart(size: float, route: Sequence[Operation], classes: int) -> np.ndarray:
    if size == 0:
        return np.zeros((classes, classes))
    rows, error = dense(route) if route else (np.eye(classes), 0.0)
    expected(rows.shape[0] == classes, f"expected {classes} logits, found {rows.shape[0]}")
    return differences(rows, error) * size * FREE


class _Walk:
    """Propagates a signal through a chain; caches the norms of routes by the operations they consist of."""

    def __init__(self, starts: set[Path], reached: dict[Path, float] | None = None) -> None:
        self.starts = starts
        self.reached = reached
        """Filled with the bound of what enters each operation, also inside of branches that are concatenated; None: not asked."""
        self.norms: dict[Path, float] = {}
        self.kept: list[list[Operation]] = []
        """Keeps cached routes alive, so that `id` of their operations is not reused."""

    def along(self, chain: Chain, signal: Signal, path: Path) -> Signal:
        for at, operation in enumerate(chain):
            if self.reached is not None:
                self.note(operation, signal, (*path, at))
            if operation.affine:
                terms = [term._replace(route=[*term.route, operation]) for term in signal.terms]
                signal = Signal(terms, signal.least, [*signal.since, operation])
                continue
            size = self.bound(signal)
            least = times(operation.bound, size)
            if isinstance(operation, Activation) and (*path, at) not in self.starts:
                low, high = operation.slopes
                middle = Times(operation.inputs, (low + high) / 2)
                rest = ((high - low) / 2) * (1 + 8 * UNIT) + 4 * UNIT * max(abs(low), abs(high))
                terms = [term._replace(route=[*term.route, middle]) for term in signal.terms]
                signal = Signal([*terms, Term(times(rest, size), [], object())], least, [])
            elif isinstance(operation, Branches) and operation.added:
                signal = self.added(operation, signal, (*path, at), least)
            else:
                signal = Signal([Term(least, [], object())], least, [])
        return signal

    def note(self, operation: Operation, signal: Signal, path: Path) -> None:
        assert self.reached is not None
        size = signal.least
        for part in signal.since:
            size = times(size, part.bound)
        self.reached[path] = size if operation.affine else min(size, self.bound(signal))
        if isinstance(operation, Branches) and not operation.affine and not operation.added:
            for number, branch in enumerate(operation.chains):
                self.along(branch, signal, (*path, number))

    def added(self, operation: Branches, signal: Signal, path: Path, least: float) -> Signal:
        """The signal after summed branches: the linear parts that its terms pass through add up, term by term."""
        ends = [self.along(branch, signal, (*path, number)) for number, branch in enumerate(operation.chains)]
        outer, passed = {id(term.source) for term in signal.terms}, len(signal.terms[0].route)
        through, fresh = list[list[Operation]](), list[Term]()
        for end in ends:
            own = [term for term in end.terms if id(term.source) in outer]
            if own:  # all of them, unless something in the branch started anew
                through.append(own[0].route[passed:])
            fresh += [term for term in end.terms if id(term.source) not in outer]
        terms = fresh
        if through:
            both = Branches(operation.inputs, through, True)
            terms = [term._replace(route=[*term.route, both]) for term in signal.terms] + fresh
        summed = math.fsum(self.bound(end) for end in ends) * (1 + 4 * UNIT)
        return Signal(terms, min(summed, least), [])

    def bound(self, signal: Signal) -> float:
        """Upper bound of the signal's change per unit of input."""
        total = math.fsum(times(term.size, self.norm(term.route)) for term in signal.terms) * (1 + 4 * UNIT)
        return min(total, times(signal.least, self.norm(signal.since)))

    def norm(self, route: list[Operation]) -> float:
        """Norm bound of a linear route: of its matrix if small enough, else the product of its parts' norms."""
        if not route:
            return 1.0
        key = tuple(map(id, route))
        if key not in self.norms:
            parts, part = 1.0, list[Operation]()
            for operation in route:
                if isinstance(operation, Times):
                    parts, part = times(times(parts, run_norm(part) if part else 1.0), operation.bound), []
                else:
                    part.append(operation)
            apart = times(parts, run_norm(part) if part else 1.0)
            self.norms[key] = min(run_norm(route), apart) if len(part) < len(route) else apart
            self.kept.append(route)
        return self.norms[key]
