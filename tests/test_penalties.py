"""Penalties and losses equal their definitions where there is a closed form, and leave the model as it was."""

import pytest
import torch
from method_table import rows
from oracles import affine
from torch import nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.testing import check_penalty
from robustbench_rkhs.training.losses import CrossEntropy
from robustbench_rkhs.training.penalties import (
    GradientPenalty,
)

SPLIT = Split("noise", "train", torch.rand(8, 1, 4, 4), torch.arange(8) % 4, torch.arange(8), 4, "none")
PENALTIES = {  # a new penalty adds a line to the table of methods
    name: penalty.prepare(nn.Identity(), SPLIT, 0)
    for name, penalty in rows("penalties")
    if penalty.weight and getattr(penalty, "statistics", "") != "contaminated"  # no gradient; meant to change BatchNorm
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
def test_penalty_is_finite_nonnegative_differentiable_and_leaves_the_model(penalty):
    check_penalty(penalty)


class Negative(GradientPenalty):
    def __call__(self, model, x, y, keys=None):
        return -super().__call__(model, x, y, keys)


class Stepping(GradientPenalty):
    def __call__(self, model, x, y, keys=None):
        model.train()(x)  # BatchNorm learns from it
        return super().__call__(model, x, y, keys)


class Detached(GradientPenalty):
    def __call__(self, model, x, y, keys=None):
        return super().__call__(model, x, y, keys).detach().requires_grad_()


BAD = [(Negative(), "not be negative"), (Stepping(), "as it was"), (Detached(), "reach the weights")]


@pytest.mark.parametrize("penalty, said", BAD)
def test_the_check_finds_what_a_penalty_does_wrong(penalty, said):
    with pytest.raises(AssertionError, match=said):
        check_penalty(penalty)


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
