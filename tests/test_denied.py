"""Falls that an attack saw and the model denies when asked again: the image gets the rest of the attack, or stays untested."""

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import affine
from test_attacking import Reach, recipe
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.attacks.ball import distances, pull_inside
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.cli.warnings import warnings_of
from robustbench_rkhs.evaluation import counting
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.verdicts import Evaluation

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the union of names does not know these attacks
COUNT = 8


class Moody(nn.Module):
    """An affine model that swaps its two likeliest classes for some of its questions."""

    def __init__(self, net, lies):
        super().__init__()
        self.net, self.lies = net, lies

    def forward(self, x):
        logits = self.net(x)
        swapped = logits.scatter(1, *[part.flip(1) if i else part for i, part in enumerate(reversed(logits.topk(2)))])
        return torch.where(self.lies(x).view(-1, 1), swapped, logits)


class Twice(Reach):
    """Asks about every image twice in one batch before it sets out: a false answer there spares an image all the rest."""

    def search(self, engine):
        at = engine.open().repeat(2)
        if len(at):
            engine.logits(at, engine.x[at])
        Reach.search(self, engine)


def moody(lies):
    oracle = affine(4, (1, 3, 4), images=COUNT)
    return Moody(oracle.model.double(), lies).eval(), oracle.x.double(), oracle.y, oracle.l2.double()


def everyone(x, when):
    return torch.full((len(x),), when, dtype=torch.bool)


def evaluated(model, x, y, eps, attack, **settings):
    queried = recipe(attack, eps=tuple(eps), diagnostics=False, block=COUNT, **settings)
    return evaluate(model, (x, y), queried)


def test_an_image_spared_by_a_false_fall_is_attacked_to_the_end():
    model, x, y, truth = moody(lambda x: everyone(x, len(x) == 2 * COUNT))  # only in the batch where each image stands twice
    eps = (float(1.1 * truth.max()), float(0.5 * truth.min()))
    found = Twice(eps=eps[0])(model, x, y, torch.arange(COUNT))
    assert found.broken.all() and torch.equal(found.images, x)  # the attack alone is fooled
    done = evaluated(model, x, y, eps, Twice())
    assert (verdicts.states(done, eps[0])["state"] == "broken").all()
    rows = done.table[(done.table["kind"] == "attack") & (done.table["eps"] == eps[0])]
    np.testing.assert_allclose(rows.sort_values("index")["radius"], 1.02 * truth, rtol=1e-6)
    assert (rows["state_reason"] == "").all()
    assert (verdicts.states(done, eps[1])["state"] == "survived").all()  # the second run saw nothing, and asked to its end


def test_what_is_denied_every_time_is_untested_and_said():
    model, x, y, truth = moody(lambda x: everyone(x, len(x) != COUNT))  # the truth is told in whole blocks alone
    eps = (float(0.5 * truth.min()), float(0.4 * truth.min()))
    done = evaluated(model, x, y, eps, Twice())
    rows = done.table[done.table["kind"] == "attack"]
    assert (rows["state_reason"] == "unconfirmed").all() and np.isinf(rows["radius"]).all() and len(rows) == 2 * COUNT
    for one in eps:
        assert (verdicts.states(done, one)["state"] == "untested").all()
    summary = verdicts.summary(done)
    assert summary["robust"].isna().all() and not summary["count_survived"].any()
    assert any(f"for {COUNT} images, {COUNT} of which stay untested" in line for line in warnings_of(done))
    honest, *_ = moody(lambda x: everyone(x, False))
    once = evaluated(honest, x, y, eps[:1], Twice()).table
    assert rows["forwards"].min() > 2 * once[once["kind"] == "attack"]["forwards"].max()  # further runs are counted


def test_pgd_is_run_again_too_from_another_start():
    model, x, y, truth = moody(lambda x: everyone(x, x.requires_grad))  # whoever asks for a gradient is lied to
    eps = float(0.5 * truth.min())
    attack = PGD(steps=2, eps=eps)
    assert attack.again(1).start == "random" and attack.again(1).seed != attack.again(2).seed != attack.seed
    assert attack(model, x, y, torch.arange(COUNT)).broken.all()
    done = evaluated(model, x, y, (eps,), PGD(steps=2))
    assert (verdicts.states(done, eps)["state"] == "survived").all()  # the second run confirms each fall, and goes on
    rows = done.table[done.table["kind"] == "attack"]
    assert (rows["backwards"] >= 1 + 2).all() and (rows["state_reason"] == "").all()


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_draws_denies_less_after_further_runs_and_nothing_denied_survives(seed, monkeypatch):
    def counts(again):
        generator = torch.Generator().manual_seed(seed)
        model, x, y, truth = moody(lambda x: torch.rand(len(x), generator=generator) < 0.15)
        model.lies, lies = (lambda x: everyone(x, False)), model.lies
        subject_x, eps = x.repeat(8, 1, 1, 1), float(1.1 * truth.max())
        with monkeypatch.context() as patch:
            patch.setattr(counting, "AGAIN", again)
            original = counting.attempted

            def drawing(*given):
                model.lies = lies  # from the attack on: the predictions are the true ones
                return original(*given)

            patch.setattr(counting, "attempted", drawing)
            queried = recipe(Twice(), eps=(eps,), diagnostics=False, block=8 * COUNT)
            done = evaluate(model, (subject_x, y.repeat(8)), queried)
        rows = done.table[done.table["kind"] == "attack"].set_index("index")
        states = verdicts.states(done, eps)["state"]
        unconfirmed = rows.index[rows["state_reason"] == "unconfirmed"]
        assert (states[unconfirmed] == "untested").all()
        return len(unconfirmed), int((states == "broken").sum())

    once, more = counts(0), counts(2)
    assert once[0] >= 5 > more[0] and more[1] > once[1]


def test_a_denial_at_eps_is_not_outvoted_by_a_survival_at_a_larger_one():
    model, x, y, truth = moody(lambda x: everyone(x, False))
    eps = (float(0.5 * truth.min()), float(0.4 * truth.min()))
    done = evaluated(model, x, y, eps, Reach())
    assert verdicts.states(done, eps[1])["inferred"].all()
    row = done.table[(done.table["kind"] == "attack") & (done.table["index"] == 3)].assign(eps=eps[1], state_reason="unconfirmed")
    both = Evaluation(verdicts.merge([done.table, row]), done.about)
    lower = verdicts.states(both, eps[1])["state"]
    assert lower[3] == "untested" and (lower.drop(3) == "survived").all()
    assert (verdicts.states(both, eps[0])["state"] == "survived").all()
    everywhere = Evaluation(pd.concat([done.table, row.assign(eps=np.nan)], ignore_index=True), done.about)
    assert verdicts.states(everywhere, eps[0])["state"][3] == "untested"


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_lies_inside_is_asked_about_to_the_last_bit(norm):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 3, 5, 5, generator=generator)
    found = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    away = distances(x, found, norm)
    eps = float(away.median())
    inside = pull_inside(x, found, norm, eps, "unit")
    within = away <= eps
    assert torch.equal(inside[within], found[within]) and 0 < within.sum() < len(x)
    assert (distances(x, inside, norm) <= eps).all() and not (inside[~within] == found[~within]).flatten(1).all(1).any()


def test_a_confirmed_engine_keeps_only_what_errs_in_another_batch_and_counts_the_questions():
    sizes = []
    model, x, y, truth = moody(lambda x: sizes.append(len(x)) or everyone(x, len(x) == 1))
    keys, eps = torch.arange(COUNT), 2 * truth
    for confirm, misclassified in ((0, True), (1, False)):
        engine = Engine(model, x, y, keys, norm="l2", box="unit", eps=eps, confirm=confirm)
        sizes.clear()
        engine.logits(keys[:1], x[:1] + 0.5 * eps[0].item() / x[0].numel() ** 0.5)
        assert bool(engine.broken[0]) == misclassified and sizes == [1, 2][: 1 + confirm]
        assert engine.forwards.tolist() == [2 + confirm] + [1] * (COUNT - 1)
