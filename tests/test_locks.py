"""One process works in a folder: a second is refused at once by name, and what a dead one left is taken over."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.events import TrainingStep
from robustbench_rkhs.runtime.locks import SILENT, alone
from robustbench_rkhs.training.loop import _check_folder, train

TINY = {"data": {"name": "digits", "train": 40}, "network": {"name": "mlp", "hidden": [4]}, "epochs": 1}


def test_a_second_is_refused_and_told_who_is_there(tmp_path):
    with alone(tmp_path / "mine", "a training"):
        with pytest.raises(UserError) as refused, alone(tmp_path / "mine", "another"):
            pass
        line = str(refused.value)
        assert f"process {os.getpid()} on {socket.gethostname()} since" in line and "(a training)" in line and "\n" not in line
        with alone(tmp_path / "other", "a training"):
            pass
    assert not list(tmp_path.glob(".*.lock"))
    with alone(tmp_path / "mine", "a training"):
        pass


@pytest.mark.parametrize("left", ["", "torn {", "[]", json.dumps({"pid": 1, "host": socket.gethostname()})])
def test_a_lock_that_its_process_left_is_taken_over(tmp_path, left):
    (tmp_path / ".mine.lock").write_text(left)
    with alone(tmp_path / "mine", "a training"):
        assert json.loads((tmp_path / ".mine.lock").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_machine_is_believed_while_it_is_refreshed(tmp_path):
    lock = tmp_path / ".mine.lock"
    lock.write_text(json.dumps({"pid": 5, "host": "elsewhere", "since": "noon", "what": "a training"}))
    with pytest.raises(UserError, match="process 5 on elsewhere since noon"), alone(tmp_path / "mine", "a training"):
        pass
    os.utime(lock, (os.stat(lock).st_mtime - 2 * SILENT,) * 2)
    with alone(tmp_path / "mine", "a training"):
        pass


def test_a_training_is_refused_before_it_begins_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def wait_for_ever(event):
        if isinstance(event, TrainingStep):
            there.send("begun")
            there.recv()

    other = context.Process(target=train, args=(TINY, tmp_path / "mine"), kwargs={"on_event": wait_for_ever})
    other.start()
    assert here.poll(60) and here.recv() == "begun"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()}
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        train(TINY | {"epochs": 2}, tmp_path / "mine", fresh=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()} == before
    other.kill()
    other.join()
    assert train(TINY, tmp_path / "mine", fresh=True)["epoch"] == 0


def test_evaluations_that_write_the_same_parts_do_not_damage_each_other(tmp_path):
    """Four processes, two settings, one folder: each ends with the table that it has alone."""
    x, y = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    given = {"attacks": ({"name": "pgd", "steps": 2},), "certificates": (), "diagnostics": False, "block": 2}
    radii = [(0.05,), (0.05, 0.1)] * 2
    alone_digests = [verdicts.digest(evaluate(model, (x, y), eps=eps, **given).table) for eps in radii]

    def work(eps, queue):
        done = evaluate(model, (x, y), eps=eps, folder=tmp_path, **given)
        queue.put((eps, verdicts.digest(done.table)))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=work, args=(eps, queue)) for eps in radii]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert found == dict(zip(radii, alone_digests, strict=True)) and all(worker.exitcode == 0 for worker in workers)
    assert not [
        path for path in tmp_path.rglob("*") if path.name != ".gitignore" and (path.name.startswith(".") or path.suffix == ".part")
    ]
    for eps, digest in found.items():  # and what they left is read as it stands
        assert verdicts.digest(evaluate(model, (x, y), eps=eps, folder=tmp_path, **given).table) == digest


def test_a_training_takes_no_folder_that_is_something_else(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "README.md").write_text("of something else")
    with pytest.raises(UserError, match="choose a folder of its own"):
        train(TINY, tmp_path / "work")
    with pytest.raises(UserError, match="checkpoint folder ''"):
        _check_folder(Path("/"))
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["README.md"]
