"""Operations in a row: their product of norms, runs of affine ones as one matrix, pairs of classes, logits with their error."""

import math
from collections.abc import Sequence

import numpy as np

from . import norms
from .affine import Linear, Move, Reshape
from .norms import TINY, UNIT
from .operations import Operation, Shape, expected, lengths, size

DENSE_SIDE, DENSE_SIZE = 1024, 2**22
"""A run of affine operations is worked out as a matrix where its smaller side and its size are at most these."""
BATCH = 256
"""Rows or columns of a matrix at once."""
FREE = 1 + 4 * UNIT
"""One rounding up."""

Chain = Sequence[Operation]


class Branches(Operation):
    """Several chains of one image, added or one after the other in the channels: norms add up, or their squares do."""

    def __init__(self, inputs: Shape, chains: Sequence[Chain], added: bool) -> None:
        shapes = [chain[-1].outputs if chain else inputs for chain in chains]
        expected(bool(shapes), "expected at least one branch")
        alike = len(set(shapes)) == 1 if added else len({shape[1:] for shape in shapes}) == 1
        expected(alike, f"branches do not fit: {shapes}")
        super().__init__(inputs, shapes[0] if added else (sum(shape[0] for shape in shapes), *shapes[0][1:]))
        self.chains, self.added = chains, added

    def _joined(self, x: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.sum(parts, axis=0) if self.added else np.concatenate(parts, axis=1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._joined(x, [forward(chain, x)[0] for chain in self.chains])

    def _bound(self) -> float:
        found = [product(chain) for chain in self.chains]
        total = math.fsum(found) if self.added else math.hypot(*found)
        return total * (1 + 16 * UNIT)

    def error(self, x: np.ndarray, before: np.ndarray) -> np.ndarray:
        parts = [forward(chain, x, before) for chain in self.chains]
        if not self.added:
            return np.sqrt(np.sum([error**2 for _, error in parts], axis=0)) * (1 + 1e-9) + TINY
        moved = 4 * UNIT * len(parts) * np.sum([lengths(y) for y, _ in parts], axis=0)
        return (np.sum([error for _, error in parts], axis=0) + moved) * (1 + 1e-9) + TINY


def forward(chain: Chain, x: np.ndarray, error: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Outputs in float64, and for each image a bound of their l2 distance to the outputs in real arithmetic."""
    error = np.zeros(len(x)) if error is None else error
    for operation in chain:
        error = operation.error(x, error)
        x = operation(x)
    return x, error


def runs(chain: Chain) -> list[list[Operation]]:
    """The chain cut into single operations and runs of affine ones."""
    parts: list[list[Operation]] = []
    for operation in chain:
        if parts and operation.affine and parts[-1][-1].affine:
            parts[-1].append(operation)
        else:
            parts.append([operation])
    return parts


def product(chain: Chain) -> float:
    """Own proven upper bound of a chain: each run's product of norms, or its matrix' norm where that is small and smaller."""
    total = 1.0
    for run in runs(chain):
        total = _times(total, _run_norm(run))
    return total


def _times(one: float, other: float) -> float:
    return 0.0 if one == 0 or other == 0 else max(one * other * FREE, TINY)


def _run_norm(run: list[Operation]) -> float:
    total = 1.0
    for operation in run:
        total = _times(total, operation.bound)
    working = [operation for operation in run if not isinstance(operation, Reshape)]
    if not working or total == 0 or not run[0].affine or (len(working) == 1 and isinstance(working[0], Linear)):
        return total
    inputs, outputs = size(run[0].inputs), size(run[-1].outputs)
    if min(inputs, outputs) > DENSE_SIDE or inputs * outputs > DENSE_SIZE:
        return total
    matrix, error = dense(run)
    return min(total, max((norms.norm(matrix) + error) * FREE, TINY))


def dense(run: Sequence[Operation]) -> tuple[np.ndarray, float]:
    """The matrix (outputs, inputs) of affine operations in a row, and a bound of its rounding error in the Frobenius norm."""
    inputs, outputs = size(run[0].inputs), size(run[-1].outputs)
    by_rows, parts, square = outputs <= inputs, [], 0.0
    identity = np.eye(outputs if by_rows else inputs)
    for start in range(0, len(identity), BATCH):
        part = identity[start : start + BATCH]
        x, error = part.reshape(-1, *(run[-1].outputs if by_rows else run[0].inputs)), 0.0
        for operation in reversed(run) if by_rows else run:
            length = float(np.linalg.norm(x)) * (1 + 1e-9)
            error = operation.bound * error * FREE
            if not isinstance(operation, Move):
                error += operation.factor * operation.absolute * length + TINY
            x = operation.adjoint(x) if by_rows else operation.apply(x)
        parts.append(x.reshape(len(part), -1))
        square += error**2
    matrix = np.concatenate(parts)
    return matrix if by_rows else matrix.T, math.sqrt(square) * (1 + 1e-9)


def pairs(chain: Chain, classes: int) -> np.ndarray:
    """L[y, j]: own proven upper bound of how fast logits y and j part, zero on the diagonal."""
    expected(chain[-1].outputs == (classes,), f"expected {classes} logits, found outputs of shape {chain[-1].outputs}")
    parts = runs(chain)
    tail = parts.pop() if parts[-1][0].affine else []
    prefix = product([operation for part in parts for operation in part])
    apart = 1 - np.eye(classes)
    if not tail:
        return apart * (_times(prefix, math.sqrt(2) * FREE))
    rows, error = _rows(tail)
    last = next((operation for operation in reversed(tail) if not isinstance(operation, Reshape)), None)
    found = np.zeros((classes, classes))
    for y in range(classes):
        difference = rows - rows[y]
        peak = np.abs(difference).max(axis=1)
        scaled = difference / np.where(peak > 0, peak, 1)[:, None]
        found[y] = np.sqrt((scaled**2).sum(1)) * peak * (1 + 1e-10) + np.where(peak > 0, TINY, 0) + 2 * error
        if isinstance(last, Linear) and last.inputs[:-1] == ():  # rows that are the same bit by bit part nowhere
            found[y][(last.weight == last.weight[y]).all(axis=1)] = 0
    return np.where((apart > 0) & (found > 0) & (prefix > 0), np.maximum(found * prefix * FREE, TINY), 0)


def _rows(tail: list[Operation]) -> tuple[np.ndarray, float]:
    """The matrix of the last affine run, row by row; a lone linear layer's is read off."""
    working = [operation for operation in tail if not isinstance(operation, Reshape)]
    if len(working) == 1 and isinstance(working[0], Linear) and len(working[0].outputs) == 1:
        return working[0].weight, 0.0
    return dense(tail)
