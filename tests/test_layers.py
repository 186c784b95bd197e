"""Every layer keeps its contract; and the sandwich layers, MaxMin and Normalize in particular."""

import math

import pytest
import torch
from layer_table import APART, LAYERS, table
from torch import nn

from robustbench_rkhs import layers
from robustbench_rkhs.bounds import upper
from robustbench_rkhs.layers import MaxMin, Normalize, Sandwich, SandwichLinear, Scale
from robustbench_rkhs.layers.fourier import FourierConv
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, rule
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.testing import check_layer
from robustbench_rkhs.testing.layers import steepest


@table
def test_layer(build, shape):
    check_layer(build, shape, close=1e-5 if isinstance(build(), FourierConv) else 0.0)  # float64 in eval mode


def test_the_table_covers_every_layer():
    built = {type(build()) for build, _ in LAYERS.values()} | {type(build()) for build in APART.values()}
    assert {kind.__name__ for kind in built} >= set(layers.__all__)


class Doubling(nn.Linear):
    """Claims a bound of one, whatever its weight."""


@rule.register
def _(module: Doubling, shape: tuple[int, ...]) -> Bound:
    return Bound(1.0, (module.out_features,))


class Lazy(nn.Module):
    def forward(self, x):
        self.weight = nn.Parameter(torch.ones(3))
        return x * self.weight


@rule.register
def _(module: Lazy, shape: tuple[int, ...]) -> Bound:
    return Bound(1.0, shape)


@pytest.mark.parametrize(
    "build, said", [(lambda: nn.Sequential(Doubling(3, 3), nn.ReLU()), "above the bound"), (Lazy, "after __init__")]
)
def test_the_check_finds_what_a_layer_does_wrong(build, said):
    with pytest.raises(AssertionError, match=said):
        check_layer(build, (3,))


@pytest.mark.parametrize("kind", [Sandwich, SandwichLinear])
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (8, 3), (6, 6)])
@pytest.mark.parametrize(
    "disturb",
    [
        lambda p: p.zero_(),
        lambda p: p.fill_(1),
        lambda p: p.mul_(1e-30),
        lambda p: p.mul_(1e-45),
        lambda p: p.mul_(1e4),
        lambda p: p.mul_(1e20),
        lambda p: p.copy_(torch.randn_like(p).mul(100).exp()),
    ],
    ids=["zero", "one", "tiny", "denormal", "large", "huge", "spread"],
)
@pytest.mark.parametrize("which", ["weight", "alpha", "bias", "all"])
def test_sandwich_holds_its_bound_at_any_parameters(kind, size, disturb, which):
    torch.manual_seed(0)
    layer = kind(*size)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if which in (name, "all"):
                disturb(parameter)
                parameter.clamp_(-1e30, 1e30)
        if isinstance(layer, Sandwich):
            layer.psi.clamp_(-50, 50)
    try:
        bound = upper(layer, size[:1]).value
    except Uncertifiable:  # a transform that float64 cannot evaluate is refused, never taken on faith
        assert layer.alpha.abs() > 1e6
        return
    assert steepest(layer, size[:1]) <= bound * (1 + 1e-12)
    if layer.alpha.abs() < 1e3:
        assert bound <= 1 + 1e-8


@pytest.mark.parametrize("kind", [Sandwich, SandwichLinear])
def test_sandwich_is_bounded_by_what_it_evaluates_to_not_by_faith(kind):
    """Weights so large that the transform is no longer orthogonal in float64: the bound says so."""
    torch.manual_seed(0)
    layer = kind(1, 4)
    layer.alpha.data.fill_(1e8)
    a, b = (matrix.detach() for matrix in layer.matrices())
    matrix = torch.cat([a, b], dim=1) if kind is Sandwich else 2 * a.T @ b
    norm = torch.linalg.matrix_norm(matrix, ord=2).item()
    truth = norm**2 if kind is Sandwich else norm
    assert upper(layer, (1,)).value == pytest.approx(truth, rel=1e-7) and abs(truth - 1) > 1e-3


def test_float32_evaluation_stays_near_the_certified_matrices():
    torch.manual_seed(0)
    layer, x = Sandwich(3, 8), torch.randn(64, 3)
    layer.alpha.data.fill_(1e4)
    single = layer(x)
    torch.testing.assert_close(single.double(), layer.double()(x.double()), rtol=1e-5, atol=1e-5)
    assert single.dtype == torch.float32


def test_sandwich_is_its_definition():
    torch.manual_seed(0)
    layer = Sandwich(5, 4).double()
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter)
    weight = layer.alpha * layer.weight / layer.weight.norm()
    upper_block, lower = weight[:4], weight[4:]
    z = upper_block - upper_block.T + lower.T @ lower
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) + z)
    a, b = (inverse @ (torch.eye(4, dtype=torch.float64) - z)).T, (-2 * lower @ inverse).T
    torch.testing.assert_close(a @ a.T + b @ b.T, torch.eye(4, dtype=torch.float64))
    psi, x = layer.psi.exp(), torch.randn(6, 5, dtype=torch.float64)
    hidden = torch.relu(2**0.5 * (x @ b.T) / psi + layer.bias)
    torch.testing.assert_close(layer(x), 2**0.5 * (hidden * psi) @ a)


@pytest.mark.parametrize("size", [(4, 4), (3, 7), (7, 3)])
def test_affine_sandwich_reaches_every_norm_up_to_one(size):
    """Its start is (semi-)orthogonal, norm exactly one; alpha = 0 gives B = 0, norm zero."""
    layer = SandwichLinear(*size)
    assert upper(layer, size[:1]).value == pytest.approx(1, abs=1e-2)
    layer.alpha.data.zero_()
    assert upper(layer, size[:1]).value <= 1e-12


def test_deep_stack_keeps_its_gradient():
    torch.manual_seed(0)
    stack = nn.Sequential(*(Sandwich(64, 64) for _ in range(8)))
    x = torch.rand(16, 64, requires_grad=True)
    (stack(x) * torch.randn(16, 64)).sum().backward()
    assert x.grad.norm() / 32 > 0.5
    wide = nn.Sequential(Sandwich(64, 128), *(Sandwich(128, 128) for _ in range(4)), Sandwich(128, 32))
    y = wide(torch.rand(16, 64))
    assert y.norm(dim=1).min() > 0.3


def test_stack_of_six_learns():
    torch.manual_seed(0)
    stack = nn.Sequential(Sandwich(8, 32), *(Sandwich(32, 32) for _ in range(4)), SandwichLinear(32, 2))
    x = torch.randn(128, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(stack.parameters(), 0.01)
    for _ in range(150):
        loss = nn.functional.cross_entropy(10 * stack(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (stack(x).argmax(1) == y).float().mean() > 0.9
    assert upper(stack, (8,)).value <= 1 + 1e-6


def test_sandwich_under_autocast_and_in_half_precision():
    torch.manual_seed(0)
    layer, x = Sandwich(6, 5), torch.randn(4, 6)
    truth = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), truth, rtol=0.05, atol=0.05)
    torch.testing.assert_close(layer.bfloat16()(x.bfloat16()).float(), truth, rtol=0.05, atol=0.05)


def test_changing_a_weight_changes_the_next_forward_pass():
    layer, x = Sandwich(4, 4).eval(), torch.rand(2, 4)
    before = layer(x)
    with torch.no_grad():
        layer.weight[4:] *= -1
    assert not torch.allclose(layer(x), before)


def test_maxmin_sorts_pairs_and_keeps_norms():
    x = torch.randn(5, 6, 3)
    y = MaxMin()(x)
    assert (y[:, :3] >= y[:, 3:]).all()
    torch.testing.assert_close(y.sort(1).values, x.sort(1).values)


def test_normalize_is_its_definition():
    x = torch.rand(2, 2, 3, 3)
    layer = Normalize((0.1, 0.2), (0.5, 0.25))
    torch.testing.assert_close(layer(x)[:, 1], (x[:, 1] - 0.2) / 0.25)
    assert layer.mean.shape == (2, 1, 1) and layer.mean.dtype == torch.float32 and set(layer.state_dict()) == {"mean", "std"}
    assert upper(layer, (2, 3, 3)).value == pytest.approx(4)
    layer.std[1] = 0.125
    assert upper(layer, (2, 3, 3)).value == pytest.approx(8)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Normalize((0.5,), (0.0,)), "above 0"),
        (lambda: Normalize((0.5,), (-1.0,)), "above 0"),
        (lambda: Normalize((0.5,), (math.nan,)), "finite"),
        (lambda: Normalize((0.5, 0.5), (1.0,)), "2 and 1"),
        (lambda: Normalize((), ()), "0 and 0"),
        (lambda: Normalize((0.5,), (1.0,))(torch.zeros(1, 3, 4, 4)), "1 channels"),
        (lambda: MaxMin()(torch.zeros(1, 3)), "even number"),
        (lambda: Scale(math.inf), "finite"),
        (lambda: Sandwich(0, 3), "at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_std_changed_to_zero_is_refused():
    layer = Normalize((0.5,), (0.5,))
    layer.std.zero_()
    with pytest.raises(Uncertifiable, match="std"):
        upper(layer, (1, 2, 2))


@pytest.mark.parametrize("name", ["weight", "alpha", "bias", "psi"])
def test_sandwich_with_a_nan_is_refused(name):
    layer = Sandwich(3, 3)
    getattr(layer, name).data.fill_(torch.nan)
    with pytest.raises(Uncertifiable, match=name):
        upper(nn.Sequential(nn.ReLU(), layer), (3,))


def test_a_settled_copy_gives_the_same_numbers_and_follows_no_later_change():

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Sandwich(9, 7), nn.Sequential(Sandwich(7, 7)), SandwichLinear(7, 3)).eval()
    x = torch.rand(5, 1, 3, 3)
    before = model(x)
    twin = freeze(model)
    assert torch.equal(twin(x), before) and not any(isinstance(m, Sandwich | SandwichLinear) for m in twin.modules())
    with torch.no_grad():
        model[1].weight.mul_(-1)
    assert not torch.equal(model(x), before) and torch.equal(twin(x), before)
    plain = nn.Linear(2, 2)
    assert freeze(plain) is plain
