"""Evaluations that have an answer at once: constant models, and images that are all wrong; and images without a gradient."""

import torch
from oracles import affine, constant_model
from torch import nn

from robustbench_rkhs import evaluate, verdicts
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool
from robustbench_rkhs.data.given import given_split
from robustbench_rkhs.evaluation.constant import diagnosed_constant
from robustbench_rkhs.evaluation.diagnostics import diagnose


def states(found, eps):
    return verdicts.states(found, eps)["state"].tolist()


def test_a_constant_model_is_named_and_costs_next_to_nothing():
    x, heard = torch.rand(6, 1, 4, 4), []
    for attached in (True, False):
        model = constant_model(3, answer=1, attached=attached)
        found = evaluate(model, (x, torch.tensor([1, 0, 1, 2, 1, 1])), eps=[0.1, 0.5], certificates=[], on_event=heard.append)
        assert (
            found.about.marks == ("constant",)
            and states(found, 0.5) == ["survived", "wrong", "survived", "wrong"] + ["survived"] * 2
        )
        spent = found.table.groupby("index")[["forwards", "backwards"]].sum().to_numpy().sum(1)
        assert spent.max() < 200
    assert any("answers the same for all 6 images" in str(event) for event in heard)


def test_only_a_model_that_no_picture_changes_is_constant():
    class Step(nn.Module):
        """Constant on the images, another class beyond a brightness."""

        def forward(self, x):
            bright = (x.flatten(1).mean(1, keepdim=True) > 0.9).float()
            return torch.cat([1 - bright, bright], 1)

    x = 0.5 + 0.1 * torch.rand(4, 1, 4, 4)
    found = evaluate(Step(), (x, torch.zeros(4, dtype=torch.int64)), eps=[3.9], certificates=[], effort="quick", diagnostics=False)
    assert "constant" not in found.about.marks
    oracle = affine(3, images=4)
    assert diagnosed_constant(oracle.model, given_split(oracle.x, oracle.y, 3), 0) is None


def test_images_that_are_all_wrong_are_answered_at_once():
    oracle, heard = affine(3, images=4), []
    found = evaluate(oracle.model, (oracle.x, (oracle.y + 1) % 3), eps=[0.1], on_event=heard.append)
    assert states(found, 0.1) == ["wrong"] * 4 and found.table["forwards"].sum() == 0
    assert any("all 4 images are misclassified" in str(event) for event in heard)


def dead():
    """A network without a gradient at grey images: every unit of its first layer is off there."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(24, 16, generator=generator))
        model[1].bias.copy_(-model[1].weight @ torch.full((16,), 0.5) - 0.8)
        model[3].weight.copy_(torch.randn(3, 24, generator=generator))
        model[3].bias.copy_(torch.tensor([0.1, 0.0, 0.0]))
    x = 0.5 + 0.02 * (torch.rand(12, 1, 4, 4, generator=generator) - 0.5)
    return model.eval(), x, torch.zeros(12, dtype=torch.int64)


def test_random_starts_break_images_without_a_gradient():
    model, x, y = dead()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf).sum(), leaf)
    assert not slope.any() and (model(x).argmax(1) == y).all()
    for norm in ("l2", "linf"):
        fell = [model(FAB(norm=norm, targets=3, rescues=n)(model, x, y, torch.arange(12)).images).argmax(1) != y for n in (0, 4)]
        assert not fell[0].any() and fell[1].all()
        for attack in (SuperDeepFool(norm=norm), FMN(norm=norm)):
            assert (model(attack(model, x, y, torch.arange(12)).images).argmax(1) != y).all()


def test_what_the_evaluation_broke_does_not_survive_the_whole_box():
    model, x, y = dead()
    given = {"norm": "l2", "box": "unit", "eps": 0.5, "checks": ("huge_eps",), "images": 12}
    known = FAB()(model, x, y, torch.arange(12))
    away = (known.images - x).flatten(1).double().norm(dim=1)
    plain = diagnose(model, x, y, torch.arange(12), **given)[0]
    told = diagnose(model, x, y, torch.arange(12), found={"fab": away}, **given)[0]
    assert plain.tripped and not told.tripped and told.value == 0
