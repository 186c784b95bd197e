"""Every attack against closed forms: near the optimum of affine models, inside ball and box, and nothing left disturbed."""

import copy
import importlib.util
import logging
import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracles import Affine, affine, bent, constant_model, masking_model
from pydantic import ValidationError
from torch import nn

from robustbench_rkhs.attacks import AnyAttack
from robustbench_rkhs.attacks.alma import ALMA
from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.ball import distances, pull_inside
from robustbench_rkhs.attacks.base import Attack
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
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.testing import check_attack
from robustbench_rkhs.testing.attacks import broken, leaves_the_model, near_the_optimum, run


class Row(NamedTuple):
    """An attack and its stated factor: at most so many times the exact distance, on every image of the affine oracle."""

    attack: Attack
    l2: float | None = None
    linf: float | None = None


BATTERY = (APGD(steps=20), APGD(loss="targeted", steps=20), FAB(steps=10, targets=3, parallel=3), Square(queries=40))
"""An ensemble in small."""
TABLE = {  # a new attack adds a line here
    "pgd": Row(PGD(), 1.05, 1.05),
    "pgd dlr": Row(PGD(loss="dlr"), 1.05, 1.05),
    "pgd restarts": Row(PGD(start="random", restarts=3), 1.05, 1.05),
    "published": Row(PublishedPGD(box="unit"), 1.6),
    "superdeepfool": Row(SuperDeepFool(), 1.01, 1.01),
    "ddn": Row(DDN(), 1.01),
    "ddn cross-entropy": Row(DDN(loss="cross_entropy", steps=30), 1.01),
    "fmn": Row(FMN(), 1.01, 1.01),
    "alma": Row(ALMA(steps=50), 1.01, 1.01),
    "ensemble": Row(Ensemble(version="custom", attacks=BATTERY), 1.05, 1.05),
    "ensemble adaptive": Row(Ensemble(version="custom", attacks=BATTERY, effort="adaptive"), 1.05, 1.05),
    "square": Row(Square(queries=400), 3.0, 1.5),
    "our fab": Row(FAB(steps=20), 1.05, 1.05),
    "our fab targeted": Row(FAB(targets=9, steps=20), 1.05, 1.05),
    "our fab relook": Row(FAB(targets=3, restarts=2, steps=15, relook=True), 1.05, 1.05),
    "apgd": Row(APGD(steps=20), 1.6, 1.6),
    "apgd dlr": Row(APGD(steps=20, loss="dlr", restarts=3), 1.6, 1.6),
    "apgd margin": Row(APGD(steps=20, loss="margin", restarts=3), 1.6, 1.6),
    "apgd targeted": Row(APGD(steps=20, loss="targeted"), 1.01, 1.01),
}
LIBRARIES = {  # attacks that are not ours, one norm each but for those whose norms are classes apart
    "deepfool": Row(FoolboxAttack(attack="deepfool"), 1.05, 1.25),
    "foolbox ddn": Row(FoolboxAttack(attack="ddn", steps=120), 1.3),
    "foolbox fmn": Row(FoolboxAttack(attack="fmn", steps=120, step_size=0.02), None, 1.5),
    "cw": Row(FoolboxAttack(attack="cw", steps=60), 2.0),
    "brendel_bethge": Row(FoolboxAttack(attack="brendel_bethge", steps=60), 4.0),
    "hop_skip_jump": Row(FoolboxAttack(attack="hop_skip_jump", steps=5), 2.0, 2.0),
    "apgd-t": Row(AutoAttack(version="custom", attacks=("apgd-t",)), 1.05),
    "fab-t": Row(AutoAttack(version="custom", attacks=("fab-t",)), None, 1.05),
    "fab": Row(AutoAttack(version="custom", attacks=("fab",)), 1.05),
    "apgd-dlr": Row(AutoAttack(version="custom", attacks=("apgd-dlr",)), 2.5),
    "apgd-ce": Row(AutoAttack(version="custom", attacks=("apgd-ce",), rescale=True), None, 1.6),
}
EVERY = TABLE | LIBRARIES
FEWER: dict[str, dict[str, int]] = {  # of our own, in the public checks: enough to be within the same factor
    **{name: {"steps": 8} for name in ("pgd", "pgd dlr", "pgd restarts", "our fab", "our fab targeted", "our fab relook")},
    **{name: {"steps": 12} for name in ("ddn", "ddn cross-entropy", "fmn")},
    "alma": {"steps": 20},
    "square": {"queries": 200},
}


def pairs(table: dict[str, Row]) -> list[tuple[str, str]]:
    return [(name, norm) for name, row in table.items() for norm in ("l2", "linf") if getattr(row, norm)]


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    """Foolbox's Brendel-Bethge as plain Python: compiling it by numba takes 40 s, and its steps are the same."""
    foolbox = pytest.importorskip("foolbox")

    def plain(spec: object) -> Callable[[type], type]:
        def kept(kind: Any) -> type:
            kind.class_type, kind._ctor = SimpleNamespace(instance_type=None), SimpleNamespace(signatures=[None])
            return kind

        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest.importorskip("numba.experimental"), "jitclass", plain)
        spec = importlib.util.find_spec("foolbox.attacks.brendel_bethge")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        patch.setattr(foolbox.attacks, "L2BrendelBethgeAttack", module.L2BrendelBethgeAttack)
        yield


def test_the_table_covers_every_attack():
    assert {type(row.attack) for row in EVERY.values()} == set(names_of(AnyAttack).values())


@pytest.mark.parametrize(("name", "norm"), pairs(EVERY))
def test_attack(name, norm):
    check_attack(EVERY[name].attack.model_copy(update=FEWER.get(name, {})), norm, getattr(EVERY[name], norm))


@pytest.mark.parametrize(("name", "norm"), pairs(TABLE))
@pytest.mark.parametrize(("classes", "shape"), [(2, (20,)), (10, (3, 8, 8))])
def test_attack_is_within_its_factor_of_the_closed_form_at_any_number_of_classes(name, norm, classes, shape):
    near_the_optimum(TABLE[name].attack, norm, getattr(TABLE[name], norm), affine(classes, shape, seed=classes, images=8))


@pytest.mark.parametrize("name", TABLE)
def test_what_follows_gradients_counts_them(name):
    oracle = affine(3, images=4)
    attacked = run(TABLE[name].attack.aimed(norm="l2", eps=2 * oracle.l2.max().item(), seed=0), oracle)
    assert (attacked.backwards > 0).all() != (name == "square")


@pytest.mark.parametrize("name", [*TABLE, "foolbox ddn", "hop_skip_jump", "apgd-t"])
def test_the_model_is_left_as_it_was_in_odd_modes(name):
    leaves_the_model(EVERY[name].attack, "l2" if EVERY[name].l2 else "linf", in_eval_mode=False)


@pytest.mark.parametrize("kind", [PGD, SuperDeepFool, DDN, FMN, ALMA, Ensemble, Square, FAB, APGD, FoolboxAttack, AutoAttack])
def test_attacks_are_scale_invariant_so_that_the_check_scales_their_logits(kind):
    rows = [row for row in EVERY.values() if type(row.attack) is kind]
    assert rows and all(row.attack.scale_invariant for row in rows)


def test_what_is_not_scale_invariant_says_so():
    assert not PGD(loss="cross_entropy").scale_invariant
    assert not PublishedPGD().scale_invariant
    assert not FoolboxAttack(attack="ddn", rescale=False).scale_invariant
    assert not AutoAttack(version="custom", attacks=("apgd-ce",)).scale_invariant
    assert AutoAttack().scale_invariant


@pytest.mark.parametrize(
    "name",
    ["pgd", "superdeepfool", "deepfool", "ddn", "foolbox ddn", "cw", "fmn", "our fab", "our fab relook", "alma"],
)
def test_without_a_box_images_may_leave_it(name):
    oracle = affine(3, (1, 4, 4), images=8)
    shifted = Affine(nn.Sequential(Shift(0.45), *oracle.model), oracle.x - 0.45, oracle.y, oracle.l2, oracle.linf)
    attack = EVERY[name].attack.model_copy(update={"box": "none"})
    attack = attack.aimed(norm="l2", eps=1.05 * oracle.l2.max().item(), seed=0)
    attacked = run(attack, shifted)
    assert broken(shifted, attacked, attack).all() and attacked.images.min() < 0


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by


@pytest.mark.parametrize(
    "name", [name for name, row in EVERY.items() if row.l2 and name not in ("square", "published")]
)  # a checkerboard: tests/test_square.py, in linf
def test_the_margin_30_classifier_falls_to_every_attack(name):
    oracle, row = masking_model(images=4), EVERY[name]
    attack = row.attack.aimed(norm="l2", eps=1.0, seed=0)
    attacked = run(attack, oracle)
    assert (broken(oracle, attacked, attack) & (distances(oracle.x, attacked.images, "l2") <= 1 + 1e-6)).all()


def test_the_margin_30_classifier_masks_the_published_preset():
    oracle, attack = masking_model(), PublishedPGD(eps=1.0)
    assert not broken(oracle, run(attack, oracle), attack).any()
    gap = oracle.model(oracle.x).sort(1).values
    torch.testing.assert_close(gap[:, -1] - gap[:, -2], torch.full((16,), 30.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_does_not_depend_on_the_block(norm):
    """Keys count the draws: an image alone gets the verdict it gets in company, images equal to rounding."""
    oracle = affine(5, (1, 4, 4), images=10)
    attack = PGD(norm=norm, eps=oracle.distance(norm).median().item(), start="random", restarts=2, steps=10)
    together = run(attack, oracle)
    fell = broken(oracle, together, attack)
    for i in (0, 3, 9):
        alone = attack(oracle.model, oracle.x[[i]], oracle.y[[i]], torch.tensor([i]))
        torch.testing.assert_close(alone.images, together.images[[i]], atol=1e-5, rtol=0)
        inside = pull_inside(oracle.x[[i]], alone.images, norm, attack.eps, "unit")
        assert (oracle.model(inside).argmax(1) != oracle.y[[i]]) == fell[i]
        assert alone.forwards == together.forwards[i]


@pytest.mark.parametrize("name", ["foolbox ddn", "apgd-t"])
def test_library_attacks_repeat_themselves_and_confine_their_draws(name):
    oracle = affine(4, (1, 4, 4), images=6)
    attack = EVERY[name].attack.aimed(norm="l2", eps=oracle.l2.median().item(), seed=5)
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


def test_brendel_bethge_where_there_is_no_start_and_in_float64():
    attack, oracle = EVERY["brendel_bethge"].attack, affine(3, (1, 4, 4), images=6)
    double = Affine(copy.deepcopy(oracle.model).double(), oracle.x.double(), *oracle[2:])
    assert run(attack, double).images.dtype == torch.float64
    for attached in (True, False):
        attacked = run(attack, oracle, constant_model(3, answer=int(oracle.y[0]), attached=attached))
        assert torch.equal(attacked.images, oracle.x)
    masked = masking_model(images=3)
    attacked = run(attack, masked)
    assert broken(masked, attacked, attack).all() and distances(masked.x, attacked.images, "l2").max() < 1


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
    with pytest.raises(UserError, match="deterministic model"):
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
    assert broken(oracle, run(attack, oracle), attack).all()
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
    assert broken(oracle, attacked, attack).all() and (attacked.backwards == 0).all()
    assert distances(oracle.x, attacked.images, norm).max() <= attack.eps + 1e-6


@pytest.mark.parametrize("part", ["apgd-t", "fab-t", "apgd-dlr", "fab"])
def test_one_image_of_one_class(part):
    """Nothing to change to, and the batch dimension the library likes to squeeze away."""
    x = torch.rand(1, 1, 4, 4)
    attack = AutoAttack(version="custom", attacks=(part,), eps=1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    assert torch.equal(attack(model, x, torch.zeros(1, dtype=torch.int64), torch.arange(1)).images, x)
    near_the_optimum(attack, "l2", 1.05, affine(5, (1, 4, 4), images=1))


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
