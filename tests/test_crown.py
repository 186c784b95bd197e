"""Certificates of bounds over a ball: exact where that has a closed form, never above the truth, whatever the layers."""

import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine as affine_oracle
from test_relaxations import NETWORKS, images, network, samples, worst
from torch import nn

from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.certificates import AlphaCrownCertificate, CrownCertificate, IBPCertificate
from robustbench_rkhs.layers import Normalize, Residual
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.relaxations import ball, interval_margins, trace
from robustbench_rkhs.relaxations.full_crown import interval_proof, linear_proof, proved_trace

KINDS = {"ibp": IBPCertificate, "crown": CrownCertificate, "alpha_crown": partial(AlphaCrownCertificate, steps=2, tolerance=0.05)}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
norms = pytest.mark.parametrize("norm", ["l2", "linf"])


def certify(certificate, model, x, y, epsilons=()):
    return certificate(model, x, y, torch.arange(len(x)), epsilons)


@kinds
@norms
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_radius_of_an_affine_model_is_exact_and_never_above(kind, norm, scale):
    truth = affine_oracle(shape=(1, 4, 4), images=6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).double()
    model.load_state_dict(truth.model.double().state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    for epsilons in ((), (0.01, 0.1, 1.0)):
        radius = certify(kind(norm=norm), model, truth.x, truth.y, epsilons).radius
        exact = truth.distance(norm)
        torch.testing.assert_close(radius, exact, rtol=1e-9, atol=0)
        assert (radius < exact).all()
    assert (certify(kind(norm=norm), model, truth.x, (truth.y + 1) % 10).radius == 0).all()


@norms
def test_layers_before_the_first_kink_are_merged_exactly(norm):
    torch.manual_seed(0)
    chain = [Normalize([0.3], [0.25]), nn.Conv2d(1, 3, 3, 2, 1, padding_mode="circular"), nn.BatchNorm2d(3), nn.AvgPool2d(2)]
    model = nn.Sequential(*chain, nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    model[5].bias.data -= model[:6](x).mean(0).detach()
    found = proved_trace(model, ball(x, 0.1, norm, "none"), True)
    before = next(step.before for step in found.steps if isinstance(step.module, nn.ReLU))
    start = model[:6](x)
    jacobian = torch.autograd.functional.jacobian(model[:6], x[:1]).view(4, 36)
    exact = 0.1 * jacobian.norm(p=2 if norm == "l2" else 1, dim=1)
    unstable = (start.abs() < exact).expand_as(before.radius)  # the others are of no interest, intervals do
    assert unstable.any()
    torch.testing.assert_close(before.radius[unstable], exact.expand(4, -1)[unstable], rtol=1e-9, atol=1e-12)
    assert (before.radius >= exact - 1e-15).all() and len(y) == 4


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=2, deadline=None)
@given(norm=st.sampled_from(["l2", "linf"]), eps=st.floats(1e-3, 1.0), seed=st.integers(0, 9))
def test_bounds_hold_at_every_layer_and_no_bound_is_looser_than_a_cheaper_one(name, norm, eps, seed):
    model, x = network(name, seed), images(seed=seed)
    y = model(x).argmax(1)
    region = ball(x, eps, norm, "none")
    found, plain = proved_trace(model, region, True), proved_trace(model, region, False)
    crown, alpha = linear_proof(found, y).margins, linear_proof(found, y, optimise=2).margins
    shared, intervals = linear_proof(found, y, optimise=2, shared=True).margins, interval_proof(plain, y).margins
    lowest = worst(model, x, y, eps, norm, "none", steps=2)
    for bound in (crown, alpha, shared, intervals):
        assert (bound <= lowest).all()
    assert (alpha >= crown).all() and (shared >= crown).all()
    assert (crown >= intervals - 1e-9).all()
    torch.testing.assert_close(intervals, interval_margins(trace(model, region), y), rtol=1e-9, atol=1e-9)
    for point in samples(x, eps, norm, "none", count=8):
        for step in found.steps:
            assert (point >= step.before.lower - 1e-12).all() and (point <= step.before.upper + 1e-12).all(), step.path
            point = step.module(point).detach()


@settings(max_examples=15, deadline=None)
@given(
    side=st.integers(5, 7),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "circular"]),
    pool=st.sampled_from(["max", "average", "none"]),
    skip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bounds_hold_for_shapes_of_every_kind(side, kernel, stride, padding, groups, mode, pool, skip, seed):
    torch.manual_seed(seed)
    parts = [nn.Conv2d(1, 4, kernel, stride, padding, padding_mode=mode), nn.ReLU()]
    if skip:
        body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=groups))
        parts += [Residual(body, nn.Identity()), nn.LeakyReLU(0.1)]
    size = nn.Sequential(*parts)(torch.zeros(1, 1, side, side)).shape[-1]
    if pool != "none" and size > 1:
        parts.append(nn.MaxPool2d(2, 1) if pool == "max" else nn.AvgPool2d(2, 1))
    wide = nn.Sequential(*parts, nn.Flatten())(torch.zeros(1, 1, side, side)).shape[1]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(wide, 3)).double().eval()
    x = torch.rand(2, 1, side, side, dtype=torch.float64)
    y, eps = model(x).argmax(1), 0.05 + 0.3 * torch.rand(()).item()
    norm = "l2" if seed % 2 else "linf"
    bound = linear_proof(proved_trace(model, ball(x, eps, norm, "none"), True), y).margins
    assert (bound <= worst(model, x, y, eps, norm, "none", steps=3)).all()


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_the_radius_is_below_the_nearest_error_on_a_line(kind, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    grid = torch.linspace(-6, 6, 24001, dtype=torch.float64)[:, None]
    answers = model(grid).argmax(1)
    x = torch.rand(20, 1, dtype=torch.float64) * 4 - 2
    y = model(x).argmax(1)
    nearest = torch.where(answers[None] != y[:, None], torch.cdist(x, grid), torch.inf).amin(1)
    for norm in ("l2", "linf"):
        radius = certify(kind(norm=norm), model, x, y, (0.1,)).radius
        assert (radius > 0).any() and (radius < nearest).all()


@norms
def test_no_attack_breaks_what_is_certified_and_the_order_of_the_methods_is_kept(norm):
    model, x = network("convolutions", 1), images(12)
    y = model(x).argmax(1)
    found = {name: certify(kind(norm=norm), model, x, y, (0.05, 0.2)).radius for name, kind in KINDS.items()}
    assert (found["crown"] >= 0.98 * found["ibp"]).all() and (found["alpha_crown"] >= 0.94 * found["crown"]).all()
    assert (found["crown"] > 0).all() and (found["alpha_crown"] > found["crown"]).any()
    for radius in found.values():
        for i in range(len(x)):
            eps = radius[i].item()
            if eps > 0:
                one, label = x[i : i + 1], y[i : i + 1]
                attack = PGD(norm=norm, eps=eps, steps=10, restarts=2, targets=0)
                broken = attack(model, one, label, torch.tensor([i])).images
                assert model(broken).argmax(1) == label
                points = samples(one, eps, norm, "none", count=100)[:, 0]
                assert (model(points).argmax(1) == label).all()


def test_the_cut_ball_has_a_radius_no_smaller_and_holds_for_images_in_the_box():
    model, x = network("convolutions", 0), images(6).round()  # corners of the box: half of each ball is cut off
    y = model(x).argmax(1)
    whole = certify(CrownCertificate(norm="linf"), model, x, y).radius
    cut = certify(CrownCertificate(norm="linf", box="unit"), model, x, y).radius
    assert (cut >= 0.98 * whole).all() and (cut > 1.1 * whole).any()
    for i in range(len(x)):
        assert (worst(model, x[i : i + 1], y[i : i + 1], min(cut[i].item(), 1.0), "linf", "unit") >= 0).all()


@kinds
def test_neither_batches_nor_what_is_asked_for_change_the_answer(kind):
    model, x = network("mlp", 0), images(70)
    y = model(x).argmax(1)
    certificate = kind(norm="l2", search=False)
    whole = certify(certificate, model, x, y, (1e-3, 0.02, 0.1)).radius
    parts = torch.cat(
        [certify(certificate, model, *part, (0.1, 1e-3, 0.02)).radius for part in zip(x.split(9), y.split(9), strict=True)]
    )
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert ((whole >= 1e-3).sum() > (whole >= 0.1).sum()) and (whole >= 1e-3).any()
    searched = certify(kind(norm="l2"), model, x[:9], y[:9], (1e-3, 0.02, 0.1)).radius
    assert (searched >= whole[:9] * (1 - 1e-9)).all()
    assert len(certify(certificate, model, x[:0], y[:0]).radius) == 0


@kinds
def test_wrong_tied_and_broken_images_have_no_radius(kind):
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
    model[1].weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    nn.init.zeros_(model[1].bias)
    x = torch.tensor([[1.0, 0.5], [1.0, 0.5], [0.0, 0.5], [math.nan, 0.0], [math.inf, 0.0]])
    found = certify(kind(norm="l2"), model, x, torch.tensor([0, 1, 0, 0, 0]))
    assert 0.5 < found.radius[0] < 1 and (found.radius[1:] == 0).all()
    assert found.reason == ["", "", "", "error", "error"] and (found.failure_probability == 0).all()


@kinds
def test_the_model_is_only_read(kind):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.ELU(inplace=True), nn.Linear(6, 3))
    model(torch.rand(3, 4)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    x = torch.rand(3, 4)
    copy = x.clone()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        certify(kind(norm="l2"), model, x, torch.tensor([0, 1, 2]), (0.1,))
    assert torch.equal(x, copy) and model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) and p.requires_grad for p, g in zip(model.parameters(), grads, strict=True))


def _nan():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight.data[0, 0] = math.nan
    return model


def _hooked():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda *_: None)
    return model


REFUSED = {
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), r"1 \(Softmax\)"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "training"),
    "nan": (_nan, "NaN"),
    "hooks": (_hooked, "hooks"),
    "features": (lambda: nn.Sequential(nn.Linear(5, 3)), "does not take images"),
    "alpha": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ELU(2.0)), "expected alpha"),
}


@kinds
@pytest.mark.parametrize("build, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_proved_is_refused(kind, build, message):
    with pytest.raises(Uncertifiable, match=message):
        certify(kind(), build(), torch.rand(2, 4), torch.zeros(2, dtype=torch.long))


def test_a_gap_within_rounding_proves_nothing():
    """Two logits whose difference in real arithmetic is negative, and in float64 comes out positive or zero."""
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 1e17, -1e17], [1.5, 0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    for kind in KINDS.values():
        for label in (0, 1):
            assert certify(kind(norm="l2"), model, x, torch.tensor([label])).radius.item() == 0


@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_below_exact_fractions(seed):
    """Weights of very different sizes, sums that cancel: the exact margin at the image and at corners of a tiny ball."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(0.25), nn.Linear(4, 2)).double()
    for parameter in model.parameters():
        parameter.data *= 10 ** (4 * torch.rand_like(parameter))
    x = torch.rand(1, 3, dtype=torch.float64)

    def exact(point):
        values = [Fraction(value) for value in point]
        for layer in model:
            if isinstance(layer, nn.Linear):
                rows, bias = layer.weight.tolist(), layer.bias.tolist()
                values = [
                    sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
                    for row, b in zip(rows, bias, strict=True)
                ]
            else:
                left = Fraction(1, 4) if isinstance(layer, nn.LeakyReLU) else Fraction(0)
                values = [value if value > 0 else left * value for value in values]
        return values[0] - values[1]

    for eps in (0.0, 2.0**-40, 2.0**-20):
        for label, sign in ((0, 1), (1, -1)):
            y = torch.tensor([label])
            for proof, linear in ((linear_proof, True), (interval_proof, False)):
                bound = proof(proved_trace(model, ball(x, eps, "linf", "none"), linear), y).margins[0, 1 - label].item()
                corners = [[Fraction(v) + s * Fraction(eps) for v in x[0].tolist()] for s in (-1, 0, 1)]
                truth = min(sign * exact(corner) for corner in corners)
                assert Fraction(bound) <= truth
                if eps == 0:
                    assert float(truth) - bound < 1e-9 * 1e14 * 2.0**-20  # and not by much: sizes reach 1e13


class Foreign(nn.Module):
    """A network of someone else's: its own forward, BatchNorm, a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(6 * 16, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = x + torch.relu(self.second(x))
        x = torch.cat([x, self.norm(x)], 1)
        return self.last(x.flatten(1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_foreign_network_is_certified_and_holds(norm):
    torch.manual_seed(0)
    model = Foreign()
    model(torch.rand(64, 1, 4, 4))  # running statistics
    model.eval()
    x = torch.rand(6, 1, 4, 4)
    y = model(x).argmax(1)
    radius = CrownCertificate(norm=norm)(model, x, y, torch.arange(6), ()).radius
    assert (radius > 0).all()
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        way = torch.randn(x.shape, generator=generator)
        size = way.flatten(1).norm(dim=1) if norm == "l2" else way.flatten(1).abs().amax(1)
        near = x.double() + way.double() * (radius / size).view(-1, 1, 1, 1)
        assert (model.double()(near).argmax(1) == y).all()
        model.float()


def test_networks_with_too_many_kinks_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 50), nn.ReLU(), nn.Linear(50, 3)).eval()
    with pytest.raises(Uncertifiable, match=r"50 values at kinks, expected at most 49"):
        CrownCertificate(neurons=49)(model, torch.rand(1, 1, 4, 4), torch.tensor([0]), torch.arange(1), (0.1,))
