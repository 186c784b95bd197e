"""Every layer in plain operations: the same function, sound bounds over balls, exact where the layer is affine."""

import math

import numpy as np
import pytest
import torch
from layer_table import LAYERS as TABLE
from torch import nn

from robustbench_rkhs import layers
from robustbench_rkhs.audit.factors import parts
from robustbench_rkhs.bounds import steps
from robustbench_rkhs.certificates import AlphaCrownCertificate, CrownCertificate, IBPCertificate, MarginCertificate
from robustbench_rkhs.layers import Concatenate, GroupSort, MaxMin, Residual, Sandwich
from robustbench_rkhs.layers.fourier import torus_kernel
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.layers.lowered import chain, linear, lowered, lowers, plain
from robustbench_rkhs.lipschitz import Bound, affine, fan, rule
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.proofs import written
from robustbench_rkhs.relaxations import ball, crown_margins, interval_margins, trace
from robustbench_rkhs.relaxations.full_crown import interval_proof, linear_proof, proved_trace
from robustbench_rkhs.testing.layers import disturbed

F64 = torch.float64
LAYERS = {
    **TABLE,
    "aol on the last of several dimensions": (lambda: layers.AOL(3, 4, "maxmin"), (2, 3)),
    "groups of four": (lambda: GroupSort(4), (8, 2, 2)),
    "groups of one": (lambda: GroupSort(1), (3,)),
}
OTHERS = {Residual, Concatenate, layers.CayleyOrthogonal}
"""Made of other layers, or a parametrization of one."""
FIRST = {type(build()): name for name, (build, _) in reversed(LAYERS.items())}
"""One row per type, for what takes long."""
HARD = [name for name in LAYERS if name in FIRST.values() or any(word in name for word in ("even", "strided", "zeros", "groups"))]
table = pytest.mark.parametrize("build, shape", LAYERS.values(), ids=LAYERS.keys())
one_each = pytest.mark.parametrize("name", FIRST.values())


def double(build, seed=0):
    return disturbed(build, seed, 0.3).double().eval()


def classifier(build, shape, seed=0, classes=3):
    """The layer between a linear map of the image and a linear head, so that balls are not balls of the layer."""
    layer = double(build, seed)
    outputs = layer(torch.zeros(2, *shape, dtype=F64)).flatten(1).shape[1]
    parts = [layer, nn.Flatten(), nn.Linear(outputs, classes)]
    if len(shape) == 1:
        parts.insert(0, nn.Linear(shape[0], shape[0]))
    elif len(shape) == 3:
        parts.insert(0, nn.Conv2d(shape[0], shape[0], 3, padding=1, padding_mode="circular"))
    return nn.Sequential(*parts).double().eval()


def lowest(model, x, y, eps, norm, count=60):
    """The lowest f_y - f_j seen in the ball: random points of its sphere (its corners) and steps along the gradient."""
    generator = torch.Generator().manual_seed(0)
    found = torch.full((len(x), 3), torch.inf, dtype=F64)
    noise = torch.randn(count, *x.shape, dtype=F64, generator=generator)
    for j in range(3):
        point = x.clone().requires_grad_()
        logits = model(point)
        (slope,) = torch.autograd.grad((logits.gather(1, y[:, None])[:, 0] - logits[:, j]).sum(), point, allow_unused=True)
        steepest = torch.zeros_like(x) if slope is None else -slope
        ways = torch.cat([noise, steepest[None]])
        length = ways.flatten(2).norm(dim=2).clamp_min(1e-30).view(*ways.shape[:2], *[1] * (x.dim() - 1))
        moved = x + eps * (ways / length if norm == "l2" else ways.sign())
        logits = model(moved.flatten(0, 1)).detach().unflatten(0, ways.shape[:2])
        margins = logits.gather(2, y.expand(len(ways), -1)[..., None])[..., 0] - logits[..., j]
        found[:, j] = margins.amin(0)
    return found


def test_every_layer_is_in_the_table():
    kinds = {getattr(layers, name) for name in layers.__all__}
    kinds = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert kinds - OTHERS <= {type(build()) for build, _ in LAYERS.values()}


@table
def test_the_lowered_form_is_the_layer(build, shape):
    layer, x = double(build), torch.randn(4, *shape, dtype=F64)
    form = plain(layer)
    torch.testing.assert_close(form(x), layer(x), rtol=1e-9, atol=1e-9)
    assert lowered.dispatch(type(layer)) is lowered.dispatch(object) or (lowers(layer) and form is not layer)
    single = disturbed(build, 1, 0.3).eval()
    assert torch.equal(freeze(nn.Sequential(single))(x.float()), single(x.float()))  # what evaluation runs, to the last bit


@pytest.mark.parametrize("name", HARD)
def test_no_margin_in_the_ball_is_below_the_bounds(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    model, x = classifier(build, shape), torch.rand(3, *shape, dtype=F64)
    y = model(x).argmax(1)
    for norm, eps in (("l2", 0.2), ("linf", 0.05)):
        found = proved_trace(model, ball(x, eps, norm, "none"), True)
        crown, intervals = linear_proof(found, y).margins, interval_proof(found, y).margins
        alpha = linear_proof(found, y, optimise=2).margins
        seen = lowest(model, x, y, eps, norm)
        assert (crown <= seen).all() and (intervals <= seen).all() and (alpha <= seen).all() and (alpha >= crown).all()
        plainly = trace(model, ball(x, eps, norm, "none"))
        for margins in (crown_margins(plainly, y), interval_margins(plainly, y)):
            assert (margins <= seen + 1e-9).all()
        z = x
        for step in found.steps:
            assert (z >= step.before.lower).all() and (z <= step.before.upper).all(), step.path
            z = step.module(z)
        torch.testing.assert_close(z, model(x), rtol=1e-9, atol=1e-9)  # the chain that is bounded is the network


@one_each
def test_certificates_know_the_layer_and_are_exact_where_it_is_affine(name):
    build, shape = LAYERS[name]
    torch.manual_seed(1)
    model, x = classifier(build, shape, 1), torch.rand(2, *shape, dtype=F64)
    y, keys = model(x).argmax(1), torch.arange(2)
    radius = CrownCertificate(tolerance=0.2)(model, x, y, keys).radius
    if all(affine(step.module) for step in steps(model, shape)):
        jacobian = torch.autograd.functional.jacobian(model, x[:1]).reshape(3, -1)
        gaps = model(x).gather(1, y[:, None]) - model(x)
        distance = (gaps / (jacobian[y][:, None] - jacobian).norm(dim=2)).scatter(1, y[:, None], torch.inf).amin(1)
        assert (radius <= distance).all()
        torch.testing.assert_close(radius, distance.detach(), rtol=1e-7, atol=0)
    intervals = IBPCertificate(norm="l2", search=False)(model, x, y, keys, (0.001, 0.01)).radius
    alpha = AlphaCrownCertificate(steps=1, search=False)(model, x, y, keys, (0.01,)).radius
    assert (radius > 0).all() and (alpha[radius > 0.02] > 0).all()
    for found in (radius, intervals, alpha):
        assert found.isfinite().all()
        noise = torch.randn(100, *x.shape, dtype=F64)
        noise /= noise.flatten(2).norm(dim=2).view(100, 2, *[1] * len(shape))
        moved = x + 0.999 * found.view(-1, *[1] * len(shape)) * noise
        assert (model(moved.flatten(0, 1)).argmax(1).unflatten(0, (100, 2)) == y).all()


@pytest.mark.parametrize("name", [name for name in FIRST.values() if list(LAYERS[name][0]().parameters())])
def test_at_radius_zero_bounds_have_the_gradient_of_the_margins(name):
    build, shape = LAYERS[name]
    model, x = classifier(build, shape), torch.rand(2, *shape, dtype=F64)
    y = model(x).argmax(1)
    logits = model(x)
    truth = logits.gather(1, y[:, None]) - logits
    for bounds in (interval_margins, crown_margins):
        found = bounds(trace(model, ball(x, 0.0, "linf", "none")), y)
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)
        expected = torch.autograd.grad(truth.square().sum(), list(model.parameters()), retain_graph=True)
        slopes = torch.autograd.grad(found.square().sum(), list(model.parameters()))
        for one, other in zip(slopes, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("torus", [(1, 1), (1, 4), (3, 5), (4, 6), (7, 2)])
def test_the_kernel_of_a_torus_is_exact_up_to_the_rounding_that_is_allowed_for(torus):
    torch.manual_seed(0)
    rows, columns = torus
    half = columns // 2 + 1
    matrices = torch.randn(rows * half, 2, 3, dtype=torch.complex128) * torch.logspace(-8, 8, rows * half, dtype=F64)[:, None, None]
    kernel, entries = torus_kernel(matrices, torus)
    long, pi = np.longdouble, np.longdouble("3.14159265358979323846264338327950288")
    wide = matrices.numpy().reshape(rows, half, 2, 3)
    truth = np.zeros((2, 3, rows, columns), dtype=long)
    for a in range(rows):
        for b in range(half):
            count = long(1 if b in (0, columns / 2) else 2) / (rows * columns)
            for s in range(rows):
                for t in range(columns):
                    angle = 2 * pi * long((a * s * columns + b * t * rows) % (rows * columns)) / (rows * columns)
                    one = wide[a, b].real.astype(long) * np.cos(angle) - wide[a, b].imag.astype(long) * np.sin(angle)
                    truth[:, :, s, t] += count * one
    allowed = (2 * rows * columns + 25) * 2.0**-53 * entries.numpy()
    assert (np.abs(kernel.numpy() - truth) <= allowed[:, :, None, None]).all()
    assert (np.abs(truth) <= entries.numpy()[:, :, None, None] * (1 + 1e-12)).all()


class Doubled(Sandwich):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_that_runs_other_code_is_not_lowered():
    layer, x = Doubled(3, 3), torch.rand(2, 3)
    assert plain(layer) is layer and torch.equal(freeze(nn.Sequential(layer))(x), layer(x))
    with pytest.raises(UserError, match=r"'0' \(Doubled\)"):
        trace(nn.Sequential(layer), ball(x, 0.1, "l2", "none"))
    hooked = Sandwich(3, 3)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert plain(hooked) is hooked


def test_the_weights_of_a_lowered_form_are_computed_once_and_follow_no_later_change():
    layer, x = double(lambda: Sandwich(4, 3)), torch.rand(2, 4, dtype=F64)
    form, before = plain(layer), layer(x)
    with torch.no_grad():
        layer.weight.mul_(-1)
    torch.testing.assert_close(form(x), before)
    assert not torch.allclose(layer(x), before)


def test_a_circular_kernel_that_wraps_more_than_once_is_refused():
    layer = layers.AOLConv(1, 2, 7, 1, "circular")
    with pytest.raises(UserError, match="wraps more than once"):
        trace(layer, ball(torch.rand(1, 1, 2, 2), 0.1, "l2", "none"))


def test_sorted_groups_are_bounded_by_their_definition():
    """Of intervals the sorted ends are the exact bounds of a sort."""
    torch.manual_seed(0)
    low = torch.randn(5, 8, 2, dtype=F64)
    high = low + torch.rand_like(low)
    for layer in (GroupSort(4), GroupSort(8), GroupSort(2), MaxMin(), MaxMin(-1)):
        center, radius = (low + high) / 2, (high - low) / 2
        region = ball(center, 1.0, "linf", "none")._replace(radius=radius)
        after = trace(layer, region).after
        torch.testing.assert_close(after.lower, layer(low))
        torch.testing.assert_close(after.upper, layer(high))
    assert math.isfinite(after.radius.sum())


class Turned(nn.Module):
    """A layer of a stranger, in one file: what it is, its bound, and its plain operations."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, features))

    def matrix(self):
        return torch.linalg.qr(self.weight.double())[0].to(self.weight.dtype)

    def forward(self, x):
        return torch.relu(x @ self.matrix().T)


@rule.register
def _(module: Turned, shape: tuple[int, ...]) -> Bound:
    return Bound(1.0 + 1e-9, shape)


@fan.register
def _(module: Turned, inputs: int, outputs: int) -> tuple[int, int]:
    return inputs, outputs


@lowered.register
def _(layer: Turned) -> nn.Module:
    return chain(linear(layer.matrix(), None), nn.ReLU())


def test_a_new_layer_takes_one_file():
    """Its rule and its plain operations are all that evaluation, relaxations, tightness and certificate files need."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Turned(4), Turned(4), nn.Linear(4, 3)).double().eval(), torch.rand(3, 4, dtype=F64)
    y, keys = model(x).argmax(1), torch.arange(3)
    assert not any(isinstance(part, Turned) for part in freeze(model).modules())
    margin = MarginCertificate()(model, x, y, keys).radius
    for certificate in (CrownCertificate(), IBPCertificate(norm="l2"), AlphaCrownCertificate(steps=1)):
        found = certificate(model, x, y, keys).radius
        assert (found > 0).all()
        ways = nn.functional.normalize(torch.randn(500, 3, 4, dtype=F64), dim=2) * found[:, None] * 0.999
        assert (model((x + ways).flatten(0, 1)).argmax(1).unflatten(0, (500, 3)) == y).all()
    assert (margin > 0).all()
    chained = steps(model, (4,))
    assert [one.operation for one in written(chained[0].module, chained[0])] == ["linear", "relu"]
    assert [part.proven for part in parts(model, (4,))[0][:2]] == [1.0 + 1e-9] * 2
