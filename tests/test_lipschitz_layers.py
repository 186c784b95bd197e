"""1-Lipschitz layers against dense Jacobians, at any parameters and sizes; their definitions; and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_table import LAYERS
from oracles import dense
from torch import nn

from robustbench_rkhs.bounds import pairs, steps, upper
from robustbench_rkhs.certificates.rounding import logits_and_error
from robustbench_rkhs.layers import (
    AOL,
    CPL,
    SLL,
    AOLConv,
    CPLConv,
    FirstFeatures,
    GroupSort,
    LinearNormalized,
    LinearResidual,
    LinearResidualConv,
    PadChannels,
    ScaledAveragePool,
    SLLConv,
    SpaceToDepth,
)
from robustbench_rkhs.layers.activations import even
from robustbench_rkhs.layers.borders import adjoint, checked, convolve
from robustbench_rkhs.layers.cpl import between, frequencies, gram_bound
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.layers.lowered import plain
from robustbench_rkhs.lipschitz import Uncertifiable, affine
from robustbench_rkhs.lipschitz.bounds import spectral
from robustbench_rkhs.lipschitz.convolution import Axis, operator_norm
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.testing.layers import disturbed, steepest

F64 = torch.float64
BY_CONSTRUCTION = (AOL, AOLConv, SLL, SLLConv, CPL, CPLConv)
FIXED = {  # made of one weight, worked out once for evaluation
    name: row
    for name, row in LAYERS.items()
    if isinstance(row[0](), (*BY_CONSTRUCTION, LinearResidual, LinearResidualConv, LinearNormalized))
}
random = disturbed


@pytest.mark.parametrize("name", [name for name in LAYERS if isinstance(LAYERS[name][0](), BY_CONSTRUCTION)])
def test_the_bound_of_what_holds_by_construction_is_one(name):
    build, shape = LAYERS[name]
    for seed in range(3):
        assert steps(random(build, seed).double(), shape)[0].bound.value <= 1 + 1e-6


@pytest.mark.parametrize("build, shape", FIXED.values(), ids=FIXED.keys())
def test_the_frozen_twin_holds_constants_and_follows_no_later_change(build, shape):
    layer, x = random(build, 0), torch.randn(3, *shape)
    y, fixed = layer(x), plain(layer)
    torch.testing.assert_close(fixed(x), y, rtol=1e-6, atol=1e-6)
    assert not any(isinstance(part, type(layer)) for part in fixed.modules())
    with torch.no_grad():
        layer.weight.mul_(-1)
        layer.weight.view(-1)[0] += 1
    assert not torch.allclose(layer(x), fixed(x))


@pytest.mark.parametrize("build, shape", FIXED.values(), ids=FIXED.keys())
def test_gradients_reach_every_parameter(build, shape):
    layer = random(build, 0, 0.5)
    layer(torch.randn(64, *shape)).mul(torch.randn(1)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["aol", "aol wide", "aol conv strided", "sll wide", "sll conv zeros", "cpl", "cpl conv"])
def test_gradients_are_those_of_the_function(name):
    """Finite differences in float64, through the rescaling."""
    build, shape = LAYERS[name]
    layer, x = random(build, 3).double(), torch.randn(2, *shape, dtype=F64)
    parameters = dict(layer.named_parameters())

    def run(*values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, tuple(p.detach().requires_grad_() for p in parameters.values()))


DISTURBED = {
    "zero": lambda p: p.zero_(),
    "one": lambda p: p.fill_(1),
    "small": lambda p: p.mul_(1e-12),
    "tiny": lambda p: p.mul_(1e-30),
    "denormal": lambda p: p.mul_(1e-44),
    "large": lambda p: p.mul_(1e6),
    "huge": lambda p: p.mul_(1e30),
    "spread": lambda p: p.mul_(torch.randn_like(p).mul(20).exp().clamp(1e-30, 1e30)),
    "one unit gone": lambda p: p.select(0, 0).zero_(),
    "one input gone": lambda p: p.select(p.dim() - 1 if p.dim() == 2 else min(1, p.dim() - 1), 0).zero_(),
    "sparse": lambda p: p.mul_(torch.rand_like(p) < 0.3),
}
HELD = {name: LAYERS[name] for name in LAYERS if LAYERS[name][0]().__class__ in BY_CONSTRUCTION}


@pytest.mark.parametrize("disturb", DISTURBED.values(), ids=DISTURBED.keys())
@pytest.mark.parametrize("build, shape", HELD.values(), ids=HELD.keys())
def test_norm_at_most_one_at_any_parameters(build, shape, disturb):
    for everything in (False, True):
        layer = random(build, 4)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if everything or name == "weight":
                    disturb(parameter)
                    parameter.clamp_(-1e30, 1e30)
            layer.bias.clamp_(-1, 1)
        y = layer(torch.randn(3, *shape))
        assert y.isfinite().all() and y.dtype == torch.float32
        y.sum().backward()
        if disturb not in (DISTURBED["tiny"], DISTURBED["denormal"]):  # there the true gradient, b / |w|^2, is beyond float32
            assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.grad is not None)
        bound = steps(layer, shape)[0].bound.value
        assert steepest(layer, shape, 2) <= bound * (1 + 1e-12) and bound <= 1 + 1e-6


@pytest.mark.parametrize("kind", [SLL, SLLConv])
@pytest.mark.parametrize("free", [-1e30, -60.0, math.log(1e-8), 8.0, 1e30])
def test_sll_at_any_q(kind, free):
    """q = 1e-8 throughout gave slope 201 as first published; one q far from the others strains the ratios."""
    for all_units in (True, False):
        torch.manual_seed(0)
        layer, shape = (SLL(5, 6), (5,)) if kind is SLL else (SLLConv(2, 4, 3, "zeros"), (2, 4, 3))
        with torch.no_grad():
            layer.weight.normal_()
            layer.bias.normal_()
            (layer.log_q if all_units else layer.log_q[1:3]).fill_(free)
        bound = upper(layer, shape).value
        assert steepest(layer, shape, scale=3.0) <= bound * (1 + 1e-12) and bound <= 1 + 1e-6


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=120)
@given(shapes, st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 20))
def test_aol_convolution_at_any_size(shape, outputs, kernel, stride, circular, maxmin, seed):
    mode = "circular" if circular else "zeros"
    layer = random(lambda: AOLConv(shape[0], 2 * outputs, kernel, stride, mode, "maxmin" if maxmin else "none"), seed)
    sizes = [-(-size // stride) for size in shape[1:]]
    if circular and kernel // 2 > stride * min(sizes):
        refused(layer, shape)
        return
    bound = steps(layer, shape)[0].bound
    assert bound.shape == (2 * outputs, *sizes) == layer(torch.zeros(1, *shape)).shape[1:]
    assert steepest(layer, shape, 1) <= bound.value * (1 + 1e-13) and bound.value <= 1 + 1e-6


@settings(max_examples=120)
@given(
    st.sampled_from([SLLConv, CPLConv, LinearResidualConv]),
    shapes,
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 20),
)
def test_residual_convolutions_at_any_size(kind, shape, inner, kernel, circular, seed):
    mode = "circular" if circular else "zeros"
    sizes = (shape[0], kernel) if kind is LinearResidualConv else (shape[0], inner, kernel)
    layer = random(lambda: kind(*sizes, padding_mode=mode), seed)
    if circular and kernel // 2 > min(shape[1:]):
        refused(layer, shape)
        return
    bound = steps(layer, shape)[0].bound
    assert bound.shape == shape == layer(torch.zeros(1, *shape)).shape[1:]
    assert steepest(layer, shape, 1, 0.1) <= bound.value * (1 + 1e-13)
    assert kind is LinearResidualConv or bound.value <= 1 + 1e-6


def refused(layer, shape):
    with pytest.raises(UserError, match="wraps more than once"):
        layer(torch.zeros(1, *shape))
    with pytest.raises(Uncertifiable, match="wraps more than once"):
        upper(layer, shape)


@settings(max_examples=200)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.2, 3), st.integers(0, 1000))
def test_residual_bound_at_any_scale(features, inner, scale, seed):
    """||I - 2 U J U^T|| <= max(1, 2 s - 1) for every diagonal J in [0, 1]; attained by J = I where s >= 1 and U is square."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(inner, features, generator=generator, dtype=F64) * scale
    slopes = torch.rand(inner, generator=generator, dtype=F64)
    slopes = torch.where(slopes < 0.3, 0, torch.where(slopes > 0.6, 1, slopes))
    s = torch.linalg.matrix_norm(u, ord=2).item() ** 2
    identity = torch.eye(features, dtype=F64)
    norm = torch.linalg.matrix_norm(identity - 2 * u.T @ (slopes[:, None] * u), ord=2).item()
    full = torch.linalg.matrix_norm(identity - 2 * u.T @ u, ord=2).item()
    assert norm <= max(1, 2 * s - 1) * (1 + 1e-12)
    assert s < 1 or full == pytest.approx(2 * s - 1)


@pytest.mark.parametrize("kind", [CPL, CPLConv])
def test_residual_rule_reads_what_is_evaluated_not_what_is_meant(kind, monkeypatch):
    """With a T that is too small the slope exceeds one, and so does the bound."""
    torch.manual_seed(0)
    monkeypatch.setattr(kind, "squares", lambda self, weight: gram_bound(weight.flatten(1)[None]).expand(len(weight)) / 4)
    layer, shape = (CPL(4, 4), (4,)) if kind is CPL else (CPLConv(2, 2, 3, "circular"), (2, 4, 4))
    layer.bias.data.fill_(10)  # every unit is on: the slope is I - 2 U U^T
    bound, truth = upper(layer, shape).value, steepest(layer, shape, scale=0.1)
    assert truth > 2 and truth <= bound <= truth * 1.1


def test_aol_is_its_definition():
    torch.manual_seed(0)
    layer = random(lambda: AOL(3, 5), 0).double()
    free = layer.weight.detach()
    scale = (free.T @ free).abs().sum(0).rsqrt()
    x = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(layer(x), torch.relu((x * scale) @ free.T + layer.bias))
    rows = random(lambda: AOL(5, 3, "none"), 0).double()
    wide = rows.weight.detach()
    torch.testing.assert_close(rows.matrix(), wide * (wide @ wide.T).abs().sum(1).rsqrt()[:, None])
    assert affine(AOL(2, 2, "none")) and not affine(AOL(2, 2))


@pytest.mark.parametrize("outputs", [1, 3, 20])
@pytest.mark.parametrize("stride, kernel", [(1, 3), (1, 2), (2, 3), (2, 4), (3, 2)])
def test_aol_convolution_is_the_dense_layer_of_its_own_matrix(stride, kernel, outputs):
    """On a torus without aliasing, D is the dense AOL rescaling of the convolution's matrix, of its smaller side."""
    layer = random(lambda: AOLConv(2, outputs, kernel, stride, "circular", "none"), 1).double()
    shape = (2, 12, 12)
    free = dense(Free(layer), shape)
    if outputs < 2 * stride**2:
        wanted = free * (free @ free.T).abs().sum(1).rsqrt()[:, None]
    else:
        wanted = free * (free.T @ free).abs().sum(0).rsqrt().nan_to_num(posinf=0)  # a kernel below the stride skips pixels
    torch.testing.assert_close(dense(layer, shape), wanted, rtol=1e-10, atol=1e-12)


class Free(nn.Module):
    """The same convolution before it is rescaled."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return convolve(x, self.layer.weight, None, self.layer.stride, self.layer.padding_mode)


@pytest.mark.parametrize("kind", [SLL, CPL])
def test_dense_residual_layers_are_their_definitions(kind):
    layer = random(lambda: kind(5, 3), 2).double()
    w, x = layer.weight.detach().T, torch.randn(6, 5, dtype=F64)
    if kind is SLL:
        q = layer.log_q.detach().exp()
        t = ((w.T @ w).abs() * q[None] / q[:, None]).sum(1)
        assert torch.linalg.eigvalsh(t.diag() - w.T @ w).min() >= -1e-12
    else:
        exact = torch.linalg.matrix_norm(w, ord=2) ** 2
        t = gram_bound(w[None]).expand(3)
        assert exact * (1 - 1e-12) <= t[0] <= exact * 3 ** (1 / 256) * (1 + 1e-12)
    wanted = x - 2 * torch.relu(x @ w + layer.bias) / t @ w.T
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("kind", [SLLConv, CPLConv])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_convolutional_residual_layers_are_the_dense_ones_of_their_matrix(kind, kernel):
    """Circular and without aliasing: T of the dense SLL; for CPL one number, 8 % above the norm squared at its peak,
    which the frequencies of this torus miss."""
    layer = random(lambda: kind(2, 3, kernel, "circular"), 5).double()
    shape, x = (2, 7, 7), torch.randn(2, 2, 7, 7, dtype=F64)
    w = dense(Hidden(layer), shape).T
    if kind is SLLConv:
        q = layer.log_q.detach().exp().repeat_interleave(49)
        t = ((w.T @ w).abs() * q[None] / q[:, None]).sum(1)
    else:
        t = layer.squares(layer.weight.detach()).repeat_interleave(49)
        exact = torch.linalg.matrix_norm(w, ord=2) ** 2
        assert exact * (1 - 1e-12) <= t[0] <= exact * 1.15
    hidden = torch.relu(x.flatten(1) @ w + layer.bias.repeat_interleave(49))
    torch.testing.assert_close(layer(x).flatten(1), x.flatten(1) - 2 * hidden / t @ w.T)


class Hidden(nn.Module):
    """W^T as a convolution."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return convolve(x, self.layer.weight, None, 1, self.layer.padding_mode)


@given(st.integers(1, 5), st.booleans(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 5))
def test_adjoint_is_the_transpose(kernel, circular, height, width, seed):
    mode = "circular" if circular and kernel // 2 <= min(height, width) else "zeros"
    generator = torch.Generator().manual_seed(seed)
    weight, x, h = (
        torch.randn(size, generator=generator, dtype=F64)
        for size in [(3, 2, kernel, kernel), *[(1, c, height, width) for c in (2, 3)]]
    )
    left, right = (convolve(x, weight, padding_mode=mode) * h).sum(), (x * adjoint(h, weight, mode)).sum()
    torch.testing.assert_close(left, right)


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.booleans(), st.floats(-100, 100), st.integers(0, 50))
def test_gram_bound_is_above_the_norm_and_near_it(rows, columns, complex_, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    kind = torch.complex128 if complex_ else F64
    matrices = torch.randn(3, rows, columns, generator=generator, dtype=kind) * 10**exponent
    matrices[0] = 0
    exact = torch.linalg.matrix_norm(matrices, ord=2).max().item() ** 2
    bound = gram_bound(matrices).item()
    assert exact * (1 - 1e-12) <= bound <= exact * min(rows, columns) ** (1 / 256) * (1 + 1e-12)


def test_gram_bound_at_equal_singular_values_and_at_zero():
    orthogonal = torch.linalg.qr(torch.randn(8, 8, dtype=F64)).Q
    assert gram_bound(orthogonal[None]).item() == pytest.approx(8 ** (1 / 256), rel=1e-12)
    assert gram_bound(torch.zeros(2, 3, 4)).item() == 0


@settings(max_examples=80)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))
def test_between_the_frequencies_the_norm_grows_no_more_than_said(kernel, inner, channels, seed):
    """Against a torus of 97 points an axis, whose frequencies are none of the grid's."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(inner, channels, kernel, kernel, generator=generator, dtype=F64)
    if seed < 10:  # a wave that peaks halfway between two frequencies of the grid
        t = torch.arange(kernel, dtype=F64) * (math.pi * (seed + 1) / (8 * max(kernel - 1, 1)))
        weight = torch.cos(t[:, None] + t[None]).expand_as(weight).clone()
    fine = operator_norm(weight[None], (Axis(97, kernel, circular=True), Axis(97, kernel, circular=True)))
    coarse = spectral(frequencies(weight))
    assert fine <= coarse * between(kernel) ** 0.5 * (1 + 1e-7)


def test_linear_residual_is_bounded_merged():
    """W = -I / 2: norm 1/2, not 1 + 1/2; and a convolution likewise."""
    layer = LinearResidual(3)
    layer.weight.data = -0.5 * torch.eye(3)
    assert upper(layer, (3,)).value == pytest.approx(0.5)
    conv = LinearResidualConv(2, 3, "zeros")
    nn.init.zeros_(conv.weight)
    conv.weight.data[:, :, 1, 1] = -0.5 * torch.eye(2)
    assert steps(conv, (2, 5, 5))[0].bound.value == pytest.approx(0.5)
    x = torch.randn(2, 2, 5, 5)
    noisy = random(lambda: LinearResidualConv(2, 3, "zeros"), 0)
    wanted = x + nn.functional.conv2d(x, noisy.weight, noisy.bias, padding=1)
    torch.testing.assert_close(noisy(x), wanted)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_a_linear_residual_convolution_without_weight_is_the_identity(kernel, mode):
    layer, x = LinearResidualConv(2, kernel, mode), torch.randn(1, 2, 4, 5)
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("before", [(), (nn.Linear(3, 3), nn.ReLU())])
def test_normalised_head_is_certified_by_pairs(before):
    torch.manual_seed(0)
    head = random(lambda: LinearNormalized(3, 7), 0, 3.0)
    model = nn.Sequential(*before, head).double()
    rows = nn.functional.normalize(head.weight.detach())
    prefix = torch.linalg.matrix_norm(before[0].weight, ord=2).item() if before else 1
    torch.testing.assert_close(pairs(model, (3,), 7), torch.cdist(rows, rows) * prefix, rtol=1e-7, atol=1e-7)
    exact = torch.linalg.matrix_norm(rows, ord=2).item()
    assert upper(head, (3,)).value == pytest.approx(exact) and 1.3 < exact <= 7**0.5
    assert pairs(model, (3,), 7).max() < 2**0.5 * exact * prefix  # the pairs gain over sqrt 2 times the whole


def test_normalised_head_at_extreme_rows():
    layer = random(lambda: LinearNormalized(3, 4), 0)
    with torch.no_grad():
        layer.weight[0] *= 1e-40
        layer.weight[1] *= 1e30
        layer.weight[2] = 0
    lengths = layer.matrix().norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1, 0, 1], dtype=F64))
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.weight.grad[1:].isfinite().all() and upper(layer, (3,)).value <= 2


@pytest.mark.parametrize("name", ["space to depth", "pad channels", "first channels", "average pool"])
def test_moved_and_averaged_numbers_keep_their_norm(name):
    """Their matrices: orthonormal rows or columns, apart from what the padding holds."""
    build, shape = LAYERS[name]
    matrix = dense(build(), shape)
    smaller = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    assert (smaller - smaller.diag().diag()).abs().max() < 1e-6 and smaller.diag().max() == pytest.approx(1)
    if name in ("space to depth", "pad channels"):
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(math.prod(shape)))


def test_shapes_are_their_definitions():
    x = torch.randn(2, 3, 5, 4)
    pool = ScaledAveragePool(2)(x)
    torch.testing.assert_close(pool[:, :, 0, 1], x[:, :, :2, 2:4].sum((2, 3)) / 2)
    torch.testing.assert_close(pool[:, :, 2, 0], x[:, :, 4, :2].sum(2) / 2)  # half of it is beyond the image
    deep = SpaceToDepth(2)(x)
    torch.testing.assert_close(deep[:, 4:8, 1, 1], x[:, 1, 2:4, 2:4].flatten(1))
    assert torch.equal(FirstFeatures(2)(x), x[:, :2]) and torch.equal(PadChannels(5)(x)[:, :3], x)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_group_sort_sorts_each_group_and_never_expands(group, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.randn(2, 5, group * groups, 3, generator=generator)
    y = GroupSort(group)(x).unflatten(1, (groups, group))
    torch.testing.assert_close(y, x.unflatten(1, (groups, group)).sort(2, descending=True).values)
    assert (y[:, :, 1:] <= y[:, :, :-1]).all()
    expanded = (GroupSort(group)(x) - GroupSort(group)(z)).flatten(1).norm(dim=1)
    assert (expanded <= (x - z).flatten(1).norm(dim=1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", HELD)
def test_constants_hold_what_the_activation_hides(name):
    """A bias far below zero is rounded although nothing of it shows: the error bound grows with it."""
    build, shape = HELD[name]
    layer = random(build, 0)
    x = torch.zeros(1, *shape, dtype=F64)
    errors = []
    for bias in (0.0, -1e6):
        layer.bias.data.fill_(bias)
        errors.append(logits_and_error(steps(layer, shape), x)[1].item())
    assert errors[1] > 1e-12 > errors[0]


@pytest.mark.parametrize(
    "name", ["sll", "sll conv zeros", "cpl conv", "aol conv strided", "linear residual conv", "linear normalised"]
)
def test_error_bound_holds_in_float32(name):
    """The same model in float32 against float64, in units of roundoff: 2^-24 for 2^-53."""
    build, shape = LAYERS[name]
    layer = random(build, 0)
    x = torch.randn(32, *shape)
    exact, error = logits_and_error(steps(layer, shape), x.double())
    found = (layer(x).double() - exact).flatten(1).norm(dim=1)
    assert (found <= 2 * error * 2.0**29).all()


@pytest.mark.parametrize(
    "name", ["aol", "aol conv", "sll", "sll conv", "cpl", "cpl conv zeros", "linear residual conv", "linear normalised"]
)
def test_under_autocast_and_in_half_precision(name):
    build, shape = LAYERS[name]
    layer, x = random(build, 0, 0.1), torch.randn(4, *shape)
    truth = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), truth, rtol=0.05, atol=0.05)
    half = layer.bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), truth, rtol=0.08, atol=0.08)
    assert plain(half)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [SLL, CPL])
def test_a_deep_stack_keeps_its_gradient_and_learns(kind):
    torch.manual_seed(0)
    stack = nn.Sequential(PadChannels(16), *(kind(16, 16) for _ in range(6)), FirstFeatures(2))
    x = torch.randn(96, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(stack.parameters(), 0.02)
    for _ in range(80):
        loss = nn.functional.cross_entropy(10 * stack(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (stack(x).argmax(1) == y).float().mean() > 0.9
    assert upper(stack, (4,)).value <= 1 + 1e-6


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_starts_are_isometric_where_they_can_be_and_of_norm_one_elsewhere(stride):
    layer = AOLConv(2, 2 * stride**2, 3, stride, "circular", "none").requires_grad_(False)
    x = torch.randn(1, 2, 6, 6)
    assert layer(x).norm() == pytest.approx(x.norm().item(), rel=1e-5)
    dense_layer, rows = AOL(3, 5, "none").requires_grad_(False), x[0, 0, :, :3]
    assert dense_layer(rows).norm() == pytest.approx(rows.norm().item(), rel=1e-5)
    assert upper(AOL(40, 5), (40,)).value == pytest.approx(1) == upper(AOLConv(3, 2, 3, stride, "circular"), (3, 6, 6)).value


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: AOL(0, 3), "at least 1"),
        (lambda: AOL(3, 3, "maxmin"), "even number"),
        (lambda: even("AOL", "tanh", 2), "'tanh'"),
        (lambda: AOLConv(1, 3, activation="maxmin"), "even number"),
        (lambda: AOLConv(1, 1, 3, 0), "stride=0"),
        (lambda: checked("AOLConv", "reflect", kernel=3), "'reflect'"),
        (lambda: SLL(3, 0), "inner=0"),
        (lambda: CPLConv(3, 3, 0), "kernel=0"),
        (lambda: LinearResidualConv(0), "at least 1"),
        (lambda: LinearNormalized(3, 0), "classes=0"),
        (lambda: SpaceToDepth(0), "at least 1"),
        (lambda: PadChannels(2)(torch.zeros(1, 3)), "at most 2"),
        (lambda: FirstFeatures(4)(torch.zeros(1, 3)), "at least 4"),
        (lambda: GroupSort(0), "at least 1"),
        (lambda: GroupSort(2)(torch.zeros(1, 3)), "groups of 2"),
    ],
)
def test_bad_input_is_one_clear_line(build, message):
    with pytest.raises(UserError, match=message):
        build()


def poisoned(layer, name="bias"):
    with torch.no_grad():
        getattr(layer, name).view(-1)[0] = torch.nan
    return layer


REFUSED = {
    "aol features": (AOL(3, 2), (4,), "expected 3 features"),
    "aol channels": (AOLConv(3, 2), (2, 4, 4), "expected 3 channels"),
    "sll features": (SLL(3, 2), (4,), "expected 3 features"),
    "cpl channels": (CPLConv(3, 2), (2, 4, 4), "expected 3 channels"),
    "no image": (SLLConv(3, 2), (3,), "channel, height, width"),
    "residual": (LinearResidual(3), (4,), "expected 3 features"),
    "normalised": (LinearNormalized(3, 2), (4,), "expected 3 features"),
    "padding": (PadChannels(2), (3,), "at most 2"),
    "first": (FirstFeatures(3), (2,), "at least 3"),
    "groups": (GroupSort(3), (4,), "groups of 3"),
    "nan bias": (poisoned(AOL(3, 2)), (3,), "finite bias"),
    "nan q": (poisoned(SLL(3, 2), "log_q"), (3,), "finite log_q"),
    "nan weight": (poisoned(CPLConv(1, 1), "weight"), (1, 4, 4), "finite weight"),
    "nan row": (poisoned(LinearNormalized(3, 2), "weight"), (3,), "finite weight"),
    "a reflected form": (freeze(SLL(3, 2)), (3,), "no rule|cannot be traced|operation"),
}


@pytest.mark.parametrize("layer, shape, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_proved_is_refused(layer, shape, message):
    with pytest.raises(Uncertifiable, match=message):
        upper(layer, shape)
