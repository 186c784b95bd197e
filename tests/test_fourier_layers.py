"""Fourier layers: their definition by explicit sums, norm one at any parameters, deep stacks that train."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.layers import (
    BROConv,
    CayleyOrthogonal,
    Orthogonal,
    OrthogonalConv,
    Sandwich,
    SandwichConv,
    SandwichConvLinear,
    SOCConv,
)
from robustbench_rkhs.layers.cayley import _Inverse, cayley
from robustbench_rkhs.layers.fourier import multiplied, spectrum
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.node import UserError


def dense(layer, shape):
    """The matrix of an affine layer."""
    x = torch.zeros(shape, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda v: layer(v[None])[0].flatten(), x).flatten(1)


@pytest.mark.parametrize("order", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_inverse_by_halves_is_the_inverse_and_has_its_gradient(order, kind):
    torch.manual_seed(0)
    free = torch.randn(3, order, order, dtype=kind)
    matrices = torch.eye(order, dtype=kind) + free - free.mH + 0.1 * free.mH @ free
    torch.testing.assert_close(_Inverse.apply(matrices), torch.linalg.inv(matrices))
    if order == 17:
        few = matrices[:1].clone().requires_grad_()
        torch.autograd.gradcheck(_Inverse.apply, few)
        torch.autograd.gradgradcheck(_Inverse.apply, matrices[:1, :3, :3].clone().requires_grad_())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(0, 12), st.sampled_from([1e-3, 1.0, 30.0]), st.booleans(), st.integers(0, 99))
def test_cayley_has_orthonormal_columns(columns, extra, scale, complex_, seed):
    torch.manual_seed(seed)
    q = cayley(scale * torch.randn(2, columns + extra, columns, dtype=torch.complex128 if complex_ else torch.float64))
    torch.testing.assert_close(q.mH @ q, torch.eye(columns, dtype=q.dtype).expand(2, -1, -1), rtol=0, atol=1e-8)


def test_cayley_of_a_wide_matrix_is_one_line():
    with pytest.raises(UserError, match="at least as many rows as columns, found 2 x 3"):
        cayley(torch.ones(2, 3))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_spectrum_is_the_fourier_transform_of_the_wrapped_kernel(rows, columns, taps, seed):
    torch.manual_seed(seed)
    kernel = torch.randn(2, 3, taps, taps, dtype=torch.float64)
    wrapped = torch.zeros(2, 3, rows, columns, dtype=torch.float64)
    for s in range(taps):
        for t in range(taps):
            wrapped[..., (s - taps // 2) % rows, (t - taps // 2) % columns] += kernel[..., s, t]
    truth = torch.fft.rfft2(wrapped).flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(spectrum(kernel, (rows, columns)), truth)


@pytest.mark.parametrize("torus", [(3, 3), (3, 4), (2, 5), (1, 1)])
def test_multiplication_by_frequency_has_its_first_and_second_gradient(torus):
    torch.manual_seed(0)
    x = torch.randn(2, 2, *(max(1, side - 1) for side in torus), dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def apply(x, kernel):
        return multiplied(x, spectrum(kernel, torus), torus)

    assert torch.autograd.gradcheck(apply, (x, kernel))
    assert torch.autograd.gradgradcheck(apply, (x, kernel))


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (5, 1), (2, 2), (4, 2)])
def test_circular_orthogonal_convolution_is_orthogonal(kernel, stride):
    """All singular values of the dense operator are one: rows or columns orthonormal, whichever are fewer."""
    torch.manual_seed(0)
    layer = OrthogonalConv(2, 3, kernel, stride, activation="none").double().eval()
    nn.init.normal_(layer.weight)
    matrix = dense(layer, (2, 4, 6))
    torch.testing.assert_close(torch.linalg.svdvals(matrix), torch.ones(min(matrix.shape), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 5, 3)])
def test_sandwich_convolution_is_its_definition_on_dense_matrices(shape):
    """A and B as block-circulant matrices, put together from each frequency by explicit sums."""
    torch.manual_seed(0)
    layer = SandwichConv(2, 3, 3).double().eval()
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter)
    rows, columns = shape[1:]
    free = layer.alpha * layer.weight / layer.weight.norm()
    big = torch.zeros(5 * rows * columns, 3 * rows * columns, dtype=torch.float64).view(5, rows, columns, 3, rows, columns)
    for i in range(rows):
        for j in range(columns):
            for s in range(3):
                for t in range(3):
                    big[:, (i + s - 1) % rows, (j + t - 1) % columns, :, i, j] += free[..., s, t]
    points = rows * columns
    u, v = big[:3].reshape(3 * points, -1), big[3:].reshape(2 * points, -1)
    z = u - u.T + v.T @ v
    eye = torch.eye(3 * points, dtype=torch.float64)
    a, b = ((eye - z) @ torch.linalg.inv(eye + z)).T, (-2 * v @ torch.linalg.inv(eye + z)).T
    torch.testing.assert_close(a @ a.T + b @ b.T, eye)
    psi = layer.psi.exp().repeat_interleave(points)
    x = torch.randn(4, *shape, dtype=torch.float64)
    hidden = torch.relu(math.sqrt(2) * (x.flatten(1) @ b.T) / psi + layer.bias.repeat_interleave(points))
    torch.testing.assert_close(layer(x).flatten(1), math.sqrt(2) * (hidden * psi) @ a)


def test_affine_sandwich_convolution_is_twice_a_star_b():
    torch.manual_seed(0)
    layer = SandwichConvLinear(2, 2, 3).double().eval()
    nn.init.normal_(layer.weight)
    twin = SandwichConv(2, 2, 3).double().eval()
    twin.load_state_dict({**twin.state_dict(), **layer.state_dict()})
    twin.bias.data.fill_(1e3)  # its ReLU passes everything
    torch.testing.assert_close(dense(layer, (2, 4, 4)), dense(twin, (2, 4, 4)))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([OrthogonalConv, SandwichConv, SandwichConvLinear, BROConv, SOCConv]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["circular", "zeros"]),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 100.0]),
    st.integers(0, 99),
)
def test_norm_is_at_most_one_at_any_parameters(kind, inputs, outputs, kernel, stride, padding, scale, seed):
    torch.manual_seed(seed)
    layer = kind(inputs, outputs, kernel_size=kernel, stride=stride, padding_mode=padding).double().eval()
    for parameter in layer.parameters():
        parameter.data = scale * torch.randn_like(parameter)
    shape = (inputs, 4, 5)
    bound = upper(layer, shape).value
    assert bound <= 1 + 1e-6
    x = torch.randn(shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0].flatten(), x).flatten(1)
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= bound
    assert layer(x[None]).shape[1:] == (outputs, -(-4 // stride), -(-5 // stride))


def test_a_parametrized_linear_layer_is_orthogonal_and_certified():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    parametrize.register_parametrization(layer, "weight", CayleyOrthogonal())
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(3))
    assert upper(layer.eval(), (5,)).value == pytest.approx(1, abs=1e-6)
    layer(torch.rand(2, 5)).sum().backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sandwich(16, 16),
        lambda: Orthogonal(16, 16),
        lambda: SandwichConv(4, 4),
        lambda: SandwichConv(4, 4, padding_mode="zeros"),
        lambda: OrthogonalConv(4, 4),
        lambda: BROConv(4, 4, activation="maxmin"),
    ],
)
def test_twenty_four_layers_keep_their_gradient(build):
    """The published start leaves 6e-4 of it after 16 dense Sandwich layers."""
    torch.manual_seed(0)
    stack = nn.Sequential(*(build() for _ in range(24)))
    shape = (32, 4, 8, 8) if hasattr(stack[0], "torus") else (32, 16)
    x = torch.randn(shape, requires_grad=True)
    slope = torch.randn(shape)
    (gradient,) = torch.autograd.grad((stack(x) * slope).sum(), x)
    assert gradient.norm() / slope.norm() > 0.4


def test_a_subclass_with_another_matrix_is_refused():
    class Doubled(OrthogonalConv):
        def matrices(self, torus):
            return 2 * super().matrices(torus)

    with pytest.raises(Uncertifiable, match="overrides matrices of OrthogonalConv"):
        upper(Doubled(2, 2), (2, 4, 4))


@pytest.mark.parametrize(
    "build, line",
    [
        (lambda: OrthogonalConv(2, 3, activation="maxmin"), "even number of outputs"),
        (lambda: SandwichConv(2, 3, 0), "sizes of at least 1"),
        (lambda: SandwichConv(2, 3, padding_mode="reflect"), "'circular' or 'zeros', found 'reflect'"),
        (lambda: BROConv(2, 3, rank=4), "a rank of 1 to 3, found 4"),
    ],
)
def test_what_cannot_be_built_is_one_line(build, line):
    with pytest.raises(UserError, match=line):
        build()


def test_a_wrong_input_is_refused_by_the_rule():
    with pytest.raises(Uncertifiable, match="images of 2 channels"):
        upper(SandwichConv(2, 3).eval(), (3, 4, 4))
    layer = OrthogonalConv(2, 2).eval()
    layer.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(Uncertifiable, match="finite weight"):
        upper(layer, (2, 4, 4))


def test_a_skew_orthogonal_convolution_is_the_exponential_of_the_skew_convolution():
    """Against the matrix exponential of W - W^T, W the dense matrix of a circular convolution."""
    torch.manual_seed(0)
    layer = SOCConv(3, 3, activation="none").double().eval()
    free = torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(5)
        free.weight.copy_(layer.weight.flip(2, 3))  # a Fourier layer convolves, nn.Conv2d correlates
        identity = torch.eye(3 * 4 * 5, dtype=torch.float64).view(-1, 3, 4, 5)
        dense = free(identity).flatten(1).T
        found = layer(identity).flatten(1).T - layer(torch.zeros(1, 3, 4, 5, dtype=torch.float64)).flatten()[:, None]
    torch.testing.assert_close(found, torch.linalg.matrix_exp(dense - dense.T), atol=1e-10, rtol=0)
