"""The whole Gram matrix of a convolution on a small image: proven, close to the truth, never above the bound it started from."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_rkhs.lipschitz import convolution, gram_operator
from robustbench_rkhs.lipschitz.convolution import Axis, operator_bound, operator_matrix, torus_norm


def start(weight, axes):
    """What `tightened` starts from, and its arguments."""
    places = tuple([convolution._places(axis, tap) for tap in range(axis.kernel)] for axis in axes)
    return weight[0], tuple(axis.size for axis in axes), tuple(axis.outputs for axis in axes), places, torus_norm(weight, axes)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 3),
    scale=st.sampled_from([1.0, 1e-20, 1e20, 3e-155]),
    seed=st.integers(0, 1000),
)
def test_it_lies_between_the_exact_norm_and_the_torus_bound(channels, kernel, size, stride, dilation, padding, scale, seed):
    axes = tuple(Axis(n, k, stride, dilation, padding, padding) for n, k in zip(size, kernel, strict=True))
    if min(axis.outputs for axis in axes) < 1:
        return
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(1, *channels, *kernel, dtype=torch.float64, generator=generator)
    exact = torch.linalg.matrix_norm(operator_matrix(weight, axes)[0] / scale, 2).item() * scale
    arguments = start(weight, axes)
    found = gram_operator.tightened(*arguments)
    assert exact * (1 - 1e-12) <= found <= arguments[-1]
    assert found <= exact * 1.0101 or found == arguments[-1]
    assert found <= exact * 1.0101 or arguments[-1] <= exact * 1.02


def test_a_layer_of_a_deep_network_is_within_one_percent_where_the_torus_is_not(monkeypatch):
    monkeypatch.setattr(convolution, "DENSE_SIDE", 0)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 24, 24, 3, 3, dtype=torch.float64, generator=generator) / math.sqrt(9 * 24)
    axes = (Axis(4, 3, 1, 1, 1, 1), Axis(4, 3, 1, 1, 1, 1))
    exact = torch.linalg.matrix_norm(operator_matrix(weight, axes)[0], 2).item()
    bound, method = operator_bound(weight, axes)
    assert method == "gramian" and exact <= bound <= 1.01 * exact
    assert torus_norm(weight, axes) > 1.05 * exact


@pytest.mark.parametrize("lie", [0.5, 0.999])
def test_a_guess_that_is_too_small_proves_nothing(monkeypatch, lie):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 6, 6, 3, 3, dtype=torch.float64, generator=generator)
    axes = (Axis(4, 3, 1, 1, 1, 1), Axis(4, 3, 1, 1, 1, 1))
    exact = torch.linalg.matrix_norm(operator_matrix(weight, axes)[0], 2).item()
    honest = gram_operator.guess
    monkeypatch.setattr(gram_operator, "guess", lambda *given: lie**2 * honest(*given))
    assert gram_operator.tightened(*start(weight, axes)) >= exact
