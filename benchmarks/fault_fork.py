"""Cheap children for a campaign: everything imported once, and interpreters that a command starts made by a fork instead.

What a trial does is unchanged: a real process, killed by a real signal, its memory and time measured by the kernel. Left out are
the seconds that each new interpreter spends on importing torch, and figures where a trial does not look at them. A share of
trials leaves out nothing: they are typed commands.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from robustbench_rkhs.reports import figures as drawn
from robustbench_rkhs.runtime import children

IMPORTED = (
    "matplotlib.pyplot",
    "matplotlib.backends.backend_pdf",
    "matplotlib.backends.backend_svg",
    "fontTools.subset",
    "pandera.pandas",
    "scipy.stats",
    "foolbox",
    "fontTools.ttLib",
    "hypothesis.strategies",
    "optuna",
    "pandera.backends.pandas.register",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "pyarrow.dataset",
    "rich.console",
    "rich._emoji_codes",
    "sklearn.datasets",
    "sympy",
    "torch._dynamo",
    "torch.utils.flop_counter",
    "robustbench_rkhs.submission.gate",
    "robustbench_rkhs.submission.confined",
    "robustbench_rkhs.evaluation.engines",
    "robustbench_rkhs.reports",
    "robustbench_rkhs.sweep",
    "robustbench_rkhs.training",
    "robustbench_rkhs.zoo",
    *(f"robustbench_rkhs.cli.{name}" for name in ("evaluate", "train", "sweep", "report", "submit", "settings", "display")),
)


def warm() -> None:
    """Import what commands import, once here, not in every fork."""
    torch.set_num_threads(1)  # forks inherit no threads
    for name in IMPORTED:
        import_module(name)


class Fork:
    """What subprocess.Popen is to `runtime.children`, for `python -P -c BEGIN module`: a fork that runs the module."""

    def __init__(self, words: Sequence[str], stdin: Any, stdout: int, stderr: Any, env: Mapping[str, str]) -> None:
        assert stdout == subprocess.PIPE
        reading, writing = os.pipe()
        parent = os.getpid()
        self.pid, self._code = os.fork(), None
        if self.pid == 0:
            os.close(reading)
            _become(words[-1], (stdin.fileno(), writing, stderr.fileno()), env, parent)
        os.close(writing)
        self.stdout = os.fdopen(reading, "rb")

    def wait(self) -> int:
        """Its exit code, minus the number of the signal that ended it."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)


def _become(module: str, files: Sequence[int], env: Mapping[str, str], parent: int) -> None:
    """In the fork: these as its standard files, then the module as `__main__`; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        for place, file in enumerate(files):
            os.dup2(file, place)
        os.environ.update(env)
        sys.stdin = open(0, closefd=False)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def cheaply(run: Callable[[], None], figures: bool = False) -> Callable[[], None]:
    """The same function with forks for new interpreters, and no figures unless asked for."""

    def cheap() -> None:
        children.subprocess = SimpleNamespace(Popen=Fork, PIPE=subprocess.PIPE)  # type: ignore[assignment]
        if not figures:
            drawn.UNDATED = {}
        run()

    return cheap
