"""Penalties and losses equal their definitions where there is a closed form, and leave the model as it was."""

import pytest
import torch
from oracles import affine
from torch import nn

from robustbench_rkhs.data import Deformations, Split
from robustbench_rkhs.training.losses import CrossEntropy
from robustbench_rkhs.training.penalties import (
    AdversarialPerturbation,
    Curvature,
    FunctionNorm,
    GradientPenalty,
    Jacobian,
    LossGradient,
    SpectralNorm,
    Stability,
    Tangent,
    VirtualAdversarial,
)
from robustbench_rkhs.training.samplers import UniformSampler

SPLIT = Split("noise", "train", torch.rand(8, 1, 4, 4), torch.arange(8) % 4, torch.arange(8), 4, "none")
PENALTIES = {  # a new penalty adds a line here
    "gradient": GradientPenalty(weight=2.0),
    "adversarial_perturbation": AdversarialPerturbation(),
    "loss_gradient": LossGradient(),
    "loss_gradient, l1": LossGradient(norm="l1"),
    "spectral_norm": SpectralNorm(),
    "virtual_adversarial": VirtualAdversarial(),
    "jacobian": Jacobian(),
    "jacobian, projected": Jacobian(projections=2),
    "curvature": Curvature(),
    "function norm": FunctionNorm(sampler=UniformSampler()).prepare(nn.Identity(), SPLIT, 0),
    "deformation_stability": Stability(deformations=Deformations(count=2)),
    "deformation_tangent": Tangent(deformations=Deformations(count=2)),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
def test_penalty_is_finite_nonnegative_differentiable_and_leaves_the_model(penalty):
    model = network().eval()
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 4
    before, images = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    value = penalty(model, x, y)
    assert value.shape == () and value.isfinite() and value >= 0
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    assert torch.equal(x, images) and not x.requires_grad and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("classes, shape", [(10, (1, 4, 4)), (2, (5,)), (3, (3, 2, 2))])
def test_gradient_penalty_of_an_affine_model_is_the_sum_of_its_squared_rows(classes, shape):
    model, x, y, *_ = affine(classes=classes, shape=shape)
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    penalty = GradientPenalty(weight=2.0)(model, x, y)
    torch.testing.assert_close(penalty, 2 * linear.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(linear.weight.grad, 4 * linear.weight.detach())


def test_gradient_penalty_finds_the_steepest_image_of_each_class():
    class Square(nn.Module):  # f_k(x) = a_k x_k^2: gradient 2 a_k x_k
        scale = nn.Parameter(torch.tensor([1.0, 3.0]))

        def forward(self, x):
            return self.scale * x.square()

    x = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]])
    wanted = (2 * 0.8) ** 2 + (2 * 3 * 0.9) ** 2
    torch.testing.assert_close(GradientPenalty(weight=1.0)(Square(), x, torch.zeros(3).long()), torch.tensor(wanted))


def test_cross_entropy_with_temperature_and_offset():
    model, x, y, *_ = affine(classes=3)
    logits = model(x)
    plain = torch.nn.functional.cross_entropy(logits, y)
    torch.testing.assert_close(CrossEntropy()(model, x, y), plain)
    t, c = 0.25, 1.5
    one_hot = torch.nn.functional.one_hot(y, 3)
    terms = torch.logsumexp((logits - c * one_hot) / t, 1) - ((logits - c * one_hot) / t).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(CrossEntropy(temperature=t, offset=c)(model, x, y), t * terms.mean())
