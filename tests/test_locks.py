"""One process works in a folder: a second is refused at once by name, and what a dead one left is taken over."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.locks import SILENT, alone
from robustbench_rkhs.training.loop import train

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
    script = f"""
        import os, sys
        from pathlib import Path
        from robustbench_rkhs.training.loop import train
        def report(record):
            print("begun", flush=True)
            sys.stdin.read()
        train({TINY!r}, Path({str(tmp_path / "mine")!r}), report=report)
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert other.stdout.readline() == "begun\n"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()}
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        train(TINY | {"epochs": 2}, tmp_path / "mine", fresh=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()} == before
    other.kill()
    other.wait()
    assert train(TINY, tmp_path / "mine", fresh=True)["epoch"] == 0
