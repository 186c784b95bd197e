"""Certificates at extreme weights and radii, against exact fractions: nothing that under-, overflows or cancels is claimed."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_rkhs.certificates import (
    AlphaCrownCertificate,
    CrownCertificate,
    EclipseCertificate,
    IBPCertificate,
    LipLTCertificate,
    MarginCertificate,
    SdpCrownCertificate,
)
from robustbench_rkhs.certificates.base import FURTHEST, Certified
from robustbench_rkhs.evaluation.own_method import checked_certified
from robustbench_rkhs.layers import Concatenate, MaxMin, Residual, SandwichLinear
from robustbench_rkhs.lipschitz.euclidean import lengths
from robustbench_rkhs.relaxations import ball
from robustbench_rkhs.relaxations.balls import balls_of
from robustbench_rkhs.relaxations.full_crown import interval_proof, least_proved, linear_proof, proved_trace
from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt, lagrangian
from robustbench_rkhs.relaxations.linear_bounds import Lines
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.unit_box import drop
from robustbench_rkhs.verifier import eclipse
from robustbench_rkhs.verifier import lagrangian as checked
from robustbench_rkhs.verifier.activations import Activation
from robustbench_rkhs.verifier.affine import Linear
from robustbench_rkhs.verifier.chain import Branches, dense
from robustbench_rkhs.verifier.liplt import reached
from robustbench_rkhs.verifier.norms import frobenius
from robustbench_rkhs.verifier.proof import Rejected

F64 = torch.float64
RELAXED = {"ibp": IBPCertificate, "crown": CrownCertificate, "alpha_crown": AlphaCrownCertificate, "sdp_crown": SdpCrownCertificate}
GLOBAL = {"margin": MarginCertificate, "liplt": LipLTCertificate, "eclipse": EclipseCertificate}
EVERY = {**GLOBAL, **RELAXED}
every = pytest.mark.parametrize("kind", EVERY.values(), ids=EVERY.keys())
relaxed = pytest.mark.parametrize("kind", RELAXED.values(), ids=RELAXED.keys())


def radii(certificate, model, x, y, epsilons=()):
    return certificate(model, x, torch.as_tensor(y), torch.arange(len(x)), epsilons).radius


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias is not None).double()
    layer.weight.data = torch.tensor(weight, dtype=F64)
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=F64)
    return layer


def exact(model, point):
    """The outputs of linear layers and ReLUs in fractions."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
            rows = zip(layer.weight.tolist(), bias, strict=True)
            point = [sum((Fraction(w) * v for w, v in zip(row, point, strict=True)), Fraction(b)) for row, b in rows]
        elif isinstance(layer, nn.ReLU):
            point = [max(value, Fraction(0)) for value in point]
    return point


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-170, 1e-155, 1.0, 1e155, 1e300])
def test_lengths_are_never_below_the_truth(scale):
    vectors = torch.randn(50, 7, dtype=F64, generator=torch.Generator().manual_seed(0)) * scale
    vectors[0], vectors[1, 1:] = 0.0, 0.0
    for vector, found in zip(vectors.tolist(), lengths(vectors).tolist(), strict=True):
        square = sum(Fraction(value) ** 2 for value in vector)
        assert Fraction(found) ** 2 >= square and found <= math.hypot(*vector) * (1 + 1e-14) + 1e-290
        assert Fraction(frobenius(np.array(vector))) ** 2 >= square
    assert lengths(vectors[:1]).item() == 0 and lengths(vectors[:, :0]).tolist() == [0.0] * 50
    assert lengths(torch.tensor([1.0, math.inf])).isinf() and lengths(torch.tensor([1.0, math.nan])).isnan()


@pytest.mark.parametrize("unit", [False, True])
def test_slopes_whose_squares_underflow_have_a_length(unit):
    rows = Lines(torch.full((1, 1, 4), 1e-170, dtype=F64), torch.full((1, 1), 1e-170, dtype=F64), torch.zeros(1, 1, dtype=F64))
    region = Region(torch.full((1, 4), 0.5, dtype=F64), torch.full((1, 4), 4.0, dtype=F64), True, unit)
    least, share = least_proved(rows, region)
    assert share.item() <= (1 + 4 * 0.5) / (2 * 4.0) and least.item() <= 1e-170 * (3 - (4 * 0.5 if unit else 2 * 4.0))


@every
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", [1e-170, 1e-150, 1e150])
def test_affine_radii_do_not_depend_on_the_scale_of_the_weights(kind, norm, scale):
    model, x = linear([[3 * scale, 4 * scale], [0.0, 0.0]], [scale, 0.0]), torch.tensor([[0.5, 0.25]], dtype=F64)
    truth = 3.5 / (5.0 if norm == "l2" else 7.0)
    found = radii(kind(norm=norm), model, x, [0], (0.1,)).item()
    assert 0.6 * truth < found <= truth


def test_the_cost_of_a_tiny_ball_does_not_underflow():
    """-1e100 relu(x) over |x| <= 1e-170 is least at -1e-70, with half of it the price of the ball; the square of 1e-170 is 0."""
    c, whole = torch.full((1, 1, 1), -1e100, dtype=F64), torch.full((1, 1), math.inf, dtype=F64)
    tilt = Tilt(torch.zeros_like(c), torch.full((1, 1), 1e270, dtype=F64))
    found = lagrangian(c, 0.0, -whole, whole, Ball(torch.zeros(1, 1, dtype=F64), torch.tensor([1e-170], dtype=F64)), tilt, True)
    assert (found.parts.sum() - found.balls.sum()).item() == pytest.approx(-1e-70, rel=1e-9, abs=0)
    slopes, eps = torch.full((1, 1, 1), 1e100, dtype=F64), torch.tensor([1e-170], dtype=F64)
    assert drop(slopes, torch.full((1, 1), 0.5, dtype=F64), eps, True).item() >= 1e-70


def test_the_ball_around_a_tiny_value_covers_its_rounding():
    """Two products of three numbers of 1e-160: their rounding, about 1e-176, has a square of 0."""
    model, x = (
        nn.Sequential(linear([[1e-160, 1e-160 / 3, 0.0], [1e-161, 1e-160, 1e-160 / 7]]), nn.ReLU()),
        torch.rand(1, 3, dtype=F64),
    )
    found = balls_of(model, x, torch.zeros(1, dtype=F64), {"0": 1.0, "1": 1e-160})["1"]
    truth = exact(model[:1], [Fraction(one) for one in x[0].tolist()])
    off = sum((Fraction(one) - other) ** 2 for one, other in zip(found.center[0].tolist(), truth, strict=True))
    assert off > 0 and Fraction(found.radius.item()) ** 2 >= off


@every
def test_a_gap_within_the_rounding_of_tiny_values_proves_nothing(kind):
    """As with values of size 1: 1 + 1e17 - 1e17 against 1.5, in an image of 1e-170."""
    model = linear([[1e170, 1e17 * 1e170, -1e17 * 1e170], [1.5e170, 0.0, 0.0]])
    for label in (0, 1):
        assert radii(kind(norm="l2"), model, torch.full((1, 3), 1e-170, dtype=F64), [label]).item() == 0


@every
def test_a_product_that_underflows_is_not_taken_for_nothing(kind):
    """1e150 x times 1e-160 times 1e-170 is 1e-180 x; the two last factors alone are 0 in float64."""
    model = nn.Sequential(linear([[1e150]]), linear([[1e-160]]), linear([[1e-170], [0.0]], [0.0, 3e-180]))
    x = torch.tensor([[1.0]], dtype=F64)
    assert radii(kind(norm="l2"), model, x, [1], (0.5, 1.0, 5.0)).item() <= 2.0


@every
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(3))
def test_affine_layers_that_cancel_are_not_extrapolated(kind, norm, seed):
    """A row is a sum that cancels up to its rounding: the true radius in fractions, far outside of the first balls tried."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(6, 3, generator=generator, dtype=F64) * 1e13
    first[5] = -first[:5].sum(0)
    model = nn.Sequential(linear(first.tolist()), linear([[1.0] * 6, [0.0] * 6], [1.0, 0.0]))
    x = torch.rand(1, 3, generator=generator, dtype=F64) * 1e-12
    point = [Fraction(one) for one in x[0].tolist()]
    values, zero = exact(model, point), exact(model, [Fraction(0)] * 3)
    units = [exact(model, [Fraction(int(i == j)) for j in range(3)]) for i in range(3)]
    slopes = [(one[0] - zero[0]) - (one[1] - zero[1]) for one in units]
    size = math.sqrt(sum(float(one) ** 2 for one in slopes)) if norm == "l2" else float(sum(map(abs, slopes)))
    truth = float(values[0] - values[1]) / size
    assert 0 < truth < FURTHEST
    assert radii(kind(norm=norm), model, x, [0], (truth * 2, truth * 1e3)).item() <= truth * (1 + 1e-12)


@every
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_radius_is_claimed_where_float32_overflows(kind, norm):
    """Logits that differ by a constant: in real arithmetic for ever, in float32 until both are infinite."""
    model = nn.Linear(2, 2)
    model.weight.data = torch.full((2, 2), 1e20)
    model.bias.data = torch.tensor([0.0, 1e22])
    x = torch.tensor([[0.5, 0.5]])
    found = radii(kind(norm=norm), model, x, [1], (1e30,)).item()
    assert 0 < found <= FURTHEST
    assert model(x + found).argmax(1).item() == 1 and model(x + 1e30).argmax(1).item() != 1


def test_a_claim_of_any_certificate_is_cut():
    one = torch.tensor([math.inf, 1.0], dtype=F64)
    found = checked_certified(Certified(one, ["", ""], torch.zeros(2, dtype=F64)), 2)
    assert found.radius.tolist() == [FURTHEST, 1.0]


@pytest.mark.parametrize("weight, bias", [(1e35, 1e34), (1e36, 1e36), (1e30, 1e32)])
def test_a_claim_about_float32_ends_before_its_sums_overflow(weight, bias):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model[1].weight.data, model[1].bias.data = torch.full((2, 2), weight), torch.tensor([0.0, bias])
    x = torch.tensor([[0.0, 0.0]])
    found = MarginCertificate(network="float32")(model, x, torch.tensor([1]), torch.arange(1), ()).radius.item()
    real = MarginCertificate()(model, x, torch.tensor([1]), torch.arange(1), ()).radius.item()
    assert found <= 1e37 / weight and real == FURTHEST
    for sign in (-1, 1):
        assert model(x + sign * found / math.sqrt(2)).argmax(1).item() == 1


SIDES = {  # c, left, slope, x0, m: rounding, or a square that overflows, hides the side with the lower value
    "overflow": (-1.0, 0.0, 0.0, 0.0, 1e-200),
    "cancelled": (-1.0, 0.0, 0.0, 1e9, 1e-18),
    "far": (-1e150, 0.0, 0.0, 1.0, 1e-170),
    "left": (1.0, 1.0, 2.0, 0.0, 1e-200),
    "tiny": (-1e-170, 0.0, 0.0, 1e-3, 1e-180),
}


def lowest(c, left, slope, x0, m):
    """The least value of c f(z) - r z + m (z - x0)^2 / 2, in fractions, on both sides."""
    c, left, x0, m = map(Fraction, (c, left, x0, m))
    r = (left + (1 - left) * Fraction(slope)) * c
    found = []
    for a, side in ((c - r, 1), (left * c - r, -1)):
        z = x0 - a / m
        z = z if side * z > 0 else Fraction(0)
        found.append(a * z + m / 2 * (z - x0) ** 2)
    return min(found)


@pytest.mark.parametrize("name", SIDES)
def test_the_part_of_a_kink_is_below_both_of_its_sides(name):
    c, left, slope, x0, m = SIDES[name]
    truth = lowest(*SIDES[name])
    whole = torch.full((1, 1), math.inf, dtype=F64)
    tilt = Tilt(torch.full((1, 1, 1), slope, dtype=F64), torch.full((1, 1), m, dtype=F64))
    middle = Ball(torch.full((1, 1), x0, dtype=F64), torch.zeros(1, dtype=F64))
    found = lagrangian(torch.full((1, 1, 1), c, dtype=F64), left, -whole, whole, middle, tilt, True)
    bound = (found.parts - found.balls[..., None] - found.errors[..., None]).item()
    assert not bound > truth
    kink, path = Activation((1,), "leaky_relu", (left,)), (0,)
    rows = checked.Rows([kink], np.array([[x0]]), np.zeros(1), {path: np.array([[slope]])}, {path: np.array([m])})
    rows.reach = {path: 1.0}
    rows._forward(rows.chain, rows.x, np.zeros(1), ())
    with np.errstate(all="ignore"):
        _, value, error = rows._kink(kink, np.array([[c]]), path)
    assert not value[0] - error[0] > truth


def test_a_multiplier_whose_square_overflows_proves_nothing():
    """1 against 1e-150 relu(1e151 x) at x = 0: true up to radius 0.1, whatever a witness says."""
    last = Linear((1,), np.array([[1e-150], [0.0]]), np.array([0.0, 1.0]))
    chain = [Linear((1,), np.array([[1e151]]), None), Activation((1,), "relu", ()), last]
    for multiplier in (1e-320, 1e-310, 1e-308, 1e-305, 1e-302, 1e-301, 1e-300, 1e-200):
        for slope in (-1.0, 0.0, 0.5, 1.0):
            witness = checked.Witness(np.array([[0, 0]]), [np.array([[slope]])], np.array([[multiplier]]), reached(chain))
            for claimed in (0.05, 0.1001, 1.0, 50.0):
                with np.errstate(all="ignore"):
                    found, _ = witness.proved(chain, slice(0, 1), np.zeros((1, 1)), np.array([1]), np.array([claimed]), 2)
                assert found[0] <= 0.1, (multiplier, slope, claimed)


def test_constants_that_cancel_inside_of_branches_count_as_rounding():
    """(1e17 + 1) - 1e17 is 0 in float64: the margin at the image is 0.5 - 1."""
    lost = [Linear((1,), np.array([[1.0]]), np.array([1e17])), Linear((1,), np.array([[1.0]]), np.array([1.0]))]
    chain = [Branches((1,), [lost, [Linear((1,), np.array([[1.0]]), np.array([-1e17]))]], True)]
    chain.append(Linear((1,), np.array([[1.0], [0.0]]), np.array([0.0, 0.5])))
    assert chain[0].affine
    witness = checked.Witness(np.array([[0, 0]]), [], np.zeros((1, 0)), reached(chain))
    found, _ = witness.proved(chain, slice(0, 1), np.zeros((1, 1)), np.array([1]), np.array([0.01]), 2)
    assert found[0] == 0


def small(kind, *, widths=(3, 6, 5, 3), seed=0, scales=(1.0, 1.0, 1.0)):
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for count, (inputs, outputs, scale) in enumerate(zip(widths, widths[1:], scales, strict=False)):
        weight = torch.randn(outputs, inputs, generator=generator, dtype=F64) * scale
        prefix = math.prod(scales[: count + 1])
        bias = torch.randn(outputs, generator=generator, dtype=F64) * prefix * 0.5
        parts += [linear(weight.tolist(), bias.tolist()), kind()]
    return nn.Sequential(*parts[:-1])


SCALES = [
    (1e-150, 1e150, 1.0),
    (1e150, 1e-150, 1.0),
    (1e-100, 1e-100, 1e100),
    (1e100, 1e100, 1e-150),
    (1e-170, 1e170, 1.0),
    (1e-30, 1e30, 1e-20),
]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("name", EVERY)
def test_scaled_networks_claim_no_more_than_the_unscaled_one_allows(name, scales):
    """Weights by powers of ten that cancel: the network is the plain one times a constant, so points of the ball decide."""
    plain, model = small(nn.ReLU), small(nn.ReLU, scales=scales)
    x = torch.rand(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    y = plain(x).argmax(1)
    settings = {"steps": 20} if name == "sdp_crown" else {}
    found = radii(EVERY[name](norm="l2", **settings), model, x, y, (0.01, 0.1))
    ways = torch.randn(4, 4000, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    ways = ways / ways.norm(dim=2, keepdim=True)
    for far in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
        wrong = (plain((x[:, None] + far * ways).flatten(0, 1)).argmax(1).view(4, -1) != y[:, None]).any(1)
        assert (found[wrong] <= far).all()


@pytest.mark.parametrize("seed", range(20))
def test_bounds_of_random_sizes_are_below_exact_fractions(seed):
    """Every weight of a size of its own, 1e-150 to 1e150."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for parameter in model.parameters():
        parameter.data *= 10 ** (100 * (torch.rand(()) - 0.5) + 250 * (torch.rand_like(parameter) - 0.5))
    x = torch.rand(1, 3, dtype=F64)
    for eps in (0.0, 2.0**-20, 1.0):
        corners = [[Fraction(v) + s * Fraction(eps) for v in x[0].tolist()] for s in (-1, 0, 1)]
        values = [exact(model, corner) for corner in corners]
        for label in (0, 1):
            truth = min(value[label] - value[1 - label] for value in values)
            for proof, whole in ((linear_proof, True), (interval_proof, False)):
                bound = proof(proved_trace(model, ball(x, eps, "linf", "none"), whole), torch.tensor([label])).margins[0, 1 - label]
                assert not bound.isfinite() or Fraction(bound.item()) <= truth


def odd():
    torch.manual_seed(0)
    joined = Concatenate([nn.Identity(), nn.Sequential(nn.Linear(4, 3), nn.ReLU())])
    never = nn.Linear(4, 4)
    never.bias.data.fill_(50.0)  # no value before its kink is uncertain
    return {
        "residual": nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Identity()), nn.Linear(4, 2)
        ),
        "residual without kinks": nn.Sequential(
            nn.Linear(3, 4), Residual(nn.Linear(4, 4), nn.Identity()), nn.ReLU(), nn.Linear(4, 2)
        ),
        "concatenation": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), joined, nn.ReLU(), nn.Linear(7, 3)),
        "known signs": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), never, nn.ReLU(), nn.Linear(4, 2)),
        "only known signs": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), never, nn.ReLU(), nn.Linear(4, 2)),
        "kink first": nn.Sequential(nn.ReLU(), nn.Linear(3, 2)),
        "kinks in a row": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Linear(4, 2)),
        "kink last": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()),
        "maxmin": nn.Sequential(nn.Linear(3, 4), MaxMin(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        "sandwich": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), SandwichLinear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        "smooth": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        "affine": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        "identity": nn.Sequential(nn.Identity()),
    }


@pytest.mark.parametrize("fields", [{"steps": 0}, {"steps": 10, "intervals": 0}, {"domains": 8, "steps": 5}], ids=str)
@pytest.mark.parametrize("name", odd())
def test_sdp_crown_runs_on_every_shape_of_network(name, fields):
    model, x = odd()[name].eval(), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    double = odd()[name].double().eval()
    for norm in ("l2", "linf"):
        method = SdpCrownCertificate(norm=norm, search=False, **fields)
        found = radii(method, model, x, y, (0.001, 0.1, 0.5))
        assert (found >= 0.001).all() and len(radii(method, model, x[:0], y[:0], (0.1,))) == 0
        assert (radii(method, double, x[:1].double(), y[:1], (0.001, 0.1, 0.5)) >= 0.001).all()
        ways = torch.randn(2, 300, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
        ways = ways / (ways.norm(dim=2) if norm == "l2" else ways.abs().amax(2))[..., None] * found[:, None, None]
        points = (x.double()[:, None] + ways).flatten(0, 1)
        assert (double(points).argmax(1).view(2, -1) == y[:, None]).all()


def test_the_search_is_in_float32_whatever_the_default_type_is():
    model, x = odd()["kinks in a row"].double(), torch.rand(2, 3, dtype=F64)
    y = model(x).argmax(1)
    before = radii(SdpCrownCertificate(search=False, steps=5), model, x, y, (0.3, 3.0))
    torch.set_default_dtype(F64)
    try:
        after = radii(SdpCrownCertificate(search=False, steps=5), model, x, y, (0.3, 3.0))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(after, before, rtol=0.05, atol=0)


def test_errors_whose_squares_under_or_overflow_are_kept():
    tiny = Branches((1,), [[Linear((1,), np.array([[1.0]]), np.array([1e-160]))], [Activation((1,), "relu", ())]], False)
    before = np.full(1, 1e-170)
    assert tiny.error(np.full((1, 1), 1e-160), before)[0] >= 1.4e-170
    matrix, error = dense([Linear((2,), np.full((2, 2), 1e-160), None), Linear((2,), np.full((2, 2), 1.0 / 3), None)])
    assert error >= 1e-176 and matrix.shape == (2, 2)
    assert dense([Linear((2,), np.full((2, 2), 1e100), None), Linear((2,), np.full((2, 2), 1e100), None)])[1] > 1e180


def test_a_witness_that_leaves_a_singular_matrix_is_rejected():
    chain = [Linear((2,), np.eye(2), None), Activation((2,), "relu", ()), Linear((2,), np.array([[1.0, 1.0], [0.0, 1.0]]), None)]
    for scale in (1e-300, 0.49, 0.5, 0.7, 1.0, 1e300):
        for floor in (1e-300, 1e-17, 0.1, 1.0, 1e300):
            with np.errstate(all="ignore"):
                try:
                    found = eclipse.pairs(chain, [{"at": 1, "scale": scale, "floor": floor}], 2)
                except Rejected:
                    continue
            assert found[0, 1] >= 1.0  # the second pixel alone does not count, the first moves the difference by itself
