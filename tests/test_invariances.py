"""What changes no prediction hides no adversarial example: over all attacks of the engine, and the whole protocol."""

import copy

import pytest
import torch
from oracles import affine
from torch import nn

from robustbench_rkhs.attacks.alma import ALMA
from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.efforts import protocol_of
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.ensemble import Ensemble
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.hidden_logits import Reader
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.attacks.square.attack import Square
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool
from robustbench_rkhs.evaluation.diagnostics import diagnose
from robustbench_rkhs.testing.invariances import CHANGES, Changed, changed, check_invariance

BATTERY = (APGD(loss="targeted", steps=20), FAB(steps=10, targets=3, parallel=3))
TABLE = {  # by how much each may miss the exact distance of an affine model
    "superdeepfool": (SuperDeepFool(), 1.01),
    "ddn": (DDN(), 1.01),
    "fmn": (FMN(), 1.01),
    "alma": (ALMA(steps=50), 1.01),
    "fab": (FAB(steps=20), 1.05),
    "fab targeted": (FAB(steps=20, targets=9), 1.05),
    "pgd": (PGD(), 1.05),
    "apgd": (APGD(steps=20, loss="targeted"), 1.05),
    "apgd cross-entropy": (APGD(steps=20), 1.6),
    "square": (Square(queries=400), 3.0),
    "ensemble": (Ensemble(version="custom", attacks=BATTERY), 1.05),
    "ensemble adaptive": (Ensemble(version="custom", attacks=BATTERY, effort="adaptive"), 1.05),
}


def pairs():
    """Every attack with every change, in turn in one norm and the other; DDN has one."""
    for place, name in enumerate(TABLE):
        for at, change in enumerate(CHANGES):
            yield name, change, "l2" if name == "ddn" or (place + at) % 2 else "linf"


@pytest.mark.parametrize(("name", "change", "norm"), pairs())
def test_no_change_hides_anything_from_an_attack(name, change, norm):
    attack, factor = TABLE[name]
    check_invariance(attack, change, norm, factor)


def test_every_change_is_met_in_both_norms():
    assert {(change, norm) for _, change, norm in pairs()} == {(change, norm) for change in CHANGES for norm in ("l2", "linf")}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_hides_anything_from_the_protocol(change, norm):
    oracle = changed(affine(12, (1, 4, 4), scale=1e5, seed=7, images=5), change)
    near, keys = 1.005 * oracle.distance(norm), torch.arange(len(oracle.x))
    for effort in ("quick", "standard"):
        fell = torch.zeros_like(oracle.y, dtype=torch.bool)
        for attack in protocol_of(effort, norm):
            assert isinstance(attack, EngineAttack)
            found = attack.aimed(norm=norm, eps=None, seed=0)(oracle.model, oracle.x, oracle.y, keys, near)
            fell |= oracle.model(found.images).argmax(1) != oracle.y
        assert fell.all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_image_stands_under_a_bias_of_1e6_that_the_plain_table_breaks(norm):
    """At 1e6 float32 rounds logits of usual size to sixteenths, so each adversarial image is asked again of the shifted model."""
    oracle = affine(6, (1, 4, 4), scale=2.0, seed=3, images=12)
    shifted = copy.deepcopy(oracle.model)
    with torch.no_grad():
        shifted[-1].bias += 1e6
    keys, eps = torch.arange(12), oracle.distance(norm).median().item()
    right = shifted(oracle.x).argmax(1) == oracle.y
    fooled, fell = torch.zeros_like(right), torch.zeros_like(right)
    for attack in protocol_of("quick", norm):
        aimed = attack.aimed(norm=norm, eps=eps, seed=0)
        for model, into in ((oracle.model, fooled), (shifted, fell)):
            images = aimed(model, oracle.x, oracle.y, keys).images
            into |= (shifted(images).argmax(1) != oracle.y) & (distances(oracle.x, images, norm) <= eps)
    assert fooled.any() and right.any() and (fell | ~fooled)[right].all()


def test_a_shift_that_float32_cannot_resolve_is_marked():
    """Beyond 1e6 float32 itself loses margins: what stands there is marked."""
    oracle = affine(10, (1, 4, 4), scale=10.0, images=24)
    model = Changed(oracle.model, lambda logits, x: logits + 1e8).eval()
    y = model(oracle.x).argmax(1)
    one = diagnose(model, oracle.x, y, torch.arange(24), norm="l2", box="unit", eps=0.1, checks=("softmaxed",))[0]
    assert one.tripped


def behind(change, logits):
    """Whether the logits behind a changed output are looked through, and what they are."""
    reader = Reader(Changed(nn.Identity(), change))
    return reader(logits).logits, reader.hides


Z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda z, x: z.tanh(),
        lambda z, x: (50 * z - 3).sigmoid(),
        lambda z, x: (z / 1e-6).softmax(1),
        lambda z, x: torch.log_softmax(z, dim=-1) + 5e6,
        lambda z, x: z - z.logsumexp(1, keepdim=True),
        lambda z, x: z / z.norm(dim=1, keepdim=True),
        lambda z, x: nn.Hardtanh()(z).clamp(max=0.5).round(),
        lambda z, x: 2 * torch.full((5,), 7.0) + z,
        lambda z, x: z.double().view(6, 5, 1).atan().flatten(1).float(),
    ],
)
def test_operations_that_keep_the_order_are_looked_through(change):
    found, hides = behind(change, Z.clone().requires_grad_())
    assert hides and torch.equal(found, Z)


@pytest.mark.parametrize(
    "change",
    [
        lambda z, x: -z,
        lambda z, x: -2 * z,
        lambda z, x: z + torch.arange(5.0),
        lambda z, x: z * torch.arange(1.0, 6.0),
        lambda z, x: 3 - z,
        lambda z, x: z.softmax(0),
        lambda z, x: z.abs(),
        lambda z, x: z.flip(1),
        lambda z, x: torch.tanh(z).mul_(torch.arange(5.0)),
        lambda z, x: torch.clamp(z, max=torch.arange(5.0)),
    ],
)
def test_operations_that_may_change_the_order_are_not(change):
    found, _ = behind(change, Z.clone())
    assert torch.equal(found, change(Z.clone(), None))


def test_a_shift_in_the_last_layer_is_taken_out():
    layer = nn.Linear(8, 5)
    plain, x = copy.deepcopy(layer), torch.rand(6, 8)
    with torch.no_grad():
        layer.bias.add_(1e4)
        layer.weight.add_(1e4 * torch.rand(1, 8))
        plain.load_state_dict(
            {"weight": layer.weight.double().sub(layer.weight.double().mean(0)).float(), "bias": layer.bias - 1e4}
        )
    reader = Reader(layer)
    found = reader(x).logits
    gaps, wanted = found - found[:, :1], plain(x) - plain(x)[:, :1]
    assert reader.hides and torch.allclose(gaps, wanted, atol=1e-2)
    usual = Reader(nn.Linear(8, 5))
    assert usual(x).logits is not None and usual.hides is False


def test_a_last_operation_inside_a_function_of_its_own_keeps_its_gradient():
    """What is seen inside an autograd.Function carries no gradient: the output is attacked instead."""

    class Last(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            out = torch.tanh(x @ weight)
            ctx.save_for_backward(out, weight)
            return out

        @staticmethod
        def backward(ctx, slope):
            out, weight = ctx.saved_tensors
            return (slope * (1 - out.square())) @ weight.T, None

    class Net(torch.nn.Module):
        def forward(self, x):
            return Last.apply(x.flatten(1), torch.eye(4)[:, :3])

    x = torch.tensor([[0.5, 0.4, 0.1, 0.2], [0.1, 0.6, 0.4, 0.3]]).view(2, 1, 2, 2)
    y = x.flatten(1)[:, :3].argmax(1)
    moved = PGD(eps=0.5, steps=20)(Net(), x, y, torch.arange(2)).images
    assert (Net()(moved).argmax(1) != y).all()
