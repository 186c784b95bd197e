"""Every attack against closed forms: near the optimum of affine models, inside ball and box, and nothing left disturbed."""

import copy
import logging
import random
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracles import Affine, affine, bent, constant_model, masking_model
from pydantic import ValidationError
from torch import nn

from robustbench_rkhs.attacks.alma import ALMA
from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.ball import distances, pull_inside
from robustbench_rkhs.attacks.base import Attack, Attacked
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.ensemble import Ensemble
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.foolbox import FoolboxAttack
from robustbench_rkhs.attacks.library_model import confined_randomness, counting
from robustbench_rkhs.attacks.pgd import PGD, PublishedPGD
from robustbench_rkhs.attacks.square.attack import Square
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool
from robustbench_rkhs.nodes.node import UserError


class Row(NamedTuple):
    """An attack and its stated factor: at most so many times the exact distance, on every image of the affine oracle."""

    attack: Attack
    l2: float | None = None
    linf: float | None = None


BATTERY = (APGD(steps=40), APGD(loss="targeted", steps=40), FAB(steps=15, targets=3, parallel=3), Square(queries=60))
"""An ensemble in small."""
TABLE = {  # a new attack adds a line here
    "pgd": Row(PGD(), 1.05, 1.05),
    "pgd dlr": Row(PGD(loss="dlr"), 1.05, 1.05),
    "pgd restarts": Row(PGD(start="random", restarts=3), 1.05, 1.05),
    "superdeepfool": Row(SuperDeepFool(), 1.01, 1.01),
    "ddn": Row(DDN(), 1.01),
    "ddn cross-entropy": Row(DDN(loss="cross_entropy", steps=30), 1.01),
    "fmn": Row(FMN(), 1.01, 1.01),
    "alma": Row(ALMA(steps=50), 1.01, 1.01),
    "deepfool": Row(FoolboxAttack(attack="deepfool"), 1.05, 1.25),
    "foolbox ddn": Row(FoolboxAttack(attack="ddn", steps=300), 1.3),
    "foolbox fmn": Row(FoolboxAttack(attack="fmn", steps=200, step_size=0.02), 4.0, 1.5),
    "cw": Row(FoolboxAttack(attack="cw", steps=150), 2.0),
    "brendel_bethge": Row(FoolboxAttack(attack="brendel_bethge", steps=60), 4.0),
    "ensemble": Row(Ensemble(version="custom", attacks=BATTERY), 1.05, 1.05),
    "ensemble adaptive": Row(Ensemble(version="custom", attacks=BATTERY, effort="adaptive"), 1.05, 1.05),
    "hop_skip_jump": Row(FoolboxAttack(attack="hop_skip_jump", steps=5), 2.0, 2.0),
    "square": Row(Square(queries=400), 3.0, 1.5),
    "apgd-t": Row(AutoAttack(version="custom", attacks=("apgd-t",)), 1.05, 1.05),
    "fab-t": Row(AutoAttack(version="custom", attacks=("fab-t",)), 1.05, 1.05),
    "fab": Row(AutoAttack(version="custom", attacks=("fab",)), 1.05, 1.05),
    "our fab": Row(FAB(steps=20), 1.05, 1.05),
    "our fab targeted": Row(FAB(targets=9, steps=20), 1.05, 1.05),
    "our fab relook": Row(FAB(targets=3, restarts=2, steps=15, relook=True), 1.05, 1.05),
    "apgd-dlr": Row(AutoAttack(version="custom", attacks=("apgd-dlr",)), 2.5, 2.5),
    "apgd": Row(APGD(steps=20), 1.6, 1.6),
    "apgd dlr": Row(APGD(steps=20, loss="dlr", restarts=3), 1.6, 1.6),
    "apgd margin": Row(APGD(steps=20, loss="margin", restarts=3), 1.6, 1.6),
    "apgd targeted": Row(APGD(steps=20, loss="targeted"), 1.01, 1.01),
    "apgd-ce": Row(AutoAttack(version="custom", attacks=("apgd-ce",), rescale=True), 1.6, 1.6),
}
QUICK = {name: row for name, row in TABLE.items() if name != "brendel_bethge"}  # it compiles for 20 s: one test below
PAIRS = [(name, norm) for name, row in QUICK.items() for norm in ("l2", "linf") if getattr(row, norm)]
SHAPES = [(1, 4, 4), (3, 8, 8), (20,)]


def run(attack: Attack, oracle: Affine, model: nn.Module | None = None) -> Attacked:
    return attack(model or oracle.model, oracle.x, oracle.y, torch.arange(len(oracle.x)))


def fell(oracle: Affine, attacked: Attacked, attack: Attack, model: nn.Module | None = None) -> torch.Tensor:
    """Counted as the harness does: pulled inside, then asked again."""
    inside = pull_inside(oracle.x, attacked.images, attack.norm, attack.eps, attack.box)
    with torch.no_grad():
        return (model or oracle.model)(inside).argmax(1) != oracle.y


def holds(row: Row, norm: str, oracle: Affine) -> None:
    """Within the stated factor of the exact distance, never under it, inside ball and box, `x` and passes right."""
    factor, exact, x = getattr(row, norm), oracle.distance(norm), oracle.x.clone()
    eps = factor * exact.median().item()
    attack = row.attack.aimed(norm=norm, eps=eps, seed=0)
    attacked = run(attack, oracle)
    found = distances(oracle.x, attacked.images, norm)
    broken = fell(oracle, attacked, attack)
    assert torch.equal(oracle.x, x) and attacked.images.shape == x.shape and attacked.images.dtype == x.dtype
    assert attacked.images.isfinite().all() and attacked.images.min() >= -1e-6 and attacked.images.max() <= 1 + 1e-6
    if attack.minimal_norm:
        assert broken.all(), f"missed {int((~broken).sum())} of {len(broken)}"
        assert (found / exact).max() <= factor
        assert (found / exact).min() >= 1 - 1e-4
    else:
        assert found.max() <= eps + 1e-6
        assert broken[exact <= eps / factor].all() and not broken[exact > eps * (1 + 1e-4)].any()
    assert (attacked.forwards > 0).all() and ((attacked.backwards > 0).all() or isinstance(attack, Square))


@pytest.mark.parametrize(("name", "norm"), PAIRS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_attack_is_within_its_factor_of_the_closed_form(name, norm, classes):
    for seed, shape in enumerate(SHAPES):
        holds(QUICK[name], norm, affine(classes, shape, seed=seed, images=8))


@pytest.mark.parametrize(("name", "norm"), PAIRS)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_logits_hides_nothing(name, norm, scale):
    assert QUICK[name].attack.scale_invariant
    holds(QUICK[name], norm, affine(4, (1, 4, 4), scale=scale, seed=3, images=12))


def test_what_is_not_scale_invariant_says_so():
    assert not PGD(loss="cross_entropy").scale_invariant
    assert not PublishedPGD().scale_invariant
    assert not FoolboxAttack(attack="ddn", rescale=False).scale_invariant
    assert not AutoAttack(version="custom", attacks=("apgd-ce",)).scale_invariant
    assert AutoAttack().scale_invariant


@pytest.mark.parametrize(
    "name",
    ["pgd", "superdeepfool", "deepfool", "ddn", "foolbox ddn", "cw", "fmn", "foolbox fmn", "our fab", "our fab relook", "alma"],
)
def test_without_a_box_images_may_leave_it(name):
    oracle = affine(3, (1, 4, 4), images=8)
    shifted = Affine(nn.Sequential(Shift(0.45), *oracle.model), oracle.x - 0.45, oracle.y, oracle.l2, oracle.linf)
    attack = QUICK[name].attack.model_copy(update={"box": "none"})
    attack = attack.aimed(norm="l2", eps=1.05 * oracle.l2.max().item(), seed=0)
    attacked = run(attack, shifted)
    assert fell(shifted, attacked, attack).all() and attacked.images.min() < 0


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("name", QUICK)
def test_a_zero_gradient_gives_finite_images_that_break_nothing(name, attached):
    x = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    oracle = Affine(constant_model(4, answer=1, attached=attached), x, torch.ones(3, dtype=torch.int64), x, x)
    for norm in ("l2", "linf"):
        if getattr(QUICK[name], norm):
            attack = QUICK[name].attack.aimed(norm=norm, eps=0.5, seed=0)
            attacked = run(attack, oracle)
            assert attacked.images.isfinite().all() and not fell(oracle, attacked, attack).any()


class Sick(nn.Module):
    """Right on the clean images, NaN once they are left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        good = torch.stack([x.flatten(1).sum(1) * 0 + 1, -x.flatten(1).sum(1)], 1)
        return torch.where(((x - 0.5).flatten(1).abs().amax(1) < 1e-3)[:, None], good, good * torch.nan)


@pytest.mark.parametrize("name", QUICK)
def test_a_model_that_turns_nan_does_not_make_images_nan(name):
    x = torch.full((2, 1, 5, 5), 0.5)
    oracle = Affine(Sick(), x, torch.zeros(2, dtype=torch.int64), x, x)
    assert run(QUICK[name].attack.aimed(norm="l2", eps=0.5, seed=0), oracle).images.isfinite().all()


@pytest.mark.parametrize("name", QUICK)
def test_the_model_is_left_as_it_was(name):
    """Odd modes, odd requires_grad and a gradient already there: all as before, buffers and parameters too."""
    model = bent(classes=3).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = copy.deepcopy(model).eval()(x).argmax(1)
    before, grads = copy.deepcopy(model.state_dict()), [p.grad for p in model.parameters()]
    modes, wanted = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    TABLE[name].attack.aimed(norm="l2", eps=0.05, seed=0)(model, x, y, torch.arange(3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight))


@pytest.mark.parametrize("name", QUICK)
def test_empty_block_and_misclassified_images(name):
    oracle, attack = affine(3, (1, 4, 4), images=4), QUICK[name].attack.aimed(norm="l2", eps=0.01, seed=0)
    nothing = attack(oracle.model, oracle.x[:0], oracle.y[:0], torch.arange(0))
    assert nothing.images.shape == (0, 1, 4, 4) and nothing.forwards.shape == nothing.backwards.shape == (0,)
    wrong = (oracle.y + 1) % 3
    attacked = attack(oracle.model, oracle.x, wrong, torch.arange(4))
    assert torch.equal(attacked.images, oracle.x)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if not row.attack.minimal_norm])
def test_budget(name):
    oracle = affine(3, (1, 4, 4), images=4)
    zero = TABLE[name].attack.aimed(norm="l2", eps=0.0, seed=0)
    assert torch.equal(run(zero, oracle).images, oracle.x)
    with pytest.raises(UserError, match="needs an eps"):
        run(TABLE[name].attack, oracle)
    with pytest.raises(UserError, match="must not be negative"):
        run(TABLE[name].attack.model_copy(update={"eps": -1.0}), oracle)


@pytest.mark.parametrize("name", [name for name in QUICK if name != "square"])  # a checkerboard: tests/test_square.py, in linf
def test_the_margin_30_classifier_falls_to_every_attack(name):
    oracle, row = masking_model(images=4), QUICK[name]
    attack = row.attack.aimed(norm="l2", eps=1.0, seed=0)
    attacked = run(attack, oracle)
    assert (fell(oracle, attacked, attack) & (distances(oracle.x, attacked.images, "l2") <= 1 + 1e-6)).all()


def test_the_margin_30_classifier_masks_the_published_preset():
    oracle, attack = masking_model(), PublishedPGD(eps=1.0)
    assert not fell(oracle, run(attack, oracle), attack).any()
    gap = oracle.model(oracle.x).sort(1).values
    torch.testing.assert_close(gap[:, -1] - gap[:, -2], torch.full((16,), 30.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_does_not_depend_on_the_block(norm):
    """Keys count the draws: an image alone gets the verdict it gets in company, images equal to rounding."""
    oracle = affine(5, (1, 4, 4), images=10)
    attack = PGD(norm=norm, eps=oracle.distance(norm).median().item(), start="random", restarts=2, steps=10)
    together = run(attack, oracle)
    broken = fell(oracle, together, attack)
    for i in (0, 3, 9):
        alone = attack(oracle.model, oracle.x[[i]], oracle.y[[i]], torch.tensor([i]))
        torch.testing.assert_close(alone.images, together.images[[i]], atol=1e-5, rtol=0)
        inside = pull_inside(oracle.x[[i]], alone.images, norm, attack.eps, "unit")
        assert (oracle.model(inside).argmax(1) != oracle.y[[i]]) == broken[i]
        assert alone.forwards == together.forwards[i]


@pytest.mark.parametrize("name", ["foolbox ddn", "apgd-t"])
def test_library_attacks_repeat_themselves_and_confine_their_draws(name):
    oracle = affine(4, (1, 4, 4), images=6)
    attack = TABLE[name].attack.aimed(norm="l2", eps=oracle.l2.median().item(), seed=5)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = run(attack, oracle)
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()
    assert random.random() == expected[2]
    assert torch.equal(first.images, run(attack, oracle).images)


def test_randomness_is_confined_when_the_attack_fails():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.raises(RuntimeError), confined_randomness(7):
        torch.rand(1), np.random.rand(), random.random()
        raise RuntimeError
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[1]).all()


# Counting


def test_passes_are_counted_by_image():
    model, x = bent(3).train(), torch.rand(5, 1, 8, 8)
    with counting(model, x) as counted:
        assert not model.training
        counted(x)
        flat = torch.nn.functional.pad(x.flatten(1), (0, 17)).requires_grad_()
        logits = counted(flat)
        torch.autograd.grad(logits.sum(), flat, retain_graph=True)
        logits[:, 0].sum().backward()
        assert (counted.forwards, counted.backwards) == (10, 10)
        torch.testing.assert_close(logits, counted(x))
        assert flat.grad[:, 64:].eq(0).all()  # what pads an image has no influence
        forwards, backwards = counted.spent(torch.tensor([True, False, True, True, False]))
    assert forwards.tolist() == [5, 0, 5, 5, 0] and backwards.tolist() == [4, 0, 3, 3, 0]
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_buffer_written_in_a_forward_pass_is_given_back():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += len(x)
            return x.flatten(1)

    model = Writes()
    with pytest.raises(RuntimeError), counting(model, torch.rand(2, 3)) as counted:
        counted(torch.rand(2, 3))
        raise RuntimeError
    assert model.seen == 0


# Foolbox


def test_brendel_bethge():
    """One test, as it compiles for 20 s: its factor, an image that has no start, float64, and a constant model."""
    for seed, (classes, shape) in enumerate([(2, (1, 4, 4)), (3, (20,)), (10, (1, 6, 6))]):
        holds(TABLE["brendel_bethge"], "l2", affine(classes, shape, seed=seed, images=6))
    attack, oracle = TABLE["brendel_bethge"].attack, affine(3, (1, 4, 4), images=6)
    double = Affine(copy.deepcopy(oracle.model).double(), oracle.x.double(), *oracle[2:])
    assert run(attack, double).images.dtype == torch.float64
    for attached in (True, False):
        attacked = run(attack, oracle, constant_model(3, answer=int(oracle.y[0]), attached=attached))
        assert torch.equal(attacked.images, oracle.x)
    masked = masking_model(images=3)
    attacked = run(attack, masked)
    assert fell(masked, attacked, attack).all() and distances(masked.x, attacked.images, "l2").max() < 1


@pytest.mark.parametrize("method", ["ddn", "cw"])
def test_what_foolbox_lacks_is_said(method):
    with pytest.raises(UserError, match=rf"no {method} in linf; it has deepfool l2, deepfool linf"):
        run(FoolboxAttack(attack=method, norm="linf"), affine(images=2))


def test_foolbox_refuses_what_would_be_ignored():
    with pytest.raises(UserError, match="has no step_size"):
        run(FoolboxAttack(step_size=0.1), affine(images=2))
    with pytest.raises(ValidationError, match="brendel_bethge"):
        FoolboxAttack(attack="bb")
    oracle = affine(images=2)
    with pytest.raises(UserError, match=r"expects images in \[0, 1\], found -"):
        FoolboxAttack()(oracle.model, oracle.x - 1, oracle.y, torch.arange(2))


def test_hop_skip_jump_sees_decisions_alone_and_no_block_weakens_it():
    """24 images at once end as near as four do, and answers without a margin are enough."""
    oracle, attack = affine(3, (1, 4, 4), images=24), FoolboxAttack(attack="hop_skip_jump", steps=5)
    attacked = run(attack, oracle)

    class Decisions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(oracle.model(x).argmax(1), 3).float() + 0 * x.flatten(1).sum(1, keepdim=True)

    for found in (attacked, run(attack, oracle, Decisions())):
        assert (distances(oracle.x, found.images, "l2") / oracle.l2).median() <= 1.3


def test_hop_skip_jump_refuses_no_box_and_models_that_draw():
    class Drawing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(len(x), 3)
            return torch.where(((x - oracle.x[:1]).flatten(1).abs().amax(1) == 0)[:, None], torch.tensor([5.0, 0.0, 0.0]), drawn)

    oracle = affine(3, (1, 4, 4), images=1)
    with pytest.raises(UserError, match="expects box 'unit'"):
        run(FoolboxAttack(attack="hop_skip_jump", box="none"), oracle)
    with pytest.raises(UserError, match="answers alike twice"):
        FoolboxAttack(attack="hop_skip_jump", steps=5)(Drawing(), oracle.x, torch.zeros(1, dtype=torch.int64), torch.arange(1))


def test_minimal_norm_attacks_take_no_budget():
    assert FoolboxAttack(attack="cw").aimed(norm="l2", eps=0.5, seed=1).eps is None
    assert FoolboxAttack(attack="cw").label == "foolbox:cw"


# AutoAttack


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_autoattack_versions(version):
    """All that the exact distance says can fall falls, at two classes (no DLR loss) as a flat vector (no picture)."""
    oracle = affine(2, (20,), images=3)
    attack = AutoAttack(version=version, eps=1.05 * oracle.l2.max().item())
    assert fell(oracle, run(attack, oracle), attack).all()
    assert attack.label == ("autoattack" if version == "standard" else f"autoattack:{version}")


def test_autoattack_standard_on_what_stands():
    """The whole battery runs, and cannot break what lies farther than eps; float64 models and images keep their type."""
    oracle = affine(3, (1, 4, 4), images=2)
    double = Affine(copy.deepcopy(oracle.model).double(), oracle.x.double(), *oracle[2:])
    attack = AutoAttack(eps=0.9 * oracle.l2.min().item())
    attacked = run(attack, double)
    assert torch.equal(attacked.images, double.x)
    assert attacked.forwards.min() > 5000 and attacked.backwards.min() > 200


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", [(1, 12, 12), (2, 5, 7), (3,), (1, 2, 3), (6, 4), (1, 8, 8)])
def test_square_takes_any_shape(norm, shape):
    oracle = affine(2, shape, images=4)
    attack = AutoAttack(version="custom", attacks=("square",), norm=norm, eps=0.8 if norm == "l2" else 0.3)
    attacked = run(attack, oracle)
    assert fell(oracle, attacked, attack).all() and (attacked.backwards == 0).all()
    assert distances(oracle.x, attacked.images, norm).max() <= attack.eps + 1e-6


@pytest.mark.parametrize("part", ["apgd-t", "fab-t", "apgd-dlr", "fab"])
def test_one_image_of_one_class(part):
    """Nothing to change to, and the batch dimension the library likes to squeeze away."""
    x = torch.rand(1, 1, 4, 4)
    attack = AutoAttack(version="custom", attacks=(part,), eps=1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    assert torch.equal(attack(model, x, torch.zeros(1, dtype=torch.int64), torch.arange(1)).images, x)
    holds(Row(attack, 1.05), "l2", affine(5, (1, 4, 4), images=1))


def test_autoattack_is_silent_and_gives_tracing_back(caplog, capfd):
    oracle = affine(2, (1, 4, 4), images=2)
    seen = []

    def trace(frame: object, event: str, argument: object) -> Callable[..., object] | None:
        seen.append(event)
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with caplog.at_level(logging.DEBUG):
            run(AutoAttack(version="custom", attacks=("apgd-t",), eps=0.01), oracle)
        kept = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is trace and not caplog.records and capfd.readouterr() == ("", "")
    assert not logging.getLogger("auto-attack").disabled


def test_autoattack_refusals():
    oracle = affine(3, images=2)
    with pytest.raises(UserError, match="only box 'unit'"):
        run(AutoAttack(eps=0.1, box="none"), oracle)
    with pytest.raises(UserError, match=r"expects images in \[0, 1\]"):
        AutoAttack(eps=0.1)(oracle.model, oracle.x + 1, oracle.y, torch.arange(2))
    with pytest.raises(ValidationError, match="did you mean 'apgd-ce'"):
        AutoAttack(version="custom", attacks=("apgd_ce",))
    with pytest.raises(ValidationError, match="attacks go with version custom"):
        AutoAttack(attacks=("apgd-ce",))
    with pytest.raises(ValidationError, match="attacks go with version custom"):
        AutoAttack(version="custom")
