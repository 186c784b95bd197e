"""What a newcomer types wrong: one line says what was found, what was expected and what was perhaps meant."""

import subprocess
import sys

import numpy as np
import pytest
from test_cli import rkhs
from test_packaging import ROOT

from robustbench_rkhs.nodes.arguments import wrong_type
from robustbench_rkhs.nodes.counts import counted, listed

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, hidden: int = 8, bias=True, slope=0.1):
        super().__init__(nn.Flatten(), nn.Linear(64, hidden, bias=bias), nn.LeakyReLU(slope), nn.Linear(hidden, 10))

def fails(sides=None):
    return nn.Linear(sides, 3)
"""
OWN = ["--eps", "0.1", "--data", "ones.npz"]
LINES = {
    "arrays of other names": (
        ["evaluate", "--model", "digits_mlp", "--eps", "0.1", "--data", "names.npz"],
        "names.npz: expected arrays x_test and y_test, found images and labels; add what is missing: np.savez(FILE, x_test=",
    ),
    "labels from 1": (
        ["evaluate", "--model", "newcomer.py:Net", *OWN],
        "expected labels 0 to 9 (the model has 10 classes), found 1 to 10; ",
    ),
    "of a known model": (["evaluate", "--model", "digits_mlp", *OWN], "(the model has 10 classes), found 1 to 10; subtract 1?"),
    "text for a number": (
        ["evaluate", "--model", "newcomer.py:Net:hidden=abc", *OWN],
        "hidden: expected a whole number, found 'abc'",
    ),
    "a line in a library": (["evaluate", "--model", "newcomer.py:fails:sides=abc", *OWN], "(newcomer.py, line 8)"),
    "in a recipe": (
        ["train", "--model", "mine", "--network.hidden", "abc"],
        "newcomer.py:Net: hidden: expected a whole number, found",
    ),
    "a whole number": (
        ["train", "--model", "digits_mlp", "--epochs", "abc"],
        "error: --epochs: expected a whole number, found 'abc'",
    ),
    "a condition": (
        ["evaluate", "--model", "digits_mlp", "--eps", "1", "--require", "certfied@1>=0.3"],
        "did you mean 'certified'?",
    ),
    "a file": (["evaluate", "--model", "digits_mlp", "--eps", "1", "--data", "no.npz"], "its folder holds 'names.npz', 'ones.npz'"),
    "a checkpoint": (["verify", str(ROOT / "checkpoints/digits_mlp")], "this is a checkpoint, not a proof"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("typed")
    x = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    np.savez(place / "names.npz", images=x, labels=np.zeros(20, int))
    np.savez(place / "ones.npz", x_test=x, y_test=np.arange(20) % 10 + 1)
    (place / "newcomer.py").write_text(NETS.strip())
    (place / "models").mkdir()
    (place / "models/mine.yaml").write_text("data: {name: digits}\nnetwork: {name: 'newcomer.py:Net'}\n")
    return place


@pytest.mark.parametrize("case", LINES)
def test_it_is_one_line(folder, case):
    words, line = LINES[case]
    out, errors = rkhs(*words, folder=folder, code=2)
    told = [one for one in errors.splitlines() if not one.startswith(("rkhs-", "WARNING", "note", "["))]
    assert line in errors and len(told) == 1, (out, errors)


def test_what_is_no_file_of_adversarial_images_is_refused_without_torch(folder):
    code = (
        "import sys; sys.argv = ['rkhs-verify', 'ones.npz']; from robustbench_rkhs.cli.verify import main\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    line = "error: ones.npz: expected adversarial images (of rkhs-eval --save-adversarials), found the arrays x_test, y_test\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "False\n", line)


def test_an_evaluation_begins_with_what_its_eps_may_mean_and_ends_with_the_verdicts(folder):
    """digits_mlp is certified on these images by its first certificate, so nothing is left to what comes after."""
    words = ["--model", "digits_mlp", "--samples", "4", "--effort", "quick", "--no-diagnostics"]
    out, _ = rkhs("evaluate", *words, "--eps", "0.01", "--certify", "margin", folder=folder)
    assert "attacks, each on" not in out and "certificates, each on" in out
    assert "not needed, as no image was left: superdeepfool, ddn, fab:targeted" in " ".join(out.split())
    assert (
        out.index("certificates, each on")
        < out.index("not needed")
        < out.index("digits_mlp: digits, l2, 4 images")
        < out.index("verdicts: ")
    )
    out, _ = rkhs("evaluate", *words, "--eps", "8", "--certify", "none", folder=folder)
    assert out.index("8/255 meant?") < out.index("attacks, each on") < out.index("not needed") < out.rindex("8/255 meant?")


def test_only_text_for_a_plain_number_or_truth_value_is_wrong():
    def build(width: int, depth: "int" = 2, slope=0.1, bias=True, name="x", sizes: list[int] | None = None, **rest): ...

    assert wrong_type(build, {"width": 3, "slope": 1, "bias": False, "name": "abc", "sizes": "[", "other": "x"}) == ""
    for words, line in (
        ({"width": "x"}, "width: expected a whole number, found 'x'"),
        ({"depth": "x"}, "depth: expected a whole number, found 'x'"),
        ({"slope": "x"}, "slope: expected a number, found 'x'"),
        ({"bias": "x"}, "bias: expected true or false, found 'x'"),
    ):
        assert wrong_type(build, words) == line


def test_counts_and_lists():
    assert [counted(n, "board") for n in (0, 1, 2, 1200)] == ["0 boards", "1 board", "2 boards", "1,200 boards"]
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
