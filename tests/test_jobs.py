"""Jobs are values: written and read as JSON, computed once, cut smaller where memory is short, the same in any engine."""

import json

import numpy as np
import pytest
import torch
from heard import messages_into
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, PGD, Ensemble, FoolboxAttack
from robustbench_rkhs.certificates import CrownCertificate, MarginCertificate
from robustbench_rkhs.data.given import given_split
from robustbench_rkhs.evaluation import counting
from robustbench_rkhs.evaluation.engines import InProcess
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.runner import Runner
from robustbench_rkhs.evaluation.scheduler import Scheduler
from robustbench_rkhs.evaluation.store import Store
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, ask


def scene(images=12):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(images, 1, 4, 4)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def subject(images=12):
    model, x, y = scene(images)
    return Subject(model, model, given_split(x, y, 3), "net", "w", "cpu", 0)


def job(method, index=(2, 5, 7), **fields):
    phase = "certify" if isinstance(method, (CrownCertificate, MarginCertificate)) else "attack"
    given = {"given": {"epsilons": [0.1]}} if phase == "certify" else {}
    return Job(phase, method.label, "l2", "unit", index, method, predicted=(0,) * len(index), **given, **fields)


METHODS = [DDN(steps=4), PGD(eps=0.25), Ensemble(eps=0.5), FoolboxAttack(attack="deepfool"), CrownCertificate(search=False)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_a_job_is_json_and_back(method):
    one = job(method, certified=(-1.0, float("inf"), 0.25), eps=(0.1, 0.2, float("inf")), of={"weights": "w"}, seconds=2.5)
    again = Job.read(json.loads(json.dumps(one.plain(), allow_nan=False)), TYPED)
    assert again == one and again.key == one.key and again.name == one.name and again.seconds == 2.5


def test_the_key_holds_what_the_arithmetic_depends_on_and_no_more():
    one = job(DDN(steps=4), of={"weights": "w", "seed": 0})
    others = [
        job(DDN(steps=5), of=one.of),
        job(DDN(steps=4), of={"weights": "v", "seed": 0}),
        job(DDN(steps=4), of={"weights": "w", "seed": 1}),
        job(PGD(eps=0.1), of=one.of),
    ]
    assert len({one.key, *(other.key for other in others)}) == 5
    assert job(DDN(steps=4), of=one.of, seconds=3.0).key == one.key
    assert job(DDN(steps=4), (2, 5), of=one.of).key == one.key  # kept image by image, so the block is no part of it
    assert job(DDN(steps=4), (2, 5), of=one.of).name != one.name


@pytest.mark.parametrize(
    "change", [{"phase": "cook"}, {"eps": [0.1]}, {"eps": ["much"]}, {"index": None}, {"method": {"name": "no"}}]
)
def test_a_damaged_job_is_one_line(change):
    stored = job(DDN(steps=4)).plain() | change
    with pytest.raises(UserError, match="job: ") as found:
        Job.read(stored)
    assert "\n" not in str(found.value)
    del stored["norm"]
    with pytest.raises(UserError, match="job: "):
        Job.read(stored)


def test_a_job_names_code_only_with_leave():
    stored = job(DDN(steps=4)).plain() | {"method": {"name": "os:system"}}
    with pytest.raises(UserError, match="names code"):
        Job.read(stored)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_the_same_job_twice_is_one_computation(method, tmp_path):
    computed, runner = [], Runner(subject())

    def work(given):
        computed.append(given)
        return runner(given)

    results = []
    for _ in range(2):  # another process reads what the first one stored
        scheduler = Scheduler(InProcess(work), Store(tmp_path))
        results += [scheduler.one(job(method)), scheduler.one(job(method))]
    assert len(computed) == 1
    for one in results[1:]:
        assert one.table.drop(columns="seconds").equals(results[0].table.drop(columns="seconds"))


def test_what_failed_is_computed_again_by_the_next_evaluation_only(tmp_path):
    computed, runner = [], Runner(subject())

    def work(given):
        computed.append(given)
        part = runner(given)
        return type(part)(part.table.assign(state_reason="error"), part.noticed)

    for number in (1, 2):
        scheduler = Scheduler(InProcess(work), Store(tmp_path))
        scheduler.one(job(DDN(steps=2)))
        scheduler.one(job(DDN(steps=2)))
        assert len(computed) == number


class Two(InProcess):
    """Takes two jobs at once."""

    width = 2


class Backwards(Two):
    """The one that was submitted last ends first."""

    def result(self):
        self._queue.reverse()
        return super().result()


@pytest.mark.parametrize(("engine", "order"), [(InProcess, "aab"), (Two, "abab"), (Backwards, "bbaa")])
def test_a_chain_goes_on_when_its_result_is_there(engine, order):
    runner, found = Runner(subject()), []

    def chain(name, *indices):
        for index in indices:
            part = yield job(DDN(steps=2), (index,))
            assert part.table["index"].tolist() == [index]
            found.append(name)

    list(Scheduler(engine(runner), Store()).run([chain("a", 0, 1), chain("b", 2, 3)]))
    assert sorted(found) == list("aabb") and "".join(found).startswith(order)


def test_when_time_ends_what_is_under_way_is_still_taken_and_nothing_more_begun(tmp_path):
    found, store = [], Store(tmp_path)

    def chain(*indices):
        for index in indices:
            if index == 11:
                raise OutOfTime
            yield job(DDN(steps=2), (index,))
            found.append(index)

    with pytest.raises(OutOfTime):
        list(Scheduler(Two(Runner(subject())), store).run([chain(0, 11), chain(2, 3), chain(4)]))
    assert found == [0, 2] and store.open(job(DDN(steps=2), (0, 2))) is None
    assert store.open(job(DDN(steps=2), (2, 3))).index == (3,)


def test_a_job_has_its_own_clock():
    class Slow(nn.Module):
        def forward(self, x):
            ask()
            return x.flatten(1)[:, :3]

    slow = Slow()
    runner = Runner(Subject(slow, slow, subject().split, "net", "w", "cpu", 0))
    runner(Job("predict", "prediction", "l2", "unit", (1, 2)))
    with pytest.raises(OutOfTime):
        runner(Job("predict", "prediction", "l2", "unit", (1, 2), seconds=0.0))
    Clock().ask()


class Greedy(nn.Module):
    """A model without the memory for more than so many images at once."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.asked = model, most, []

    def forward(self, x):
        if len(x) > self.most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.asked.append(len(x))
        return self.model(x)


def greedy(most, **settings):
    model, x, y = scene(12)
    model, x = model.double(), x.double()  # another batch changes the last digit of a float64
    attacks, lines = (PGD(steps=3, targets=0),), []
    net = Greedy(model, 10**6)
    recipe = {"eps": (0.05, 0.2), "attacks": attacks, "certificates": (), "diagnostics": False, "rechecked": 0, **settings}
    original = counting.counted

    def short(*given):
        net.most = most
        try:
            return original(*given)
        finally:
            net.most = 10**6

    counting.counted = short
    try:
        return evaluate(net, (x, y), **recipe, on_event=messages_into(lines)), lines
    finally:
        counting.counted = original


def test_where_memory_is_short_a_block_is_halved_which_is_said_and_changes_no_outcome(tmp_path):
    whole, quiet = greedy(10**6)
    halved, lines = greedy(3, folder=tmp_path)
    columns = ["method", "eps", "index", "predicted", "state_reason", "forwards", "backwards"]
    assert halved.table[columns].equals(whole.table[columns]) and not quiet
    np.testing.assert_allclose(halved.table["radius"], whole.table["radius"], rtol=1e-6)
    assert lines == ["pgd: out of memory with 6 images at once; going on with 3"]  # once: the next job starts small
    again, quiet = greedy(10**6, folder=tmp_path)  # what was computed in halves is the result of the same jobs
    assert verdicts.digest(again.table) == verdicts.digest(halved.table) and not quiet


def test_where_one_image_is_too_much_the_rows_say_so():
    done, _ = greedy(0)
    rows = done.table[done.table["kind"] == "attack"]
    assert (rows["state_reason"] == "error").all() and any("out of memory" in line for line in done.about.failed)
