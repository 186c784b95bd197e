"""While PyTorch is imported, a command says so now and then; never before, after or about anything else."""

import subprocess
import sys
import threading

import pytest

from robustbench_rkhs.cli import screen
from robustbench_rkhs.cli.loading import Loading, being_imported


def test_it_says_so_until_something_else_is_heard():
    states, lines = iter([None, None, True, True]), []
    loading = Loading(every=0.001, imported=lambda: next(states, False))

    def say(line):
        lines.append(line)
        if len(lines) == 4:
            loading.heard()

    loading.begin("rkhs-eval", say)
    loading.thread.join(60)
    assert not loading.thread.is_alive()
    said = ["loading PyTorch"] * 2 + ["starting"] * 2
    assert [line.startswith(f"rkhs-eval: still {what}, ") for line, what in zip(lines, said, strict=True)] == [True] * 4


@pytest.mark.parametrize("say", [screen.printed, lambda line: screen.told(screen.console_of_width(80, False), line)])
def test_a_line_of_the_command_ends_it(monkeypatch, say):
    loading, lines = Loading(every=0.001, imported=lambda: False), []
    monkeypatch.setattr(screen, "LOADING", loading)
    loading.begin("rkhs-submit", lines.append)
    say("a line")
    loading.thread.join(60)
    assert not loading.thread.is_alive()


def test_a_command_that_ends_first_ends_it():
    asked = threading.Event()

    def never():
        asked.set()

    loading, lines = Loading(every=0.001, imported=never), []
    loading.end()
    loading = Loading(every=0.001, imported=never)
    loading.begin("rkhs-serve", lines.append)
    assert asked.wait(60)
    loading.end()
    loading.thread.join(60)
    assert not loading.thread.is_alive() and not lines


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_closed_pipe_ends_it_at_the_first_line(error):
    tried = []

    def say(line):
        tried.append(line)
        raise error("closed")

    loading = Loading(every=0.001, imported=lambda: True)
    loading.begin("rkhs-eval", say)
    loading.thread.join(60)
    assert not loading.thread.is_alive() and len(tried) == 1


def test_an_import_is_seen_as_it_goes_on(tmp_path, monkeypatch):
    """A package that is in sys.modules already, but whose code still runs, is being imported."""
    (tmp_path / "slow_package.py").write_text(
        "from robustbench_rkhs.cli.loading import being_imported\nduring = being_imported('slow_package')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert being_imported("slow_package") is None
    import slow_package

    assert slow_package.during is True and being_imported("slow_package") is False
    del sys.modules["slow_package"]


def test_a_missing_file_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from robustbench_rkhs.cli.evaluate import main\n"
        "try: main()\n"
        "except SystemExit as left: print(left.code, 'torch' in sys.modules)"
    )
    words = ["--model", "digits_mlp", "--data", "absent.npz", "--eps", "0.1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "False"] and "no file 'absent.npz'" in done.stderr
