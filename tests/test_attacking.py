"""The schedule at work: the verdicts of a full grid by the fewest runs, the same table however it is cut or stopped."""

from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from heard import messages_into
from oracles import affine
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD, Attack, Attacked, FoolboxAttack
from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.evaluation import attack_phase, counting, phase_state
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.row_cache import RowCache
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.runtime import clock as runtime_clock
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.verdicts import Rechecked


class Reach(EngineAttack):
    """Newton's step to each boundary of an affine model, ended a little outside: exact within its factor."""

    name: Literal["reach"] = "reach"
    scale_invariant: ClassVar[bool] = True
    beyond: float = 1.02

    def search(self, engine):
        at = engine.open()
        if not len(at):
            return
        for column in range(len(engine.others(at).T)):
            gap, slope, _ = engine.gaps(at, engine.x[at], engine.others(at)[:, column : column + 1])
            gap, way = gap[:, 0], -slope[:, 0]
            step = way * per_image(self.beyond * gap / (way.flatten(1) ** 2).sum(1).clamp_min(1e-12), way)
            engine.logits(at, engine.project(at, engine.x[at] + step))


class Nearest(Reach):
    """The same without a budget, farther off: an upper bound."""

    minimal_norm: ClassVar[bool] = True
    name: Literal["nearest"] = "nearest"
    beyond: float = 1.2


class Lucky(Reach):
    """Reaches only the images whose counted draw allows it at this eps: what a larger ball missed, a smaller one may find."""

    name: Literal["lucky"] = "lucky"

    def search(self, engine):
        steps = (engine.eps * 1000).long()
        luck = draws(engine.keys * 10_000 + steps, self.seed, engine.x).flatten(1)[:, 0]
        engine.eps = torch.where(luck > 0, engine.eps, 0.0)
        Reach.search(self, engine)


class OfALibrary(Attack):
    """An attack outside our engine: one eps for all images of a call."""

    name: Literal["library"] = "library"

    def __call__(self, model, x, y, keys):
        passes = torch.ones(len(x), dtype=torch.int64)
        return Attacked(x + 0.9 * self.budget() * torch.ones_like(x) / x[0].numel() ** 0.5, passes, passes)


class Failing(Reach):
    name: Literal["failing"] = "failing"

    def search(self, engine):
        raise RuntimeError("out of luck")


def scene(images=12):
    """An affine model in float64, so that another batch changes at most the last bit of a float64."""
    oracle = affine(4, (1, 3, 4), images=images)
    return oracle.model.double(), oracle.x.double(), oracle.y, oracle.l2


GRID = (0.008, 0.012, 0.02, 0.03, 0.04, 0.05, 0.06)


def recipe(*attacks, **fields):
    return EvalRecipe(
        **({"eps": GRID, "attacks": attacks, "certificates": (), "rechecked": 0, "block": 5, "diagnostics": False} | fields)
    )


def attacked(table, method=None):
    rows = table[table["kind"] == "attack"]
    return rows if method is None else rows[rows["method"] == method]


def same(one, other):
    """The same rows; distances to a millionth, as another batch may round differently."""
    order = ["kind", "method", "eps", "index"]
    one, other = (t.sort_values(order, ignore_index=True).drop(columns="seconds") for t in (one, other))
    measured = ["radius", "distance_l2", "distance_linf"]
    assert one.drop(columns=measured).equals(other.drop(columns=measured))
    np.testing.assert_allclose(one[measured].to_numpy(float), other[measured].to_numpy(float), rtol=1e-6)


PROTOCOLS = [((Reach(),), True), ((Nearest(), Reach()), True), ((Nearest(), Reach()), False), ((PGD(steps=5), Reach()), False)]


@pytest.mark.parametrize("protocol, certified", PROTOCOLS)
def test_every_image_has_the_verdict_of_its_true_radius_by_one_run_more_than_it_fell(protocol, certified):
    model, x, y, truth = scene()
    certificates = (MarginCertificate(),) if certified else ()
    done = evaluate(model, (x, y), recipe(*protocol, certificates=certificates))
    proved = np.zeros(len(x))
    for row in done.table[done.table["method"] == "margin"].itertuples(index=False):
        proved[row.index] = row.radius
    for eps in GRID:
        states = verdicts.states(done, eps)["state"]
        for index, radius in enumerate(truth.tolist()):
            if radius * 1.021 < eps:
                assert states[index] == "broken"
            elif radius > eps * (1 + 1e-6):
                assert states[index] == ("certified" if proved[index] >= eps else "survived")
    runs = attacked(done.table, "reach").groupby("index")["radius"]
    # images that the earlier attack of the protocol broke fell too, though not here
    falls = attacked(done.table)[attacked(done.table)["radius"] < np.inf].groupby("index").size()
    assert (runs.size() <= 1 + falls.reindex(runs.size().index).fillna(0)).all()
    rows = attacked(done.table)
    assert (rows["eps"].isna() | (proved[rows["index"]] < rows["eps"])).all()  # nothing certified was attacked, but by the audit
    assert len(rows[rows["method"].isin(done.about.protocol)]) < len(GRID) * len(x) * len(protocol) / 2
    audited = set(attacked(done.table, "audit:superdeepfool")["index"])
    want = {i for i in range(len(x)) if certified and proved[i] >= GRID[0]}
    assert audited == (want if len(protocol) < 2 or not protocol[0].minimal_norm else want & audited)
    table = verdicts.summary(done)
    assert not table["count_untested"].any()
    assert (table["count_audited"] == table["count_certified"]).all()


def test_one_call_takes_each_images_own_eps_and_others_are_called_once_an_eps(monkeypatch):
    model, x, y, _ = scene()
    calls, original = [], counting.counted

    def counted(subject, job):
        calls.append((job.label, job.method.eps, job.eps))
        return original(subject, job)

    monkeypatch.setattr(counting, "counted", counted)
    evaluate(model, (x, y), recipe(Nearest(), Reach(), block=100))
    own = [budgets for label, _, budgets in calls if label == "reach"]
    assert max(len(set(budgets)) for budgets in own) >= 3
    calls.clear()
    evaluate(model, (x, y), recipe(Nearest(), OfALibrary(), block=100))
    once = [eps for label, eps, budgets in calls if label == "library" and not budgets]
    assert once and set(once) <= set(GRID) and len(once) == sum(label == "library" for label, *_ in calls)


class Counter:
    """Counts the images each attack was called on, and interrupts after so many calls."""

    def __init__(self, monkeypatch, stop=None):
        self.calls, self.largest, self.images, self.stop, self.original = 0, 0, [], stop, counting.counted
        monkeypatch.setattr(counting, "counted", self)

    def __call__(self, subject, job):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        self.largest = max(self.largest, len(job.index))
        eps = job.eps or [np.inf if job.method.eps is None else job.method.eps] * len(job.index)
        self.images += [(job.label, *pair) for pair in zip(job.index, eps, strict=True)]
        return self.original(subject, job)


@pytest.mark.parametrize("block", [2, 12])
def test_the_table_is_the_same_at_any_block_size_which_bounds_what_is_asked_at_once(block, monkeypatch):
    model, x, y, _ = scene()
    protocol, tables = (Nearest(), Reach(beyond=1.1), Lucky()), []
    for size in (block, 5):
        with monkeypatch.context() as patch:
            counter = Counter(patch)
            tables.append(evaluate(model, (x, y), recipe(*protocol, block=size, rechecked=16)).table)
            assert counter.largest <= size
    same(*tables)


@pytest.mark.parametrize("protocol", [(Nearest(), Reach(), Lucky()), (FoolboxAttack(attack="deepfool"), PGD(steps=3))])
def test_interrupted_after_any_part_it_goes_on_to_the_same_table(tmp_path, monkeypatch, protocol):
    model, x, y, _ = scene(12)
    queried = recipe(*protocol, rechecked=4, block=5)
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        whole = evaluate(model, (x, y), queried)
        parts, images = counter.calls, counter.images
    assert len(set(images)) == len(images)
    for stop in (parts // 2, parts - 1):
        folder = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            first = Counter(patch, stop)
            partial = evaluate(model, (x, y), queried, folder=folder)
        assert not partial.about.complete and first.calls == stop
        with monkeypatch.context() as patch:
            second = Counter(patch)
            again = evaluate(model, (x, y), queried, folder=folder)
        assert verdicts.digest(again.table) == verdicts.digest(whole.table)
        assert sorted(first.images + second.images) == sorted(images)  # nothing twice
        assert again.about.complete and again.path == partial.path


def test_other_blocks_and_other_epsilons_work_nothing_out_again(tmp_path, monkeypatch):
    model, x, y, _ = scene()
    evaluate(model, (x, y), recipe(Nearest(), Reach(), block=5), folder=tmp_path)
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        evaluate(model, (x, y), recipe(Nearest(), Reach(), block=24), folder=tmp_path)
        assert counter.calls == 0
        evaluate(model, (x, y), recipe(Nearest(), Reach(), eps=(*GRID, 0.034), block=24), folder=tmp_path)
        assert counter.images and all(label == "reach" and eps == 0.034 for label, _, eps in counter.images)


def test_a_larger_sample_works_out_only_what_the_smaller_one_has_not(tmp_path, monkeypatch):
    model, x, y, _ = scene()
    evaluate(model, (x, y), recipe(Nearest(), Reach(), samples=5, order="first"), folder=tmp_path)
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        grown = evaluate(model, (x, y), recipe(Nearest(), Reach(), order="first"), folder=tmp_path)
        assert {index for _, index, _ in counter.images} == set(range(5, 12))
    same(grown.table, evaluate(model, (x, y), recipe(Nearest(), Reach())).table)


@pytest.mark.parametrize(("cost", "size"), [(1e6, 12), (5e8, 8), (1e12, 8)])
def test_a_stop_undoes_little_of_a_costly_network(cost, size, monkeypatch):
    monkeypatch.setattr(phase_state, "estimated", lambda model, shape: cost)
    model, x, y, _ = scene()
    tables = []
    for block in (64, 5):
        with monkeypatch.context() as patch:
            counter = Counter(patch)
            tables.append(evaluate(model, (x, y), recipe(Reach(), eps=GRID[-1:], block=block)).table)
            assert counter.largest == min(block, size, len(x))
    same(*tables)


class FakeTime:
    """A clock that only attacks move: a second an image."""

    def __init__(self, monkeypatch, cost=1.0):
        self.now, self.cost, self.original = 0.0, cost, counting.counted
        for module in (attack_phase, runtime_clock):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(counting, "counted", self)

    def __call__(self, subject, job):
        found = self.original(subject, job)
        self.now += self.cost * len(job.index)
        return found._replace(columns=found.columns | {"seconds": self.cost})


@pytest.mark.parametrize("budget", [1, 14, 20])
def test_a_budget_leaves_an_honest_interval_and_is_gone_on_from(tmp_path, monkeypatch, budget):
    model, x, y, truth = scene(12)
    queried, said = recipe(Nearest(), Reach(), block=24), []
    whole = evaluate(model, (x, y), queried)
    with monkeypatch.context() as patch:
        clock = FakeTime(patch)
        short = queried.model_copy(update={"budget": float(budget)})
        partial = evaluate(model, (x, y), short, folder=tmp_path, on_event=messages_into(said))
        assert budget <= clock.now <= budget + 1  # it overshoots by an image at most
    assert not partial.about.complete and any("budget of" in line for line in said)
    table, full = verdicts.summary(partial), verdicts.summary(whole)
    assert table["count_untested"].any() and table["robust"].isna().any()
    assert (table["certified"] <= full["robust"]).all() and (full["robust"] <= table["not_broken"]).all()
    exact = [(truth > eps).double().mean().item() for eps in GRID]
    assert (table["certified"] <= exact).all() and (exact <= table["not_broken"] + 1e-9).all()
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        again = evaluate(model, (x, y), queried, folder=tmp_path)
    assert again.path == partial.path
    done = {(r.method, r.index, r.eps) for r in attacked(partial.table).fillna({"eps": np.inf}).itertuples(index=False)}
    assert not done & set(counter.images) and len(done) + counter.calls > 0
    same(again.table, whole.table)


def test_survivals_are_sampled_at_their_own_eps_and_those_that_fall_are_followed_down():
    model, x, y, _ = scene(24)
    plain = evaluate(model, (x, y), recipe(Lucky(), seed=1))
    states = {eps: verdicts.states(plain, eps) for eps in GRID}
    inferred = sum(int(frame["inferred"].sum()) for frame in states.values())
    done = evaluate(model, (x, y), recipe(Lucky(), seed=1, rechecked=10_000))
    assert inferred and done.about.rechecked.pairs == inferred and done.about.rechecked.fell > 0
    assert plain.about.rechecked == Rechecked(0, 0)
    fell = 0
    for eps in GRID:
        now = verdicts.states(done, eps)
        assert not (now["state"] == "untested").any()
        fell += int(((now["state"] == "broken") & (states[eps]["state"] == "survived") & states[eps]["inferred"]).sum())
    assert fell >= done.about.rechecked.fell
    few = evaluate(model, (x, y), recipe(Lucky(), seed=1, rechecked=3))
    assert few.about.rechecked.pairs == 3
    extra = len(attacked(few.table)) - len(attacked(plain.table))
    assert 3 <= extra <= 3 * len(GRID)


def test_an_attack_that_fails_leaves_its_images_untested_and_is_tried_again(tmp_path, capsys):
    model, x, y, _ = scene(8)
    done = evaluate(model, (x, y), recipe(Reach(), Failing()), folder=tmp_path)
    assert not verdicts.summary(done)["count_survived"].any() and verdicts.summary(done)["count_untested"].any()
    rows = attacked(done.table, "failing")
    assert (rows["state_reason"] == "error").all() and not rows.duplicated(["index", "eps"]).any()
    assert "out of luck" in " ".join(done.about.failed)
    said: list[str] = []
    again = evaluate(model, (x, y), recipe(Reach(), Failing()), folder=tmp_path, on_event=messages_into(said))
    assert any("out of luck" in line for line in said) and again.about.failed == done.about.failed
    assert capsys.readouterr().out == ""


def test_a_damaged_part_is_done_again(tmp_path):
    model, x, y, _ = scene(8)
    evaluate(model, (x, y), recipe(Reach()), folder=tmp_path)
    path = next(path for path in tmp_path.rglob("*.parquet") if path.parent.parent.name == "parts")
    path.write_bytes(b"no part")
    assert not RowCache(path.parent).where or not path.exists()
    whole = evaluate(model, (x, y), recipe(Reach()))
    assert verdicts.digest(evaluate(model, (x, y), recipe(Reach()), folder=tmp_path).table) == verdicts.digest(whole.table)


def test_a_certificate_met_later_is_held_against_kept_parts(tmp_path, monkeypatch):
    model, x, y, _ = scene(8)
    evaluate(model, (x, y), recipe(Nearest()), folder=tmp_path)
    original = MarginCertificate.__call__

    def overstated(self, *args):
        found = original(self, *args)
        return found._replace(radius=found.radius * 1.5)

    monkeypatch.setattr(MarginCertificate, "__call__", overstated)
    queried = recipe(Nearest(), certificates=(MarginCertificate(),), eps=(3.0,))
    done = evaluate(model, (x, y), queried, folder=tmp_path)
    assert {one.cause for one in done.about.breaches} == {"proof error"} and len(done.about.breaches) == 8


def test_a_model_all_wrong_is_asked_nothing_more():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x = torch.rand(6, 1, 3, 4).double()
    y = (model(x).argmax(1) + 1) % 4
    done = evaluate(model, (x, y), recipe(Nearest(), Reach()))
    assert not len(attacked(done.table)) and done.about.complete


def test_a_budget_used_up_leaves_certificates_out_too_and_they_are_gone_on_from(tmp_path):
    model, x, y, _ = scene(8)
    queried = recipe(Reach(), certificates=(MarginCertificate(),))
    short = evaluate(model, (x, y), queried.model_copy(update={"budget": 1e-9}), folder=tmp_path)
    margin = short.table[short.table["method"] == "margin"]
    assert (margin["state_reason"] == "timeout").all() and not (margin["radius"] > 0).any() and not len(attacked(short.table))
    assert (verdicts.summary(short)["not_broken"] == 1).all() and (verdicts.summary(short)["certified"] == 0).all()
    again = evaluate(model, (x, y), queried, folder=tmp_path)
    assert verdicts.digest(again.table) == verdicts.digest(evaluate(model, (x, y), queried).table)
    assert again.path == short.path and again.about.complete


class Learning(Reach):
    name: Literal["learning"] = "learning"
    effort: str = "adaptive"


def test_an_attack_that_learns_from_a_block_gets_a_large_one(monkeypatch):
    model, x, y, _ = scene()
    for attack, largest in ((Learning(), 12), (Reach(), 5)):
        with monkeypatch.context() as patch:
            counter = Counter(patch)
            done = evaluate(model, (x, y), recipe(attack, block=5))
        assert counter.largest == largest and not verdicts.summary(done)["count_untested"].any()
