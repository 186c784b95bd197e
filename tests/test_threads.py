"""The number of threads: the faster one as measured, kept with the run, overridden by the user, said where it is read."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from robustbench_rkhs.evaluation import threads as of_evaluation
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import threads as clocked
from robustbench_rkhs.runtime.events import TrainingStep
from robustbench_rkhs.runtime.threads import Threads, measured, threads
from robustbench_rkhs.training import threads as of_training
from robustbench_rkhs.training.loop import train

TINY = {
    "data": {"name": "digits", "train": 100, "validation": 50},
    "network": {"name": "mlp", "hidden": [8]},
    "penalties": [{"name": "gradient", "weight": 0.001}],
    "attack": {"name": "pgd", "eps": 0.3, "steps": 2},
    "optimizer": {"name": "adam"},
    "epochs": 2,
    "batch_size": 50,
    "ema": 0.9,
}


@pytest.fixture(autouse=True)
def two_threads():
    with threads(2):
        yield


@pytest.fixture
def speed(monkeypatch):
    """A clock by which a step takes so many seconds on one and on two threads."""
    now, taken = [0.0], {1: 1.0, 2: 1.0}

    class Time:
        monotonic = staticmethod(lambda: 0.0)

        @staticmethod
        def perf_counter():
            now[0] += taken[torch.get_num_threads()]
            return now[0]

    monkeypatch.setattr(clocked, "time", Time)
    return taken


@pytest.mark.parametrize(("one", "two", "count"), [(1.0, 3.0, 1), (1.0, 1.0, 1), (1.0, 0.9, 1), (1.0, 0.6, 2)])
def test_the_faster_is_taken_and_all_only_where_they_are_clearly_faster(speed, one, two, count):
    speed.update({1: one, 2: two})
    found = measured(lambda: None)
    assert (found.count, found.available, found.every / found.one) == (count, 2, pytest.approx(two / one))
    assert str(found).startswith(f"{count} of 2 threads, as measured: ") and torch.get_num_threads() == 2


def test_a_step_that_fails_is_left_to_the_run():
    found = measured(lambda: 1 / 0)
    assert (found.count, found.one) == (2, None) and torch.get_num_threads() == 2


def test_random_numbers_go_on_as_if_nothing_was_measured():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    measured(lambda: torch.rand(5))
    assert torch.equal(torch.rand(4), wanted)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_trial_steps_leave_the_training_where_it_was(tmp_path, speed):
    speed.update({1: 1.0, 2: 2.0})
    train(TINY, tmp_path / "measured")
    train(TINY, tmp_path / "given", threads=1)
    assert weights(tmp_path / "measured") == weights(tmp_path / "given") and torch.get_num_threads() == 2
    assert "- CPU, 1 of 2 threads, as measured: " in (tmp_path / "measured" / "README.md").read_text()
    assert "- CPU, 1 of 2 threads, as asked for, " in (tmp_path / "given" / "README.md").read_text()
    assert json.loads((tmp_path / "given" / "config.json").read_text())["trained"]["threads"] == "1 of 2 threads, as asked for"


def test_a_resumed_training_keeps_its_threads_and_the_user_overrides_them(tmp_path, monkeypatch, speed):
    seen = []

    def watch(event):
        if not isinstance(event, TrainingStep):
            return
        seen.append(torch.get_num_threads())
        if len(seen) == 3:
            raise KeyboardInterrupt

    speed.update({1: 1.0, 2: 0.5})
    for folder in ("kept", "given"):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tmp_path / folder, save_seconds=0, on_event=watch)
        assert set(seen) == {2}
    monkeypatch.setattr(of_training, "measured", lambda step: Threads(1, 2, 1.0, 2.0))  # the machine has become busy
    seen[:] = [0] * 3
    train(TINY, tmp_path / "kept", on_event=watch)
    assert set(seen[3:]) == {2} and "2 of 2 threads, as measured" in (tmp_path / "kept" / "README.md").read_text()
    seen[:] = [0] * 3
    train(TINY, tmp_path / "given", on_event=watch, threads=1)
    assert set(seen[3:]) == {1}


def test_fewer_than_one_thread_is_refused(tmp_path):
    with pytest.raises(UserError, match="threads: expected 1 to 1024, found 0"):
        train(TINY, tmp_path / "m", threads=0)
    with pytest.raises(ValueError, match="workers compute on one thread each"):
        EvalRecipe(eps=(0.1,), workers=2, threads=2)


def test_an_evaluation_keeps_what_was_measured_for_its_model(tmp_path, monkeypatch):
    monkeypatch.setattr(of_evaluation, "FEW", 0)
    monkeypatch.setattr(of_evaluation, "measured", lambda step: step() or Threads(2, 2, 1.0, 0.5))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(4, 1, 4, 4)
    settings = {"eps": (0.1,), "effort": "quick", "certificates": (), "diagnostics": False, "folder": tmp_path}
    done = evaluate(model, (x, model(x).argmax(1)), **settings)
    assert done.about.threads == "2 of 2 threads, as measured: 1e+03 ms a step on one, 500 ms on all"
    assert all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr(of_evaluation, "measured", lambda step: Threads(1, 2, 1.0, 2.0))
    again = evaluate(model, (x, model(x).argmax(1)), **settings)
    assert again.about.threads == done.about.threads and again.path == done.path
    other = evaluate(model, (x, model(x).argmax(1)), threads=1, **settings)
    assert other.about.threads == "1 of 2 threads, as asked for" and other.about.device == "CPU, 1 thread"


def test_waiting_threads_of_a_command_sleep():
    """The policy is there before PyTorch is loaded, which reads it once; the user's own stays."""
    script = "import sys, os, robustbench_rkhs.cli.train; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    bare = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for more, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run([sys.executable, "-c", script], env=bare | more, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", policy]
