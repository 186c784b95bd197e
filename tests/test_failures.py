"""The last line of defence of every command: one line and an exit code, whatever is raised, and the traceback in a named file."""

import errno
import io
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from test_commands import main_of, run

from robustbench_rkhs.cli.failures import left
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.devices import describe

NETS = """
import torch
from torch import nn

def net(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 2))

class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        return self.net(x)

class Raises(Holds):
    def forward(self, x):
        raise KeyError("of mine")

class Late(Holds):
    count = 0
    def forward(self, x):
        self.count += 1
        if self.count > 6:
            raise ZeroDivisionError("after a while")
        return self.net(x)

class Extra(Holds):
    def get_extra_state(self):
        return {"a": 1}
    def set_extra_state(self, state):
        pass

class Complex(Holds):
    def forward(self, x):
        return self.net(x).to(torch.complex64)

class Sparse(Holds):
    def forward(self, x):
        return self.net(x).to_sparse()

class Two(Holds):
    def forward(self, x, z):
        return self.net(x + z)

class NoState(Holds):
    def state_dict(self, *args, **kwargs):
        raise RuntimeError("no state")

class Leaves(Holds):
    def forward(self, x):
        raise SystemExit(0)

def quantised():
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, torch.qint8)

def meta():
    return net().to("meta")

def base():
    raise BaseException("from below")
"""
FAULTS = {
    "Raises": "KeyError: 'of mine'",
    "Late": r"ZeroDivisionError: after a while",
    "Extra": "get_extra_state",
    "Complex": "expected float logits of shape .* returned complex64",
    "Sparse": "expected dense float logits",
    "Two": "missing 1 required positional argument",
    "NoState": "your own code failed: RuntimeError: no state",
    "Leaves": "your own code failed: SystemExit: 0|the model cannot take images",
    "quantised": "quantised module",
    "meta": "'meta', which has none",
    "base": "BaseException: from below",
}
OWN = ["--data", "mine.npz", "--eps", "0.1", "--no-diagnostics", "--certify", "none", "--attack", "pgd:steps=3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("odd")
    x = np.random.default_rng(0).random((12, 1, 4, 4), dtype=np.float32)
    y = (x.reshape(12, -1).sum(1) > 8).astype(np.int64)
    np.savez(folder / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez(folder / "text.npz", x_train=x, y_train=y.astype(str), x_test=x, y_test=y.astype(str))
    (folder / "oddnets.py").write_text(NETS)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_module_of_ones_own_that_cannot_be_evaluated_is_one_line(home, name):
    _, err = run("rkhs-eval", "--model", f"oddnets.py:{name}", *OWN, folder=home, code=2)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and re.search(FAULTS[name], said[0]), err
    assert "Traceback" not in err


NET = ["--model", "oddnets.py:net", "--data", "mine.npz"]
REFUSED = [
    ("rkhs-eval", [*NET, "--eps", "0.1", "--device", "meta"], "holds no numbers"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--device", "cpu:7"], "there is one cpu"),
    ("rkhs-eval", [*NET, "--eps", "1/0"], "found '1/0'"),
    ("rkhs-eval", [*NET, "--eps", "nan"], "finite"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--seed", "-1"], "seed"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--seed", str(2**63)], "seed"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--seed", str(2**70)], "seed"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--block", str(2**70)], "block"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--workers", "100000"], "workers"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--out", "mine.npz"], "--out: expected a folder, found the file"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--out", "a\udcffb"], "UTF-8"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--certify="], "certif"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--certify", ""], "certif"),
    ("rkhs-eval", [*NET, "--eps", "0.1", "--attack", "pgd:seed=-1"], "seed"),
    ("rkhs-eval", ["--model", "oddnets.py:net", "--data", "text.npz", "--eps", "0.1"], "integer labels"),
    ("rkhs-eval", ["--model", "os:system", "--data", "mine.npz", "--eps", "0.1"], "os:system"),
    ("rkhs-eval", ["--model", "sys:exit", "--data", "mine.npz", "--eps", "0.1"], "sys:exit"),
    ("rkhs-norms", [*NET, "--eps", "nan"], "--eps"),
    ("rkhs-norms", [*NET, "--eps", "-1"], "--eps"),
    ("rkhs-norms", [*NET, "--training-samples", "0"], "--training-samples"),
    ("rkhs-norms", [*NET, "--samples", "0"], "--samples"),
    ("rkhs-norms", [*NET, "--seed", "-1"], "--seed"),
    ("rkhs-tightness", [*NET, "--samples", "0"], "--samples"),
    ("rkhs-pictures", ["deformations", "--images", "0"], "--images"),
    ("rkhs-train", ["--model", "digits_mlp", "--network.hidden", "[0]", "--out", "t"], "network.mlp.hidden.0"),
    ("rkhs-train", ["--model", "digits_mlp", "--data.crop", "99", "--out", "t"], "crop"),
    ("rkhs-train", ["--model", "digits_mlp", "--seed", "-1", "--out", "t"], "seed"),
    ("rkhs-train", ["--model", "digits_mlp", "--epochs", str(10**30), "--out", "t"], "epochs"),
]


@pytest.mark.parametrize("name, words, line", REFUSED, ids=[f"{name} {words[-2]} {words[-1][:9]!r}" for name, words, _ in REFUSED])
def test_odd_values_are_refused_by_name(home, name, words, line):
    _, err = run(name, *words, folder=home, code=2)
    said = err.strip().splitlines()
    assert said[-1].startswith("error: ") and line in said[-1] and "Traceback" not in err, err


def ended(error):
    """Exit code and line of a command that raises this."""

    def fails():
        raise error

    err = io.StringIO()
    with redirect_stderr(err):
        code, line = left(lambda: fails)
    assert err.getvalue().count("\n") <= 1
    return code, line


def test_a_fault_of_ours_names_the_file_that_holds_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rkhs-eval"])
    with redirect_stderr(io.StringIO()):
        code, line = left(lambda: lambda: describe("no such device"))
    log = Path(re.search(r"traceback in (\S+\.log)", line)[1])
    assert code == 1 and line.startswith("a fault of robustbench_rkhs") and "Traceback" in log.read_text()
    log.unlink()


def test_what_the_system_refuses_has_its_own_line():
    full = OSError(errno.ENOSPC, "No space left on device", "reports/x.csv")
    assert ended(full) == (2, "cannot write reports/x.csv: No space left on device")
    assert ended(KeyboardInterrupt())[0] == 130
    assert ended(UserError("a\x1b[31mb\n\u202ec"))[1] == r"ab \u202ec"
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")):
        code, line = ended(error)
        assert code == 2 and line.startswith("out of memory")
        Path(re.search(r"traceback in (\S+\.log)", line)[1]).unlink()


def test_help_of_every_command_is_still_exit_0(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rkhs-report", "--help"])
    with pytest.raises(SystemExit) as found:
        main_of("rkhs-report")()
    assert not found.value.code and "--images" in capsys.readouterr().out
