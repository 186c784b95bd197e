"""How the commands end: exit codes, what --json says of completeness, and what an interruption leaves."""

import json
import os
import signal

import numpy as np
import pytest
from test_cli import rkhs

from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool
from robustbench_rkhs.cli.endings import code_of

NETS = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("endings")
    (made / "nets.py").write_text(NETS)
    generator = np.random.default_rng(0)
    np.savez(made / "data.npz", x_test=generator.random((12, 1, 4, 4), dtype=np.float32), y_test=np.arange(12) % 2)
    return made


def flags(out):
    quick = ["--effort", "quick", "--certify", "margin", "--no-diagnostics"]
    return ["--model", "nets.py:build", "--data", "data.npz", "--eps", "0.05", *quick, "--out", out, "--json"]


def interrupted(*given, **named):
    raise KeyboardInterrupt


def written(folder, out):
    files = (path for path in (folder / out).rglob("*") if path.is_file() and path.name != ".gitignore")
    return {path.suffix for path in files if "parts" not in path.parts}


@pytest.mark.parametrize(
    ("failed", "reasons", "code"),
    [
        (False, [], 0),
        (False, [None, None], 0),
        (True, [None], 1),
        (False, [None, "budget"], 3),
        (True, ["budget", None], 1),
        (False, ["budget", "interrupted"], 130),
        (True, ["interrupted"], 130),
    ],
)
def test_the_exit_code_says_what_came_of_all_models(failed, reasons, code):
    assert code_of(failed, reasons) == code


def test_complete(folder):
    out, _ = rkhs("evaluate", *flags("whole"), folder=folder)
    found = json.loads(out)
    assert found["complete"] and found["evaluations"][0]["complete"] and found["evaluations"][0]["incomplete_because"] is None
    assert {".png", ".parquet"} <= written(folder, "whole")


def test_a_budget_that_ends_first(folder):
    decided = ["--require", "robust@0.05<=1", "clean>=0"]
    out, err = rkhs("evaluate", *flags("short"), "--budget", "0.001s", *decided, folder=folder, code=3)
    found = json.loads(out)
    assert not found["complete"] and found["evaluations"][0]["incomplete_because"] == "budget"
    assert "robust@0.05<=1: found withheld (images are untested), between" in err and err.count("holds") == 2
    assert ".png" in written(folder, "short")
    _, err = rkhs("evaluate", *flags("open"), "--budget", "0.001s", "--require", "robust@0.05>=0.4", folder=folder, code=3)
    assert "IS NOT DECIDED" in err
    _, err = rkhs("evaluate", *flags("failed"), "--budget", "0.001s", "--require", "robust@0.05>=0.99", folder=folder, code=1)
    assert "DOES NOT HOLD" in err  # as clean accuracy is below that already


@pytest.mark.parametrize("how", ["keyboard", "SIGTERM"])
def test_an_interruption_keeps_the_table_and_draws_nothing(folder, monkeypatch, how):
    def search(self, engine):
        if how == "keyboard":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SuperDeepFool, "search", search)
    models = ["nets.py:build", "nets.py:build"]
    words = [*flags(how)[:1], *models, *flags(how)[2:]]
    out, err = rkhs("evaluate", *words, folder=folder, code=130)
    found = json.loads(out)
    (only,) = found["evaluations"]  # the second is not begun
    assert not found["complete"] and not only["complete"] and only["incomplete_because"] == "interrupted"
    assert only["summary"][0]["images"] == 12 and "interrupted" in err
    assert written(folder, how) <= {".parquet", ".json", ".jsonl"}


def test_an_interruption_before_there_is_a_table(folder, monkeypatch):
    monkeypatch.setattr("robustbench_rkhs.zoo.load_model", interrupted)
    out, _ = rkhs("evaluate", *flags("nothing"), folder=folder, code=130)
    found = json.loads(out)
    assert found.pop("error").startswith("interrupted") and found == {"complete": False, "incomplete_because": "interrupted"}
    assert not (folder / "nothing").exists()


def test_an_audit_that_is_interrupted_or_short(folder, monkeypatch):
    words = ["--model", "nets.py:build", "--data", "data.npz", "--claim", "certified@0.05=0.1", "--certify", "margin", "--json"]
    rkhs("audit", *words, "--no-diagnostics", "--budget", "0.001s", "--out", "audited", folder=folder, code=3)
    monkeypatch.setattr("robustbench_rkhs.attacks.pgd.PGD.search", interrupted)
    rkhs("audit", *words, "--no-diagnostics", "--out", "stopped", folder=folder, code=130)
    assert not list((folder / "stopped").glob("audits/build.*"))
