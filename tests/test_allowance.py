"""Allowances of counted work: a search ends at the same step on every machine."""

import math
import pickle

import pytest
import torch

from robustbench_rkhs.certificates import SdpCrownCertificate, portfolio
from robustbench_rkhs.runtime.allowance import GRADIENT, Allowance, Steps
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, left, limited

ROWS, SIZE = 4, 8
EACH = GRADIENT * SIZE  # multiply-adds of a row of a product with a vector of SIZE, with its gradient


def steps_within(amount: float, rows: int = ROWS) -> int:
    """How many products of `rows` rows fit into an allowance."""
    steps, done = Steps(), 0
    matrix, vector = torch.ones(rows, SIZE), torch.ones(SIZE, 1)
    with pytest.raises(OutOfTime), limited(Allowance(amount)):
        while True:
            with steps.step(rows):
                matrix @ vector
            done += 1
    return done


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_step_costs_its_multiply_adds_times_its_rows(count):
    assert steps_within(count * ROWS * EACH) == count - 1  # the last one uses the allowance up
    assert steps_within(count * ROWS * EACH + 1) == count
    assert steps_within(count * EACH + 1, rows=1) == count


def test_nothing_is_counted_without_an_allowance():
    steps = Steps()
    with limited(Clock(10.0)), steps.step(3):
        torch.ones(3, 3) @ torch.ones(3, 3)
    assert steps.each is None


def test_it_is_no_limit_of_seconds_and_survives_a_pickle():
    with limited(Allowance(5.0)):
        assert left() == math.inf
    assert pickle.loads(pickle.dumps(Allowance(5.0))).remaining == 5.0


def test_no_certificate_of_the_portfolio_ends_by_the_clock():
    assert [one.label for one in portfolio() if getattr(one, "seconds", None) is not None] == []


def test_less_work_proves_less_and_the_same_again():
    torch.manual_seed(0)
    body = [torch.nn.Flatten(), torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24), torch.nn.ReLU()]
    model = torch.nn.Sequential(*body, torch.nn.Linear(24, 3)).eval()
    x = torch.rand(1, 1, 4, 4)
    y = model(x).argmax(1)

    def radius(work: float) -> float:
        return float(SdpCrownCertificate(search=False, domains=64, work=work)(model, x, y, torch.tensor([0]), (0.3,)).radius)

    assert radius(1.0) == radius(1.0) < 0.3 == radius(1e12)
