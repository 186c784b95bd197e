"""PGD in the engine against the algorithm written out as a plain loop, and in training against the same loop."""

import copy

import pytest
import torch
from oracles import affine, bent
from torch import nn

from robustbench_rkhs.attacks import PGD, PublishedPGD
from robustbench_rkhs.attacks.ball import distances, random_offset
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.evaluation.run import evaluate

CASES = {
    "best": PGD(steps=6, targets=0),
    "linf": PGD(norm="linf", steps=6, targets=0),
    "random": PGD(steps=4, start="random", restarts=2, targets=0),
    "last": PGD(steps=5, keep="last", loss="cross_entropy"),
    "last of several": PGD(steps=3, keep="last", restarts=2),
    "no box": PGD(steps=5, box="none", step_size=0.4, decay=False, targets=0),
    "published": PublishedPGD(steps=4),
}


def images(count=12):
    torch.manual_seed(0)
    model = bent(classes=4).eval()
    x = torch.rand(count, 1, 8, 8)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def looped(model, x, y, keys, attack):
    """Every iterate of every restart, image by image: (its margin, itself), as the docstring says and no more."""
    found = []
    for one, label, key in zip(x.split(1), y.split(1), keys.split(1), strict=True):
        seen = []
        for restart in range(attack.restarts):
            z, run = one.clone(), []
            if attack.start == "random" or restart:
                offset = random_offset(key, attack.seed, one, attack.norm, restart) * attack.eps
                z = (one + offset).clamp(0, 1) if attack.box == "unit" else one + offset
            for step in range(attack.steps + 1):
                leaf = z.clone().requires_grad_()
                logits = model(leaf)
                run.append((margin(logits, label).item(), z))
                if step == attack.steps:
                    break
                lowered = (
                    -nn.functional.cross_entropy(logits, label) if attack.loss == "cross_entropy" else margin(logits, label).sum()
                )
                (gradient,) = torch.autograd.grad(lowered, leaf)
                floor = getattr(attack, "gradient_floor", 0.0)
                way = gradient.sign() if attack.norm == "linf" else gradient / max(gradient.norm().item(), floor)
                length = attack.step_size or max(2.5 * attack.eps / attack.steps, attack.eps / 4)
                z = z - length * (1 - 0.95 * step / attack.steps if attack.decay else 1) * way
                z = z.clamp(0, 1) if attack.box == "unit" else z
                delta = z - one
                if attack.norm == "linf":
                    z = one + delta.clamp(-attack.eps, attack.eps)
                else:
                    z = one + delta * min(1.0, attack.eps / max(delta.norm().item(), 1e-30))
            seen.append(run[-1:] if attack.keep == "last" else run)
        found.append(seen)
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_engine_finds_what_the_loop_finds_and_training_gets_its_best_iterate(name):
    (model, x, y), keys = images(), torch.arange(12)
    attack = CASES[name].model_copy(update={"eps": {"linf": 0.03, "l2": 0.2}[CASES[name].norm]})
    every = looped(model, x, y, keys, attack)
    attacked, trained = attack(model, x, y, keys), attack.perturbed(model, x, y, keys)
    broken = torch.tensor([any(gap < 0 for run in seen for gap, _ in run) for seen in every])
    assert torch.equal(attacked.broken, broken) and 0 < broken.sum() < len(x)
    for i, seen in enumerate(every):
        flat = [pair for run in seen for pair in run]
        first = next((image for gap, image in flat if gap < 0), None)
        best = min(flat, key=lambda pair: pair[0])[1] if first is None else first
        torch.testing.assert_close(attacked.images[i : i + 1], x[i : i + 1] if first is None else first, atol=1e-5, rtol=0)
        gaps = [margin(model(image), y[i : i + 1]).item() for image in (trained[i : i + 1], best)]
        assert gaps[0] == pytest.approx(gaps[1], abs=1e-5)
    assert (distances(x, attacked.images, attack.norm) <= attack.eps).all()  # to the last bit, in float64


def test_what_is_judged_by_its_last_iterate_is_not_broken_by_an_earlier_one():
    class Stripe(nn.Module):
        """Wrong only where the first pixel lies between 0.35 and 0.45, on the way up from 0.2."""

        def forward(self, x):
            pixel = x.flatten(1)[:, 0]
            up = 0.5 - pixel  # falls all the way: the gradient leads through the stripe and out of it
            return torch.stack([torch.where((pixel - 0.4).abs() < 0.05, up - 10, up + 10), 0 * pixel], 1)

    x, y, keys = torch.full((1, 1, 2, 2), 0.2), torch.zeros(1, dtype=torch.int64), torch.arange(1)
    settings = {"eps": 0.7, "step_size": 0.1, "decay": False, "norm": "linf", "targets": 0}
    assert PGD(steps=4, **settings)(Stripe(), x, y, keys).broken.all()
    assert PGD(steps=2, keep="last", **settings)(Stripe(), x, y, keys).broken.all()
    last = PGD(steps=4, keep="last", **settings)(Stripe(), x, y, keys)
    assert not last.broken.any() and torch.equal(last.images, x)
    assert last.forwards.tolist() == [6] and last.backwards.tolist() == [4]


def test_each_image_has_its_own_eps_in_one_call():
    oracle = affine(4, (1, 4, 4), images=10)
    keys, eps = torch.arange(10), oracle.l2.double() * torch.tensor([1.05, 0.9] * 5)
    together = PGD(steps=20)(oracle.model, oracle.x, oracle.y, keys, eps)
    assert together.broken.tolist() == [True, False] * 5
    for i in range(10):
        alone = PGD(steps=20, eps=float(eps[i]))(oracle.model, oracle.x[[i]], oracle.y[[i]], keys[[i]])
        torch.testing.assert_close(alone.images, together.images[[i]], atol=1e-6, rtol=0)


def test_rows_are_kept_image_by_image(tmp_path):
    oracle = affine(4, (1, 4, 4), images=10)
    model, asked = oracle.model, []
    model.register_forward_hook(lambda module, given, out: asked.append(torch.is_grad_enabled()))
    settings = {"eps": (float(oracle.l2.median()),), "attacks": (PGD(steps=3),), "certificates": (), "diagnostics": False}
    tables = []
    for block in (4, 10):  # other blocks, the same rows
        asked.clear()
        tables.append(evaluate(model, (oracle.x, oracle.y), folder=tmp_path, block=block, **settings).table)
        passes = sum(asked)
        assert passes > 0 if block == 4 else passes == 0
    key = ["method", "index", "eps"]
    for column in ("radius", "forwards", "backwards"):
        first, second = (table.sort_values(key)[column].to_numpy() for table in tables)
        assert (first == second).all()


def test_a_layer_without_a_gradient_is_no_hiding_place():
    class Grey(nn.Module):
        def forward(self, x):
            return (x * 16).round() / 16

    oracle = affine(3, (1, 4, 4), images=6)
    model = nn.Sequential(Grey(), oracle.model)
    with torch.no_grad():
        y = model(oracle.x).argmax(1)
    attack = PGD(eps=3 * oracle.l2.max().item(), steps=10)
    keys = torch.arange(6)
    assert not attack(model, oracle.x, y, keys).broken.any()
    assert attack.model_copy(update={"straight_through": ("0",)})(model, oracle.x, y, keys).broken.all()


def test_answers_of_a_model_that_draws_are_averaged_and_counted():
    oracle, asked = affine(3, (1, 4, 4), images=4), []
    oracle.model.register_forward_hook(lambda module, given, out: asked.append(len(given[0])))
    attack = PGD(eps=0.9 * oracle.l2.min().item(), steps=3, targets=0, expectation=5)
    attacked = attack(oracle.model, oracle.x, oracle.y, torch.arange(4))
    assert attacked.forwards.tolist() == [5 * (1 + 4)] * 4 and attacked.backwards.tolist() == [15] * 4
    assert sum(asked) == attacked.forwards.sum()


def test_training_asks_the_model_in_its_own_mode_and_disturbs_no_weight():
    model, x, y = images()
    model.train()
    before, modes = copy.deepcopy(model.state_dict()), []
    model.register_forward_hook(lambda module, given, out: modes.append(module.training))
    PGD(eps=0.1, steps=3).perturbed(model, x, y, torch.arange(12))
    assert modes and all(modes) and all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())


@pytest.mark.parametrize("attack", [PGD(eps=0.1, steps=2), PGD(eps=0.1, steps=2, keep="last", restarts=2)])
def test_under_autocast_the_weights_still_get_their_gradients(attack):
    """Autocast keeps its low-precision copies of the weights: made without a graph they would cut the training step off."""
    model, x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = attack.perturbed(model, x, y, torch.arange(12))
        nn.functional.cross_entropy(model(adversarial), y).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
