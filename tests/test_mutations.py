"""Mistakes that others made, made here on purpose: each must turn tests of this suite red."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import test_certificates
import test_crown
import test_graphs
import test_lipschitz
import test_norms_proven
import torch
from torch import nn

from robustbench_rkhs.bounds import combined
from robustbench_rkhs.certificates import CrownCertificate, MarginCertificate, pairwise
from robustbench_rkhs.layers import Concatenate, Normalize
from robustbench_rkhs.lipschitz import Bound, convolution, rule, verified_norm
from robustbench_rkhs.relaxations import linear_bounds

Patch = Callable[[pytest.MonkeyPatch], Any]


def power_iteration(matrices: torch.Tensor, at_least: float = 0.0) -> float:
    """From all ones, as published; a lower estimate."""
    largest = at_least
    for matrix in matrices.reshape(-1, *matrices.shape[-2:]):
        vector = torch.ones(matrix.shape[-1], dtype=matrix.dtype)
        for _ in range(100):
            moved = matrix.mH @ (matrix @ vector)
            vector = moved / moved.abs().square().sum().sqrt().clamp_min(1e-200)
        largest = max(largest, (matrix @ vector).abs().square().sum().sqrt().item())
    return largest


def multiplied(honest: Callable[..., tuple[float, str]]) -> Callable[..., tuple[float, str]]:
    """The product over groups in place of the largest."""
    return lambda weight, axes: (math.prod(honest(group[None], axes)[0] for group in weight), "torus")


def own_size(honest: Callable[..., tuple[int, int, int]]) -> Callable[..., tuple[int, int, int]]:
    """A torus as large as the image."""
    return lambda axis: (max(axis.size // axis.stride, 1), axis.stride, 1)


@contextlib.contextmanager
def other_rule(dispatch: Any, kind: type, mutant: Callable[..., Any]) -> Iterator[None]:
    honest = dispatch.dispatch(kind)
    dispatch.register(kind, mutant)
    try:
        yield
    finally:
        dispatch.register(kind, honest)


def with_rule(dispatch: Any, kind: type, mutant: Callable[..., Any]) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> Any:
        return other_rule(dispatch, kind, mutant)

    return patch


def scaled_pairs(factor: float) -> Patch:
    """Pair bounds that are smaller than what is proved."""
    honest = MarginCertificate.pairs
    return lambda m: m.setattr(MarginCertificate, "pairs", lambda self, *given: honest(self, *given) * factor)


def without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pairwise.logits_and_error

    def mutant(*given: Any) -> Any:
        logits, error = honest(*given)
        return logits, torch.zeros_like(error)

    monkeypatch.setattr(pairwise, "logits_and_error", mutant)


def flat_lines(honest: Callable[..., Any]) -> Callable[..., Any]:
    """A bent ReLU under a line through the origin, its height forgotten."""

    def mutant(module: nn.Module, step: Any, rows: Any) -> Any:
        found = honest(module, step, rows)
        return found._replace(offsets=torch.maximum(found.offsets, rows.offsets))

    return mutant


MUTATIONS: dict[str, tuple[Patch, list[Callable[[], Any]]]] = {
    "power iteration for a proven norm": (
        lambda m: m.setattr(verified_norm, "norm", power_iteration),
        [test_lipschitz.test_largest_direction_orthogonal_to_all_ones],
    ),
    "a factorisation that never fails": (
        lambda m: m.setattr(verified_norm, "_below", lambda gram, square: torch.ones(len(gram), dtype=torch.bool)),
        [test_norms_proven.test_a_solver_that_lies_or_fails_changes_nothing_but_the_tightness],
    ),
    "groups multiplied": (
        lambda m: m.setattr(convolution, "operator_bound", multiplied(convolution.operator_bound)),
        [test_lipschitz.test_groups_count_by_their_largest_not_their_product],
    ),
    "a torus of the image's own size": (
        lambda m: m.setattr(convolution.Axis, "torus", own_size(convolution.Axis.torus)),
        [test_lipschitz.test_zero_padding_is_not_the_circular_operator],
    ),
    "an overlapping max-pool as 1": (
        with_rule(rule, nn.MaxPool2d, lambda module, shape: Bound(1.0, tuple(module(torch.zeros(1, *shape)).shape[1:]))),
        [test_lipschitz.test_overlapping_max_pool_attains_its_bound],
    ),
    "1 / min(std) dropped": (
        with_rule(rule, Normalize, lambda module, shape: Bound(1.0, shape)),
        [test_lipschitz.test_normalisation_counts_by_its_smallest_std],
    ),
    "the largest branch of a concatenation": (
        with_rule(
            combined,
            Concatenate,
            lambda module, chains, shape: Bound(
                max(math.prod(step.bound.value for step in chain) for chain in chains),
                (sum((chain[-1].bound.shape if chain else shape)[0] for chain in chains), *shape[1:]),
            ),
        ),
        [test_graphs.test_a_concatenation_is_the_root_of_the_sum_of_squares],
    ),
    "a bound that is 1 % too small": (
        scaled_pairs(0.99),
        [
            lambda: test_certificates.test_affine_radius_is_the_closed_form_and_never_above(
                MarginCertificate(), test_certificates.AFFINE["vector"], 3, 1.0
            )
        ],
    ),
    "upper lines of ReLUs without their height": (
        with_rule(linear_bounds.back, nn.ReLU, flat_lines(linear_bounds.back.dispatch(nn.ReLU))),
        [lambda: test_crown.test_the_radius_is_below_the_nearest_error_on_a_line(CrownCertificate, 0)],
    ),
    "logits without their rounding": (
        without_rounding,
        [lambda: test_certificates.test_a_gap_within_rounding_proves_nothing(MarginCertificate())],
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_turns_the_suite_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, tests = MUTATIONS[name]
    for test in tests:  # green as it is
        test()
    pairwise._known.clear()
    with patch(monkeypatch) or contextlib.nullcontext():
        for test in tests:
            with pytest.raises((AssertionError, pytest.fail.Exception)):
                test()
    monkeypatch.undo()
    pairwise._known.clear()
    for test in tests:  # and green again
        test()
