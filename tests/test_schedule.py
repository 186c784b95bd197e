"""The schedule against brute force: every verdict of a full grid, by the least runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_rkhs.attacks import schedule
from robustbench_rkhs.attacks.efforts import protocol_of
from robustbench_rkhs.attacks.schedule import Known
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse

GRID = st.lists(st.floats(0.01, 2), min_size=1, max_size=8, unique=True)
IMAGE = st.tuples(
    st.booleans(),  # right
    st.floats(0.02, 2.5),  # distance of its nearest adversarial image
    st.floats(0, 0.99),  # share of it that is certified
    st.one_of(st.none(), st.floats(1.001, 2)),  # what a cheap attack found it at, as a multiple
    st.floats(0.3, 1),  # where in [truth, eps] the protocol finds it
)


class World:
    """Images of known radius. The protocol finds an adversarial image wherever there is one, and counts its runs."""

    def __init__(self, drawn):
        columns = list(zip(*drawn, strict=True))
        self.right = np.array(columns[0])
        self.truth = np.array(columns[1])
        self.certified = np.where(self.right, self.truth * np.array(columns[2]), -1.0)
        self.broken = np.array([t * f if f else np.inf for t, f in zip(columns[1], columns[3], strict=True)])
        self.share, self.survived = np.array(columns[4]), np.full(len(drawn), -np.inf)
        self.runs, self.falls = np.zeros(len(drawn), int), np.zeros(len(drawn), int)
        self.queried = [[] for _ in drawn]
        self.margin = self.truth

    def known(self):
        return Known(self.right, self.certified, self.broken, self.survived)

    def attack(self, place, eps):
        self.runs[place] += 1
        self.queried[place].append(eps)
        if self.truth[place] <= eps:
            self.falls[place] += 1
            found = self.truth[place] + self.share[place] * (eps - self.truth[place])
            self.broken[place] = min(self.broken[place], found)
        else:
            self.survived[place] = max(self.survived[place], eps)

    def state(self, place, eps):
        if not self.right[place]:
            return "wrong"
        if self.broken[place] <= eps:
            return "broken"
        if self.certified[place] >= eps:
            return "certified"
        return "survived" if self.survived[place] >= eps else "untested"


def finish(world, epsilons, size):
    while True:
        eps = schedule.next_eps(epsilons, world.known())
        order = schedule.order(eps, world.known(), world.margin)
        if not len(order):
            return
        for block in schedule.blocks(order, size, first=1):
            for place in block:
                world.attack(place, eps[place])


@settings(max_examples=200)
@given(st.lists(IMAGE, min_size=1, max_size=12), GRID, st.integers(1, 5))
def test_every_image_gets_the_verdict_of_a_full_grid_by_one_run_more_than_it_fell(drawn, epsilons, size):
    world, full = World(drawn), World(drawn)
    finish(world, epsilons, size)
    for place in range(len(drawn)):  # brute force: every image at every eps
        for eps in epsilons:
            full.attack(place, eps)
    for place, (right, truth, *_) in enumerate(drawn):
        assert world.runs[place] <= 1 + world.falls[place]
        assert len(set(world.queried[place])) == len(world.queried[place]) <= len(epsilons)
        for eps in epsilons:
            state = world.state(place, eps)
            assert state == full.state(place, eps) and state != "untested"
            assert state == "wrong" if not right else (state == "broken") == (truth <= eps)
        start = World(drawn)
        decided = [start.state(place, eps) != "untested" for eps in epsilons]
        assert world.runs[place] == 0 if all(decided) else world.runs[place] > 0
        assert all(start.state(place, eps) == "untested" for eps in world.queried[place])


@settings(max_examples=100)
@given(st.lists(IMAGE, min_size=1, max_size=8), GRID)
def test_no_schedule_that_knows_no_more_runs_less_on_what_survives(drawn, epsilons):
    """Each survival must be run at its own largest eps at least, and that is the only run that ends in a survival."""
    world = World(drawn)
    finish(world, epsilons, 3)
    survivals = world.runs - world.falls
    for place in range(len(drawn)):
        needs = any(world.state(place, eps) == "survived" for eps in epsilons)
        assert survivals[place] == needs


@settings(max_examples=100)
@given(st.lists(IMAGE, min_size=1, max_size=12), GRID, st.integers(1, 9))
def test_interrupted_anywhere_it_goes_on_to_the_same_end(drawn, epsilons, stop):
    whole, stopped = World(drawn), World(drawn)
    finish(whole, epsilons, 4)
    for _ in range(stop):  # one image of the order at a time, decided anew after each
        eps = schedule.next_eps(epsilons, stopped.known())
        order = schedule.order(eps, stopped.known(), stopped.margin)
        if len(order):
            stopped.attack(order[0], eps[order[0]])
    finish(stopped, epsilons, 4)
    assert stopped.queried == whole.queried


def test_the_order_is_nearest_to_falling_first():
    broken = np.array([np.inf, 1.5, 1.02, np.inf, 2.4])
    known = Known(np.ones(5, bool), np.zeros(5), broken, np.full(5, -np.inf))
    eps = schedule.next_eps([1.0, 2.0], known)
    assert eps.tolist() == [2, 1, 1, 2, 2]
    margin = np.array([3.0, 0, 0, 2.0, 0])
    assert schedule.order(eps, known, margin).tolist() == [2, 4, 1, 3, 0]  # 1.02, 1.2, 1.5, then by margin
    assert schedule.order(eps, known, margin, by_eps=True).tolist() == [4, 3, 0, 2, 1]


def test_blocks_cover_the_order_and_begin_small():
    for count in (0, 1, 7, 8, 9, 40):
        cut = list(schedule.blocks(np.arange(count), 16, schedule.FIRST))
        assert np.concatenate([*cut, np.arange(0)]).tolist() == list(range(count))
        assert all(len(block) <= 16 for block in cut) and all(len(block) == 16 for block in cut[1:-1])
        assert not cut or len(cut[0]) == min(8, count)


def test_the_sample_is_counted_whatever_the_others_are():
    keys = np.arange(100, 130)
    pairs = [(place, eps) for place in range(30) for eps in (0.25, 0.5)]
    chosen = schedule.sample(pairs, keys, seed=3, count=8)
    assert len(set(chosen)) == 8 and set(chosen) <= set(pairs)
    assert len({place for place, _ in chosen}) == 8  # no image twice while others have none
    assert schedule.sample(pairs[::-1], keys, 3, 8) == chosen
    assert set(schedule.sample(chosen, keys, 3, 8)) == set(chosen)
    assert schedule.sample(pairs, keys, 4, 8) != chosen
    assert len(schedule.sample(pairs, keys, 3, 100)) == 60 and schedule.sample([], keys, 3, 8) == []


@pytest.mark.parametrize("text, value", [("90", 90), ("90s", 90), ("10min", 600), (" 2 h", 7200), ("1.5min", 90), (45, 45)])
def test_a_time_is_read(text, value):
    assert parse(EvalRecipe, {"eps": (1.0,), "budget": text}, "test").budget == value


@pytest.mark.parametrize("text", ["", "min", "10 days", "1.2.3s", "-5s", "0s", "nan", "inf"])
def test_no_time_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="budget: ") as refused:
        parse(EvalRecipe, {"eps": (1.0,), "budget": text}, "test")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_each_effort_has_its_protocol_and_named_attacks_win(norm):
    names = {effort: [attack.label for attack in protocol_of(effort, norm)] for effort in ("quick", "standard", "adaptive")}
    near = ["superdeepfool", "ddn" if norm == "l2" else "fmn"]
    assert names == {"quick": [*near, "fab:targeted"], "standard": [*near, "ensemble"], "adaptive": [*near, "ensemble:adaptive"]}
    assert all(attack.scale_invariant for attack in protocol_of("standard", norm))
    named = {"eps": (1.0,), "norm": norm, "attacks": ({"name": "pgd"},)}
    assert parse(EvalRecipe, named, "test").effort == "standard"
    with pytest.raises(UserError, match="effort 'quick' chooses the attacks itself"):
        parse(EvalRecipe, named | {"effort": "quick"}, "test")
