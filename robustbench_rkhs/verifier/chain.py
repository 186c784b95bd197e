"""Chains of operations: Lipschitz bounds (norm products, dense affine runs, class pairs) and logits with error bounds."""

import math
from collections.abc import Sequence

import numpy as np

from . import norms
from .activations import Activation
from .affine import Diagonal, Linear, Reshape
from .norms import TINY, UNIT
from .operations import Operation, Shape, expected, lengths, size

DENSE_SIDE, DENSE_SIZE = 1024, 2**22
"""A run of affine operations is computed as a matrix where its smaller side and its size are at most these."""
WIDE_SIDE, WIDE_SIZE = 4096, 2**24
"""The same for a run of dense layers."""
BATCH = 256
"""Rows or columns of a matrix that are computed at once."""
FREE = 1 + 4 * UNIT
"""Factor that rounds a float64 result up."""

Chain = Sequence[Operation]


class Branches(Operation):
    """Parallel chains on one input, summed (norms add) or concatenated along the channels (squared norms add)."""

    def __init__(self, inputs: Shape, chains: Sequence[Chain], added: bool) -> None:
        shapes = [chain[-1].outputs if chain else inputs for chain in chains]
        expected(bool(shapes), "expected at least one branch")
        alike = len(set(shapes)) == 1 if added else len({shape[1:] for shape in shapes}) == 1
        expected(alike, f"branches do not fit: {shapes}")
        super().__init__(inputs, shapes[0] if added else (sum(shape[0] for shape in shapes), *shapes[0][1:]))
        self.chains, self.added, self.channels = chains, added, [shape[0] for shape in shapes]
        self.affine = all(operation.affine for chain in chains for operation in chain)

    def _joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.sum(parts, axis=0) if self.added else np.concatenate(parts, axis=1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._joined([forward(chain, x)[0] for chain in self.chains])

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self._joined([_through(chain, x) for chain in self.chains])

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        parts = [v] * len(self.chains) if self.added else np.split(v, np.cumsum(self.channels)[:-1], axis=1)
        found: np.ndarray = np.sum([_back(chain, part) for chain, part in zip(self.chains, parts, strict=True)], axis=0)
        return found

    def moved(self, length: float, back: bool) -> float:
        total, longest = 0.0, 0.0
        for chain in self.chains:
            error, now = 0.0, length
            for operation in reversed(chain) if back else chain:
                error, now = operation.bound * error * FREE + operation.moved(now + error, back), operation.bound * now * FREE
            total, longest = total + error, longest + now + error
        return (total + 4 * UNIT * len(self.chains) * longest) * (1 + 1e-9) + TINY

    def _bound(self) -> float:
        found = [product(chain) for chain in self.chains]
        total = (math.fsum(found) if self.added else math.hypot(*found)) * (1 + 16 * UNIT)
        return total if total == 0 or norms.met(total, self.claim) else min(total, self._centred())

    def _centred(self) -> float:
        r"""||S + m W_2 W_1|| + d ||W_2|| ||W_1|| for S x + W_2 a(W_1 x + b), slopes of a in [m - d, m + d]; else infinite.

        a(z) - m z is d-Lipschitz, entry by entry and so in l2; the linear rest adds to S x before its norm is taken.
        """
        straight = [chain for chain in self.chains if all(operation.affine for operation in chain)]
        bent = [chain for chain in self.chains if not all(operation.affine for operation in chain)]
        if not self.added or len(straight) != 1 or len(bent) != 1:
            return math.inf
        turns = [at for at, operation in enumerate(bent[0]) if not operation.affine]
        turn = bent[0][turns[0]]
        inputs, outputs = size(self.inputs), size(self.outputs)
        if len(turns) != 1 or not isinstance(turn, Activation) or not _small(inputs, outputs):
            return math.inf
        before, after = list(bent[0][: turns[0]]), list(bent[0][turns[0] + 1 :])
        if not before + after:
            return math.inf
        low, high = turn.slopes
        middle = (low + high) / 2
        half = max(high - middle, middle - low) * (1 + 4 * UNIT)
        body, error = dense(before + after)
        shortcut, other = dense(straight[0]) if straight[0] else (np.eye(inputs), 0.0)
        sizes = abs(middle) * norms.frobenius(body) + norms.frobenius(shortcut)
        error = (abs(middle) * error + other + 4 * UNIT * sizes) * (1 + 1e-9)
        return (norms.norm(middle * body + shortcut) + error + half * product(before) * product(after)) * (1 + 16 * UNIT)

    def error(self, x: np.ndarray, before: np.ndarray) -> np.ndarray:
        result: np.ndarray
        parts = [forward(chain, x, before) for chain in self.chains]
        if not self.added:
            result = np.hypot.reduce([error for _, error in parts]) * (1 + 1e-9) + TINY  # squares of errors may underflow
            return result
        moved = 4 * UNIT * len(parts) * np.sum([lengths(y) for y, _ in parts], axis=0)
        result = (np.sum([error for _, error in parts], axis=0) + moved) * (1 + 1e-9) + TINY
        return result


def _through(chain: Chain, x: np.ndarray) -> np.ndarray:
    """The linear part of an affine chain."""
    for operation in chain:
        x = operation.apply(x)
    return x


def _back(chain: Chain, v: np.ndarray) -> np.ndarray:
    """The transpose of the linear part of an affine chain."""
    for operation in reversed(chain):
        v = operation.adjoint(v)
    return v


def forward(chain: Chain, x: np.ndarray, error: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Outputs in float64, and for each image a bound of their l2 distance to the outputs in real arithmetic."""
    error = np.zeros(len(x)) if error is None else error
    for operation in chain:
        error = operation.error(x, error)
        x = operation(x)
    return x, error


def runs(chain: Chain) -> list[list[Operation]]:
    """The chain split into runs of affine operations and single other operations."""
    parts: list[list[Operation]] = []
    for operation in chain:
        if parts and operation.affine and parts[-1][-1].affine:
            parts[-1].append(operation)
        else:
            parts.append([operation])
    return parts


def product(chain: Chain) -> float:
    """Proven Lipschitz bound of a chain: per run the product of norms, or the norm of its matrix if small enough and lower."""
    total = 1.0
    for run in runs(chain):
        total = times(total, run_norm(run))
    return total


def times(one: float, other: float) -> float:
    """A product of bounds, rounded up."""
    return 0.0 if one == 0 or other == 0 else max(one * other * FREE, TINY)


def run_norm(run: Sequence[Operation]) -> float:
    """Norm bound of a run of affine operations, or of one operation: from its matrix if small enough, else from its parts."""
    total = 1.0
    for operation in run:
        total = times(total, operation.bound)
    working = [operation for operation in run if not isinstance(operation, Reshape)]
    if not working or total == 0 or not run[0].affine or (len(working) == 1 and isinstance(working[0], Linear)):
        return total
    if _worked_out(run):
        matrix, error = dense(run)
        return min(total, max((norms.norm(matrix) + error) * FREE, TINY))
    parts, start = 1.0, 0
    while start < len(run):
        end = next((at for at in range(len(run), start + 1, -1) if _worked_out(run[start:at])), 0)
        end = end or start + 1
        parts = times(parts, run_norm(run[start:end]) if end > start + 1 else run[start].bound)
        start = end
    return min(total, parts)


def _worked_out(run: Sequence[Operation]) -> bool:
    """Whether the matrix of a run is computed."""
    dense_layers = all(isinstance(operation, (Linear, Diagonal, Reshape)) for operation in run)
    inputs, outputs = size(run[0].inputs), size(run[-1].outputs)
    wide = dense_layers and min(inputs, outputs) <= WIDE_SIDE and inputs * outputs <= WIDE_SIZE
    return wide or _small(inputs, outputs)


def _small(inputs: int, outputs: int) -> bool:
    return min(inputs, outputs) <= DENSE_SIDE and inputs * outputs <= DENSE_SIZE


def dense(run: Sequence[Operation]) -> tuple[np.ndarray, float]:
    """The matrix (outputs, inputs) of a run of affine operations, and a bound of its rounding error in the Frobenius norm."""
    inputs, outputs = size(run[0].inputs), size(run[-1].outputs)
    by_rows, parts, total = outputs <= inputs, [], 0.0
    identity = np.eye(outputs if by_rows else inputs)
    for start in range(0, len(identity), BATCH):
        part = identity[start : start + BATCH]
        x, error = part.reshape(-1, *(run[-1].outputs if by_rows else run[0].inputs)), 0.0
        for operation in reversed(run) if by_rows else run:
            length = norms.frobenius(x)
            error = operation.bound * error * FREE
            error += operation.moved(length, by_rows)
            x = operation.adjoint(x) if by_rows else operation.apply(x)
        parts.append(x.reshape(len(part), -1))
        total = math.hypot(total, error)
    matrix = np.concatenate(parts)
    return matrix if by_rows else matrix.T, total * (1 + 1e-9)


def pairs(chain: Chain, classes: int) -> np.ndarray:
    """L[y, j]: proven Lipschitz bound of the logit difference f_y - f_j, zero on the diagonal."""
    expected(bool(chain), "it has no layers")
    expected(chain[-1].outputs == (classes,), f"expected {classes} logits, found outputs of shape {chain[-1].outputs}")
    parts = runs(chain)
    tail = parts.pop() if parts[-1][0].affine else []
    prefix = product([operation for part in parts for operation in part])
    apart = 1 - np.eye(classes)
    if not tail:
        return apart * (times(prefix, math.sqrt(2) * FREE))
    rows, error = _rows(tail)
    last = next((operation for operation in reversed(tail) if not isinstance(operation, Reshape)), None)
    found = differences(rows, error)
    if isinstance(last, Linear) and last.inputs[:-1] == ():  # bitwise equal rows have difference zero
        found = np.where([(last.weight == row).all(axis=1) for row in last.weight], 0.0, found)
    return np.where((apart > 0) & (found > 0) & (prefix > 0), np.maximum(found * prefix * FREE, TINY), 0)


def differences(rows: np.ndarray, error: float) -> np.ndarray:
    """Bounds of ||row_y - row_j||, each row off by at most `error`; zero on the diagonal."""
    found = np.zeros((len(rows), len(rows)))
    for y in range(len(rows)):
        apart = rows - rows[y]
        peak = np.abs(apart).max(axis=1)
        scaled = apart / np.where(peak > 0, peak, 1)[:, None]
        found[y] = np.sqrt((scaled**2).sum(1)) * peak * (1 + 1e-10) + np.where(peak > 0, TINY, 0) + 2 * error
    np.fill_diagonal(found, 0)
    return found


def _rows(tail: list[Operation]) -> tuple[np.ndarray, float]:
    """The matrix of the last affine run, row by row; for a single linear layer, its weight."""
    working = [operation for operation in tail if not isinstance(operation, Reshape)]
    if len(working) == 1 and isinstance(working[0], Linear) and len(working[0].outputs) == 1:
        return working[0].weight, 0.0
    return dense(tail)
