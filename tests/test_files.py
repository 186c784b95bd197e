"""Files are whole or absent, and what killed writers left is removed."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robustbench_rkhs.runtime.files import ENDING, Unwritable, exclusive, remove_abandoned, write_text, write_whole

KILLED = """
import os, pathlib, signal, sys
from robustbench_rkhs.runtime.files import write_whole
write_whole(pathlib.Path(sys.argv[1]), lambda temporary: os.kill(os.getpid(), signal.SIGKILL))
"""


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(ENDING))


def test_what_a_killed_writer_left_is_removed_by_the_next_write(tmp_path):
    path = tmp_path / "table.csv"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, env=environment)
    assert left(tmp_path) and not path.exists()
    write_text(path, "whole")
    assert not left(tmp_path) and path.read_text() == "whole"


def test_a_file_that_another_is_writing_stays(tmp_path):
    def write(temporary):
        temporary.write_text("first")
        remove_abandoned.cache_clear()
        write_text(tmp_path / "other.csv", "second")

    write_whole(tmp_path / "table.csv", write)
    assert (tmp_path / "table.csv").read_text() == "first" and not left(tmp_path)


def test_what_is_exclusive_waits_for_its_turn(tmp_path):
    """Two threads that read, wait and write count as one after the other."""
    counter = tmp_path / "new" / "count"

    def add():
        for _ in range(20):
            with exclusive(tmp_path / "new"):
                before = int(counter.read_text()) if counter.is_file() else 0
                time.sleep(0.001)
                counter.write_text(str(before + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert counter.read_text() == "80" and [path.name for path in counter.parent.iterdir()] == ["count"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unwritable, match="cannot use"), exclusive(tmp_path / "file" / "below"):
        pass
