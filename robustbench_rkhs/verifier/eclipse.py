"""Re-check of ECLipsE bounds: reads the witness and proves each step by a Cholesky factorisation of recomputed matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import norms
from .activations import Activation
from .chain import FREE, Chain, dense, differences, product, run_norm, times
from .norms import TINY, UNIT
from .operations import Operation, expected, size
from .proof import Rejected, number, whole

WIDEST = 4096
"""Most features of an activation or image for which dense matrices are formed."""
TRIES = 4


@dataclass(frozen=True)
class Form:
    """u^T matrix u <= size^2 |d|^2 for the difference d of two images, and matrix >= floor I. No matrix: the identity."""

    matrix: np.ndarray | None = None
    size: float = 1.0
    floor: float = 1.0


def pairs(chain: Chain, witness: Any, classes: int) -> np.ndarray:
    r"""Recomputed bounds of logit differences. Raises Rejected if the witness does not prove them, Malformed if it is invalid.

    With u the difference of an activation's outputs, slopes in [a, b], W the affine map before it over the witness' `scale`, and
    u'^T N' u' <= l'^2 |d|^2 known of what it reads: u^T N u <= (scale l')^2 |d|^2 holds for any N with

    .. math:: \begin{pmatrix} N' + a b W^\top W & \tfrac{a+b}{2} W^\top \\ \tfrac{a+b}{2} W & I - N \end{pmatrix} \succeq 0

    which is proved of this own matrix and every one within its rounding, as is N >= `floor` I. A witness that starts anew at a
    layer proves W^T W <= factor^2 N' of what leads there, and goes on with that layer's own bound.
    """
    expected(isinstance(witness, list) and all(isinstance(entry, dict) for entry in witness), "expected a list as witness")
    before, form, start, position = 1.0, Form(), 0, 0
    for entry in witness:
        at = whole(entry.get("at"), "at", position)
        expected(at <= len(chain), "a witness is placed after the last layer")
        run = chain[position:at]
        expected(all(operation.affine for operation in run), "a witness passes over a layer that is not affine")
        if set(entry) == {"at", "end", "factor"}:
            end = whole(entry["end"], "end", at)
            expected(end <= len(chain), "a witness ends after the last layer")
            through = times(form.size, _factor(form, run, entry["factor"], chain[at:end]))
            before = times(before, min(times(through, product(chain[at:end])), product(chain[start:end])))
            form, start, position = Form(), end, end
            continue
        expected(set(entry) == {"at", "scale", "floor"} and at < len(chain), f"a witness has the keys {sorted(entry)}")
        turn = chain[at]
        expected(isinstance(turn, Activation), "a witness of a step is not at an activation")
        assert isinstance(turn, Activation)
        form = _advanced(form, run, turn, entry)
        position = at + 1
    rest = chain[position:]
    expected(all(operation.affine for operation in rest), "a witness ends before the last layer that is not affine")
    rows, error = dense(rest) if rest else (np.eye(classes), 0.0)
    expected(rows.shape[0] == classes, f"expected {classes} logits, found {rows.shape[0]}")
    with np.errstate(invalid="ignore"):
        found = _pairs(form, rows, error) * before * FREE
    return np.where(np.isnan(found), math.inf, found)


def _run(run: Sequence[Operation], turn: Operation) -> tuple[np.ndarray, float]:
    inputs = size(run[0].inputs) if run else size(turn.inputs)
    expected(max(inputs, size(turn.inputs)) <= WIDEST, f"layers are wider than {WIDEST} for dense matrices")
    return dense(run) if run else (np.eye(inputs), 0.0)


def _divided(weight: np.ndarray, error: float, by: float) -> tuple[np.ndarray, float]:
    found = weight / by
    return found, (error / by + UNIT * norms.frobenius(found) + TINY * found.size) * (1 + 1e-9)


def _advanced(form: Form, run: Sequence[Operation], turn: Activation, entry: dict[str, Any]) -> Form:
    """The form after an activation. Raises Rejected if the step is not proved."""
    low, high = turn.slopes
    expected(0 <= low < high, f"ECLipsE has no step over {turn.kind}")
    if form.size == 0 or (run and run_norm(run) == 0):
        return Form(size=0.0)
    if entry["scale"] is None or math.isinf(form.size):
        return Form(size=math.inf)
    scale, floor = number(entry["scale"], "scale"), number(entry["floor"], "floor")
    if not (scale > 0 and floor > 0):
        raise Rejected(f"eclipse: the step over {turn.kind} has scale {scale:g} and floor {floor:g}, expected above 0")
    weight, error = _divided(*_run(run, turn), scale)
    identity = np.eye(len(weight))
    before = np.eye(weight.shape[1]) if form.matrix is None else form.matrix
    both, half = low * high, (low + high) / 2
    slanted = before + both * weight.T @ weight if both else before
    inner = weight.T if form.matrix is None and not both else _solved(slanted, weight.T)
    schur = half**2 * weight @ inner
    schur = (schur + schur.T) / 2
    lowered = 8 * _slack(before, weight, error, identity - schur, (low, high))
    for _ in range(TRIES):
        after = (1 - lowered) * identity - schur
        if np.isfinite(after).all() and norms.positive(after, floor) and _proved(before, weight, error, after, (low, high)):
            return Form(after, times(form.size, scale), floor)
        lowered *= 16
    raise Rejected(f"eclipse: no Cholesky factor proves the step over {turn.kind} at scale {scale:g} and floor {floor:g}")


def _factor(form: Form, run: Sequence[Operation], claimed: Any, rest: Chain) -> float:
    """kappa with W^T W <= kappa^2 N. Raises Rejected if the claimed one is not proved."""
    if form.matrix is None:
        return product(run)
    if not run:
        return 1 / math.sqrt(form.floor) * (1 + 8 * UNIT)
    if run_norm(run) == 0 or claimed is None or not rest:
        return 0.0 if run_norm(run) == 0 else math.inf
    factor = number(claimed, "factor")
    if factor > 0:
        weight, error = _divided(*_run(run, rest[0]), factor)
        if _proved(form.matrix, weight, error, np.zeros((len(weight), len(weight))), (0.0, 2.0)):
            return factor
    raise Rejected(f"eclipse: no Cholesky factor proves the factor {factor:g} of layers between two activations")


def _proved(before: np.ndarray, weight: np.ndarray, error: float, after: np.ndarray, interval: tuple[float, float]) -> bool:
    """Whether the matrix inequality holds for every weight within `error` of this one."""
    low, high = interval
    corner = before + low * high * (weight.T @ weight) if low * high else before
    side = (low + high) / 2 * weight
    whole_matrix = np.block([[corner, side.T], [side, np.eye(len(after)) - after]])
    return norms.positive(whole_matrix, _slack(before, weight, error, after, interval))


def _slack(before: np.ndarray, weight: np.ndarray, error: float, after: np.ndarray, interval: tuple[float, float]) -> float:
    """How far rounding and the weight's error move the matrix in l2 norm: by Frobenius norms, sums of n terms n + 2 units."""
    low, high = interval
    both, half, length = low * high, (low + high) / 2, norms.frobenius(weight)
    entries = norms.frobenius(before) + both * length * length + 2 * half * length + norms.frobenius(after)
    entries += math.sqrt(len(after))
    rounding = 4 * (len(weight) + 4) * UNIT * entries
    return (rounding + both * (2 * error * length + error * error) + half * error) * (1 + 1e-9) + TINY


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        raise Rejected("eclipse: a step leaves a singular matrix") from None


def _pairs(form: Form, rows: np.ndarray, error: float) -> np.ndarray:
    r"""l sqrt(d^T N^{-1} d) for each pair of rows d = w_y - w_j, rounded up.

    With s near N^{-1} d and p = d - N s: d^T N^{-1} d = s^T d + s^T p + p^T N^{-1} p <= s^T d + |s| |p| + |p|^2 / floor.
    """
    if form.size == 0:
        return np.zeros((len(rows), len(rows)))
    if form.matrix is None or math.isinf(form.size):
        with np.errstate(invalid="ignore"):
            return differences(rows, error) * form.size * FREE
    found = np.zeros((len(rows), len(rows)))
    for y in range(len(rows)):
        d = rows[y] - rows
        peak = float(np.abs(d).max())
        if peak == 0:
            found[y] = 2 * error / math.sqrt(form.floor)
            continue
        d = d / peak
        s = _solved(form.matrix, d.T).T
        long, wide = (np.sqrt((a**2).sum(1)) * (1 + 1e-9) + TINY for a in (d, s))
        rest = np.sqrt(((d - s @ form.matrix) ** 2).sum(1)) * (1 + 1e-9)
        units = 4 * (len(form.matrix) + 4) * UNIT
        rest = rest + units * (long + wide * norms.frobenius(form.matrix))
        squared = (s * d).sum(1) + units * long * wide + wide * rest + rest**2 / form.floor
        moved = (2 * error / peak + 4 * UNIT * (long + norms.frobenius(rows / peak))) / math.sqrt(form.floor)
        found[y] = (np.sqrt(np.maximum(squared, 0)) + moved) * peak
    found = found * form.size * (1 + 1e-10)
    np.fill_diagonal(found, 0)
    return found
