"""While PyTorch is loaded, a command says so now and then, and never after it shows something else."""

import threading
import time

import pytest

from robustbench_rkhs.cli.loading import Loading


def test_it_says_so_until_the_end_and_never_after():
    lines, twice = [], threading.Event()

    def say(line):
        lines.append(line)
        if len(lines) == 2:
            twice.set()

    loading = Loading(every=0.01)
    loading.end()  # nothing was begun
    loading.begin("rkhs-eval", say)
    assert twice.wait(60)
    loading.end()
    said = len(lines)
    time.sleep(0.05)
    assert len(lines) == said and lines[0].startswith("rkhs-eval: still loading PyTorch, ")


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_closed_pipe_ends_it_alone(error):
    tried = threading.Event()

    def say(line):
        tried.set()
        raise error("closed")

    loading = Loading(every=0.01)
    loading.begin("rkhs-eval", say)
    assert tried.wait(60)
    loading.end()
