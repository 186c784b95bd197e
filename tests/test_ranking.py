"""auROC and auROC50 against scikit-learn, against counting, and against what they mean."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training.ranking import auroc, rank_report, scores_of

labelled = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=2, max_size=60).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(labelled)
def test_auroc_with_ties_is_scikit_learns(pairs):
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    assert auroc(scores / 7.0, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(labelled, st.integers(1, 60))
def test_part_of_the_curve_with_ties_is_scikit_learns(pairs, first):
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    others = int((labels == 0).sum())
    share = min(first, others) / others
    if share == 1:
        wanted = roc_auc_score(labels, scores)
    else:  # scikit-learn maps [chance, most] to [0.5, 1]; undone here
        standard, chance = roc_auc_score(labels, scores, max_fpr=share), share**2 / 2
        wanted = (chance + (2 * standard - 1) * (share - chance)) / share
    assert auroc(scores.astype(float), labels, first) == pytest.approx(wanted, abs=1e-9)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 150), st.integers(1, 80))
def test_auroc50_without_ties_counts_members_above_each_of_the_first_others(seed, members, others, first):
    generator = np.random.default_rng(seed)
    scores = generator.permutation(members + others).astype(float)
    labels = (generator.permutation(members + others) < members).astype(int)
    best_others = sorted(scores[labels == 0], reverse=True)[:first]
    counted = sum((scores[labels == 1] > other).sum() for other in best_others)
    assert auroc(scores, labels, first) == pytest.approx(counted / (len(best_others) * members))


def test_perfect_worst_and_constant():
    labels = np.array([1, 1] + [0] * 100)
    falling = np.arange(102, 0, -1).astype(float)
    assert auroc(falling, labels, 50) == auroc(falling, labels) == 1
    assert auroc(-falling, labels, 50) == auroc(-falling, labels) == 0
    assert auroc(np.zeros(102), labels) == 0.5  # all tied: a straight line,
    assert auroc(np.zeros(102), labels, 50) == 0.25  # half of which has half the mean height
    one_below = np.array([102.0, 1.0, *range(101, 1, -1)])  # one member first, the other last
    assert auroc(one_below, labels) == auroc(one_below, labels, 50) == 0.5


@pytest.mark.parametrize("labels, line", [([1, 1], "2 of label 1 and 0"), ([0, 0], "0 of label 1 and 2")])
def test_one_label_alone_has_no_auroc(labels, line):
    with pytest.raises(UserError, match=line):
        auroc(np.array([0.1, 0.2]), np.array(labels))
    with pytest.raises(UserError, match="NaN"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))


def ranked(task="ranking"):
    x = torch.linspace(-1, 1, 40)[:, None]
    y = (torch.arange(40) % 4 == 3).long()
    return Split("ranked", "test", x, y, torch.arange(40), 2, "0" * 64, "none", task)


def test_rank_report_asks_for_the_difference_of_logits_and_leaves_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split = ranked()
    found = rank_report(model, split)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(split.x)
    assert found["auroc"] == pytest.approx(roc_auc_score(split.y, (logits[:, 1] - logits[:, 0]).double()))
    assert (found["members"], found["others"]) == (10, 30) and found["auroc50"] == found["auroc"]  # 30 others are all there are
    json.dumps(found)


def test_other_tasks_and_other_models_are_refused():
    with pytest.raises(UserError, match="is a classification"):
        rank_report(nn.Linear(1, 2), ranked("classification"))
    with pytest.raises(UserError, match="two classes"):
        scores_of(nn.Linear(1, 3), torch.zeros(4, 1))
