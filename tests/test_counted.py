"""Counting: what an attack's images amount to on a model whose distances are known, and that nothing else counts."""

from pathlib import Path

import pytest
import torch
from oracles import affine
from test_engine import beyond
from torch import nn

import robustbench_rkhs
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.counted import count


def test_only_what_is_misclassified_inside_ball_and_box_counts():
    oracle = affine(4, (1, 4, 4), images=8)
    model, x, y, eps = oracle.model, oracle.x, oracle.y, oracle.l2.double()
    far = count(model, x, beyond(oracle, 1.2), norm="l2", box="none", eps=None)
    assert far.misses(y).all()
    torch.testing.assert_close(far.distance, 1.2 * eps, rtol=1e-5, atol=0)
    budgets = eps * torch.tensor([1.1, 0.9] * 4)
    held = count(model, x, beyond(oracle, 1.2), norm="l2", box="none", eps=budgets)  # pulled in to 1.1 and to 0.9 of the distance
    assert held.misses(y).tolist() == [True, False] * 4 and (held.distance <= budgets).all()
    assert torch.equal(held.distance, distances(x, held.images, "l2"))
    assert not count(model, x, beyond(oracle, 0.9), norm="l2", box="none", eps=None).misses(y).any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_budget_for_each_image_is_the_same_as_each_budget_alone(norm):
    oracle = affine(3, (1, 4, 4), images=6)
    found = oracle.x + 0.3 * torch.randn(oracle.x.shape, generator=torch.Generator().manual_seed(0))
    found[2] = torch.nan
    budgets = torch.tensor([0.1, 0.2, 0.3, 0.0, torch.inf, 0.1], dtype=torch.float64)
    together = count(oracle.model, oracle.x, found, norm=norm, box="unit", eps=budgets)
    for i, eps in enumerate(budgets.tolist()):
        one = slice(i, i + 1)
        alone = count(oracle.model, oracle.x[one], found[one], norm=norm, box="unit", eps=None if eps == torch.inf else eps)
        assert torch.equal(alone.images, together.images[one]) and torch.equal(alone.distance, together.distance[one])
    assert torch.equal(together.images[2], oracle.x[2]) and torch.equal(together.images[3], oracle.x[3])


def test_an_answer_that_is_not_finite_is_no_class():
    oracle = affine(3, (1, 4, 4), images=2)

    class Nothing(nn.Module):
        def forward(self, x):
            return oracle.model(x) * torch.nan

    nan = count(Nothing(), oracle.x, oracle.x, norm="l2", box="unit", eps=0.1)
    assert nan.answer.tolist() == [-1, -1] and nan.misses(oracle.y).all()


def test_nothing_else_counts():
    """Images are pulled inside in one place: every other module asks there (the engine pulls to search on, and is
    counted; the public check of attacks measures them by itself)."""
    package = Path(robustbench_rkhs.__file__).parent
    users = {str(path.relative_to(package)) for path in package.rglob("*.py") if "pull_inside(" in path.read_text()}
    assert users == {"attacks/ball.py", "attacks/counted.py", "attacks/engine.py", "testing/attacks.py"}
