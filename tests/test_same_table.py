"""The law of the table: equal to the last digit at any number of workers, stopped anywhere and gone on from or not."""

import pytest
import torch
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, Ensemble, FoolboxAttack, Square, SuperDeepFool
from robustbench_rkhs.evaluation import first_look
from robustbench_rkhs.evaluation.engines import InProcess
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.threads import on_one_thread

PROTOCOL = (
    SuperDeepFool(),
    DDN(steps=6),
    FoolboxAttack(attack="deepfool"),
    Ensemble(version="custom", attacks=(Square(queries=10, restarts=1),), effort="adaptive"),
)


@pytest.fixture(autouse=True)
def every_phase(monkeypatch):
    """One thread, as each worker has, and a first look at a network as small as this."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(first_look, "LARGE", 0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scene():
    """A network of which the certificates prove some images at the smaller eps, and none at the larger."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(18, 1, 4, 4)
    with torch.no_grad():
        model[5].bias -= model(x).mean(0)  # every class is predicted
        return model, (x, model(x).argmax(1))


SETTINGS = {"eps": (0.02, 0.06, 0.2), "attacks": PROTOCOL, "block": 5, "rechecked": 3, "norm": "l2"}


@pytest.fixture(scope="module")
def whole(scene):
    before, first_look.LARGE = first_look.LARGE, 0
    model, data = scene
    done = evaluate(model, data, workers=1, **SETTINGS)
    first_look.LARGE = before
    assert done.about.complete and done.about.left_out and done.about.diagnostics
    return done


def same(one, other):
    left = [done.about.but(command="", date="") for done in (one, other)]
    told = [(about.left_out, about.refused, sorted(about.failed), about.breaches, about.diagnostics, about.marks) for about in left]
    return verdicts.digest(one.table) == verdicts.digest(other.table) and told[0] == told[1]


def test_the_table_is_the_same_at_any_number_of_workers(scene, whole):
    """Three workers: a number that divides neither images nor blocks; two gone on from are below."""
    model, data = scene
    assert same(evaluate(model, data, workers=3, **SETTINGS), whole)


def test_a_small_network_has_the_same_table_without_workers_whatever_the_threads(scene, whole):
    model, data = scene
    torch.set_num_threads(2)
    settings = {**SETTINGS, "attacks": PROTOCOL[:1], "diagnostics": False}
    one, other = evaluate(model, data, **settings), evaluate(model, data, workers=2, **settings)
    assert torch.get_num_threads() == 2 and same(one, other) and one.about.device == "CPU, 1 thread"


def test_a_network_is_small_by_its_multiply_adds():
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 30 * 30, 10))
    assert on_one_thread(net, (3, 32, 32), None, "cpu")
    large = nn.Conv2d(64, 256, 3)
    assert not on_one_thread(large, (64, 32, 32), None, "cpu") and on_one_thread(large, (64, 32, 32), 1, "cpu")
    assert not on_one_thread(net, (3, 32, 32), None, "cuda")


class Killed(BaseException):
    """As if the process ended here: nothing is tidied up."""


def test_killed_at_any_job_and_gone_on_from_it_is_the_same_table(scene, whole, tmp_path, monkeypatch):
    """Each run is killed some jobs later than the one before it came to, and the last one ends, by other workers."""
    model, data = scene
    original, allowed = InProcess.result, []
    monkeypatch.setattr(InProcess, "result", lambda engine: counted(original, engine, allowed))
    for jobs in (1, 3, 6, 7):
        allowed[:] = [jobs]
        with pytest.raises(Killed):
            evaluate(model, data, workers=1, folder=tmp_path, **SETTINGS)
    allowed[:] = [10**6]
    assert same(evaluate(model, data, workers=2, folder=tmp_path, **SETTINGS), whole)


def counted(original, engine, allowed):
    if engine._queue[0].phase != "predict":  # asked anew each time
        if not allowed[0]:
            raise Killed
        allowed[0] -= 1
    return original(engine)
