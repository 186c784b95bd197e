"""Projections land in the set, leave it alone, and change nothing the second time; checked by dense SVD."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense
from torch import nn

from robustbench_rkhs.networks import VGG
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training.projections import SpectralProjection, clip, known_within, operator_bound


def exact(matrix, tau):
    """Singular values clipped in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left * values.clamp_max(tau) @ right


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.01, 30),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 1e-3, 1e3]),
)
def test_clipping_is_the_exact_projection(rows, columns, tau, seed, scale):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    wanted = exact(matrix, tau)
    clip([matrix], tau)
    assert (matrix - wanted).abs().max() <= 1e-5 * max(1.0, tau)
    again = matrix.clone()
    clip([again], tau)
    assert (again - matrix).abs().max() <= 4e-6 * tau
    assert torch.linalg.matrix_norm(matrix.double(), 2) <= tau * (1 + 1e-5)


def test_clusters_at_tau_and_repeated_values():
    torch.manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(64, 64)).Q
    matrix = 0.8 * orthogonal + 1e-3 * torch.randn(64, 64)
    wanted = exact(matrix, 0.8)
    clip([matrix], 0.8)
    assert (matrix - wanted).abs().max() < 1e-5
    ones = torch.ones(8, 8)
    clip([ones], 2.0)
    torch.testing.assert_close(ones, torch.full((8, 8), 0.25))
    zero = torch.zeros(5, 3)
    clip([zero], 0.5)
    assert not zero.any()


def test_weights_inside_the_set_are_left_alone_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    for operator in ("reshaped", "operator"):
        before = [p.detach().clone() for p in model.parameters()]
        SpectralProjection(tau=50.0, operator=operator)(model, 0)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_remembered_bound_never_lets_a_weight_escape():
    """Proven within, then moved: by little (asleep, rightly), across tau, to a new tau, replaced whole, with NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20))
    weight = model[0].weight
    projection = SpectralProjection(tau=4.0)
    weight.data = torch.linalg.qr(torch.randn(20, 20))[0]  # every singular value 1
    projection(model, 0)
    assert known_within(weight, 4.0) and known_within(weight, 1.7) and not known_within(weight, 0.9)
    for _ in range(40):  # drifts by 0.1 a step: the bound must wake before tau is passed
        weight.data += 0.1 * torch.outer(weight.data[:, 0], weight.data[0]) / (weight.data[:, 0].norm() * weight.data[0].norm())
        asleep = known_within(weight, 4.0)
        assert not asleep or dense_norm(weight) <= 4
        projection(model, 0)
        assert dense_norm(weight) <= 4 * 1.00001
    SpectralProjection(tau=0.5)(model, 0)
    assert dense_norm(weight) <= 0.5 * 1.00001
    weight.data = 100 * torch.eye(20)
    assert not known_within(weight, 4.0)
    weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        projection(model, 0)


def dense_norm(weight):
    return torch.linalg.matrix_norm(weight.detach().double(), 2).item()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 6.0), st.integers(1, 6))
def test_the_memory_never_changes_a_result(seed, tau, steps):
    """The same walk, with the memory and with every weight a stranger to it."""
    torch.manual_seed(seed)
    walk = [torch.randn(6, 9) * 0.2 for _ in range(steps)]
    start, projection = torch.randn(6, 9), SpectralProjection(tau=tau, kappa=2)
    model = nn.Sequential(nn.Linear(9, 6))
    model[0].weight.data.copy_(start)
    plain = start.clone()
    for epoch, change in enumerate(walk):
        model[0].weight.data += change
        plain = plain + change
        projection(model, epoch)
        stranger = nn.Sequential(nn.Linear(9, 6))
        stranger[0].weight.data.copy_(plain)
        projection(stranger, epoch)
        plain = stranger[0].weight.detach().clone()
        assert torch.equal(model[0].weight, plain)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_whole_vgg_lands_in_the_published_set_and_biases_stay(memory):
    torch.manual_seed(0)
    model = VGG().build((3, 32, 32), 10).to(memory_format=memory)
    biases = [p.detach().clone() for n, p in model.named_parameters() if "bias" in n]
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "weight" in n}
    SpectralProjection(tau=0.8)(model, 0)
    for name, weight in model.named_parameters():
        if "weight" in name:
            assert torch.linalg.matrix_norm(weight.flatten(1).double(), 2) <= 0.8 * (1 + 1e-5)
            assert (weight.flatten(1) - exact(before[name].flatten(1), 0.8)).abs().max() < 1e-5
    assert all(
        torch.equal(a, p) for a, (n, p) in zip(biases, [(n, p) for n, p in model.named_parameters() if "bias" in n], strict=True)
    )
    assert sum(p.numel() for p in model.parameters()) == 9_750_922


CONVOLUTIONS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=0, stride=2),
    dict(kernel_size=5, padding=2),
    dict(kernel_size=2, padding=1),
    dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=3, padding=1, groups=2),
    dict(kernel_size=3, padding=1, padding_mode="circular"),
]


@pytest.mark.parametrize("form", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("size", [7, 12])
def test_operator_projection_bounds_the_dense_operator(form, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, bias=False, **form)
    conv.weight.data *= 5
    SpectralProjection(tau=0.7, operator="operator")(conv, 0)
    norm = torch.linalg.matrix_norm(dense(conv.double(), (2, size, size)), 2).item()
    assert 0.2 < norm <= 0.7
    after = conv.weight.detach().clone()
    SpectralProjection(tau=0.7, operator="operator")(conv, 0)
    assert torch.equal(after, conv.weight)


def test_the_constant_kernel_has_operator_norm_nine_not_three():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    assert 9 <= operator_bound(conv.weight) < 9.2
    SpectralProjection(tau=0.9, operator="reshaped")(conv, 0)
    assert torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2) == pytest.approx(0.9)
    assert operator_bound(conv.weight) > 2.6


def test_the_schedule_of_tau_shrinks_with_the_training():
    published = SpectralProjection(tau=0.8, kappa=50, of_epochs=501)
    assert published.tau_at(0) == pytest.approx(4.0) and published.tau_at(501) == pytest.approx(0.8, rel=1e-3)
    short = published.in_schedule(20)
    assert short.tau_at(20) == pytest.approx(published.tau_at(501)) and short.tau_at(10) == pytest.approx(published.tau_at(250.5))
    assert published.in_schedule(600) == published
    assert SpectralProjection(tau=0.8).tau_at(3) == 0.8


def test_nan_is_named():
    with pytest.raises(UserError, match="NaN"):
        clip([torch.full((3, 3), torch.nan)], 1.0)
