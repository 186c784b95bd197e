"""The commands, as a user types them: what works end to end, and one line with exit code 2 for what does not."""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import nn

from robustbench_rkhs import cli, load_model, verdicts
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports import figures

TINY = ["--epochs", "2", "--data.train", "200", "--data.validation", "50"]
FAST = ["--attack", "pgd:steps=5", "--samples", "16"]


UNDRAWN = ("evaluate", "report", "submit")
"""Commands whose figures are curves and trade-offs: tests/test_report.py looks at those."""


def rkhs(command, *flags, folder, code=0, drawn=False):
    """Run `rkhs-COMMAND flags` in `folder` (in this process: importing torch again takes seconds); its output and errors.

    Figures of curves and trade-offs are named files of no picture unless `drawn`, as to draw takes longer than all the rest.
    """
    out, err, before, typed = io.StringIO(), io.StringIO(), Path.cwd(), sys.argv
    patched = pytest.MonkeyPatch()
    if command in UNDRAWN and not drawn:
        patched.setattr(figures, "lay_out", lambda figure: None)
        patched.setattr(Figure, "savefig", lambda figure, target, **settings: Path(target).write_text("not drawn"))
    try:
        os.chdir(folder)
        sys.argv = [f"rkhs-{command}", *map(str, flags)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            importlib.import_module(f"robustbench_rkhs.cli.{command}").main()
    finally:
        patched.undo()
        os.chdir(before)
        sys.argv = typed
    assert left.value.code == code, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a recipe and a checkpoint trained by the command."""
    folder = tmp_path_factory.mktemp("home")
    root = Path(cli.__file__).parent.parent.parent
    shutil.copytree(root / "models", folder / "models")
    rkhs("train", "--model", "digits_mlp", "--out", "checkpoints/digits_mlp", *TINY, folder=folder)
    return folder


def test_train_evaluate_report(home):
    config = json.loads((home / "checkpoints/digits_mlp/config.json").read_text())
    card = (home / "checkpoints/digits_mlp/README.md").read_text()
    assert config["data"] == "digits" and "--epochs 2" in card
    out, _ = rkhs("evaluate", "--model", "digits_mlp", "--eps", "0.1", "36/255", *FAST, folder=home, drawn=True)
    assert "certified" in out and "curves:" in out and "verdicts:" in out
    (curves,) = out.split("curves:")[1].splitlines()[0].split()
    stem, _, suffixes = curves.partition(".{")
    assert suffixes == "pdf,png,svg}" and all((home / f"{stem}.{one}").stat().st_size > 1000 for one in ("pdf", "png", "svg"))
    again, _ = rkhs("evaluate", "--model", "digits_mlp", "--eps", "0.1", "36/255", *FAST, folder=home)
    assert again.splitlines()[1:] == out.splitlines()[1:]  # the first line tells the time
    listed, _ = rkhs("report", folder=home)
    assert "leaderboard" in listed
    board = (home / "reports/local/leaderboard.md").read_text()
    assert "digits_mlp" in board


def test_a_budget_shows_where_robust_accuracy_lies_and_the_command_without_it_goes_on(home):
    flags = ["--model", "digits_mlp", "--eps", "0.2", "0.4", "--samples", "30", "--effort", "quick", "--certify", "none"]
    flags += ["--out", "budgeted"]
    out, _ = rkhs("evaluate", *flags, "--budget", "0.001s", folder=home, code=3)
    assert "withheld: 0.0 to" in out and "budget of 0.001 s used up" in out and "images untested" in out
    (first,) = (home / "budgeted/verdicts").rglob("l2-*.parquet")
    out, _ = rkhs("evaluate", *flags, folder=home)
    assert "withheld" not in out and [*(home / "budgeted/verdicts").rglob("l2-*.parquet")] == [first]


def test_json_and_require(home):
    flags = ["--model", "digits_mlp", "--eps", "0.1", *FAST, "--json"]
    out, err = rkhs("evaluate", *flags, "--require", "clean>=0.2", "certified@0.1>=0", folder=home)
    found = json.loads(out)["evaluations"][0]
    assert found["summary"][0]["eps"] == 0.1 and found["about"]["samples"] == 16 and "holds" in err
    assert 0 <= found["summary"][0]["certified"] <= found["summary"][0]["robust"] <= found["summary"][0]["clean"]
    _, err = rkhs("evaluate", *flags, "--require", "robust@0.1>1", folder=home, code=1)
    assert "DOES NOT HOLD" in err


def test_your_own_model_and_data(home):
    generator = np.random.default_rng(0)
    x = generator.random((60, 1, 4, 4), dtype=np.float32)
    y = (x.reshape(60, -1).sum(1) > 8).astype(np.int64)
    np.savez(home / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (home / "mynets.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
    )
    flags = ["--model", "mynets:build", "--data", "mine.npz", "--eps", "8/255", "--norm", "linf", "--attack", "pgd:steps=5"]
    out, _ = rkhs("evaluate", *flags, folder=home)
    assert "build: mine.npz, l-infinity, 60 images" in out
    _, err = rkhs("evaluate", "--model", "mynets:bild", *flags[2:], folder=home, code=2)
    assert err.startswith("error: ") and "did you mean 'build'" in err


def test_submit_accepts_and_refuses(home):
    theirs = home / "theirs"
    shutil.copytree(home / "checkpoints/digits_mlp", theirs, ignore=shutil.ignore_patterns("resume.pt"))
    flags = ["--eps", "0.1", "--attack", "pgd:steps=5", "--certify", "margin", "--sample", "5", "--samples", "12"]
    out, _ = rkhs("submit", "checkpoint", theirs, *flags, folder=home)
    assert "checked: theirs" in out and "accepted:" in out
    assert "theirs" in (home / "reports/local/leaderboard.md").read_text()
    before = (home / "reports/local/leaderboard.md").read_bytes()
    (theirs / "model.py").write_text("print('code')")
    _, err = rkhs("submit", "checkpoint", theirs, *flags, folder=home, code=2)
    assert "unexpected file 'model.py'" in err
    (theirs / "model.py").unlink()
    weights = theirs / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    _, err = rkhs("submit", "checkpoint", theirs, *flags, folder=home, code=2)
    assert "its header describes" in err
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    _, err = rkhs("submit", "checkpoint", theirs, *flags, folder=home, code=2)
    assert "not a plain file" in err
    taken = home / "elsewhere" / "digits_conv"
    shutil.copytree(home / "checkpoints/digits_mlp", taken, ignore=shutil.ignore_patterns("resume.pt"))
    _, err = rkhs("submit", "checkpoint", taken, *flags, folder=home, code=2)
    assert "name of a model that comes with the package" in err
    assert (home / "reports/local/leaderboard.md").read_bytes() == before


MISTAKES = {
    "unknown model": (["evaluate", "--model", "digits_mpl", "--eps", "1"], "did you mean 'digits_mlp'"),
    "untrained model": (["evaluate", "--model", "digits_trades", "--eps", "1"], "rkhs-train --model digits_trades"),
    "unknown attack": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--attack", "pdg"], "did you mean 'pgd'"),
    "unknown certificate": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--certify", "margn"], "'margin'"),
    "unknown data": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--data", "digit"], "did you mean 'digits'"),
    "other data": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--data", "other.npz"], "no file 'other.npz'"),
    "out is empty": (
        ["evaluate", "--model", "digits_mlp", "--eps", "1", "--out", ""],
        "--out: expected a value, found an empty",
    ),
    "out= is empty": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--out="], "--out: expected a value, found an empty"),
    "std of zero": (
        ["evaluate", "--model", "digits_mlp", "--eps", "1", "--std", "0"],
        "expected positive numbers, found '0'",
    ),
    "mean of two": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--mean", "0.1", "0.2"], "expected a mean of 1 number"),
    "one name": (["evaluate", "--model", "digits_mlp", "digits_conv", "--eps", "1", "--name", "a"], "is one name for 2 models"),
    "eps no number": (["evaluate", "--model", "digits_mlp", "--eps", "one"], "found 'one'"),
    "eps negative": (["evaluate", "--model", "digits_mlp", "--eps", "-1"], "greater than or equal to 0"),
    "eps too large": (["evaluate", "--model", "digits_mlp", "--eps", "9"], "above the data range"),
    "eps not finite": (["evaluate", "--model", "digits_mlp", "--eps", "inf"], "finite"),
    "effort and attack": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--effort", "quick", "--attack", "pgd"], "leave out"),
    "budget": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--budget", "10 days"], "such as 90, 90s, 10min or 2h"),
    "no budget": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--budget", "0min"], "greater than 0"),
    "samples": (["evaluate", "--model", "digits_mlp", "--eps", "0.1", "--samples", "9999"], "1 to 500 samples"),
    "require": (["evaluate", "--model", "digits_mlp", "--eps", "0.1", "--require", "robust>0"], "robust@1.0>=0.45"),
    "device": (["evaluate", "--model", "digits_mlp", "--eps", "0.1", "--device", "cudaa"], "cannot be used here"),
    "no number": (
        ["evaluate", "--model", "digits_mlp", "--eps", "0.1", "--bits", "x"],
        "--bits: expected a whole number, found 'x'",
    ),
    "no switch": (["evaluate", "--model", "digits_mlp", "--eps", "0.1", "--curve", "abc"], "--curve: expected true or false"),
    "code to train": (["train", "--model", "own.py:build"], "`network: own.py:build`"),
    "misspelt field": (["train", "--model", "digits_mlp", "--epoch", "3"], "did you mean '--epochs'"),
    "loose word": (["train", "--model", "digits_mlp", "epochs=3"], "unexpected argument 'epochs=3'"),
    "no value": (["train", "--model", "digits_mlp", "--epochs"], "--epochs needs a value"),
    "card": (["listing", "attacks", "pdg"], "did you mean 'pgd'"),
    "no verdicts": (["report", "--out", "nowhere"], "no verdicts"),
    "no folder": (["submit", "checkpoint", "nowhere", "--eps", "0.1"], "no checkpoint folder"),
}


@pytest.mark.parametrize("typed, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(home, typed, line):
    before = sorted(home.rglob("*"))
    _, said = rkhs(*typed, folder=home, code=2)
    assert said.startswith("error: ") and line in said and said.count("\n") == 1
    assert sorted(home.rglob("*")) == before


def test_a_normalisation_that_was_typed_is_part_of_the_function_and_the_name_is_the_users(home):
    plain = load_model(str(home / "checkpoints/digits_mlp"))
    normal = ["--certify", "none", "--no-diagnostics", "--attack", "pgd:steps=1", "--samples", "8"]
    rkhs(
        "evaluate", "--model", "digits_mlp", "--eps", "0.1", "--mean", "0.5", "--std", "1/4", "--name", "mine", *normal, folder=home
    )
    (one,) = verdicts.read_all(home / "reports/verdicts/mine")
    split = plain.test.sample(8, 0)
    shifted = nn.Sequential(Normalize([0.5], [0.25]), plain.model)
    said = one.table[one.table["method"] == "prediction"].set_index("index")["predicted"]
    assert said[split.index.tolist()].tolist() == shifted(split.x).argmax(1).tolist()
    assert one.about.key == key_of(shifted.eval()) != key_of(plain.model)


def test_the_process_itself_exits_with_2(home):
    script = "from robustbench_rkhs.cli.evaluate import main; main()"
    flags = ["--model", "digits_mpl", "--eps", "1"]
    done = subprocess.run([sys.executable, "-c", script, *flags], cwd=home, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("-c: loading digits_mpl ...\nerror: unknown model 'digits_mpl'")


def test_no_write_permission_and_a_full_disk_are_one_line(home):
    (home / "blocked").write_text("a file where a folder should be")
    _, said = rkhs("evaluate", "--model", "digits_mlp", "--eps", "0.1", *FAST, "--out", "blocked/sub", folder=home, code=2)
    assert "--out: expected a folder, found the file 'blocked'" in said
    if Path("/dev/full").exists():
        from robustbench_rkhs.runtime.files import write_whole

        def fill(path):
            with open("/dev/full", "w") as full:
                full.write("x" * 100_000)

        with pytest.raises(UserError, match=r"cannot write .*: No space left"):
            write_whole(home / "full.txt", fill)
        assert not list(home.glob("*.part")) and not (home / "full.txt").exists()


def test_bad_flags_are_refused_before_pytorch_is_loaded(home):
    flags = ["rkhs-eval", "--model", "digits_mlp", "--eps"]
    typed = [[*flags, "x"]] + [[*flags, "1", *more] for more in (["--device", "cudaa"], ["--samples", "0"], ["--norm", "l3"])]
    typed.append(["rkhs-verify", "nowhere.npz"])
    script = f"""
import sys
from robustbench_rkhs.cli import evaluate, verify
for sys.argv in {typed}:
    try: (evaluate if sys.argv[0] == 'rkhs-eval' else verify).main()
    except SystemExit as left: assert left.code == 2
    else: raise AssertionError(sys.argv)
    assert 'torch' not in sys.modules, sys.argv
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "] * 5


def test_help_and_listing_import_no_torch(home):
    script = "import sys\nfrom robustbench_rkhs.cli.listing import main\nsys.argv = ['rkhs-list']\n"
    script += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("digits_mlp", "pgd", "autoattack", "margin", "gradient", "spectral", "vgg"):
        assert word in done.stdout


def test_diagnostics_are_switched_off_and_the_sampled_check_chosen_and_help_says_what_they_cost(home):
    flags = ["--model", "digits_mlp", "--eps", "0.02", "0.04", "--attack", "pgd:steps=1", "--samples", "8", "--certify", "none"]
    out, err = rkhs("evaluate", *flags, "--no-diagnostics", "--rechecked", "3", "--json", folder=home)
    about = json.loads(out)["evaluations"][0]["about"]
    assert about["diagnostics"] == [] and about["marks"] == ["undiagnosed"] and "DOUBTFUL undiagnosed" in err
    assert about["settings"]["rechecked"] == 3 and 0 < about["rechecked"]["pairs"] <= 3
    _, err = rkhs("evaluate", *flags, "--rechecked", "-1", folder=home, code=2)
    assert "rechecked" in err
    said = "".join(rkhs("evaluate", "--help", folder=home)[0].replace("│", " ").split())  # lines may end within a number
    for flag, cost in (("--rechecked", "8,800passes"), ("--no-diagnostics", "1,550passes"), ("--twin", "330passes")):
        assert cost in said.split(flag, 1)[1], said
