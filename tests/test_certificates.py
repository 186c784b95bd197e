"""Certificates against known radii: closed forms, a grid, and every way a claim could be wrong."""

import math
from typing import ClassVar, Literal, NamedTuple

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from robustbench_rkhs.certificates import (
    AlphaCrownCertificate,
    AnyCertificate,
    Certificate,
    CrownCertificate,
    EclipseCertificate,
    IBPCertificate,
    LipLTCertificate,
    MarginCertificate,
    SdpCrownCertificate,
    SmoothingCertificate,
)
from robustbench_rkhs.certificates.base import FURTHEST
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate
from robustbench_rkhs.layers import MaxMin, Normalize, Sandwich, SandwichLinear, Scale
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.testing import check_certificate


class Row(NamedTuple):
    """A certificate, and the share of an affine model's exact radius that it proves at least; None in a norm it is not tried in."""

    certificate: Certificate
    l2: float | None = 0.0
    linf: float | None = None


TABLE = {  # a new certificate adds a line here
    "margin": Row(MarginCertificate(), 1 - 1e-6, 0.0),
    "liplt": Row(LipLTCertificate(), 1 - 1e-6, 0.0),
    "eclipse": Row(EclipseCertificate(), 1 - 1e-6, 0.0),
    "ibp": Row(IBPCertificate(tolerance=0.2)),
    "crown": Row(CrownCertificate(tolerance=0.2), 0.8),
    "alpha_crown": Row(AlphaCrownCertificate(tolerance=0.2, steps=2), 0.8),
    "sdp_crown": Row(SdpCrownCertificate(tolerance=0.2, steps=20), 0.8, 0.8),
}
PAIRS = [(name, norm) for name, row in TABLE.items() for norm in ("l2", "linf") if getattr(row, norm) is not None]
CERTIFICATES = {name: TABLE[name].certificate for name in ("margin", "liplt", "eclipse")}
"""Bounds of whole networks, which are exact for affine models."""
SEARCHED = {"ibp": IBPCertificate(), "crown": CrownCertificate(), "alpha_crown": AlphaCrownCertificate()}
"""Each radius tried is a pass of its own: more in tests/test_crown.py."""
table = pytest.mark.parametrize("certificate", CERTIFICATES.values(), ids=CERTIFICATES.keys())


@pytest.mark.parametrize("name, norm", PAIRS)
def test_certificate(name, norm):
    check_certificate(TABLE[name].certificate, norm, getattr(TABLE[name], norm))


def test_the_table_covers_every_certificate():
    known = {type(row.certificate) for row in TABLE.values()}
    assert known | {SmoothingCertificate} == set(names_of(AnyCertificate).values())  # a probability: tests/test_smoothing.py


class Refusing(Certificate):
    """Proves what is affine, refuses the rest."""

    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
    always: bool = False

    def __call__(self, model, x, y, keys, epsilons=()):
        if self.always or any(isinstance(part, nn.ReLU) for part in model.modules()):
            raise Uncertifiable("not affine")
        return MarginCertificate()(model, x, y, keys, epsilons)


def test_a_certificate_may_refuse_a_model_but_not_every_one():
    check_certificate(Refusing(), factor=0.99)
    with pytest.raises(AssertionError, match="refuses every model"):
        check_certificate(Refusing(always=True))


class Proud(MarginCertificate):
    """Claims twice what it proves."""

    name: Literal["proud"] = "proud"

    def __call__(self, model, x, y, keys, epsilons=()):
        found = super().__call__(model, x, y, keys, epsilons)
        return found._replace(radius=2 * found.radius)


def test_the_check_finds_a_certificate_that_claims_too_much():
    with pytest.raises(AssertionError, match="times the exact one"):
        check_certificate(Proud())


class Weighed(PairwiseCertificate):
    """A bound that a field decides."""

    slope: float = 1.0

    def pairs(self, chain, shape, classes):
        return torch.full((classes, classes), self.slope, dtype=torch.float64)


def test_bounds_that_are_kept_are_those_of_the_same_fields():
    model, x, y = nn.Linear(2, 2), torch.tensor([[0.3, 0.1]]), torch.tensor([0])
    model.weight.data = torch.eye(2)
    model.bias.data.zero_()
    radii = [certify(Weighed(slope=slope), model, x, y).radius.item() for slope in (1.0, 2.0, 4.0)]
    assert radii == pytest.approx([0.2, 0.1, 0.05]) and Weighed().label == "Weighed"


def certify(certificate, model, x, y):
    return certificate(model, x, y, torch.arange(len(x)), (0.1,))


def distance(model, x, y):
    """Distance to the nearest boundary of an affine model, from its definition, in float64."""
    double = nn.Sequential(*model).double()
    basis = torch.eye(x[0].numel(), dtype=torch.float64).view(-1, *x.shape[1:])
    with torch.no_grad():
        rows = (double(basis) - double(torch.zeros_like(basis[:1]))).T
        logits = double(x.double())
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (rows[y][:, None] - rows[None]).norm(dim=2)
    result = (gaps / lengths).scatter(1, y[:, None], torch.inf).amin(1).clamp_min(0)
    model.float()
    return result


AFFINE = {
    "linear": lambda k: (nn.Sequential(nn.Flatten(), nn.Linear(16, k)), (1, 4, 4)),
    "normalised": lambda k: (
        nn.Sequential(Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), nn.Flatten(), nn.Linear(75, 20), nn.Linear(20, k)),
        (3, 5, 5),
    ),
    "convolutional": lambda k: (
        nn.Sequential(
            Normalize((0.5,), (0.3,)),
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.Conv2d(4, k, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (1, 9, 7),
    ),
    "pooled": lambda k: (
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, k)).eval(),
        (2, 8, 8),
    ),
    "sandwich": lambda k: (nn.Sequential(nn.Flatten(), Scale(3.0), SandwichLinear(12, k)), (3, 2, 2)),
    "wide": lambda k: (nn.Sequential(Normalize((0.5,) * 3, (0.2,) * 3), nn.Flatten(), nn.Linear(3072, k)), (3, 32, 32)),
    "vector": lambda k: (nn.Sequential(nn.Linear(2, k)), (2,)),
}


@table
@pytest.mark.parametrize("build", AFFINE.values(), ids=AFFINE.keys())
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_affine_radius_is_the_closed_form_and_never_above(certificate, build, classes, scale):
    torch.manual_seed(classes)
    model, shape = build(classes)
    if scale != 1:
        model = nn.Sequential(*model, Scale(scale)).eval()
    x, y = torch.rand(300, *shape), torch.randint(classes, (300,))
    with torch.no_grad():
        y[:250] = model.double()(x[:250].double()).argmax(1)
    model.float()
    truth = distance(model, x, y)
    found = certify(certificate, model, x, y)
    assert found.radius.dtype == torch.float64 and (found.failure_probability == 0).all()
    torch.testing.assert_close(found.radius, truth, rtol=1e-6, atol=1e-8)
    assert (found.radius <= truth * (1 + 1e-13)).all() and (found.radius > 0).sum() >= 250
    assert found.reason == [""] * 300


def test_linf_radius_is_the_inclusion_of_balls():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(20, 1, 4, 4)
    y = model(x).argmax(1)
    l2, linf = (MarginCertificate(norm=norm)(model, x, y, torch.arange(20), ()).radius for norm in ("l2", "linf"))
    torch.testing.assert_close(linf, l2 / 4, rtol=1e-9, atol=0)
    assert (linf <= l2 / 4).all()
    assert torch.equal(MarginCertificate().radii(model, x, y, "linf"), linf)
    rows = model[1].weight.detach().double()
    exact = ((model(x).max(1, keepdim=True).values - model(x)) / (rows[y][:, None] - rows[None]).abs().sum(2)).detach()
    assert (linf <= exact.scatter(1, y[:, None], torch.inf).amin(1) + 1e-6).all()


NETWORKS = {
    "relu": lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)),
    "deep": lambda: nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3), nn.ELU()),
    "maxmin": lambda: nn.Sequential(nn.Linear(2, 8), MaxMin(), nn.Linear(8, 3)),
    "sandwich": lambda: nn.Sequential(Scale(3.0), Sandwich(2, 8), Sandwich(8, 8), Scale(3.0), SandwichLinear(8, 3)),
}


@table
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("seed", range(3))
def test_radius_is_below_the_nearest_misclassified_point_of_a_grid(certificate, build, seed):
    torch.manual_seed(seed)
    model = build()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model = model.double()
    axis = torch.linspace(-2, 2, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    predicted = model(grid).argmax(1)
    x = torch.rand(64, 2, dtype=torch.float64) * 2 - 1
    y = model(x).argmax(1)
    radius = certify(certificate, model, x, y).radius
    nearest = torch.where(predicted[None] != y[:, None], torch.cdist(x, grid), torch.inf).amin(1)
    assert (radius < nearest).all() and (radius > 0).all()


@table
def test_wrong_tied_and_broken_images_have_no_radius(certificate):
    model = nn.Linear(2, 3)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    nn.init.zeros_(model.bias)
    x = torch.tensor([[1.0, 0.5], [1.0, 0.5], [0.0, 0.5], [math.nan, 0.0], [math.inf, 0.0]])
    found = certify(certificate, model, x, torch.tensor([0, 1, 0, 0, 0]))
    assert found.radius[0] == pytest.approx(1.0) and found.radius[0] < 1 and (found.radius[1:] == 0).all()
    assert found.reason == ["", "", "", "error", "error"]


@table
def test_equal_logits_prove_nothing_and_constant_ones_everything(certificate):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, 0.7)
    x, y = torch.rand(5, 4), torch.zeros(5, dtype=torch.long)
    assert (certify(certificate, model, x, y).radius == 0).all()
    model[2].bias.data[0] = 0.8
    assert (certify(certificate, model, x, y).radius == FURTHEST).all()
    model[2].weight.data[2, 0] = 1.0
    assert certify(certificate, model, x, y).radius.isfinite().all()


@table
def test_a_gap_within_rounding_proves_nothing(certificate):
    """Two logits whose difference in real arithmetic is negative, and in float64 comes out positive or zero."""
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 1e17, -1e17], [1.5, 0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    for label in (0, 1):
        assert certify(certificate, model, x, torch.tensor([label])).radius.item() == 0


@table
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_of_the_weights_changes_no_radius(certificate, scale):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double(),
        torch.rand(9, 4),
    )
    y = model(x.double()).argmax(1)
    before = certify(certificate, model, x, y).radius
    for parameter in model.parameters():
        parameter.data *= scale
    torch.testing.assert_close(certify(certificate, model, x, y).radius, before, rtol=1e-6, atol=0)


@table
@pytest.mark.parametrize("training", [True, False])
def test_model_is_only_read(certificate, training):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).train(training)
    model(torch.rand(3, 4)).sum().backward()
    state, grads = {k: v.clone() for k, v in model.state_dict().items()}, [p.grad.clone() for p in model.parameters()]
    x = torch.randn(6, 4, dtype=torch.float64)
    copy = x.clone()
    certify(certificate, model, x, torch.zeros(6, dtype=torch.long))
    assert torch.equal(x, copy) and model.training is training
    assert all(torch.equal(state[k], v) and v.dtype == state[k].dtype for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) and p.requires_grad for p, g in zip(model.parameters(), grads, strict=True))


@table
def test_every_change_of_the_model_is_seen(certificate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(8, 3), Scale(1.0))
    x = torch.rand(7, 1, 4, 4)
    y = model(x).argmax(1)
    first = certify(certificate, model, x, y).radius
    assert torch.equal(certify(certificate, model, x, y).radius, first)
    changes = [
        lambda: model[0].weight.data.mul_(2),
        lambda: model[3].weight.data[0].mul_(1.01),
        lambda: model[3].bias.data[1].add_(0.01),
        lambda: setattr(model[1], "negative_slope", 3.0),
        lambda: setattr(model[0], "stride", (1, 2)) or setattr(model, "3", nn.Linear(4, 3)),
    ]
    for change in changes:
        change()
        y = model(x).argmax(1)
        now = certify(certificate, model, x, y).radius
        fresh = certify(certificate, nn.Sequential(*model, nn.Identity()), x, y).radius
        assert not torch.equal(now, first)
        torch.testing.assert_close(now, fresh, rtol=1e-9, atol=1e-12)
        first = now
    model[4].value = 0.0  # logits all equal
    assert (certify(certificate, model, x, y).radius == 0).all()
    model[3].register_forward_hook(lambda *_: None)
    with pytest.raises(Uncertifiable, match="hooks"):
        certify(certificate, model, x, y)


@table
def test_batches_make_no_difference(certificate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(600, 4), torch.randint(3, (600,))
    whole = certify(certificate, model, x, y).radius
    parts = torch.cat([certify(certificate, model, *part).radius for part in zip(x.split(7), y.split(7), strict=True)])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert len(certify(certificate, model, x[:0], y[:0]).radius) == 0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(certify(certificate, model, x, y).radius, whole, rtol=1e-9, atol=1e-12)


@table
def test_float32_logits_do_not_move_the_radius(certificate):
    """A float32 model is certified as the real network with its weights: the float64 twin has the same radii."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Sandwich(8, 8), nn.Linear(8, 3))
    x = torch.rand(50, 4)
    y = model(x).argmax(1)
    single = certify(certificate, model, x, y).radius
    assert torch.equal(single, certify(certificate, model.double(), x.double(), y).radius)


def _nan():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight.data[0, 0] = math.nan
    return model


@table
@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), r"1 \(Softmax\)"),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "training"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), "BatchNorm1d"),
        (_nan(), "NaN"),
        (nn.Sequential(nn.Linear(5, 3)), "expected 5 features"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))), "expected 3 logits"),
    ],
)
def test_what_is_not_proved_is_refused(certificate, model, message):
    with pytest.raises(Uncertifiable, match=message):
        certify(certificate, model, torch.rand(2, 4), torch.zeros(2, dtype=torch.long))


@table
@pytest.mark.parametrize(
    "x, y, message",
    [
        (torch.rand(2, 4), torch.tensor([0, 3]), "3 classes"),
        (torch.rand(2, 4), torch.tensor([-1, 0]), "3 classes"),
        (torch.rand(2, 4), torch.tensor([0]), "label"),
        (torch.rand(2, 4), torch.tensor([0.0, 1.0]), "integer label"),
    ],
)
def test_bad_input_is_one_clear_line(certificate, x, y, message):
    with pytest.raises((UserError, TypeCheckError), match=f"{message}|parameter y="):  # the latter where tests check types
        certify(certificate, nn.Linear(4, 3), x, y)


def test_a_single_logit_and_an_unknown_norm_are_refused():
    x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match="two classes"):
        MarginCertificate().radii(nn.Linear(4, 1), x, y)
    with pytest.raises((UserError, TypeCheckError), match="l1"):
        MarginCertificate().radii(nn.Linear(4, 3), x, y, "l1")
    with pytest.raises(ValueError, match="unknown key"):
        MarginCertificate(nrom="l2")


def test_label_and_claims():
    assert MarginCertificate().label == "margin" and MarginCertificate().arithmetic == "real"
    assert MarginCertificate(network="float32").arithmetic == "float32 on CPU"
    assert MarginCertificate.norms == {"l2", "linf"}
    assert "L_{yj}" in MarginCertificate.card()
