"""Arithmetic that is what it says: no reduced precision while anything is measured, and what float32 can err by."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from robustbench_rkhs import evaluate as evaluate_any
from robustbench_rkhs import verdicts
from robustbench_rkhs.bounds import steps
from robustbench_rkhs.certificates import MarginCertificate, Portfolio
from robustbench_rkhs.certificates.float32 import float32_error
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.layers import Normalize, Residual, Sandwich
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.precision import full_precision, reduced


def test_reduced_precision_is_off_inside_and_as_before_afterwards():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert any("medium" in words for words in reduced())
        with full_precision():
            assert reduced() == []
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_transforms_instead_of_sums_of_products_are_off_inside_and_on_again_afterwards():
    (before,) = torch.backends.nnpack.set_flags(True)
    try:
        assert "NNPACK convolutions" in reduced()
        with full_precision():
            assert reduced() == []
        assert "NNPACK convolutions" in reduced()
    finally:
        torch.backends.nnpack.set_flags(before)


def test_an_evaluation_under_autocast_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.autocast("cpu"), pytest.raises(UserError, match=r"autocast to torch.bfloat16 on cpu"):
        evaluate(model, (torch.rand(2, 1, 2, 2), torch.tensor([0, 1])), eps=(0.1,))


def networks():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    convolutional = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Residual(body, nn.Identity()), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    )
    deep = nn.Sequential(nn.Flatten(), *[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 5))
    large = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 5))
    with torch.no_grad():
        large[1].weight.mul_(1e3)
        large[3].weight.mul_(1e-4)
    return {"convolutional": convolutional, "deep": deep, "large": large}


@pytest.mark.parametrize("name", networks())
def test_float32_logits_stay_within_their_error_of_the_float64_ones_all_over_the_ball(name):
    model, radius = networks()[name], 0.7
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(8, 1, 8, 8, generator=generator)
    with torch.no_grad():
        error, slope, far = float32_error(steps(model, (1, 8, 8)), x.double())
        worst = torch.zeros(8, dtype=torch.float64)
        for _ in range(200):
            way = torch.randn(x.shape, generator=generator)
            near = (x + 0.999 * radius * way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).float()
            worst = torch.maximum(worst, (model(near).double() - model.double()(near.double())).norm(dim=1))
            model.float()
    assert (worst > 0).all() and (far > 1e6).all()
    assert (worst <= error + slope * radius).all()
    assert (error + slope * radius < 1e6 * worst).all()  # and the bound says something


def test_what_float32_cannot_hold_has_no_bound():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.fill_(3e38)
    error, _, _ = float32_error(steps(model, (1, 2, 2)), torch.ones(1, 1, 2, 2, dtype=torch.float64))
    assert error.isinf().all()


def test_a_layer_that_works_its_weights_out_in_float32_is_refused_by_name():
    model = nn.Sequential(nn.Flatten(), Sandwich(4, 3)).eval()
    with pytest.raises(Uncertifiable, match=r"1 .Sandwich.*float32 rounding"):
        float32_error(steps(model, (1, 2, 2)), torch.rand(1, 1, 2, 2, dtype=torch.float64))


def rounded_away(norm: str, network: nn.Module) -> Any:
    """An evaluation by the margin certificate, with the radii in real arithmetic of the same images."""
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y = network(x).argmax(1)
    settings: dict[str, Any] = {"eps": 0.01, "norm": norm, "attacks": "superdeepfool", "diagnostics": False}
    done = evaluate_any(network, (x, y), certificates="margin", **settings)
    return done, MarginCertificate(norm=norm).radii(network, x, y), x, y


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_radius_that_counts_is_less_by_the_error_of_float32_and_the_table_says_so(norm):
    network = nn.Sequential(Normalize((0.3,), (0.2,)), nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    done, real, _, _ = rounded_away(norm, network)
    rows = done.table[done.table["method"] == "margin"].sort_values("index")
    radius = rows["radius"].to_numpy()
    assert (
        (rows["arithmetic"] == "float32 on CPU").all()
        and (radius < real.numpy()).all()
        and (radius > 0.99 * real.numpy() - 1e-4).all()
    )
    assert (verdicts.images(done)["certified"].to_numpy() == radius).all()
    assert set(verdicts.images(done)["arithmetic"]) == {"float32 on CPU"}
    assert verdicts.by_certificate(done)["arithmetic"].tolist() == ["float32 on CPU"]
    assert (done.certified_accuracy(float(radius.max())) > 0) and done.certified_accuracy(float(real.max())) == 0


@pytest.mark.parametrize("name", ["margin", "ibp", "crown", "alpha_crown", "sdp_crown"])
def test_a_float32_network_that_errs_just_inside_a_real_radius_contradicts_no_certificate_that_counts(name):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        network[1].bias += 3e4  # both logits far from 0, where float32 rounds their difference
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y = network(x).argmax(1)
    (certificate,) = TypeAdapter(Portfolio).validate_python([{"name": name, "norm": "l2", "network": "evaluated"}])
    found = certificate(network, x, y, torch.arange(12), ())
    assert set([found.arithmetic] if isinstance(found.arithmetic, str) else found.arithmetic) == {"float32 on CPU"}
    real, proved = MarginCertificate().radii(network, x, y), found.radius.numpy()
    normal = (network[1].weight[1 - y] - network[1].weight[y]).detach()
    normal = normal / normal.norm(dim=1, keepdim=True)
    closest = 0.0
    for share in torch.linspace(0.5, 1.0, 200):
        inside = (x.flatten(1) + (share * real)[:, None] * normal).float()
        distance = (inside.double() - x.flatten(1).double()).norm(dim=1).numpy()
        wrong = (network(inside).argmax(1) != y).numpy()
        assert not (wrong & (distance <= proved)).any()
        closest = max(closest, float((wrong & (distance < real.numpy() * (1 - 1e-7))).sum()))
    assert closest > 0, "float32 contradicts the radius in real arithmetic"


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", ["crown", "alpha_crown", "sdp_crown"])
def test_linear_bounds_prove_a_margin_above_what_float32_errs_by(name, norm):
    """Of an affine network the bound is exact, so that the radius says what was taken off: 2 (e + s r) of the margin."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    y = network(x).argmax(1)
    error, slope, _ = float32_error(steps(network, (1, 4, 4)), x.double())
    weight, logits = network[1].weight.detach().double(), network.double()(x.double()).detach()
    network.float()
    gaps, away = logits.gather(1, y[:, None]) - logits, weight[y][:, None] - weight
    wide = 1.0 if norm == "l2" else 4.0
    lengths = away.norm(dim=2) if norm == "l2" else away.abs().sum(2)
    least = ((gaps - 2 * error[:, None]) / (lengths + 2 * slope * wide)).scatter(1, y[:, None], torch.inf).amin(1)
    for share, proved in ((1 - 1e-6, True), (1 + 1e-6, False)):
        for i in range(6):
            eps = float(least[i]) * share
            fields = {"name": name, "norm": norm, "network": "evaluated", "search": False}
            (certificate,) = TypeAdapter(Portfolio).validate_python([fields])
            radius = certificate(network, x[i : i + 1], y[i : i + 1], torch.tensor([i]), (eps,)).radius
            assert (float(radius) >= eps) is proved


@pytest.mark.parametrize("kind", ["float64", "sandwich", "log-softmax", "typed"])
def test_other_radii_stay_in_real_arithmetic(kind):
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    network = nn.Sequential(nn.Flatten(), Sandwich(64, 4) if kind == "sandwich" else nn.Linear(64, 4)).eval()
    network = nn.Sequential(*network, nn.LogSoftmax(1)).eval() if kind == "log-softmax" else network  # it rounds margins, too
    network, x = (network.double(), x.double()) if kind == "float64" else (network, x)
    certificate = MarginCertificate(network="real") if kind == "typed" else "margin"
    settings: dict[str, Any] = {"eps": 0.01, "effort": "quick", "diagnostics": False}
    done = evaluate_any(network, (x, network(x).argmax(1)), certificates=certificate, **settings)
    assert set(done.table.loc[done.table["method"] == "margin", "arithmetic"]) == {"real"}
