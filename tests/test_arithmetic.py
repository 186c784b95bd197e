"""Arithmetic that is what it says: no reduced precision while anything is measured, and what float32 can err by."""

import pytest
import torch
from torch import nn

from robustbench_rkhs.bounds import steps
from robustbench_rkhs.certificates.float32 import float32_error
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.layers import Residual, Sandwich
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
        error, slope = float32_error(steps(model, (1, 8, 8)), x.double())
        worst = torch.zeros(8, dtype=torch.float64)
        for _ in range(200):
            way = torch.randn(x.shape, generator=generator)
            near = (x + 0.999 * radius * way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).float()
            worst = torch.maximum(worst, (model(near).double() - model.double()(near.double())).norm(dim=1))
            model.float()
    assert (worst > 0).all()
    assert (worst <= error + slope * radius).all()
    assert (error + slope * radius < 1e6 * worst).all()  # and the bound says something


def test_what_float32_cannot_hold_has_no_bound():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.fill_(3e38)
    error, _ = float32_error(steps(model, (1, 2, 2)), torch.ones(1, 1, 2, 2, dtype=torch.float64))
    assert error.isinf().all()


def test_a_layer_that_works_its_weights_out_in_float32_is_refused_by_name():
    model = nn.Sequential(nn.Flatten(), Sandwich(4, 3)).eval()
    with pytest.raises(Uncertifiable, match=r"1 .Sandwich.*float32 rounding"):
        float32_error(steps(model, (1, 2, 2)), torch.rand(1, 1, 2, 2, dtype=torch.float64))
