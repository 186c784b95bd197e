"""Targeted attacks: every attack finds, towards a class that is named, what is known to be nearest on an affine model."""

from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from oracles import affine
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from robustbench_rkhs import UserError, attack
from robustbench_rkhs.attacks import AnyAttack, Attack
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.targeted import Towards, attack_towards
from robustbench_rkhs.nodes.threat_model import Norm

CLASSES, COUNT = 4, 4
ENGINE = [kind for kind in get_args(get_args(AnyAttack)[0]) if issubclass(kind, EngineAttack)]
FEW: dict[str, dict[str, Any]] = {
    "square": {"queries": 500},
    "ensemble": {"version": "custom", "attacks": ({"name": "apgd", "steps": 30}, {"name": "square", "queries": 20})},
    "apgd": {"steps": 30},
    "fab": {"steps": 50},
}
FACTORS = {"Square": 3.0, "SuperDeepFool": 1.3, "FAB": 1.3, "PGD": 1.5, "PublishedPGD": 2.0}
"""What is found is at most so many times as far as the nearest, where two borders meet too; 1.1 where not named here."""
NORMS: tuple[Norm, ...] = ("l2", "linf")


class Case(NamedTuple):
    model: nn.Sequential
    x: Tensor
    y: Tensor
    target: Tensor
    nearest: dict[str, np.ndarray]
    """The distance of the nearest image of the target class."""


def nearest(weight: np.ndarray, gap: np.ndarray, norm: str) -> float:
    """min ||d|| with weight d >= gap, exactly: a linear program in linf, convex and smooth in l2."""
    size = weight.shape[1]
    if norm == "linf":
        rows = np.concatenate(
            [np.c_[-weight, np.zeros(len(weight))], np.c_[np.eye(size), -np.ones(size)], np.c_[-np.eye(size), -np.ones(size)]]
        )
        return float(linprog(np.r_[np.zeros(size), 1], rows, np.r_[-gap, np.zeros(2 * size)], bounds=(None, None)).fun)
    start = np.linalg.lstsq(weight, gap, rcond=None)[0]
    ask = {"type": "ineq", "fun": lambda d: weight @ d - gap, "jac": lambda d: weight}
    found = minimize(
        lambda d: d @ d, start, jac=lambda d: 2 * d, constraints=[ask], method="SLSQP", options={"ftol": 1e-14, "maxiter": 200}
    )
    return float(np.linalg.norm(found.x))


@pytest.fixture(scope="module")
def case() -> Case:
    """Images of an affine model, each with a target that is not the runner-up alone."""
    model, x, y, _, _ = affine(CLASSES, (1, 3, 4), images=COUNT)
    target = (y + 1 + torch.arange(COUNT) % (CLASSES - 1)) % CLASSES
    weight = model[1].weight.detach().double().numpy()
    logits = (x.flatten(1).double() @ torch.from_numpy(weight).T + model[1].bias.detach().double()).numpy()
    rows = {norm: [] for norm in NORMS}
    for i, t in enumerate(target.tolist()):
        others = [j for j in range(CLASSES) if j != t]
        for norm in NORMS:
            rows[norm].append(nearest(weight[t] - weight[others], logits[i, others] - logits[i, t], norm))
    return Case(model, x, y, target, {norm: np.array(values) for norm, values in rows.items()})


def made(kind: type[Attack], norm: Norm, eps: float | None) -> Attack:
    name = kind.model_fields["name"].default
    return kind.model_validate({"norm": norm, "eps": eps} | FEW.get(name, {}))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ENGINE, ids=lambda kind: kind.__name__)
def test_every_attack_of_the_engine_reaches_its_target(kind: type[Attack], norm: Norm, case: Case) -> None:
    if kind.__name__ in ("DDN", "PublishedPGD") and norm == "linf":
        pytest.skip(f"{kind.__name__} is made for l2")
    keys, truth = torch.arange(COUNT), torch.from_numpy(case.nearest[norm])
    factor = FACTORS.get(kind.__name__, 1.1)
    one = made(kind, norm, None if kind.minimal_norm else 1.0)
    budgets = torch.full_like(truth, torch.inf) if kind.minimal_norm else factor * truth
    found = attack_towards(one, case.model, case.x, case.target, keys, budgets)
    away, said = distances(case.x, found.images, norm), case.model(found.images).argmax(1)
    assert torch.equal(said, case.target)
    assert (away >= truth * (1 - 1e-5)).all() and (away <= truth * factor).all(), away / truth
    assert found.broken is not None and found.broken.all() and (found.forwards > 0).all()
    if not kind.minimal_norm:  # and nothing is found where nothing is
        none = attack_towards(one, case.model, case.x[:2], case.target[:2], keys[:2], 0.95 * truth[:2])
        assert not (case.model(none.images).argmax(1) == case.target[:2]).any() and not none.broken.any()


def test_an_image_of_the_target_is_left_as_it_is(case: Case) -> None:
    said = case.model(case.x).argmax(1)
    found = attack_towards(made(ENGINE[0], "l2", 1.0), case.model, case.x, said, torch.arange(COUNT))
    assert torch.equal(found.images, case.x)


def test_answers_that_are_not_finite_are_not_the_target() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, x * torch.nan, x], 1)

    assert (Towards(Broken(), 1)(torch.ones(3)).argmax(1) == 0).all()


@pytest.mark.parametrize("target", [5, -1, 0.5, True, [1, 2], None])
def test_the_verb_reaches_a_target_or_says_why_not(target: Any, case: Case) -> None:
    if target is None:
        images = attack(case.model, case.x, case.y, target=case.target)
        away = distances(case.x, images, "l2").numpy()
        assert torch.equal(case.model(images).argmax(1), case.target) and (away <= 1.1 * case.nearest["l2"]).all()
        images = attack(case.model, case.x, case.y, target=case.target, eps=float(0.9 * case.nearest["l2"].min()))
        assert torch.equal(images, case.x)
        return
    with pytest.raises(UserError, match="target: expected"):
        attack(case.model, case.x, case.y, target=target)
    with pytest.raises(UserError, match="the label itself for 4 of 4"):
        attack(case.model, case.x, case.y, target=case.y)
