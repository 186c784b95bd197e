"""Warnings beside an evaluation's tables."""

import pytest
from test_accuracy_steps import told
from test_report import synthetic

from robustbench_rkhs.cli.warnings import warnings_of


@pytest.mark.parametrize(
    ("norm", "pixels", "eps", "warned"), [("l2", 64, 8.0, 1), ("l2", 64, 7.9, 0), ("linf", 64, 1.0, 1), ("linf", 64, 0.99, 0)]
)
def test_a_ball_that_contains_every_image_is_said(norm, pixels, eps, warned):
    done = told(synthetic("a", 20, seed=1), norm=norm, pixels=pixels, box="unit", epsilons=(0.1, eps))
    lines = [line for line in warnings_of(done) if "contains every image" in line]
    assert len(lines) == warned and all(line.startswith(f"eps {eps:g}: ") and f"{eps:g}/255 meant?" in line for line in lines)
